"""The processor: a Faust worker with one agent a feed."""

from __future__ import annotations

import asyncio
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

from faust.types import TP
from tenacity import AsyncRetrying

from processors import GROUP
from processors.partition import Partition, Read, read, shown_every
from schemas.catalogue import Catalogue, declared
from schemas.feed import Aggregate, Feed
from schemas.writing import Columns, encode_bodies
from streams import deadletters
from streams.awaited import Awaited
from streams.batchworker import LOOK_EVERY, BatchWorker, Held, locked
from streams.cluster import Cluster
from streams.deadletters import DeadLetter
from streams.decode import Decoder
from streams.generations import generations, source_definitions, sources
from streams.positions import Position
from streams.producing import LARGEST_BODY, Packed, Sender
from streams.runs import Run
from streams.topics import topics
from streams.transport import passes
from streams.waiting import KAFKA, kafka_away
from streams.worker import BatchApp, run


@dataclass(frozen=True)
class Change:
    """What a flush of a partition writes, by topic, and the position it leads to."""

    position: Position
    dead: list[DeadLetter]
    parts: list[tuple[str, list[Packed]]]


class Processor(BatchWorker[Partition, Read]):
    """Windows of the assigned partitions, written to Kafka."""

    command = "citystream process"

    def __init__(
        self, app: BatchApp, feeds: Mapping[str, Feed], catalogue: Catalogue, *, accept_bad: Container[str] = ()
    ) -> None:
        self._accept_bad = accept_bad
        self._schemas = {name: catalogue.of(name, schema) for name, schema in declared(feeds).items()}
        self._declared = feeds
        self._sources = sources(feeds.values())
        self._decoders = {
            topic: Decoder(catalogue, one.feed.name, one.feed, Awaited(catalogue), topic)
            for topic, one in self._sources.items()
        }
        super().__init__(app, {topic: one.feed.name for topic, one in self._sources.items()})

    def begin(self, tp: TP, start: Position) -> Partition:
        """A partition that rebuilds its open windows from the rewind offset."""
        one, decoder = self._sources[tp.topic], self._decoders[tp.topic]
        accept = one.feed.name in self._accept_bad
        return Partition(one.feed, one.first + tp.partition, decoder, start, accept_bad=accept)

    def every(self, feed: str, /) -> timedelta:
        """As often as anybody can see one of its windows change."""
        return min(map(shown_every, self._declared[feed].aggregates), default=LOOK_EVERY)

    def read(self, waiting: Sequence[tuple[Partition, Run]]) -> list[Read]:
        """Decode and judge."""
        return read(waiting)

    def take(self, state: Partition, run: Run, read: Read) -> None:
        """Count a run into its windows."""
        state.take(run, read)

    def unwritten(self, state: Partition) -> int:
        """Bytes of its dead letters; windows grow with the city, dead letters with what goes wrong."""
        return state.unwritten

    async def flush(self, held: Mapping[TP, Held[Partition]]) -> None:
        """Write what changed of a feed, wait for every acknowledgement, then let the positions be committed."""
        async with locked(held.values()):
            kept = {tp: one.state for tp, one in held.items() if self.held.get(tp) is one}  # others were half taken
            changes = await asyncio.to_thread(self._changes, kept, asyncio.get_running_loop().time())
            for tp, state in kept.items():
                held[tp].fresh |= state.owes
        self.taken()
        if changes:
            await self._written(held, changes)

    def _changes(self, states: Mapping[TP, Partition], now: float) -> dict[TP, Change]:
        """What there is to write, for all partitions of a feed in one go."""
        outputs = {tp: output for tp, state in states.items() if (output := state.flush(now)) is not None}
        return {
            tp: Change(
                output.position,
                output.dead,
                [
                    (aggregate.topic, self._packed(aggregate, output.parts[aggregate.name]))
                    for aggregate in self._sources[tp.topic].feed.aggregates
                    if aggregate.name in output.parts
                ],
            )
            for tp, output in outputs.items()
        }

    def _packed(self, aggregate: Aggregate, parts: Columns) -> list[Packed]:
        bodies = encode_bodies(self._schemas[aggregate.topic], aggregate.by, parts, LARGEST_BODY)
        return [Packed(body) for body in bodies]

    async def _written(self, held: Mapping[TP, Held[Partition]], changes: dict[TP, Change]) -> None:
        """Write what is left of these until Kafka has it all, or the partitions were taken away."""
        topics = {
            deadletters.TOPIC,
            *(tp.topic for tp in changes),
            *(topic for change in changes.values() for topic, _ in change.parts),
        }

        def kept() -> list[TP]:
            return [tp for tp in changes if self.keeps(tp, held[tp])]

        async for attempt in AsyncRetrying(
            **KAFKA.retrying(passes, kafka_away(self.app.cluster), wanted=lambda: bool(kept())),
            retry_error_callback=lambda _: None,
        ):
            with attempt:
                await self.app.unchanged(topics)
                writing = [self._finish(tp, held[tp], changes) for tp in kept()]
                for error in await asyncio.gather(*writing, return_exceptions=True):
                    if error is not None:
                        raise error

    async def _finish(self, tp: TP, held: Held[Partition], changes: dict[TP, Change]) -> None:
        await self._write(tp, changes[tp])
        change = changes.pop(tp)
        if self.keeps(tp, held):
            self.app.batch_consumer.flushed[tp] = change.position

    async def _write(self, tp: TP, change: Change) -> None:
        sender = Sender(self.app.producer)
        one = self._sources[tp.topic]
        into = (one.first + tp.partition) % generations(one.feed)[0].partitions
        for topic, batches in change.parts:
            await sender.send_packed(topic, into, batches)
        await sender.send_letters(deadletters.TOPIC, change.dead)
        await sender.settle()


def main(
    feeds: Mapping[str, Feed],
    catalogue: Catalogue,
    cluster: Cluster,
    instance: str | None = None,
    *,
    accept_bad: Container[str] = (),
) -> None:
    """Process these feeds until a signal ends it; ``accept_bad`` names those to go on with whatever their share of bad
    records."""
    definitions = source_definitions(feeds.values())
    app = BatchApp(GROUP, cluster, definitions, topics(feeds.values()), instance=instance)
    Processor(app, feeds, catalogue, accept_bad=accept_bad)
    run(app, definitions)

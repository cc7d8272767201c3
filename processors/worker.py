"""The processor: a Faust worker with one agent a feed."""

from __future__ import annotations

import asyncio
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, Protocol

from tenacity import AsyncRetrying

from processors import GROUP
from processors.gathering import FinalPartReader, FinalParts, Flushed, Gathering
from processors.making import Making
from processors.partition import Output, Partition, Rows, shown_every
from processors.reading import Histories, Reader
from schemas.alerts import FEED_NAME as ALERTS
from schemas.alerts import Message, Status
from schemas.catalogue import Catalogue, declared
from schemas.feed import Aggregate, Feed, made_from
from schemas.record_codec import encode
from schemas.reference import Reference
from streams import deadletters, snapshots
from streams.assignment import Assigned, TopicPartition, locked
from streams.batchworker import LOOK_EVERY, BatchWorker, Transport
from streams.cluster import Cluster
from streams.deadletters import DeadLetter
from streams.decode import Decoder
from streams.feed_topics import feed_topics, topic_of
from streams.gathered import gathered_topics, processed_definitions
from streams.group_positions import GroupPositions
from streams.lifecycle import Moment, Stage, tell
from streams.missing_schemas import Awaited
from streams.positions import Position, Snapshot
from streams.references import References
from streams.topics import topics
from streams.transport.app import BatchApp
from streams.transport.consumer import is_transient
from streams.transport.sending import LARGEST_BODY, Packed, Sender
from streams.waiting import KAFKA, kafka_away
from streams.wire.column_writer import Columns, encode_bodies
from streams.wire.fetched_batches import Run


class Sending(Transport, Protocol):
    """What reads for a processor also sends its results."""

    @property
    def cluster(self) -> Cluster:
        """The brokers."""

    def sender(self) -> Sender:
        """What sends the results of one flush."""


@dataclass(frozen=True)
class Change:
    """What a flush of a partition writes, records and parts by their topics, and the position it leads to."""

    position: Position
    records: list[tuple[str, bytes, bytes]]
    snapshot: bytes | None
    dead: list[DeadLetter] = field(default_factory=list)
    parts: list[tuple[str, int, list[Packed]]] = field(default_factory=list)


NO_FEEDS: Mapping[str, Feed] = {}
#: What a partition of a feed, or one in which groups come together, is for a processor, and what is read of a run.
State = Partition | Gathering
Read = Rows | FinalParts


class Processor(BatchWorker[State, Read]):
    """Windows of the assigned partitions and alerts of their rules, written to Kafka.

    ``status`` says of alerts whether they are meant; ``histories`` has what is looked up. Into ``others`` records are
    made of those of its feeds.
    """

    command = "citystream process"

    def __init__(
        self,
        transport: Sending,
        feeds: Mapping[str, Feed],
        catalogue: Catalogue,
        *,
        accept_bad: Container[str] = (),
        status: Status = Status.EXERCISE,
        histories: Histories | None = None,
        others: Iterable[Feed] = (),
    ) -> None:
        self.transport: Sending = transport
        self._accept_bad, self._status = accept_bad, status
        self._alert = catalogue.latest(ALERTS) if any(one.raises_alerts for one in feeds.values()) else None
        self._schemas = {name: catalogue.of(name, schema) for name, schema in declared(feeds).items()}
        self._declared = feeds
        self._topics = feed_topics(*feeds.values())
        targets = [*others]
        self._makings = {
            name: [Making(feed, one, catalogue.latest(one.name)) for one in made_from(feed, targets)]
            for name, feed in feeds.items()
        }
        self._readers = {
            topic: Reader(
                one,
                Decoder(catalogue, one.feed.name, one.feed, Awaited(catalogue), topic),
                histories,
                self._makings[one.feed.name],
            )
            for topic, one in self._topics.items()
        }
        self._gathered = gathered_topics(*feeds.values())
        self._final_parts = {name: FinalPartReader(topic, catalogue) for name, topic in self._gathered.items()}
        outputs = {aggregate.topic: feed.name for feed in feeds.values() for aggregate in feed.aggregates}
        read = {topic: one.feed.name for topic, one in self._topics.items()}
        read |= {topic: one.feed.name for topic, one in self._gathered.items()}
        super().__init__(transport, read, outputs)

    def begin(self, one: Assigned[State]) -> State:
        """A partition that rebuilds its open windows from the rewind offset."""
        if one.place.topic in self._gathered:
            return Gathering(self._gathered[one.place.topic], one.start, self._status, lambda: self._snapshot(one))
        topic = self._topics[one.place.topic]
        feed, number = topic.feed, topic.first + one.place.partition
        self._readers[topic.name].check(f"{feed.name}/{number}", one.start)
        return Partition(
            feed,
            number,
            one.start,
            accept_bad=feed.name in self._accept_bad,
            status=self._status,
            recall=lambda: self._snapshot(one),
        )

    def _snapshot(self, one: Assigned[State]) -> bytes | None:
        named = one.start.snapshot
        return None if named is None else snapshots.read(self.transport.cluster, one.place, named)

    def every(self, feed: str, /) -> timedelta:
        """As often as anybody can see one of its windows change, and at once where other feeds wait for it."""
        declared = self._declared[feed]
        at_once = declared.raises_alerts or self._makings[feed]
        return LOOK_EVERY if at_once else min(map(shown_every, declared.aggregates), default=LOOK_EVERY)

    def read(self, waiting: Sequence[tuple[State, Run]]) -> Sequence[Read]:
        """Decode and judge."""
        _, run = waiting[0]
        reader: Any = self._final_parts.get(run.topic) or self._readers[run.topic]
        found: Sequence[Read] = reader.read(waiting)
        return found

    def take(self, state: State, _: Run, read: Any) -> None:
        """Count rows into their windows, or let final parts come together."""
        state.take(read)

    def unwritten(self, state: State) -> int:
        """Bytes of its dead letters; windows grow with the city, dead letters with what goes wrong."""
        return state.unwritten

    async def flush(self, assigned: Sequence[Assigned[State]]) -> None:
        """Write what changed of a feed, wait for every acknowledgement, then let the positions be committed."""
        async with locked(assigned):
            begun = [one for one in assigned if one.begun]  # others were half taken
            states = {one: one.state for one in begun}
            changes = await asyncio.to_thread(self._changes, states, asyncio.get_running_loop().time())
            for one, state in states.items():
                one.fresh |= state.owes
        self.taken()
        if changes:
            feed = self._feeds[assigned[0].place.topic]
            said = f"{feed}: Kafka has not taken its windows and dead letters yet; they are sent again until it does"
            await self.write_patiently([*changes], self._written(changes), lambda: said)

    def _changes(self, states: Mapping[Assigned[State], State], now: float) -> dict[Assigned[State], Change]:
        """What there is to write, for all partitions of a feed in one go."""
        found = {one: state.flush(now) for one, state in states.items()}
        return {one: self._change(one, output) for one, output in found.items() if output is not None}

    def _change(self, one: Assigned[State], output: Output | Flushed) -> Change:
        alerts = [self._encoded(message) for message in output.alerts]
        if isinstance(output, Flushed):
            return Change(output.position, alerts, output.snapshot)
        made = [(each.topic, each.key, each.value) for each in output.made]
        topic = self._topics[one.place.topic]
        into = (topic.first + one.place.partition) % topic_of(topic.feed, 0).partitions
        aggregates = [each for each in topic.feed.aggregates if each.name in output.parts]
        parts = [(each.topic, into, self._packed(each, output.parts[each.name])) for each in aggregates]
        parts += [
            (name, partition, self._packed(self._gathered[name].aggregate, columns))
            for (name, partition), columns in output.gathered.items()
        ]
        return Change(output.position, [*alerts, *made], output.snapshot, output.dead, parts)

    def _packed(self, aggregate: Aggregate, parts: Columns) -> list[Packed]:
        bodies = encode_bodies(self._schemas[aggregate.topic], aggregate.by, parts, LARGEST_BODY)
        return [Packed(body) for body in bodies]

    def _encoded(self, message: Message) -> tuple[str, bytes, bytes]:
        assert self._alert is not None
        return ALERTS, message["alert_id"].encode(), encode(self._alert, message)

    async def _written(self, changes: dict[Assigned[State], Change]) -> None:
        """Write what is left of these until Kafka has it all, or the partitions were taken away."""
        topics = {
            deadletters.TOPIC,
            *(topic for change in changes.values() for topic, _, _ in change.records),
            *(snapshots.TOPIC for change in changes.values() if change.snapshot is not None),
            *(one.place.topic for one in changes),
            *(topic for change in changes.values() for topic, _, _ in change.parts),
        }

        def current() -> list[Assigned[State]]:
            return [one for one in changes if one.current]

        async for attempt in AsyncRetrying(
            **KAFKA.retrying(is_transient, kafka_away(self.transport.cluster), wanted=lambda: bool(current())),
            retry_error_callback=lambda _: None,
        ):
            with attempt:
                await self.transport.unchanged(topics)
                writing = [self._finish(one, changes) for one in current()]
                for error in await asyncio.gather(*writing, return_exceptions=True):
                    if error is not None:
                        raise error

    async def _finish(self, one: Assigned[State], changes: dict[Assigned[State], Change]) -> None:
        await self._write(one.place, changes[one])
        named = await self._keep(one, changes[one])
        self.flushed(one, replace(changes.pop(one).position, snapshot=named))

    async def _keep(self, one: Assigned[State], change: Change) -> Snapshot | None:
        """Write what the rules hold, if it is time, when all they said is acknowledged; gives where the last one is."""
        if change.snapshot is None:
            return one.flushed.snapshot
        sender = self.transport.sender()
        sent = await sender.send(snapshots.TOPIC, snapshots.key(one.place), change.snapshot)
        await sender.settle()
        return Snapshot(sent.result().offset, change.position.processed)

    async def _write(self, place: TopicPartition, change: Change) -> None:
        sender = self.transport.sender()
        for topic, into, batches in change.parts:
            await sender.send_packed(topic, into, batches)
        await sender.send_letters(deadletters.TOPIC, change.dead)
        for topic, key, value in change.records:
            await sender.send(topic, key, value)
        tell(Moment(Stage.SENT, place, next=change.position.processed))
        await sender.settle()


def main(
    feeds: Mapping[str, Feed],
    catalogue: Catalogue,
    cluster: Cluster,
    instance: str | None = None,
    *,
    accept_bad: Container[str] = (),
    status: Status = Status.EXERCISE,
    others: Mapping[str, Feed] = NO_FEEDS,
    references: Iterable[Reference] = (),
) -> None:
    """Process these feeds until a signal ends it; ``accept_bad`` names those to go on with whatever their share of bad
    records. What their rules say, and by ``status`` whether it is meant, goes to the feed of alerts among ``others``,
    what is made of their records to those that say so. What is looked up is in ``references``."""
    positions = GroupPositions(cluster, GROUP, processed_definitions(*feeds.values()))
    made = [target for feed in feeds.values() for target in made_from(feed, others.values())]
    used = {feed.name: feed for feed in [*feeds.values(), *made, *filter(None, [others.get(ALERTS)])]}
    app = BatchApp(positions, topics(used.values()), instance=instance)
    wanted = {name for feed in feeds.values() for name in feed.tables}
    wanted |= {leaf.table for target in made for way in target.made_of for leaf in way.looked_up}
    tables = References(cluster, [one for one in references if one.name in wanted], catalogue)
    if wanted:
        tables.start()
    app.run(
        Processor(app, feeds, catalogue, accept_bad=accept_bad, status=status, histories=tables.history, others=made)
    )

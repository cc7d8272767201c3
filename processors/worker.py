"""The processor: a Faust worker with one agent a feed."""

from __future__ import annotations

import asyncio
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Protocol

from tenacity import AsyncRetrying

from processors import GROUP
from processors.partition import Partition, Rows, shown_every
from processors.reading import Reader
from schemas import alerts
from schemas.alerts import Status
from schemas.catalogue import Catalogue, declared
from schemas.feed import Aggregate, Feed
from schemas.record_codec import encode
from streams import deadletters, snapshots
from streams.assignment import Assigned, TopicPartition, locked
from streams.batchworker import LOOK_EVERY, BatchWorker, Transport
from streams.cluster import Cluster
from streams.deadletters import DeadLetter
from streams.decode import Decoder
from streams.feed_topics import feed_definitions, feed_topics, topic_of
from streams.group_positions import GroupPositions
from streams.lifecycle import Moment, Stage, tell
from streams.missing_schemas import Awaited
from streams.positions import Position, Snapshot
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
    """What a flush of a partition writes, parts by topic, and the position it leads to."""

    position: Position
    dead: list[DeadLetter]
    parts: list[tuple[str, list[Packed]]]
    alerts: list[tuple[bytes, bytes]]
    snapshot: bytes | None


class Processor(BatchWorker[Partition, Rows]):
    """Windows of the assigned partitions and alerts of their rules, written to Kafka.

    ``status`` says of alerts whether they are meant.
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
    ) -> None:
        self.transport: Sending = transport
        self._accept_bad, self._status = accept_bad, status
        self._alert = catalogue.latest(alerts.FEED_NAME) if any(one.raises_alerts for one in feeds.values()) else None
        self._schemas = {name: catalogue.of(name, schema) for name, schema in declared(feeds).items()}
        self._declared = feeds
        self._topics = feed_topics(*feeds.values())
        self._readers = {
            topic: Reader(one, Decoder(catalogue, one.feed.name, one.feed, Awaited(catalogue), topic))
            for topic, one in self._topics.items()
        }
        outputs = {aggregate.topic: feed.name for feed in feeds.values() for aggregate in feed.aggregates}
        super().__init__(transport, {topic: one.feed.name for topic, one in self._topics.items()}, outputs)

    def begin(self, one: Assigned[Partition]) -> Partition:
        """A partition that rebuilds its open windows from the rewind offset."""
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

    def _snapshot(self, one: Assigned[Partition]) -> bytes | None:
        named = one.start.snapshot
        return None if named is None else snapshots.read(self.transport.cluster, one.place, named)

    def every(self, feed: str, /) -> timedelta:
        """As often as anybody can see one of its windows change, and at once where alerts wait for it."""
        declared = self._declared[feed]
        return LOOK_EVERY if declared.raises_alerts else min(map(shown_every, declared.aggregates), default=LOOK_EVERY)

    def read(self, waiting: Sequence[tuple[Partition, Run]]) -> list[Rows]:
        """Decode and judge."""
        _, run = waiting[0]
        return self._readers[run.topic].read(waiting)

    def take(self, state: Partition, _: Run, rows: Rows) -> None:
        """Count rows into their windows."""
        state.take(rows)

    def unwritten(self, state: Partition) -> int:
        """Bytes of its dead letters; windows grow with the city, dead letters with what goes wrong."""
        return state.unwritten

    async def flush(self, assigned: Sequence[Assigned[Partition]]) -> None:
        """Write what changed of a feed, wait for every acknowledgement, then let the positions be committed."""
        async with locked(assigned):
            begun = [one for one in assigned if one.begun]  # others were half taken
            states = {one: one.state for one in begun}
            changes = await asyncio.to_thread(self._changes, states, asyncio.get_running_loop().time())
            for one, state in states.items():
                one.fresh |= state.owes
        self.taken()
        if changes:
            feed = self._topics[assigned[0].place.topic].feed.name
            said = f"{feed}: Kafka has not taken its windows and dead letters yet; they are sent again until it does"
            await self.write_patiently([*changes], self._written(changes), lambda: said)

    def _changes(
        self, states: Mapping[Assigned[Partition], Partition], now: float
    ) -> dict[Assigned[Partition], Change]:
        """What there is to write, for all partitions of a feed in one go."""
        outputs = {one: output for one, state in states.items() if (output := state.flush(now)) is not None}
        return {
            one: Change(
                output.position,
                output.dead,
                [
                    (aggregate.topic, self._packed(aggregate, output.parts[aggregate.name]))
                    for aggregate in self._topics[one.place.topic].feed.aggregates
                    if aggregate.name in output.parts
                ],
                [self._encoded(message) for message in output.alerts],
                output.snapshot,
            )
            for one, output in outputs.items()
        }

    def _packed(self, aggregate: Aggregate, parts: Columns) -> list[Packed]:
        bodies = encode_bodies(self._schemas[aggregate.topic], aggregate.by, parts, LARGEST_BODY)
        return [Packed(body) for body in bodies]

    def _encoded(self, message: alerts.Message) -> tuple[bytes, bytes]:
        assert self._alert is not None
        return message["alert_id"].encode(), encode(self._alert, message)

    async def _written(self, changes: dict[Assigned[Partition], Change]) -> None:
        """Write what is left of these until Kafka has it all, or the partitions were taken away."""
        topics = {
            deadletters.TOPIC,
            *([alerts.FEED_NAME, snapshots.TOPIC] if self._alert is not None else []),
            *(one.place.topic for one in changes),
            *(topic for change in changes.values() for topic, _ in change.parts),
        }

        def current() -> list[Assigned[Partition]]:
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

    async def _finish(self, one: Assigned[Partition], changes: dict[Assigned[Partition], Change]) -> None:
        await self._write(one.place, changes[one])
        named = await self._keep(one, changes[one])
        self.flushed(one, replace(changes.pop(one).position, snapshot=named))

    async def _keep(self, one: Assigned[Partition], change: Change) -> Snapshot | None:
        """Write what the rules hold, if it is time, when all they said is acknowledged; gives where the last one is."""
        if change.snapshot is None:
            return one.flushed.snapshot
        sender = self.transport.sender()
        sent = await sender.send(snapshots.TOPIC, snapshots.key(one.place), change.snapshot)
        await sender.settle()
        return Snapshot(sent.result().offset, change.position.processed)

    async def _write(self, place: TopicPartition, change: Change) -> None:
        sender = self.transport.sender()
        written = self._topics[place.topic]
        into = (written.first + place.partition) % topic_of(written.feed, 0).partitions
        for topic, batches in change.parts:
            await sender.send_packed(topic, into, batches)
        await sender.send_letters(deadletters.TOPIC, change.dead)
        for key, value in change.alerts:
            await sender.send(alerts.FEED_NAME, key, value)
        tell(Moment(Stage.SENT, place, next=change.position.processed))
        await sender.settle()


def main(
    feeds: Mapping[str, Feed],
    catalogue: Catalogue,
    cluster: Cluster,
    instance: str | None = None,
    *,
    accept_bad: Container[str] = (),
    alert: Feed | None = None,
    status: Status = Status.EXERCISE,
) -> None:
    """Process these feeds until a signal ends it; ``accept_bad`` names those to go on with whatever their share of bad
    records. What their rules say goes to the topic of ``alert``, and says by ``status`` whether it is meant."""
    positions = GroupPositions(cluster, GROUP, feed_definitions(*feeds.values()))
    used = {feed.name: feed for feed in [*feeds.values(), *([] if alert is None else [alert])]}
    app = BatchApp(positions, topics(used.values()), instance=instance)
    app.run(Processor(app, feeds, catalogue, accept_bad=accept_bad, status=status))

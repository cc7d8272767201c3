"""What a transport promises a worker, of the application over a real Kafka and of the double that stands in for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from aiokafka import AIOKafkaProducer

from streams import checkpoints, lifecycle
from streams.assignment import Assigned, TopicPartition
from streams.batchworker import BatchWorker, Transport
from streams.clients import new_admin
from streams.cluster import Cluster
from streams.ending import Stop
from streams.group_positions import GroupPositions
from streams.lifecycle import Moment, Stage
from streams.positions import Position
from streams.topics import Topic, TopicProblem, create
from streams.transport.app import BatchApp
from streams.wire.fetched_batches import Run
from tests.transport import Group

#: Of its last offsets a committed position is read again from so many.
REWIND = 3
Begin = Callable[[Transport], Any]


class Kafka:
    """Two topics of two partitions on a real Kafka, and a group that reads them; the double is ``Group``."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster, self.group = cluster, f"promises-{uuid4()}"
        self.topics: Sequence[str] = [f"{self.group}.{name}" for name in "ab"]
        self._positions = GroupPositions(cluster, self.group, dict.fromkeys(self.topics, "def"))
        self._declared = [Topic(name, 2, timedelta(days=1)) for name in self.topics]
        create(cluster, [*self._declared, Topic(checkpoints.TOPIC, 1, None)])

    async def publish(self, place: TopicPartition, count: int) -> None:
        async with AIOKafkaProducer(**self.cluster.aiokafka()) as producer:
            for _ in range(count):
                await producer.send_and_wait(place.topic, b"record", key=b"key", partition=place.partition)

    async def delete(self, topic: str) -> None:
        with closing(new_admin(self.cluster)) as admin:
            await asyncio.to_thread(admin.delete_topics, [topic])

    @asynccontextmanager
    async def member(self, begin: Begin) -> AsyncIterator[Any]:
        app = BatchApp(self._positions, self._declared)
        worker = app.worker = begin(app)
        await asyncio.to_thread(app.topic_watch.begin)
        app.read(self.topics)
        await app.start()
        try:
            yield worker
        finally:
            await app.stop()

    async def commit(self, worker: Noting) -> None:
        await worker.transport.batch_consumer.commit()  # type: ignore[attr-defined]

    async def committed(self) -> dict[TopicPartition, Position]:
        found = await asyncio.to_thread(self._positions.committed)
        return {place: position for place, position in found.items() if isinstance(position, Position)}


Brokers = Kafka | Group


@pytest.fixture(params=["double", pytest.param("Kafka", marks=pytest.mark.integration)])
def brokers(request: pytest.FixtureRequest) -> Brokers:
    if request.param == "double":
        return Group({"a": 2, "b": 2})
    return Kafka(request.getfixturevalue("stack").settings.cluster)


class Noting(BatchWorker[list[int], Run]):
    """States are the offsets that were taken, from the rewind on: each once and in order, or the process would end."""

    command = "citystream work"

    def __init__(self, transport: Transport, topics: Sequence[str]) -> None:
        super().__init__(transport, {topic: topic for topic in topics})
        #: What is taken while this is set is not flushed.
        self.holds = False
        #: A topic whose records nobody can take.
        self.bad = ""

    def begin(self, one: Assigned[list[int]]) -> list[int]:
        return [*range(one.start.rewind)]

    def read(self, waiting: Sequence[tuple[list[int], Run]], /) -> list[Run]:
        return [run for _, run in waiting]

    def take(self, state: list[int], run: Run, read: Run) -> None:
        if run.topic == self.bad:
            raise Stop("nobody can take this")
        assert run.start == len(state), "each record is handed over once, in order"
        state += range(run.start, run.next)

    def unwritten(self, state: list[int]) -> int:
        return 0

    async def flush(self, assigned: Sequence[Assigned[list[int]]]) -> None:
        for one in assigned:
            if one.begun and not self.holds:
                end = len(one.state)
                self.flushed(one, replace(one.start, processed=end, rewind=max(0, end - REWIND)))

    async def works(self, until: Callable[[], bool]) -> None:
        """Take and flush what comes until something is so."""
        async with asyncio.timeout(60):
            while not until():
                for topic in {one.place.topic for one in self.begun()}:
                    await self._flush_feed(topic)
                await asyncio.sleep(0.01)

    def took(self, place: TopicPartition) -> int | None:
        """How many records of a partition were taken, with those before its rewind; None if it has no state."""
        one = self.transport.assigned.get(place)
        return len(one.state) if one is not None and one.begun else None


def promise(test: Callable[[Any], Coroutine[Any, Any, None]]) -> Callable[[Any], None]:
    """Run a test in an event loop."""

    def run(brokers: Any) -> None:
        asyncio.run(test(brokers))

    run.__doc__ = test.__doc__
    return run


def places(brokers: Brokers) -> list[TopicPartition]:
    return [TopicPartition(topic, number) for topic in brokers.topics for number in (0, 1)]


def begin(brokers: Brokers) -> Begin:
    return lambda transport: Noting(transport, brokers.topics)


async def published(brokers: Brokers, worker: Noting, count: int, before: int = 0) -> None:
    """Publish to all partitions and let the worker take it."""
    for place in places(brokers):
        await brokers.publish(place, count)
    await worker.works(lambda: all(worker.took(place) == before + count for place in places(brokers)))


@promise
async def test_every_record_is_handed_over_once_and_in_order(brokers: Brokers) -> None:
    async with brokers.member(begin(brokers)) as worker:
        for number in range(3):
            await published(brokers, worker, 5, 5 * number)


@promise
async def test_what_was_flushed_is_committed_and_nothing_else(brokers: Brokers) -> None:
    async with brokers.member(begin(brokers)) as worker:
        await published(brokers, worker, 4)
        await brokers.commit(worker)
        before = await brokers.committed()
        assert {place: (one.processed, one.rewind) for place, one in before.items()} == dict.fromkeys(
            places(brokers), (4, 4 - REWIND)
        )
        worker.holds = True
        await published(brokers, worker, 6, 4)
        await brokers.commit(worker)
        assert await brokers.committed() == before
        worker.holds = False
        await published(brokers, worker, 1, 10)
        await brokers.commit(worker)
        assert {one.processed for one in (await brokers.committed()).values()} == {11}


@promise
async def test_a_restart_goes_on_from_what_was_committed(brokers: Brokers) -> None:
    async with brokers.member(begin(brokers)) as worker:
        await published(brokers, worker, 7)
        await brokers.commit(worker)
    async with brokers.member(begin(brokers)) as worker:
        await published(brokers, worker, 2, 7)
        starts = {one.place: (one.start.processed, one.start.rewind) for one in worker.begun()}
        assert starts == dict.fromkeys(places(brokers), (7, 7 - REWIND))


@promise
async def test_a_rebalance_takes_states_away_and_what_is_flushed_of_them_is_not_committed(brokers: Brokers) -> None:
    async with brokers.member(begin(brokers)) as worker:
        await published(brokers, worker, 4)
        await brokers.commit(worker)
        before = dict(worker.transport.assigned)
        async with brokers.member(begin(brokers)) as other:
            mine, others = worker.transport, other.transport
            await other.works(
                lambda: bool(others.assigned) and sorted([*mine.assigned, *others.assigned]) == sorted(before)
            )
            for one in before.values():
                assert (one.current, one.begun) == (False, False)
                one.flushed = replace(one.start, processed=99)
            await brokers.commit(worker)
            assert {one.processed for one in (await brokers.committed()).values()} == {4}
            for place in before:
                await brokers.publish(place, 1)
            await asyncio.gather(
                *(
                    one.works(lambda one=one: all(one.took(place) == 5 for place in one.transport.assigned))
                    for one in (worker, other)
                )
            )


@promise
async def test_a_feed_that_stops_is_paused_alone_and_its_commits_say_why(brokers: Brokers) -> None:
    bad, good = brokers.topics
    async with brokers.member(begin(brokers)) as worker:
        await published(brokers, worker, 2)
        worker.bad = bad
        for place in places(brokers):
            await brokers.publish(place, 3)
        await worker.works(lambda: bad in worker.stopped and worker.took(TopicPartition(good, 1)) == 5)
        await brokers.publish(TopicPartition(good, 0), 1)
        await worker.works(lambda: worker.took(TopicPartition(good, 0)) == 6)
        await brokers.commit(worker)
        found = await brokers.committed()
        assert {(place.topic, one.paused) for place, one in found.items()} == {
            (bad, "nobody can take this"),
            (good, ""),
        }
        assert {one.processed for place, one in found.items() if place.topic == bad} == {2}
    async with brokers.member(begin(brokers)) as worker:
        await worker.works(lambda: all(worker.took(place) in (5, 6) for place in places(brokers)))
        await brokers.commit(worker)
        assert {one.paused for one in (await brokers.committed()).values()} == {""}


@promise
async def test_a_paused_partition_is_not_read_until_it_goes_on(brokers: Brokers) -> None:
    async with brokers.member(begin(brokers)) as worker:
        await published(brokers, worker, 2)
        paused, other = places(brokers)[:2]
        worker.transport.pause(paused, "waits")
        for place in (paused, other):
            await brokers.publish(place, 3)
        await worker.works(lambda: worker.took(other) == 5)
        assert worker.took(paused) == 2
        assert not worker.transport.assigned[paused].runs, "it is not handed over, either"
        await brokers.commit(worker)
        assert (await brokers.committed())[paused].paused == "waits"
        worker.transport.go_on(paused)
        await brokers.publish(paused, 1)
        await worker.works(lambda: worker.took(paused) == 6)
        await brokers.commit(worker)
        assert (await brokers.committed())[paused].paused == ""


@promise
async def test_the_moments_of_a_record_come_in_their_order(brokers: Brokers) -> None:
    place, seen = places(brokers)[0], list[Moment]()
    lifecycle.listen(seen.append)
    try:
        async with brokers.member(begin(brokers)) as worker:
            await brokers.publish(place, 1)
            await worker.works(lambda: worker.took(place) == 1)
            await brokers.commit(worker)
    finally:
        lifecycle._listeners.remove(seen.append)
    stages = [one.stage for one in seen if one.place in (place, None)]
    wanted = [Stage.FETCHED, Stage.DECODED, Stage.PROCESSED, Stage.FLUSHED, Stage.COMMITTING, Stage.COMMITTED]
    assert [stage for stage in dict.fromkeys(stages) if stage in wanted] == wanted


@promise
async def test_a_topic_that_is_gone_is_seen_to_be(brokers: Brokers) -> None:
    async with brokers.member(begin(brokers)) as worker:
        await worker.transport.unchanged(brokers.topics)
        await brokers.delete(brokers.topics[0])
        await worker.transport.unchanged(brokers.topics[1:])
        with pytest.raises(TopicProblem, match="was deleted"):
            await worker.transport.unchanged(brokers.topics)

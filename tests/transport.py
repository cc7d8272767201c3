"""A transport of a test's own: partitions that are given out at will, of which it notes what is committed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from streams.assignment import Assigned, TopicPartition
from streams.cluster import Cluster
from streams.lifecycle import Moment, Stage, tell
from streams.positions import Position, first
from streams.topics import TopicProblem
from streams.wire.fetched_batches import Run


class Here:
    """A transport with these partitions, each read from its first record unless a position is given."""

    group = "processor"
    cluster = Cluster(("127.0.0.1:1",))

    def __init__(self, *places: TopicPartition) -> None:
        self.assigned: dict[TopicPartition, Assigned[Any]] = {}
        #: Topics that were deleted.
        self.gone: set[str] = set()
        #: How far each partition was read.
        self.read: dict[TopicPartition, int] = {}
        self.assign({place: first("id", "def", 0) for place in places})

    def assign(self, positions: dict[TopicPartition, Position]) -> None:
        """Take all partitions away and give these."""
        for one in self.assigned.values():
            one.end()
        self.assigned = {place: Assigned(place, position, position) for place, position in positions.items()}
        self.read = {place: position.rewind for place, position in positions.items()}

    def take_away(self, place: TopicPartition) -> None:
        """Give a partition to somebody else."""
        self.assigned.pop(place).end()

    def assignment(self) -> Iterable[TopicPartition]:
        return [*self.assigned]

    def log_end(self, _: TopicPartition) -> int:
        return 0

    def pause(self, place: TopicPartition, reason: str) -> None:
        self.assigned[place].paused = reason

    def go_on(self, place: TopicPartition) -> None:
        self.assigned[place].paused = ""

    async def unchanged(self, topics: Iterable[str]) -> None:
        for topic in self.gone.intersection(topics):
            raise TopicProblem(f"topic {topic} was deleted")

    def keep(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Nothing runs here but what a test calls."""

    @property
    def paused(self) -> dict[TopicPartition, str]:
        """The partitions that are not read on, and why."""
        return {place: one.paused for place, one in self.assigned.items() if one.paused}

    @property
    def flushed(self) -> dict[TopicPartition, int]:
        """The offsets that may be committed, where there are results."""
        return {p: one.flushed.processed for p, one in self.assigned.items() if one.flushed is not one.start}


class Group:
    """Logs that are but numbers of records, and a group whose members have such transports."""

    def __init__(self, topics: Mapping[str, int]) -> None:
        self.topics: Sequence[str] = [*topics]
        self._ends = {TopicPartition(topic, number): 0 for topic, many in topics.items() for number in range(many)}
        self._committed: dict[TopicPartition, Position] = {}
        self._workers: list[Any] = []

    async def publish(self, place: TopicPartition, count: int) -> None:
        self._ends[place] += count
        await self._deliver()

    async def delete(self, topic: str) -> None:
        for worker in self._workers:
            worker.transport.gone.add(topic)

    @asynccontextmanager
    async def member(self, begin: Callable[[Any], Any]) -> AsyncIterator[Any]:
        worker = begin(Here())
        self._workers.append(worker)
        await self._share()
        try:
            yield worker
        finally:
            self._workers.remove(worker)
            worker.transport.assign({})
            await self._share()

    async def commit(self, worker: Any) -> None:
        due = {place: position for place, one in worker.transport.assigned.items() if (position := one.due)}
        tell(Moment(Stage.COMMITTING))
        for place, position in due.items():
            self._committed[place] = worker.transport.assigned[place].committed = position
            tell(Moment(Stage.COMMITTED, place, next=position.processed))

    async def committed(self) -> dict[TopicPartition, Position]:
        return dict(self._committed)

    async def _share(self) -> None:
        """Give all partitions anew, one after the other."""
        for number, worker in enumerate(self._workers):
            given = [*self._ends][number :: len(self._workers)]
            worker.transport.assign({place: self._committed.get(place, first("id", "def", 0)) for place in given})
        await self._deliver()

    async def _deliver(self) -> None:
        for worker in self._workers:
            here = worker.transport
            for place, one in here.assigned.items():
                start, end = here.read[place], self._ends[place]
                if end > start and not one.paused:
                    here.read[place] = end
                    await worker.receive(place, Run(place.topic, place.partition, start, end, ()))


class Ready:
    """Faust's producer, of a client that has started."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def _ensure_producer(self) -> Any:
        return self._client


def begun(worker: Any, place: TopicPartition, start: Position) -> Assigned[Any]:
    """A partition whose state has begun, as of a run that came."""
    one: Assigned[Any] = Assigned(place, start, start)
    one.begin(worker.begin(one))
    return one

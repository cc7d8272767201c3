"""A transport of a test's own: partitions that are given out at will, of which it notes what is committed."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from streams.assignment import Assigned, TopicPartition
from streams.cluster import Cluster
from streams.positions import Position, first


class Here:
    """A transport with these partitions, each read from its first record unless a position is given."""

    group = "processor"
    cluster = Cluster(("127.0.0.1:1",))

    def __init__(self, *places: TopicPartition) -> None:
        self.assigned: dict[TopicPartition, Assigned[Any]] = {}
        self.assign({place: first("id", "def", 0) for place in places})

    def assign(self, positions: dict[TopicPartition, Position]) -> None:
        """Take all partitions away and give these."""
        for one in self.assigned.values():
            one.end()
        self.assigned = {place: Assigned(place, position, position) for place, position in positions.items()}

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
        """They are."""

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


def begun(worker: Any, place: TopicPartition, start: Position) -> Assigned[Any]:
    """A partition whose state has begun, as of a run that came."""
    one: Assigned[Any] = Assigned(place, start, start)
    one.begin(worker.begin(one))
    return one

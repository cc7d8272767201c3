"""A partition that a worker was given: everything that is known of it until it is taken away."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from streams.positions import Position

if TYPE_CHECKING:  # kernels come with it, and a command that asks for a topic's name starts without them
    from streams.wire.fetched_batches import Run

S = TypeVar("S")


class TopicPartition(NamedTuple):
    """A partition of a topic, equal to those of the client libraries."""

    topic: str
    partition: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}"


@dataclass(eq=False)
class Assigned(Generic[S]):
    """A partition from the assignment that gave it to this worker to the next one, which makes another object of it.

    A position passes through it in one direction: the worker goes on from ``start``, ``flushed`` is the one up to which
    all results are acknowledged, and ``committed`` the one the brokers have. ``paused`` says why it is not read on for
    now. ``state`` is the worker's own, ``runs`` wait to be taken into it, and ``lock`` is held while it takes some. All
    but the state is for the event loop alone.
    """

    place: TopicPartition
    start: Position
    committed: Position
    flushed: Position = field(init=False)
    paused: str = ""
    #: False once the partition is taken away, or given anew.
    current: bool = True
    state: S = field(init=False)
    #: Whether there is a state.
    begun: bool = False
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    runs: deque[Run] = field(default_factory=deque)
    #: Bytes of the runs that wait.
    waiting: int = 0
    #: Whether something came since the last flush.
    fresh: bool = False

    def __post_init__(self) -> None:
        self.flushed = self.start

    def begin(self, state: S) -> None:
        """Let the worker's state begin, as the first run comes."""
        self.state, self.begun = state, True

    def receive(self, run: Run) -> None:
        """Let a run wait."""
        self.runs.append(run)
        self.waiting += run.size
        self.fresh = True

    def done(self, count: int) -> None:
        """So many runs were taken."""
        if self.begun:
            for _ in range(count):
                self.waiting -= self.runs.popleft().size
            self.fresh = True

    def drop(self) -> None:
        """Let go of the state and what waits; who still works on it finds that it has not ``begun``."""
        if self.begun:
            self.begun = False
            del self.state
        self.runs.clear()
        self.waiting = 0

    def end(self) -> None:
        """The partition is taken away; nothing of this is committed from now on."""
        self.current = False
        self.drop()

    @property
    def due(self) -> Position | None:
        """The position to commit next, which says why the partition is paused; None if the brokers have it."""
        if (self.flushed.processed, self.paused) == (self.committed.processed, self.committed.paused):
            return None
        return replace(self.flushed, paused=self.paused)


@asynccontextmanager
async def locked(assigned: Iterable[Assigned[Any]]) -> AsyncIterator[None]:
    """While it lasts, none of these takes a run but by who asked for it."""
    async with AsyncExitStack() as locks:
        for one in assigned:
            await locks.enter_async_context(one.lock)
        yield

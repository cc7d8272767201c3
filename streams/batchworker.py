"""The rhythm both workers share: runs into the states of their partitions, flushes, and what an error does."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import wraps
from typing import Any, Generic, TypeVar

import faust
from faust.types import TP

from streams.positions import Position
from streams.runs import Run
from streams.worker import BatchApp, end_process

S = TypeVar("S")

FLUSH_EVERY = timedelta(seconds=1)
#: Bytes waiting for a flush, over all partitions, with which it is time for one, and beyond which reading waits. As
#: much again may be on its way.
ENOUGH, MOST = 32 * 2**20, 64 * 2**20


def _or_end(call: Callable[..., Awaitable[None]]) -> Callable[..., Coroutine[Any, Any, None]]:
    """The same call, whose errors end the process."""

    @wraps(call)
    async def guarded(*arguments: Any) -> None:
        try:
            await call(*arguments)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 - whatever it is ends the process
            end_process(error)

    return guarded


@dataclass
class Held(Generic[S]):
    """The state of a partition since the assignment ``start`` belongs to; ``lock`` is held while it takes a run."""

    start: Position
    state: S
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class BatchWorker(Generic[S]):
    """Takes runs into the states of their partitions, several partitions side by side, and flushes them.

    It flushes once a second, and at once when the end of the log is reached after a backlog.
    """

    def __init__(self, app: BatchApp, topics: Iterable[str]) -> None:
        self.app = app
        self.held: dict[TP, Held[S]] = {}
        self._hands = asyncio.Semaphore(os.cpu_count() or 1)
        self._working: set[asyncio.Task[None]] = set()
        self._behind: set[TP] = set()
        self._due = asyncio.Event()
        self._taken = asyncio.Event()
        for topic in topics:
            raw = app.topic(topic, key_serializer="raw", value_serializer="raw", acks=False)  # positions are committed
            app.agent(raw, name=f"{app.conf.id}.{topic}")(_or_end(self._read))
        app.task(_or_end(self._keep_flushing))

    def begin(self, tp: TP, start: Position) -> S:
        """The state of a partition that is read from a position on."""
        raise NotImplementedError

    def take(self, state: S, run: Run) -> None:
        """Take a run into a state; in a thread, one run of a partition after the other."""
        raise NotImplementedError

    def unwritten(self, state: S) -> int:
        """Bytes of a state that wait for the next flush."""
        raise NotImplementedError

    async def flush(self, held: Mapping[TP, Held[S]]) -> None:
        """Write what changed and let the positions be committed; ``taken`` says when a state gave up what waited."""
        raise NotImplementedError

    async def room(self) -> None:
        """Wait for a flush if too much waits for it."""
        while (waiting := sum(self.unwritten(held.state) for held in self.held.values())) >= ENOUGH:
            self._taken.clear()
            self.flush_soon()
            if waiting < MOST:
                return
            await self._taken.wait()

    def taken(self) -> None:
        """Let reading look for room again: a flush took what waited, or there is less of it to wait for."""
        self._taken.set()

    def keeps(self, tp: TP, held: Held[S]) -> bool:
        """Whether the partition is still assigned as it was when the state began."""
        consumer = self.app.batch_consumer
        return consumer.resumed.get(tp) is held.start and tp in consumer.assignment()

    def flush_soon(self) -> None:
        """Flush without waiting for the next second."""
        self._due.set()

    async def _read(self, stream: faust.StreamT) -> None:
        async for event in stream.events():
            tp, run = event.message.tp, event.message.value
            start = self.app.batch_consumer.resumed.get(tp)
            await self.room()
            await self._hands.acquire()
            task = asyncio.create_task(_or_end(self._take)(tp, run, start))
            self._working.add(task)
            task.add_done_callback(self._working.discard)

    async def _take(self, tp: TP, run: Run, start: Position | None) -> None:
        """Take a run that was read from ``start`` on, unless the partition was taken away while it waited."""
        try:
            if start is None or self.app.batch_consumer.resumed.get(tp) is not start:
                return
            held = self.held.get(tp)
            if held is None or held.start is not start:
                held = self.held[tp] = Held(start, self.begin(tp, start))
            async with held.lock:
                await asyncio.to_thread(self.take, held.state, run)
        finally:
            self._hands.release()
        if run.next < self.app.batch_consumer.highwater(tp):
            self._behind.add(tp)
        elif tp in self._behind:
            self._behind.discard(tp)
            if not self._behind:
                self.flush_soon()

    async def _keep_flushing(self) -> None:
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._due.wait(), FLUSH_EVERY.total_seconds())
            self._due.clear()
            self.held = {tp: held for tp, held in self.held.items() if self.keeps(tp, held)}
            self._behind &= self.held.keys()
            self.taken()
            await self.flush(dict(self.held))

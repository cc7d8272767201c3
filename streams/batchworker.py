"""The rhythm both workers share: runs wait, are taken together into the states of their partitions, and are flushed.

What a pass through a feed's partitions costs does not depend on how few records it has, so reading only keeps bytes
until it is time for one.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import wraps
from typing import Any, Generic, TypeVar

import faust
from faust.types import TP

from streams.awaited import NotYet
from streams.positions import LogGap, Position, Stop
from streams.runs import LONGEST_RUN, Run, joined
from streams.worker import BatchApp, end_process

log = logging.getLogger("citystream")

S = TypeVar("S")
R = TypeVar("R")

#: How often a look shows whether a feed is due.
LOOK_EVERY = timedelta(seconds=1)
#: Bytes of runs with which a partition does not wait for the others: a backlog.
AT_ONCE = 256 * 2**10
#: Bytes waiting for a flush, over all partitions, with which it is time for one, and beyond which reading waits. As
#: much again may be on its way.
ENOUGH, MOST = 32 * 2**20, 64 * 2**20
#: After so many bytes of runs it is looked how much waits.
WEIGHED_BYTES = 2**20
#: Seconds between two looks whether a partition can go on: they begin with the one and grow to the other.
SHORTEST_PAUSE, LONGEST_PAUSE = 0.25, 2.0
#: After these nothing the process holds can be trusted, whichever feed they came up in.
NOT_ALONE = (LogGap, MemoryError)


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
    """The state of a partition since the assignment ``start`` belongs to; ``lock`` is held while it takes runs.

    ``runs`` are those that wait to be taken, ``waiting`` their bytes, and ``fresh`` says whether something came since
    the last flush.
    """

    start: Position
    state: S
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    runs: deque[Run] = field(default_factory=deque)
    waiting: int = 0
    fresh: bool = False

    def receive(self, run: Run) -> None:
        """Let a run wait; this and ``done`` are for the event loop alone."""
        self.runs.append(run)
        self.waiting += run.size
        self.fresh = True

    def done(self, count: int) -> None:
        """So many runs were taken."""
        for _ in range(count):
            self.waiting -= self.runs.popleft().size
        self.fresh = True


@asynccontextmanager
async def locked(held: Iterable[Held[Any]]) -> AsyncIterator[None]:
    """While it lasts, none of these takes a run but by who asked for it."""
    async with AsyncExitStack() as locks:
        for one in held:
            await locks.enter_async_context(one.lock)
        yield


def _together(waiting: Iterable[tuple[Held[S], Run, int]]) -> Iterator[list[tuple[Held[S], Run, int]]]:
    """Those of one topic, as many as are read at once."""
    found: list[tuple[Held[S], Run, int]] = []
    records = 0
    for one in waiting:
        run = one[1]
        if found and (run.topic != found[-1][1].topic or records + run.records > LONGEST_RUN):
            yield found
            found, records = [], 0
        found.append(one)
        records += run.records
    if found:
        yield found


class BatchWorker(Generic[S, R]):
    """Takes runs into the states of their partitions, all partitions of a feed in one pass, and flushes what changed.

    A pass is due when the last one is ``every`` ago, when nothing came for a second, and at once when the end of the
    log is reached after a backlog; of a backlog, runs are taken as they come, several partitions side by side.

    Feeds do not hold each other up. A partition that has to wait is *paused*: it is not read on, what was read of it is
    kept, and it is tried again. A feed with which something is wrong is *stopped*: its partitions are paused until the
    worker is started again, and what is not committed of them is read again then. Commits say why one is paused.
    ``command`` starts the worker.
    """

    command: str

    def __init__(self, app: BatchApp, topics: Mapping[str, str]) -> None:
        """``topics`` are those it reads, each with the name of its feed: what is flushed and stopped together."""
        self.app = app
        self.held: dict[TP, Held[S]] = {}
        #: The feeds that are stopped, and why.
        self.stopped: dict[str, str] = {}
        self._feeds = topics
        self._hands = asyncio.Semaphore(os.cpu_count() or 1)
        self._working: set[asyncio.Task[None]] = set()
        self._flushing: set[str] = set()
        self._again: set[str] = set()
        self._behind: set[TP] = set()
        self._came: set[str] = set()
        self._flushed_at: dict[str, float] = {}
        self._unweighed = WEIGHED_BYTES
        self._due = asyncio.Event()
        self._taken = asyncio.Event()
        for topic in topics:
            raw = app.topic(topic, key_serializer="raw", value_serializer="raw", acks=False)  # positions are committed
            app.agent(raw, name=f"{app.conf.id}.{topic}")(_or_end(self._read))
        app.task(_or_end(self._keep_flushing))

    def begin(self, tp: TP, start: Position) -> S:
        """The state of a partition that is read from a position on."""
        raise NotImplementedError

    def read(self, waiting: Sequence[tuple[S, Run]], /) -> Sequence[R]:
        """Read runs of partitions of one topic, in their order, each by its state; in a thread.

        Raises
        ------
        NotYet
            One has to wait, and nothing was read.
        """
        raise NotImplementedError

    def take(self, state: S, run: Run, read: R) -> None:
        """Take what was read of a run into a state; in a thread, one run of a partition after the other."""
        raise NotImplementedError

    def every(self, _: str, /) -> timedelta:
        """How long what comes of a feed may wait for a pass while more comes."""
        return LOOK_EVERY

    def waits(self, _: S, /) -> str:
        """Why a state can take nothing for now; empty if it can."""
        return ""

    def unwritten(self, state: S) -> int:
        """Bytes of a state that wait for the next flush."""
        raise NotImplementedError

    async def flush(self, held: Mapping[TP, Held[S]]) -> None:
        """Write what changed in the partitions of a feed and let the positions be committed; ``taken`` says when a
        state gave up what waited."""
        raise NotImplementedError

    async def room(self) -> None:
        """Wait for a flush if too much waits for it, but for what has to wait anyway."""
        while (waiting := sum(self._unwritten(tp, held) for tp, held in self.held.items())) >= ENOUGH:
            self._taken.clear()
            self.flush_soon()
            if waiting < MOST:
                return
            await self._taken.wait()

    def _unwritten(self, tp: TP, held: Held[S]) -> int:
        if self.waits(held.state):
            return 0
        return self.unwritten(held.state) + (0 if tp in self.app.batch_consumer.paused else held.waiting)

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
            self._unweighed += run.size
            if self._unweighed >= WEIGHED_BYTES:
                self._unweighed = 0
                await self.room()
            held = self._receive(tp, run, start)
            if held is not None and held.waiting >= AT_ONCE and tp not in self.app.batch_consumer.paused:
                await self._hands.acquire()
                self._work(self._take(tp, held))

    def _work(self, doing: Coroutine[Any, Any, None]) -> None:
        async def work() -> None:
            await doing

        task = asyncio.create_task(_or_end(work)())
        self._working.add(task)
        task.add_done_callback(self._working.discard)

    def _receive(self, tp: TP, run: Run, start: Position | None) -> Held[S] | None:
        """Let a run wait that was read from ``start`` on, unless the partition was taken away before it came."""
        consumer, feed = self.app.batch_consumer, self._feeds[tp.topic]
        if start is None or consumer.resumed.get(tp) is not start:
            return None
        if reason := self.stopped.get(feed):
            consumer.pause(tp, reason)
            return None
        held = self.held.get(tp)
        if held is None or held.start is not start:
            with self._alone(feed):
                held = self.held[tp] = Held(start, self.begin(tp, start))
            if feed in self.stopped or held is None:
                return None
        held.receive(run)
        self._came.add(feed)
        if tp not in consumer.paused:
            self._note_end(tp, run)
        return held

    async def _take(self, tp: TP, held: Held[S]) -> None:
        """Take what waits of a partition."""
        try:
            with self._alone(self._feeds[tp.topic]):
                async with held.lock:
                    if tp not in self.app.batch_consumer.paused:
                        await self.take_what_waits(tp, held)
        finally:
            self._hands.release()

    async def _pass(self, held: Mapping[TP, Held[S]]) -> None:
        """Take what waits of a feed, of all partitions that do not have to wait."""
        async with self._hands, locked(held.values()):
            paused = self.app.batch_consumer.paused
            ready = {tp: held[tp] for tp in sorted(held) if held[tp].runs and tp not in paused}
            waiting = [(one, *joined(one.runs)) for one in ready.values() if not self.waits(one.state)]
            for together in _together(waiting):
                with suppress(NotYet):
                    await asyncio.to_thread(self._read_and_take, [(one.state, run) for one, run, _ in together])
                    for one, _, count in together:
                        one.done(count)
            for tp, one in ready.items():
                if one.runs:
                    await self.take_what_waits(tp, one)

    def _read_and_take(self, waiting: Sequence[tuple[S, Run]]) -> None:
        for (state, run), read in zip(waiting, self.read(waiting), strict=True):
            self.take(state, run, read)

    async def take_what_waits(self, tp: TP, held: Held[S]) -> None:
        """Take runs in their order, together if they can be; pause the partition where one has to wait, and else let
        it go on."""
        consumer, reason, together = self.app.batch_consumer, "", True
        while not (reason := self.waits(held.state)) and held.runs and self.held.get(tp) is held:
            run, count = joined(held.runs) if together else (held.runs[0], 1)
            try:
                await asyncio.to_thread(self._read_and_take, [(held.state, run)])
            except NotYet as wait:
                if count == 1:
                    reason = str(wait)
                    break
                together = False
            else:
                held.done(count)
        if not reason:
            if tp in consumer.paused and self.held.get(tp) is held:
                consumer.go_on(tp)
                log.info("%s/%d goes on", *tp)
        elif tp not in consumer.paused and self.keeps(tp, held):
            log.warning("%s. No other topic waits for it", reason)
            consumer.pause(tp, reason)
            self._behind.discard(tp)
            self._work(self._try_again(tp, held))

    async def _try_again(self, tp: TP, held: Held[S]) -> None:
        """Look now and then, at growing intervals, whether a paused partition can go on."""
        pause = SHORTEST_PAUSE
        while self.held.get(tp) is held and self.keeps(tp, held) and tp in self.app.batch_consumer.paused:
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
            with self._alone(self._feeds[tp.topic]):
                async with self._hands, held.lock:
                    await self.take_what_waits(tp, held)

    def _note_end(self, tp: TP, run: Run) -> None:
        if run.next < self.app.batch_consumer.highwater(tp):
            self._behind.add(tp)
        elif tp in self._behind:
            self._behind.discard(tp)
            if not self._behind:
                self.flush_soon()

    async def _keep_flushing(self) -> None:
        """A feed whose flush takes long is left alone until it is through."""
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._due.wait(), LOOK_EVERY.total_seconds())
            at_once = self._due.is_set()
            self._due.clear()
            self._keep({tp: held for tp, held in self.held.items() if self.keeps(tp, held)})
            feeds = {self._feeds[tp.topic] for tp, held in self.held.items() if held.fresh}
            if at_once:
                self._again |= feeds & self._flushing
            else:
                feeds = set(filter(self._is_due, feeds))
                self._came.clear()
            for feed in feeds - self._flushing:
                self._flushing.add(feed)
                self._work(self._flush_feed(feed))

    def _is_due(self, feed: str) -> bool:
        now = asyncio.get_running_loop().time()
        waited = now - self._flushed_at.get(feed, -math.inf)
        return feed not in self._came or waited + LOOK_EVERY.total_seconds() > self.every(feed).total_seconds()

    async def _flush_feed(self, feed: str) -> None:
        try:
            self._again.add(feed)
            while feed in self._again:
                self._again.discard(feed)
                self._flushed_at[feed] = asyncio.get_running_loop().time()
                with self._alone(feed):
                    held = {tp: one for tp, one in self.held.items() if self._feeds[tp.topic] == feed and one.fresh}
                    await self._pass(held)
                    for one in held.values():
                        one.fresh = bool(one.runs)
                    if held:
                        await self.flush(held)
        finally:
            self._flushing.discard(feed)

    @contextmanager
    def _alone(self, feed: str) -> Iterator[None]:
        """What goes wrong in here stops this feed, and no other."""
        try:
            yield
        except (asyncio.CancelledError, *NOT_ALONE):
            raise
        except BaseException as error:  # noqa: BLE001 - corrupt bytes can make Polars panic, which is no Exception
            self._stop(feed, error)

    def _stop(self, feed: str, error: BaseException) -> None:
        if feed in self.stopped:
            return
        known = isinstance(error, Stop)
        self.stopped[feed] = reason = (
            str(error)
            if known
            else f"{type(error).__name__} in the program; the log of the {self.app.conf.id} says where. "
            f"With that mended start it again: {self.command}"
        )
        if self.stopped.keys() >= set(self._feeds.values()):
            end_process(error)
        log.error("%s", error if known else f"{type(error).__name__}: {error}", exc_info=None if known else error)
        log.error(
            "%s is stopped, the other feeds of this %s go on. What is not committed of it stays in the log",
            *(feed, self.app.conf.id),
        )
        consumer = self.app.batch_consumer
        self._keep({tp: held for tp, held in self.held.items() if self._feeds[tp.topic] != feed})
        for tp in consumer.assignment():
            if self._feeds.get(tp.topic) == feed:
                consumer.pause(tp, reason)

    def _keep(self, held: dict[TP, Held[S]]) -> None:
        """Forget the other partitions, and what waited of them."""
        if held.keys() < self.held.keys():
            self.taken()
        self.held = held
        self._behind &= held.keys()

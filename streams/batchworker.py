"""The rhythm both workers share: runs wait, are taken together into the states of their partitions, and are flushed.

What a pass through a feed's partitions costs does not depend on how few records it has, so reading only keeps bytes
until it is time for one.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import wraps
from itertools import groupby
from typing import Any, Generic, Protocol, TypeVar

from streams.assignment import Assigned, TopicPartition, locked
from streams.ending import Stop, end_process
from streams.lifecycle import Moment, Stage, tell
from streams.missing_schemas import NotYet
from streams.positions import LogGap, Position
from streams.wire.fetched_batches import Run, joined, pieces

log = logging.getLogger("citystream")

S = TypeVar("S")
R = TypeVar("R")

#: How often it is looked at least whether a feed is due, and how long one waits unless it says otherwise.
LOOK_EVERY = timedelta(seconds=1)
#: All partitions of a fetch have come when nothing came for so long.
SETTLED_SECONDS = 0.02
#: Bytes of runs with which a partition does not wait for the others: a backlog.
AT_ONCE_BYTES = 256 * 2**10
#: Bytes waiting for a flush, over all partitions, with which it is time for one, and beyond which reading waits. As
#: much again may be on its way.
FLUSH_SOON_BYTES, MOST_BYTES = 32 * 2**20, 64 * 2**20
#: After so many bytes of runs it is looked how much waits.
WEIGHED_BYTES = 2**20
#: Seconds between two looks whether a partition can go on: they begin with the one and grow to the other.
SHORTEST_PAUSE, LONGEST_PAUSE = 0.25, 2.0
#: Seconds that writing the results of a flush may take before its feed is paused and shown as such. Usual are some
#: milliseconds.
WRITING_PATIENCE_SECONDS = 2.0
#: After these nothing the process holds can be trusted, whichever feed they came up in.
NOT_ALONE = (LogGap, MemoryError)


class Transport(Protocol):
    """What reads for a worker and commits for it: ``streams.transport.app.BatchApp``, or a double in tests."""

    @property
    def group(self) -> str:
        """The consumer group."""

    @property
    def assigned(self) -> Mapping[TopicPartition, Assigned[Any]]:
        """The partitions that are read."""

    def assignment(self) -> Iterable[TopicPartition]:
        """All partitions that were given to this worker, also those it cannot read."""

    def log_end(self, place: TopicPartition, /) -> int:
        """Where a partition's log ended at the last fetch."""

    def pause(self, place: TopicPartition, reason: str, /) -> None:
        """Read no more of a partition, and commit why, until it goes on."""

    def go_on(self, place: TopicPartition, /) -> None:
        """Read a paused partition on."""

    async def unchanged(self, topics: Iterable[str], /) -> None:
        """Return when these topics are seen to be those it began with.

        Raises
        ------
        TopicProblem
            One of them is not.
        """

    def keep(self, work: Callable[[], Coroutine[Any, Any, None]], /) -> None:
        """Run this from the start on."""


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


class BatchWorker(Generic[S, R]):
    """Takes runs into the states of their partitions, all partitions of a feed in one pass, and flushes what changed.

    A pass is due when what was fetched has come and the last one is ``every`` ago, and at once when the feed reaches
    the end of its log after a backlog. Of a backlog, runs are taken as they come, several partitions side by side.

    Feeds do not hold each other up. A partition that has to wait is *paused*: it is not read on, what was read of it is
    kept, and it is tried again. A feed with which something is wrong is *stopped*: its partitions are paused until the
    worker is started again, and what is not committed of them is read again then. Commits say why one is paused.
    ``command`` starts the worker.
    """

    command: str

    def __init__(
        self, transport: Transport, feeds: Mapping[str, str], outputs: Mapping[str, str] | None = None
    ) -> None:
        """``feeds`` names the feed of each topic that is read: what is flushed and stopped together. ``outputs`` names
        the feed of each topic that is written for one alone."""
        self.transport = transport
        #: The feeds that are stopped, and why.
        self.stopped: dict[str, str] = {}
        self._feeds = {**(outputs or {}), **feeds}
        self._read_feeds = dict.fromkeys(feeds.values())
        self._hands = asyncio.Semaphore(os.cpu_count() or 1)
        self._working: set[asyncio.Task[None]] = set()
        self._flushing: set[str] = set()
        self._again: set[str] = set()
        self._behind: set[TopicPartition] = set()
        self._flushed_at: dict[str, float] = {}
        #: The feeds whose results are not taken for now, and what is said of them.
        self._not_taken: dict[str, str] = {}
        self._unweighed = WEIGHED_BYTES
        self._due = asyncio.Event()
        self._soon: set[str] = set()
        self._taken = asyncio.Event()
        transport.keep(_or_end(self._keep_flushing))

    def begin(self, one: Assigned[S], /) -> S:
        """The state of a partition that is read from its start on."""
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

    def unwritten(self, state: S) -> int:
        """Bytes of a state that wait for the next flush."""
        raise NotImplementedError

    async def flush(self, assigned: Sequence[Assigned[S]]) -> None:
        """Write what changed in the partitions of a feed (``write_patiently``), then say of each what may be committed
        (``flushed``)."""
        raise NotImplementedError

    async def write_patiently(
        self, assigned: Sequence[Assigned[S]], writing: Coroutine[Any, Any, None], why: Callable[[], str]
    ) -> None:
        """Return when the results of a flush are acknowledged; for ``flush``, once it has ``taken`` what waited.

        A feed that waits long for it is paused meanwhile: no more is read of it, what waits of it makes no other feed
        wait, and it is shown with the reason. ``why`` says then what is not taken.
        """
        acknowledged = asyncio.create_task(writing)
        await asyncio.wait([acknowledged], timeout=WRITING_PATIENCE_SECONDS)
        feed = self._feeds[assigned[0].place.topic]
        if not acknowledged.done():
            self._not_taken[feed] = why()
            self.taken()
            for one in assigned:
                async with one.lock:
                    await self.take_what_waits(one)
        try:
            await acknowledged
        finally:
            self._not_taken.pop(feed, None)

    def _waits(self, one: Assigned[S]) -> str:
        """Why a partition's state can take nothing for now; empty if it can."""
        return self._not_taken.get(self._feeds[one.place.topic], "")

    def begun(self) -> list[Assigned[S]]:
        """The partitions of which something has come since the assignment."""
        return [one for one in self.transport.assigned.values() if one.begun]

    async def room(self) -> None:
        """Wait for a flush if too much waits for it, but for what has to wait anyway."""
        while (waiting := sum(map(self._unwritten, self.begun()))) >= FLUSH_SOON_BYTES:
            self._taken.clear()
            self.flush_soon(*self._read_feeds)
            if waiting < MOST_BYTES:
                return
            with suppress(TimeoutError):  # partitions that are taken away make room and say nothing
                await asyncio.wait_for(self._taken.wait(), LOOK_EVERY.total_seconds())

    def _unwritten(self, one: Assigned[S]) -> int:
        if self._waits(one):
            return 0
        return self.unwritten(one.state) + (0 if one.paused else one.waiting)

    def taken(self) -> None:
        """Let reading look for room again: a flush took what waited, or there is less of it to wait for."""
        self._taken.set()

    def flushed(self, one: Assigned[S], position: Position) -> None:
        """All results up to a position are acknowledged: it may be committed."""
        one.flushed = position
        tell(Moment(Stage.FLUSHED, one.place, next=position.processed))

    def flush_soon(self, *feeds: str) -> None:
        """Flush these feeds without waiting for the next look."""
        self._soon.update(feeds)
        self._due.set()

    async def receive(self, place: TopicPartition, run: Run) -> None:
        """Let a run wait to be taken, and one of a backlog not for long; called for each that was fetched."""
        one = self.transport.assigned.get(place)
        tell(Moment(Stage.FETCHED, place, run.start, run.next))
        self._unweighed += run.size
        if self._unweighed >= WEIGHED_BYTES:
            self._unweighed = 0
            await self.room()
        feed = self._feeds[place.topic]
        if one is None or not one.current or feed in self.stopped:
            return
        if not one.begun:
            with self._alone(feed):
                one.begin(self.begin(one))
            if feed in self.stopped:
                return
        one.receive(run)
        self._due.set()
        if not one.paused:
            self._note_end(place, run)
            if one.waiting >= AT_ONCE_BYTES:
                begins = asyncio.Event()
                self._work(self._take(one, begins))
                await begins.wait()

    def _work(self, doing: Coroutine[Any, Any, None]) -> None:
        async def work() -> None:
            await doing

        task = asyncio.create_task(_or_end(work)())
        self._working.add(task)
        task.add_done_callback(self._working.discard)

    async def _take(self, one: Assigned[S], begins: asyncio.Event) -> None:
        """Take what waits of a partition; ``begins`` is set when a hand is free for it.

        Whoever needs both waits for the lock first: a hand that waited for a partition would be missed by the others.
        """
        try:
            with self._alone(self._feeds[one.place.topic]):
                async with one.lock, self._hands:
                    begins.set()
                    if one.begun and not one.paused:
                        await self.take_what_waits(one)
        finally:
            begins.set()

    async def _pass(self, assigned: Sequence[Assigned[S]]) -> None:
        """Take what waits of a feed, of all partitions that do not have to wait."""
        async with locked(assigned), self._hands:
            ready = [one for one in assigned if one.runs and not one.paused]
            waiting = [(one, one.state, *joined(one.runs)) for one in ready if not self._waits(one)]
            for _, same in groupby(waiting, lambda each: each[0].place.topic):
                for together in pieces(same, lambda each: each[2].records):
                    with suppress(NotYet):
                        await asyncio.to_thread(self._read_and_take, [(state, run) for _, state, run, _ in together])
                        for one, _, _, count in together:
                            one.done(count)
            for one in ready:
                if one.runs:
                    await self.take_what_waits(one)

    def _read_and_take(self, waiting: Sequence[tuple[S, Run]]) -> None:
        for (state, run), found in zip(waiting, self.read(waiting), strict=True):
            place = TopicPartition(run.topic, run.partition)
            tell(Moment(Stage.DECODED, place, run.start, run.next))
            self.take(state, run, found)
            tell(Moment(Stage.PROCESSED, place, run.start, run.next))

    async def take_what_waits(self, one: Assigned[S]) -> None:
        """Take runs in their order, together if they can be; pause the partition where one has to wait, and else let
        it go on."""
        reason, together = "", True
        while one.begun and not (reason := self._waits(one)) and one.runs:
            run, count = joined(one.runs) if together else (one.runs[0], 1)
            try:
                await asyncio.to_thread(self._read_and_take, [(one.state, run)])
            except NotYet as wait:
                if count == 1:
                    reason = str(wait)
                    break
                together = False
            else:
                one.done(count)
        if not one.begun:
            return
        if not reason:
            if one.paused:
                self.transport.go_on(one.place)
                log.info("%s goes on", one.place)
        elif not one.paused:
            log.warning("%s. No other topic waits for it", reason)
            self.transport.pause(one.place, reason)
            self._behind.discard(one.place)
            self._work(self._try_again(one))

    async def _try_again(self, one: Assigned[S]) -> None:
        """Look now and then, at growing intervals, whether a paused partition can go on."""
        pause, feed = SHORTEST_PAUSE, self._feeds[one.place.topic]
        while one.begun and one.paused:
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
            with self._alone(feed):
                async with one.lock, self._hands:
                    if one.begun:
                        await self.take_what_waits(one)

    def _note_end(self, place: TopicPartition, run: Run) -> None:
        if run.next < self.transport.log_end(place):
            self._behind.add(place)
        elif place in self._behind:
            self._behind.discard(place)
            feed = self._feeds[place.topic]
            if not any(self._feeds[other.topic] == feed for other in self._behind):
                self.flush_soon(feed)

    async def _keep_flushing(self) -> None:
        """Look what is due when the partitions of a fetch have come, and now and then.

        A feed whose flush takes long is left alone until it is through.
        """
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._due.wait(), LOOK_EVERY.total_seconds())
            await self._all_came()
            self._due.clear()
            self._behind &= self.transport.assigned.keys()
            fresh = {self._feeds[one.place.topic] for one in self.begun() if one.fresh}
            soon, self._soon = fresh & self._soon, set()
            self._again |= soon & self._flushing
            due = (soon | set(filter(self._is_due, fresh))) - self._flushing
            for feed in filter(due.__contains__, self._read_feeds):
                self._flushing.add(feed)
                self._work(self._flush_feed(feed))

    async def _all_came(self) -> None:
        """Wait until nothing comes for a moment, but of a backlog not for long."""
        loop = asyncio.get_running_loop()
        until = loop.time() + LOOK_EVERY.total_seconds()
        with suppress(TimeoutError):
            while not self._soon and loop.time() < until:
                self._due.clear()
                await asyncio.wait_for(self._due.wait(), SETTLED_SECONDS)

    def _is_due(self, feed: str) -> bool:
        waited = asyncio.get_running_loop().time() - self._flushed_at.get(feed, -math.inf)
        return waited + LOOK_EVERY.total_seconds() / 2 >= self.every(feed).total_seconds()

    async def _flush_feed(self, feed: str) -> None:
        try:
            self._again.add(feed)
            while feed in self._again:
                self._again.discard(feed)
                self._flushed_at[feed] = asyncio.get_running_loop().time()
                with self._alone(feed):
                    fresh = [one for one in self.begun() if self._feeds[one.place.topic] == feed and one.fresh]
                    fresh.sort(key=lambda one: one.place)
                    await self._pass(fresh)
                    for one in fresh:
                        one.fresh = bool(one.runs)
                    if fresh:
                        await self.flush(fresh)
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

    def stop(self, topic: str, error: BaseException) -> None:
        """Stop the feed of a topic; the process ends for one that belongs to no feed alone."""
        if topic in self._feeds:
            self._stop(self._feeds[topic], error)
        else:
            end_process(error)

    def why_stopped(self, topic: str) -> str:
        """Why the feed of a topic is stopped; empty if it is not."""
        return self.stopped.get(self._feeds[topic], "")

    def _stop(self, feed: str, error: BaseException) -> None:
        if feed in self.stopped:
            return
        expected = isinstance(error, Stop)
        self.stopped[feed] = reason = (
            str(error)
            if expected
            else f"{type(error).__name__} in the program; the log of the {self.transport.group} says where. "
            f"With that mended start it again: {self.command}"
        )
        if self.stopped.keys() >= self._read_feeds.keys():
            end_process(error)
        log.error("%s", error if expected else f"{type(error).__name__}: {error}", exc_info=None if expected else error)
        log.error(
            "%s is stopped, the other feeds of this %s go on. What is not committed of it stays in the log",
            *(feed, self.transport.group),
        )
        for one in [one for place, one in self.transport.assigned.items() if self._feeds[place.topic] == feed]:
            one.drop()
        for place in self.transport.assignment():
            if self._feeds[place.topic] == feed:
                self.transport.pause(place, reason)
        self.taken()

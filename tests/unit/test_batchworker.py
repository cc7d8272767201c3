"""How partitions wait, stop and go on, each feed by itself, and what happens when one is taken away meanwhile."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any
from unittest.mock import AsyncMock, create_autospec

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from processors.worker import Processor
from sinks.topic_rows import Read, Unread
from sinks.worker import Sink
from sinks.writer import Writer
from streams import batchworker
from streams.assignment import Assigned, TopicPartition
from streams.batchworker import FLUSH_SOON_BYTES, MOST_BYTES, BatchWorker
from streams.ending import Stop
from streams.missing_schemas import NotYet
from streams.positions import LogGap, first
from streams.transport.sending import Sender
from streams.wire.fetched_batches import Run
from tests.reference import batches
from tests.reference.toy import CATALOGUE, FEED, value
from tests.transport import Here

HERE = TopicPartition("toy", 0)


class Counting(BatchWorker[list[int], Run]):
    """Takes runs when it is told that there is room; nothing waits."""

    def __init__(self, transport: Here) -> None:
        self.free = asyncio.Event()
        self.waiting = asyncio.Event()
        super().__init__(transport, {"toy": "toy"})

    def begin(self, one: Assigned[list[int]]) -> list[int]:
        return []

    def read(self, waiting: Sequence[tuple[list[int], Run]], /) -> list[Run]:
        return [run for _, run in waiting]

    def take(self, state: list[int], run: Run, read: Run) -> None:
        assert read is run
        state.append(run.start)

    async def room(self) -> None:
        self.waiting.set()
        await self.free.wait()

    async def flush(self, assigned: Sequence[Assigned[list[int]]]) -> None:
        """Nothing to write."""


async def took(
    worker: BatchWorker[Any, Any], place: TopicPartition, start: int, end: int, *, at_once: bool = True
) -> None:
    """Let a run come, and wait for others or not."""
    one = worker.transport.assigned[place]
    await worker.receive(place, Run(*place, start, end, ()))
    if one.begun and at_once:
        await worker._take(one, asyncio.Event())


def taken(between: Callable[[Here], None]) -> dict[TopicPartition, list[int]]:
    """What a worker holds after a run waited for room, and something happened meanwhile."""

    async def work() -> dict[TopicPartition, list[int]]:
        transport = Here(HERE)
        worker = Counting(transport)
        reading = asyncio.create_task(worker.receive(HERE, Run("toy", 0, 10, 20, ())))
        await worker.waiting.wait()
        between(transport)
        worker.free.set()
        await reading
        await worker._flush_feed("toy")
        return {one.place: one.state for one in worker.begun()}

    return asyncio.run(work())


@pytest.fixture(autouse=True)
def _errors_are_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def end(error: BaseException) -> None:
        raise error

    monkeypatch.setattr(batchworker, "end_process", end)


def test_a_run_that_waited_is_taken() -> None:
    assert taken(lambda _: None) == {HERE: [10]}


def test_a_run_of_a_partition_taken_away_while_it_waited_is_left() -> None:
    assert taken(lambda transport: transport.take_away(HERE)) == {}


def test_a_run_of_an_earlier_assignment_is_left() -> None:
    assert taken(lambda transport: transport.assign({HERE: first("id", "def", 0)})) == {}


class Weighing(BatchWorker[list[int], Run]):
    """States whose numbers are bytes that wait."""

    def __init__(self, *states: list[int]) -> None:
        self.here = Here(*(TopicPartition("toy", number) for number in range(len(states))))
        super().__init__(self.here, {"toy": "toy"})
        for one, state in zip(self.here.assigned.values(), states, strict=True):
            one.begin(state)

    def unwritten(self, state: list[int]) -> int:
        return sum(state)

    async def flush(self, assigned: Sequence[Assigned[list[int]]]) -> None:
        for one in assigned:
            one.state.clear()
            self.taken()


def has_room(worker: Weighing) -> bool:
    """Whether there is room at once."""

    async def ask() -> bool:
        waiting = asyncio.create_task(worker.room())
        for _ in range(5):
            await asyncio.sleep(0)
        done = waiting.done()
        waiting.cancel()
        return done

    return asyncio.run(ask())


@pytest.mark.parametrize(
    ("states", "room", "due"),
    [
        (([FLUSH_SOON_BYTES - 1],), True, False),
        (([FLUSH_SOON_BYTES],), True, True),
        (([MOST_BYTES - 1],), True, True),
        (([MOST_BYTES - 1], [1]), False, True),
    ],
    ids=["little", "enough", "much", "too much in all"],
)
def test_a_flush_is_due_with_enough_and_reading_waits_with_too_much(
    states: tuple[list[int], ...], room: bool, due: bool
) -> None:
    worker = Weighing(*states)
    assert has_room(worker) is room
    assert worker._due.is_set() is due


def test_reading_waits_for_no_run_of_a_paused_partition() -> None:
    """No flush takes it; others would wait for what this one waits for."""
    worker = Weighing([])
    worker.here.assigned[HERE].waiting = MOST_BYTES
    assert not has_room(worker)
    worker.here.pause(HERE, "its schema is not here")
    assert has_room(worker)


def test_reading_goes_on_when_a_flush_took_what_waited() -> None:
    """While that flush may still be writing."""

    async def work() -> None:
        worker = Weighing([MOST_BYTES], [MOST_BYTES])
        waiting = asyncio.create_task(worker.room())
        await worker._due.wait()
        assert not waiting.done()
        await worker.flush(worker.begun())
        await asyncio.wait_for(waiting, 60)

    asyncio.run(work())


def test_reading_goes_on_when_what_waited_was_taken_away() -> None:
    async def work() -> None:
        worker = Weighing([MOST_BYTES])
        waiting = asyncio.create_task(worker.room())
        await worker._due.wait()
        worker.here.take_away(HERE)
        await asyncio.wait_for(waiting, 60)

    asyncio.run(work())


class Slow(BatchWorker[None, None]):
    """Feeds whose flushes take the longer the higher their number, and are counted."""

    def __init__(self, feeds: int) -> None:
        places = [TopicPartition(f"feed-{number}", 0) for number in range(feeds)]
        super().__init__(Here(*places), {place.topic: place.topic for place in places})
        for one in self.transport.assigned.values():
            one.begin(None)
            one.fresh = True
        self.flushes = {place.topic: 0 for place in places}

    def unwritten(self, state: None) -> int:
        return 0

    async def flush(self, assigned: Sequence[Assigned[None]]) -> None:
        for one in assigned:
            self.flushes[one.place.topic] += 1
            one.fresh = True
            for _ in range(10 * int(one.place.topic.partition("-")[2])):
                await asyncio.sleep(0)


def test_a_flush_that_is_due_while_feeds_are_flushed_comes_once_more_for_them_and_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The end of one that was asked for again is nothing the others have to flush for."""
    monkeypatch.setattr(batchworker, "LOOK_EVERY", timedelta(hours=1))

    async def work() -> None:
        worker = Slow(20)
        flushing = asyncio.create_task(worker._keep_flushing())
        for turns in (50, 2000):
            worker.flush_soon(*worker.flushes)
            for _ in range(turns):
                await asyncio.sleep(0)
        assert set(worker.flushes.values()) == {2}
        flushing.cancel()

    asyncio.run(work())


def test_feeds_that_are_due_together_are_flushed_in_their_order() -> None:
    class Noting(Slow):
        order: list[str] = []  # noqa: RUF012 - one worker is made

        async def flush(self, assigned: Sequence[Assigned[None]]) -> None:
            self.order += [one.place.topic for one in assigned]

    async def work() -> None:
        worker = Noting(20)
        flushing = asyncio.create_task(worker._keep_flushing())
        worker.flush_soon(*reversed(worker.flushes))
        while len(worker.order) < 20:  # noqa: ASYNC110 - the end of the test is what it waits for
            await asyncio.sleep(0)
        assert worker.order == [*worker.flushes]
        flushing.cancel()

    asyncio.run(work())


def test_a_feed_waits_for_its_time() -> None:
    class Seldom(Slow):
        def every(self, feed: str, /) -> timedelta:
            return timedelta(seconds=15)

    async def work() -> None:
        worker, place, now = Seldom(1), TopicPartition("feed-0", 0), 0.0
        loop = asyncio.get_running_loop()
        loop.time = lambda: now  # type: ignore[method-assign]
        await worker._flush_feed("feed-0")
        due = []
        for now in (1.0, 14.4, 14.6):  # noqa: B007 - the clock
            await worker.receive(place, Run("feed-0", 0, 0, 1, ()))
            due.append(worker._is_due("feed-0"))
        assert due == [False, False, True]

    asyncio.run(work())


class OneRow:
    """A reader that makes a row of every run, and waits for some as for a schema that is not here."""

    columns, definition = (), "def"

    def __init__(self, topic: str) -> None:
        self.topic, self.table = topic, f"raw.{topic}"
        self.waits = threading.Event()
        self.came = threading.Event()

    def read(self, wanted: Sequence[Unread], /) -> list[Read]:
        if any(run.start > 10 for run, *_ in wanted):
            self.waits.set()
            assert self.came.wait(20)
        starts = [[*range(run.start, run.next, 10)] for run, *_ in wanted]
        return [Read(pl.DataFrame({"start": found}), 0) for found in starts]


def writer_by(insert: Callable[..., None]) -> Any:
    """A writer that inserts so."""
    writer = create_autospec(Writer, instance=True)
    writer.insert, writer.refusals = insert, {}
    return writer


def test_a_sink_inserts_and_commits_what_it_has_while_a_partition_waits() -> None:
    """A record that names an unknown schema holds up its own partition, and of that only what comes behind."""
    stuck, free = TopicPartition("stuck", 0), TopicPartition("free", 0)
    transport = Here(stuck, free)
    stored: list[tuple[str, list[Any]]] = []

    def insert(table: str, columns: Any, rows: pl.DataFrame, wanted: Any) -> None:
        stored.append((table, rows["start"].to_list() if "start" in rows.columns else rows.rows()))

    async def take(sink: Sink, place: TopicPartition, *starts: int) -> None:
        for start in starts:
            await took(sink, place, start, start + 10)

    async def work() -> None:
        readers: list[Any] = [OneRow("stuck"), OneRow("free")]
        sink = Sink(transport, readers, writer_by(insert))
        waiting = asyncio.create_task(take(sink, stuck, 0, 10, 20))
        await take(sink, free, 0, 10)
        await asyncio.to_thread(readers[0].waits.wait, 60)
        for one in sink.begun():
            await asyncio.wait_for(sink.flush([one]), 10)
        assert transport.flushed == {stuck: 20, free: 20}
        assert [one for one in stored if one[0] != "raw.control"] == [("raw.stuck", [0, 10]), ("raw.free", [0, 10])]
        readers[0].came.set()
        await waiting
        await sink.flush(sink.begun())
        assert transport.flushed[stuck] == 30
        assert ("raw.stuck", [20]) in stored

    asyncio.run(work())


#: A feed of two topics, and two of one.
TOPICS = {"grown": "grown", "grown.from1": "grown", "other": "other", "third": "third"}
AWAY = "the table is not there"
#: A partition and an offset.
Offset = tuple[TopicPartition, int]


def offsets_of(run: Run) -> list[Offset]:
    """Where its records are."""
    return [(TopicPartition(run.topic, run.partition), offset) for offset in range(run.start, run.next)]


class Unruly(BatchWorker[list[int], Run]):
    """States are the offsets of the runs that were taken; some runs have to wait so many times, some are too bad."""

    command = "citystream work"

    def __init__(self, transport: Here, waits: Mapping[Offset, int], bad: Mapping[Offset, Exception]):
        self.waits_left, self.bad = dict(waits), bad
        super().__init__(transport, TOPICS)

    def begin(self, one: Assigned[list[int]]) -> list[int]:
        return [*range(one.start.processed)]

    def read(self, waiting: Sequence[tuple[list[int], Run]], /) -> list[Run]:
        assert len({run.topic for _, run in waiting}) == 1
        for place in [place for _, run in waiting for place in offsets_of(run)]:
            if self.waits_left.get(place, 0):
                self.waits_left[place] -= 1
                raise NotYet(AWAY)
        return [run for _, run in waiting]

    def take(self, state: list[int], run: Run, read: Run) -> None:
        assert read is run
        for place in offsets_of(run):
            if place in self.bad:
                raise self.bad[place]
        assert state == [*range(run.start)]
        state += range(run.start, run.next)

    def unwritten(self, state: list[int]) -> int:
        return 0

    async def flush(self, assigned: Sequence[Assigned[list[int]]]) -> None:
        assert len({TOPICS[one.place.topic] for one in assigned}) <= 1
        for one in assigned:
            if one.begun:
                self.flushed(one, replace(one.start, processed=len(one.state)))

    async def work(self, log: list[TopicPartition]) -> None:
        """Take a run of each of these partitions, flushing now and then, until all that can be is done."""
        ends = {place: one.start.processed for place, one in self.transport.assigned.items()}
        for number, place in enumerate(log):
            self._work(took(self, place, ends[place], ends[place] + 1, at_once=number % 2 == 0))
            ends[place] += 1
            if number % 3 == 0:
                await self.flush_all()
        for _ in range(2):
            await self.flush_all()
            while self._working:
                await asyncio.gather(*self._working)
        await self.flush_all()

    async def flush_all(self) -> None:
        for feed in {TOPICS[one.place.topic] for one in self.begun()}:
            await batchworker._or_end(self._flush_feed)(feed)


ALL = [TopicPartition(topic, number) for topic in TOPICS for number in (0, 1)]


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_what_waits_or_stops_leaves_all_other_feeds_as_they_are_and_then_goes_on(data: st.DataObject) -> None:
    """Whatever has to wait, and wherever one feed stops: the others take and flush all there is, in order. The next
    life of the worker, in which nothing is wrong, takes the rest of it as if nothing had been."""
    log = data.draw(st.lists(st.sampled_from(ALL), max_size=30))
    offsets = [(place, log[:number].count(place)) for number, place in enumerate(log)]
    waits = data.draw(st.dictionaries(st.sampled_from(offsets), st.integers(1, 2), max_size=4)) if offsets else {}
    at = data.draw(st.sampled_from([None, *offsets]))
    error: Exception = data.draw(st.sampled_from([Stop("too many are bad"), ValueError("nobody thought of it")]))
    bad = {} if at is None else {at: error}
    transport, ends = Here(*ALL), {place: log.count(place) for place in ALL}

    with pytest.MonkeyPatch.context() as quick:
        quick.setattr(batchworker, "SHORTEST_PAUSE", 0.001)
        worker = Unruly(transport, waits, bad)
        asyncio.run(worker.work(log))
        assert not any(worker.waits_left[one] for one in waits if TOPICS[one[0].topic] not in worker.stopped)
        stopped = {TOPICS[at[0].topic]} if at else set()
        assert worker.stopped.keys() == stopped
        assert transport.paused.keys() == {place for place in ALL if TOPICS[place.topic] in stopped}
        for place in ALL:
            if TOPICS[place.topic] not in stopped:
                assert transport.flushed.get(place, 0) == ends[place]
        if at:
            assert transport.flushed.get(at[0], 0) <= at[1], "what is bad was not taken"

        done = transport.flushed
        transport.assign({place: replace(first("id", "def", 0), processed=done.get(place, 0)) for place in ALL})
        left = [place for place in ALL for _ in range(done.get(place, 0), ends[place])]
        asyncio.run(Unruly(transport, {}, {}).work(left))
        assert {place: done.get(place, 0) for place in ALL} | transport.flushed == ends


def ended(error: Exception, *places: TopicPartition) -> list[BaseException]:
    """What a process ends with when this comes up in these partitions."""
    reasons: list[BaseException] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batchworker, "end_process", reasons.append)
        asyncio.run(Unruly(Here(*ALL), {}, {(place, 0): error for place in places}).work([*places]))
    return [*dict.fromkeys(reasons)]


def test_the_process_ends_when_nothing_is_left_to_do() -> None:
    error = Stop("too many are bad")
    assert ended(error, TopicPartition("grown", 0), TopicPartition("grown.from1", 0), TopicPartition("other", 1)) == []
    assert ended(error, TopicPartition("grown", 0), TopicPartition("other", 1), TopicPartition("third", 0)) == [error]


@pytest.mark.parametrize("error", [LogGap("offsets are missing"), MemoryError()])
def test_the_process_ends_when_it_cannot_be_trusted(error: Exception) -> None:
    assert ended(error, TopicPartition("other", 1)) == [error]


def test_a_stopped_feed_is_said_with_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    transport = Here(*ALL)
    worker = Unruly(transport, {}, {(TopicPartition("grown", 0), 1): Stop("too many are bad; run this")})
    asyncio.run(worker.work([TopicPartition("grown", 0)] * 3))
    first_said, then = caplog.messages
    assert first_said == "too many are bad; run this"
    assert then.startswith("grown is stopped, the other feeds of this ")
    assert set(transport.paused.values()) == {"too many are bad; run this"}
    assert [bool(entry.exc_info) for entry in caplog.records] == [False, False]
    caplog.clear()
    other = TopicPartition("other", 0)
    asyncio.run(Unruly(transport, {}, {(other, 0): ValueError("a street")}).work([other]))
    assert [bool(entry.exc_info) for entry in caplog.records] == [True, False]
    assert "a street" not in transport.paused[other], "what anybody can read has nothing of a record"
    assert transport.paused[other].endswith("start it again: citystream work")


def test_a_feed_that_is_flushed_at_once_again_and_again_keeps_no_other_from_its_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(batchworker, "LOOK_EVERY", timedelta(seconds=0.01))
    monkeypatch.setattr(Slow, "every", lambda *_: timedelta())

    async def work() -> None:
        worker = Slow(2)
        flushing = asyncio.create_task(worker._keep_flushing())
        while min(worker.flushes.values()) < 3:
            worker.flush_soon("feed-0")
            await asyncio.sleep(0)
        flushing.cancel()

    asyncio.run(asyncio.wait_for(work(), 60))


class Blocked(Counting):
    """Reads one topic only when it is told to, in two threads."""

    def __init__(self, transport: Here) -> None:
        super().__init__(transport)
        self._feeds = {"toy": "toy", "other": "other"}
        self._hands = asyncio.Semaphore(2)
        self.free.set()
        self.go_on = threading.Event()

    def read(self, waiting: Sequence[tuple[list[int], Run]], /) -> list[Run]:
        if waiting[0][1].topic == "toy":
            assert self.go_on.wait(60)
        return super().read(waiting)


def test_one_partition_of_a_backlog_leaves_threads_to_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """While it takes long to read, more comes of it, and its feed is to be flushed."""
    monkeypatch.setattr(batchworker, "AT_ONCE_BYTES", 0)
    other = TopicPartition("other", 0)

    async def work() -> None:
        worker = Blocked(Here(HERE, other))
        coming = [asyncio.create_task(worker.receive(HERE, Run(*HERE, at, at + 1, ()))) for at in range(3)]
        await asyncio.sleep(0)
        flushing = asyncio.create_task(worker._flush_feed("toy"))
        await asyncio.sleep(0)
        await worker.receive(other, Run(*other, 0, 1, ()))
        while worker.transport.assigned[other].runs:  # noqa: ASYNC110 - what it looks at tells nobody
            await asyncio.sleep(0.001)
        assert worker.transport.assigned[HERE].state == []
        worker.go_on.set()
        await asyncio.gather(flushing, *coming, *worker._working)
        assert worker.transport.assigned[HERE].state == [0]

    asyncio.run(asyncio.wait_for(work(), 20))


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - what it looks at tells nobody
        await asyncio.sleep(0.001)


class Unanswered(Here):
    """A transport whose brokers acknowledge nothing until they are told to."""

    def __init__(self, *places: TopicPartition) -> None:
        super().__init__(*places)
        self.acknowledges = asyncio.Event()

    def sender(self) -> Any:
        nothing = AsyncMock(spec=Sender)
        nothing.settle.side_effect = self.acknowledges.wait
        return nothing


def test_windows_that_kafka_does_not_take_pause_their_feed_until_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batchworker, "WRITING_PATIENCE_SECONDS", 0.01)
    monkeypatch.setattr(batchworker, "SHORTEST_PAUSE", 0.001)

    async def work() -> None:
        transport = Unanswered()
        transport.assign({HERE: first("id", FEED.definition, 0)})
        processor = Processor(transport, {"toy": FEED}, CATALOGUE)
        await processor.receive(HERE, batches.run(batches.batch([(b"d-1", value(), [])], 0)))
        flushing = asyncio.create_task(processor._flush_feed("toy"))
        await until(lambda: bool(transport.paused))
        assert transport.paused[HERE].startswith("toy: Kafka has not taken its windows and dead letters yet")
        assert processor._unwritten(transport.assigned[HERE]) == 0, "no other feed waits for it"
        assert transport.flushed == {}
        transport.acknowledges.set()
        await flushing
        await until(lambda: not transport.paused)
        assert transport.flushed == {HERE: 1}

    asyncio.run(asyncio.wait_for(work(), 60))


def test_a_table_that_takes_nothing_pauses_its_topic_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other's rows are inserted and committed meanwhile; what was read of the first is inserted when it can be."""
    monkeypatch.setattr(batchworker, "WRITING_PATIENCE_SECONDS", 0.01)
    monkeypatch.setattr(batchworker, "SHORTEST_PAUSE", 0.001)
    missing, free = TopicPartition("missing", 0), TopicPartition("free", 0)
    transport, there = Here(missing, free), threading.Event()
    stored: list[tuple[str, list[int]]] = []

    def insert(table: str, columns: Any, rows: pl.DataFrame, wanted: Any) -> None:
        if table == "raw.missing":
            assert there.wait(60)
        if "start" in rows.columns:
            stored.append((table, rows["start"].to_list()))

    async def read(sink: Sink, place: TopicPartition, start: int) -> None:
        await took(sink, place, start, start + 10)

    def flushed(place: TopicPartition, end: int) -> bool:
        return transport.flushed.get(place) == end

    async def work() -> None:
        readers = [OneRow("missing"), OneRow("free")]
        for way in readers:
            way.came.set()
        writer = writer_by(insert)
        writer.refusals["raw.missing"] = "it is not there; run: citystream init"
        sink = Sink(transport, [*readers], writer)
        flushing = asyncio.create_task(sink._keep_flushing())
        await read(sink, missing, 0)
        sink.flush_soon("missing")
        await until(lambda: missing in transport.paused)
        for start in (10, 20):
            await read(sink, missing, start)
        said = "missing: ClickHouse has not taken rows yet (it is not there; run: citystream init)"
        assert transport.paused == {missing: said}
        for start in (0, 10, 20):
            await read(sink, free, start)
            sink.flush_soon("free")
            await until(partial(flushed, free, start + 10))
        assert missing not in transport.flushed
        assert {table for table, _ in stored} == {"raw.free"}
        there.set()
        await until(lambda: not transport.paused)
        sink.flush_soon("missing")
        await until(partial(flushed, missing, 30))
        flushing.cancel()
        assert [n for table, rows in stored if table == "raw.missing" for n in rows] == [0, 10, 20]

    asyncio.run(asyncio.wait_for(work(), 60))

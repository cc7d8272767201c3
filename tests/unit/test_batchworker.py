"""How partitions wait, stop and go on, each feed by itself, and what happens when one is taken away meanwhile."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock, MagicMock

import polars as pl
import pytest
from faust.types import TP
from hypothesis import given, settings
from hypothesis import strategies as st

from sinks import worker as sink_worker
from sinks.lanes import Read, Unread
from sinks.worker import Sink
from streams import batchworker
from streams.awaited import NotYet
from streams.batchworker import ENOUGH, MOST, BatchWorker, Held
from streams.cluster import Cluster
from streams.positions import LogGap, Position, Stop, first
from streams.runs import Run
from streams.worker import BatchApp

HERE = TP("toy", 0)


class Counting(BatchWorker[list[int], Run]):
    """Takes runs when it is told that there is room; nothing waits."""

    def __init__(self, consumer: Any) -> None:
        self.free = asyncio.Event()
        self.waiting = asyncio.Event()
        super().__init__(MagicMock(batch_consumer=consumer), {"toy": "toy"})

    def begin(self, tp: TP, start: Position) -> list[int]:
        return []

    def read(self, waiting: Sequence[tuple[list[int], Run]], /) -> list[Run]:
        return [run for _, run in waiting]

    def take(self, state: list[int], run: Run, read: Run) -> None:
        assert read is run
        state.append(run.start)

    async def room(self) -> None:
        self.waiting.set()
        await self.free.wait()

    async def flush(self, held: Mapping[TP, Held[list[int]]]) -> None:
        """Nothing to write."""


class Assigned:
    """A consumer with these partitions."""

    def __init__(self, *tps: TP) -> None:
        self.resumed = {tp: first("id", "def", 0) for tp in tps}
        self.flushed: dict[TP, Any] = {}
        self.paused: dict[TP, str] = {}

    def assignment(self) -> set[TP]:
        return set(self.resumed)

    def highwater(self, _: TP) -> int:
        return 0

    def pause(self, tp: TP, reason: str) -> None:
        self.paused[tp] = reason

    def go_on(self, tp: TP) -> None:
        del self.paused[tp]


async def took(worker: BatchWorker[Any, Any], tp: TP, start: int, end: int, *, at_once: bool = True) -> None:
    """Let a run come, and wait for others or not."""
    run = Run(tp.topic, tp.partition, start, end, ())
    held = worker._receive(tp, run, worker.app.batch_consumer.resumed[tp])
    if held is not None and at_once:
        await worker._hands.acquire()
        await worker._take(tp, held)


def a_consumer() -> Any:
    return Assigned(HERE)


async def one_run() -> AsyncIterator[Any]:
    yield SimpleNamespace(message=SimpleNamespace(tp=HERE, value=Run("toy", 0, 10, 20, ())))


def test_faust_keeps_no_list_of_the_runs_that_were_taken() -> None:
    """It notes what an agent acknowledged until it commits that; here positions are committed, and nobody clears it."""

    class Worker(Counting):
        def __init__(self, app: Any) -> None:
            BatchWorker.__init__(self, app, {"toy": "toy"})

    async def work() -> None:
        app = BatchApp("processor", Cluster(("127.0.0.1:1",)), {"toy": "def"}, [])
        Worker(app)
        (agent,) = app.agents.values()
        app.topics.add(agent.channel)
        await app.topics._update_indices()
        consumer = app.batch_consumer
        for last in (19, 29):
            record = SimpleNamespace(
                topic="toy", partition=0, offset=last, timestamp=0, value=Run("toy", 0, 10, 20, ())
            )
            message = consumer._to_message(HERE, record)
            message.incref()
            message.ack(consumer)
            assert message.acked
        assert not any(consumer._acked.values())
        assert not any(consumer._acked_index.values())

    asyncio.run(work())


def taken(between: Callable[[Any], None]) -> dict[TP, list[int]]:
    """What a worker holds after a run waited for room, and something happened meanwhile."""

    async def work() -> dict[TP, list[int]]:
        consumer = a_consumer()
        worker = Counting(consumer)
        reading = asyncio.create_task(worker._read(SimpleNamespace(events=one_run)))
        await worker.waiting.wait()
        between(consumer)
        worker.free.set()
        await reading
        await worker._flush_feed("toy")
        return {tp: held.state for tp, held in worker.held.items()}

    return asyncio.run(work())


@pytest.fixture(autouse=True)
def _errors_are_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def end(error: BaseException) -> None:
        raise error

    monkeypatch.setattr(batchworker, "end_process", end)


def test_a_run_that_waited_is_taken() -> None:
    assert taken(lambda _: None) == {HERE: [10]}


def test_a_run_of_a_partition_taken_away_while_it_waited_is_left() -> None:
    assert taken(lambda consumer: consumer.resumed.pop(HERE)) == {}


def test_a_run_of_an_earlier_assignment_is_left() -> None:
    assert taken(lambda consumer: consumer.resumed.update({HERE: first("id", "def", 0)})) == {}


class Weighing(BatchWorker[list[int], Run]):
    """States whose numbers are bytes that wait."""

    def __init__(self) -> None:
        super().__init__(MagicMock(batch_consumer=a_consumer()), {"toy": "toy"})

    def unwritten(self, state: list[int]) -> int:
        return sum(state)

    def hold(self, *states: list[int]) -> None:
        self.held = {TP("toy", n): Held(first("id", "def", 0), state) for n, state in enumerate(states)}

    async def flush(self, held: Mapping[TP, Held[list[int]]]) -> None:
        for one in held.values():
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
        (([ENOUGH - 1],), True, False),
        (([ENOUGH],), True, True),
        (([MOST - 1],), True, True),
        (([MOST - 1], [1]), False, True),
    ],
    ids=["little", "enough", "much", "too much in all"],
)
def test_a_flush_is_due_with_enough_and_reading_waits_with_too_much(
    states: tuple[list[int], ...], room: bool, due: bool
) -> None:
    worker = Weighing()
    worker.hold(*states)
    assert has_room(worker) is room
    assert worker._due.is_set() is due


def test_reading_waits_for_no_run_of_a_paused_partition() -> None:
    """No flush takes it; others would wait for what this one waits for."""
    worker = Weighing()
    worker.hold([])
    worker.held[HERE].waiting = MOST
    assert not has_room(worker)
    worker.app.batch_consumer.pause(HERE, "its schema is not here")
    assert has_room(worker)


def test_reading_goes_on_when_a_flush_took_what_waited() -> None:
    """While that flush may still be writing."""

    async def work() -> None:
        worker = Weighing()
        worker.hold([MOST], [MOST])
        waiting = asyncio.create_task(worker.room())
        await worker._due.wait()
        assert not waiting.done()
        await worker.flush(worker.held)
        await asyncio.wait_for(waiting, 60)

    asyncio.run(work())


def test_reading_goes_on_when_what_waited_was_taken_away() -> None:
    async def work() -> None:
        worker = Weighing()
        worker.hold([MOST])
        waiting = asyncio.create_task(worker.room())
        await worker._due.wait()
        flushing = asyncio.create_task(worker._keep_flushing())
        await asyncio.wait_for(waiting, 60)
        flushing.cancel()
        assert not worker.held, "the consumer resumed it from another position"

    asyncio.run(work())


class Slow(BatchWorker[None, None]):
    """Feeds whose flushes take the longer the higher their number, and are counted."""

    def __init__(self, feeds: int) -> None:
        tps = [TP(f"feed-{number}", 0) for number in range(feeds)]
        consumer = Assigned(*tps)
        super().__init__(MagicMock(batch_consumer=consumer), {tp.topic: tp.topic for tp in tps})
        self.held = {tp: Held(consumer.resumed[tp], None, fresh=True) for tp in tps}
        self.flushes = dict.fromkeys(self._feeds, 0)

    async def flush(self, held: Mapping[TP, Held[None]]) -> None:
        for tp in held:
            self.flushes[tp.topic] += 1
            held[tp].fresh = True
            for _ in range(10 * int(tp.topic.partition("-")[2])):
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
            worker.flush_soon()
            for _ in range(turns):
                await asyncio.sleep(0)
        assert set(worker.flushes.values()) == {2}
        flushing.cancel()

    asyncio.run(work())


def test_a_feed_waits_for_its_time_while_more_comes_and_not_when_it_is_quiet() -> None:
    class Seldom(Slow):
        def every(self, feed: str, /) -> timedelta:
            return timedelta(seconds=15)

    async def work() -> None:
        worker, tp, now = Seldom(1), TP("feed-0", 0), 0.0
        loop = asyncio.get_running_loop()
        loop.time = lambda: now  # type: ignore[method-assign]
        await worker._flush_feed("feed-0")
        due = []
        for now in (1.0, 13.9, 14.1):  # noqa: B007 - the clock
            worker._receive(tp, Run("feed-0", 0, 0, 1, ()), worker.app.batch_consumer.resumed[tp])
            due.append(worker._is_due("feed-0"))
        assert due == [False, False, True]
        now = 1.0
        worker._came.clear()
        assert worker._is_due("feed-0")

    asyncio.run(work())


class OneRow:
    """A lane that makes a row of every run, and waits for some as for a schema that is not here."""

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


def test_a_sink_inserts_and_commits_what_it_has_while_a_partition_waits() -> None:
    """A record that names an unknown schema holds up its own partition, and of that only what comes behind."""
    stuck, free = TP("stuck", 0), TP("free", 0)
    consumer = Assigned(stuck, free)
    stored: list[tuple[str, list[Any]]] = []

    def insert(table: str, columns: Any, rows: pl.DataFrame, wanted: Any) -> None:
        stored.append((table, rows["start"].to_list() if "start" in rows.columns else rows.rows()))

    async def take(sink: Sink, tp: TP, *starts: int) -> None:
        for start in starts:
            await took(sink, tp, start, start + 10)

    async def work() -> None:
        lanes = [OneRow("stuck"), OneRow("free")]
        app = MagicMock(batch_consumer=consumer, unchanged=AsyncMock())
        sink = Sink(app, lanes, SimpleNamespace(insert=insert))  # type: ignore[arg-type]
        waiting = asyncio.create_task(take(sink, stuck, 0, 10, 20))
        await take(sink, free, 0, 10)
        await asyncio.to_thread(lanes[0].waits.wait, 60)
        await asyncio.wait_for(sink.flush(dict(sink.held)), 10)
        assert {tp: position.processed for tp, position in consumer.flushed.items()} == {stuck: 20, free: 20}
        assert sorted(stored[:2]) == [("raw.free", [0, 10]), ("raw.stuck", [0, 10])]
        lanes[0].came.set()
        await waiting
        await sink.flush(dict(sink.held))
        assert consumer.flushed[stuck].processed == 30
        assert ("raw.stuck", [20]) in stored

    asyncio.run(work())


#: A feed of two topics, and two of one.
TOPICS = {"grown": "grown", "grown.from1": "grown", "other": "other", "third": "third"}
AWAY = "the table is not there"
#: A partition and an offset.
Place = tuple[TP, int]


def places_of(run: Run) -> list[Place]:
    """Where its records are."""
    return [(TP(run.topic, run.partition), offset) for offset in range(run.start, run.next)]


class Unruly(BatchWorker[list[int], Run]):
    """States are the offsets of the runs that were taken; some runs have to wait so many times, some are too bad."""

    command = "citystream work"

    def __init__(
        self, consumer: Assigned, waits: Mapping[tuple[TP, int], int], bad: Mapping[tuple[TP, int], Exception]
    ):
        self.waits_left, self.bad = dict(waits), bad
        self.consumer = consumer
        super().__init__(MagicMock(batch_consumer=consumer), TOPICS)

    def begin(self, tp: TP, start: Position) -> list[int]:
        return [*range(start.processed)]

    def read(self, waiting: Sequence[tuple[list[int], Run]], /) -> list[Run]:
        assert len({run.topic for _, run in waiting}) == 1
        for place in [place for _, run in waiting for place in places_of(run)]:
            if self.waits_left.get(place, 0):
                self.waits_left[place] -= 1
                raise NotYet(AWAY)
        return [run for _, run in waiting]

    def take(self, state: list[int], run: Run, read: Run) -> None:
        assert read is run
        for place in places_of(run):
            if place in self.bad:
                raise self.bad[place]
        assert state == [*range(run.start)]
        state += range(run.start, run.next)

    def unwritten(self, state: list[int]) -> int:
        return 0

    async def flush(self, held: Mapping[TP, Held[list[int]]]) -> None:
        assert len({TOPICS[tp.topic] for tp in held}) == 1
        for tp, one in held.items():
            self.consumer.flushed[tp] = replace(one.start, processed=len(one.state))

    async def work(self, log: list[TP]) -> None:
        """Take a run of each of these partitions, flushing now and then, until all that can be is done."""
        ends = {tp: tp_start.processed for tp, tp_start in self.consumer.resumed.items()}
        for number, tp in enumerate(log):
            self._work(took(self, tp, ends[tp], ends[tp] + 1, at_once=number % 2 == 0))
            ends[tp] += 1
            if number % 3 == 0:
                await self.flush_all()
        for _ in range(2):
            await self.flush_all()
            while self._working:
                await asyncio.gather(*self._working)
        await self.flush_all()

    async def flush_all(self) -> None:
        for feed in {TOPICS[tp.topic] for tp in self.held}:
            await batchworker._or_end(self._flush_feed)(feed)


ALL = [TP(topic, number) for topic in TOPICS for number in (0, 1)]


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_what_waits_or_stops_leaves_all_other_feeds_as_they_are_and_then_goes_on(data: st.DataObject) -> None:
    """Whatever has to wait, and wherever one feed stops: the others take and flush all there is, in order. The next
    life of the worker, in which nothing is wrong, takes the rest of it as if nothing had been."""
    log = data.draw(st.lists(st.sampled_from(ALL), max_size=30))
    places = [(tp, log[:number].count(tp)) for number, tp in enumerate(log)]
    waits = data.draw(st.dictionaries(st.sampled_from(places), st.integers(1, 2), max_size=4)) if places else {}
    place = data.draw(st.sampled_from([None, *places]))
    error: Exception = data.draw(st.sampled_from([Stop("too many are bad"), ValueError("nobody thought of it")]))
    bad = {} if place is None else {place: error}
    consumer, ends = Assigned(*ALL), {tp: log.count(tp) for tp in ALL}

    def processed() -> dict[TP, int]:
        return {tp: position.processed for tp, position in consumer.flushed.items()}

    with pytest.MonkeyPatch.context() as quick:
        quick.setattr(batchworker, "SHORTEST_PAUSE", 0.001)
        worker = Unruly(consumer, waits, bad)
        asyncio.run(worker.work(log))
        assert not any(worker.waits_left[one] for one in waits if TOPICS[one[0].topic] not in worker.stopped)
        stopped = {TOPICS[place[0].topic]} if place else set()
        assert worker.stopped.keys() == stopped
        assert consumer.paused.keys() == {tp for tp in ALL if TOPICS[tp.topic] in stopped}
        for tp in ALL:
            if TOPICS[tp.topic] not in stopped:
                assert processed().get(tp, 0) == ends[tp]
        if place:
            assert processed().get(place[0], 0) <= place[1], "what is bad was not taken"

        consumer.resumed = {tp: replace(first("id", "def", 0), processed=processed().get(tp, 0)) for tp in ALL}
        consumer.paused.clear()
        left = [tp for tp in ALL for _ in range(consumer.resumed[tp].processed, ends[tp])]
        asyncio.run(Unruly(consumer, {}, {}).work(left))
        assert {tp: processed().get(tp, 0) for tp in ALL} == ends


def ended(error: Exception, *tps: TP) -> list[BaseException]:
    """What a process ends with when this comes up in these partitions."""
    reasons: list[BaseException] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batchworker, "end_process", reasons.append)
        asyncio.run(Unruly(Assigned(*ALL), {}, {(tp, 0): error for tp in tps}).work([*tps]))
    return [*dict.fromkeys(reasons)]


def test_the_process_ends_when_nothing_is_left_to_do() -> None:
    error = Stop("too many are bad")
    assert ended(error, TP("grown", 0), TP("grown.from1", 0), TP("other", 1)) == []
    assert ended(error, TP("grown", 0), TP("other", 1), TP("third", 0)) == [error]


@pytest.mark.parametrize("error", [LogGap("offsets are missing"), MemoryError()])
def test_the_process_ends_when_it_cannot_be_trusted(error: Exception) -> None:
    assert ended(error, TP("other", 1)) == [error]


def test_a_stopped_feed_is_said_with_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    consumer = Assigned(*ALL)
    worker = Unruly(consumer, {}, {(TP("grown", 0), 1): Stop("too many are bad; run this")})
    asyncio.run(worker.work([TP("grown", 0)] * 3))
    first_said, then = caplog.messages
    assert first_said == "too many are bad; run this"
    assert then.startswith("grown is stopped, the other feeds of this ")
    assert set(consumer.paused.values()) == {"too many are bad; run this"}
    assert [bool(entry.exc_info) for entry in caplog.records] == [False, False]
    caplog.clear()
    asyncio.run(Unruly(consumer, {}, {(TP("other", 0), 0): ValueError("a street")}).work([TP("other", 0)]))
    assert [bool(entry.exc_info) for entry in caplog.records] == [True, False]
    assert "a street" not in consumer.paused[TP("other", 0)], "what anybody can read has nothing of a record"
    assert consumer.paused[TP("other", 0)].endswith("start it again: citystream work")


def test_a_table_that_takes_nothing_pauses_its_topic_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other's rows are inserted and committed meanwhile; what was read of the first is inserted when it can be."""
    monkeypatch.setattr(sink_worker, "PATIENCE", 0.01)
    monkeypatch.setattr(batchworker, "SHORTEST_PAUSE", 0.001)
    missing, free = TP("missing", 0), TP("free", 0)
    consumer, there = Assigned(missing, free), threading.Event()
    stored: list[tuple[str, list[int]]] = []

    def insert(table: str, columns: Any, rows: pl.DataFrame, wanted: Any) -> None:
        if table == "raw.missing":
            assert there.wait(60)
        if "start" in rows.columns:
            stored.append((table, rows["start"].to_list()))

    async def read(sink: Sink, tp: TP, start: int) -> None:
        await took(sink, tp, start, start + 10)

    async def until(condition: Callable[[], bool]) -> None:
        while not condition():  # noqa: ASYNC110 - what it looks at tells nobody
            await asyncio.sleep(0.001)

    def committed(tp: TP, end: int) -> bool:
        return tp in consumer.flushed and consumer.flushed[tp].processed == end

    async def work() -> None:
        ways = [OneRow("missing"), OneRow("free")]
        for way in ways:
            way.came.set()
        writer: Any = SimpleNamespace(insert=insert, refusals={"raw.missing": "it is not there; run: citystream init"})
        app: Any = MagicMock(batch_consumer=consumer, unchanged=AsyncMock())
        sink = Sink(app, [*ways], writer)
        flushing = asyncio.create_task(sink._keep_flushing())
        await read(sink, missing, 0)
        sink.flush_soon()
        await until(lambda: missing in consumer.paused)
        for start in (10, 20):
            await read(sink, missing, start)
        said = "missing: ClickHouse has not taken rows yet (it is not there; run: citystream init)"
        assert consumer.paused == {missing: said}
        for start in (0, 10, 20):
            await read(sink, free, start)
            sink.flush_soon()
            await until(partial(committed, free, start + 10))
        assert missing not in consumer.flushed
        assert {table for table, _ in stored} == {"raw.free"}
        there.set()
        await until(lambda: not consumer.paused)
        sink.flush_soon()
        await until(partial(committed, missing, 30))
        flushing.cancel()
        assert [n for table, rows in stored if table == "raw.missing" for n in rows] == [0, 10, 20]

    asyncio.run(asyncio.wait_for(work(), 60))

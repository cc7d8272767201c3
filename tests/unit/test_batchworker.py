"""What happens to a run that waits while its partition is taken away."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock, MagicMock

import polars as pl
import pytest
from faust.types import TP

from sinks.worker import Sink
from streams import batchworker
from streams.batchworker import ENOUGH, MOST, BatchWorker, Held
from streams.positions import Position, first
from streams.runs import Run
from streams.worker import BatchApp

HERE = TP("toy", 0)


class Counting(BatchWorker[list[int]]):
    """Takes runs when it is told that there is room; nothing waits."""

    def __init__(self, consumer: Any) -> None:
        self.free = asyncio.Event()
        self.waiting = asyncio.Event()
        super().__init__(MagicMock(batch_consumer=consumer), ["toy"])

    def begin(self, tp: TP, start: Position) -> list[int]:
        return []

    def take(self, state: list[int], run: Run) -> None:
        state.append(run.start)

    async def room(self) -> None:
        self.waiting.set()
        await self.free.wait()

    async def flush(self, held: Mapping[TP, Held[list[int]]]) -> None:
        """Nothing to write."""


def a_consumer() -> Any:
    return SimpleNamespace(
        resumed={HERE: first("id", "def", 0)}, assignment=lambda: {HERE}, highwater=lambda _: 0, flushed={}
    )


async def one_run() -> AsyncIterator[Any]:
    yield SimpleNamespace(message=SimpleNamespace(tp=HERE, value=Run("toy", 0, 10, 20, ())))


def test_faust_keeps_no_list_of_the_runs_that_were_taken() -> None:
    """It notes what an agent acknowledged until it commits that; here positions are committed, and nobody clears it."""

    class Worker(Counting):
        def __init__(self, app: Any) -> None:
            BatchWorker.__init__(self, app, ["toy"])

    async def work() -> None:
        app = BatchApp("processor", "127.0.0.1:1", {"toy": "def"}, [])
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
        await asyncio.gather(*worker._working)
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


class Weighing(BatchWorker[list[int]]):
    """States whose numbers are bytes that wait."""

    def __init__(self) -> None:
        super().__init__(MagicMock(batch_consumer=a_consumer()), ["toy"])

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


class OneRow:
    """A lane that makes a row of every run, and waits for some as for a schema that is not here."""

    columns, definition = (), "def"

    def __init__(self, topic: str) -> None:
        self.topic, self.table = topic, f"raw.{topic}"
        self.waits = threading.Event()
        self.came = threading.Event()

    def read(self, run: Run, from_offset: int, max_event_ms: int) -> tuple[pl.DataFrame, int]:
        if run.start > 10:
            self.waits.set()
            assert self.came.wait(20)
        return pl.DataFrame({"start": [run.start]}), max_event_ms


def test_a_sink_inserts_and_commits_what_it_has_while_a_partition_waits() -> None:
    """A record that names an unknown schema holds up its own partition, and of that only what comes behind."""
    stuck, free = TP("stuck", 0), TP("free", 0)
    consumer = SimpleNamespace(
        resumed={tp: first("id", "def", 0) for tp in (stuck, free)},
        assignment=lambda: {stuck, free},
        highwater=lambda _: 0,
        flushed={},
    )
    stored: list[tuple[str, list[Any]]] = []

    def insert(table: str, columns: Any, rows: pl.DataFrame, wanted: Any) -> None:
        stored.append((table, rows["start"].to_list() if "start" in rows.columns else rows.rows()))

    async def take(sink: Sink, tp: TP, *starts: int) -> None:
        for start in starts:
            await sink._hands.acquire()
            await sink._take(tp, Run(tp.topic, 0, start, start + 10, ()), consumer.resumed[tp])

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

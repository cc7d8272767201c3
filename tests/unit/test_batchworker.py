"""What happens to a run that waits while its partition is taken away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
from faust.types import TP

from streams import batchworker
from streams.batchworker import ENOUGH, MOST, BatchWorker, Held
from streams.positions import Position, first
from streams.transport import Run

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

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
from streams.batchworker import BatchWorker, Held
from streams.positions import Position, first
from streams.transport import Run

HERE = TP("toy", 0)


class Counting(BatchWorker[list[int]]):
    """Takes runs when it is told that there is room."""

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

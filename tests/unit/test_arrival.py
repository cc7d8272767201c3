"""A redrive waits for the sink, and not for ever."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any, Self

import pytest

from operations.redriving import arrival
from operations.redriving.arrival import SinkBehind, await_sink
from streams.cluster import Cluster
from streams.lag import PartitionLag


class Brokers:
    """What they answer, one measurement after the other: end and commit of two partitions."""

    def __init__(self, *answers: tuple[tuple[int, int], tuple[int, int]]) -> None:
        self._answers = iter(answers)

    def __call__(self, cluster: Cluster) -> Self:
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to close."""

    def measure(self, group: str, topics: list[str], *, waiting: bool) -> list[PartitionLag]:
        assert (group, topics, waiting) == ("sink", ["toy"], False)
        return [PartitionLag("toy", n, 0, done, end, None) for n, (end, done) in enumerate(next(self._answers))]


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrival, "LOOK_EVERY", timedelta())


def said(monkeypatch: pytest.MonkeyPatch, *answers: Any) -> Iterator[tuple[int, int]]:
    monkeypatch.setattr(arrival, "LagMeter", Brokers(*answers))
    heard: list[tuple[int, int]] = []
    await_sink(Cluster(("localhost:1",)), ["toy"], lambda *words: heard.append(words))
    yield from heard


def test_it_waits_for_what_was_there_when_it_began(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not for what comes meanwhile, of which there may be more for ever."""
    answers = [((10, 4), (5, 5)), ((90, 8), (50, 5)), ((99, 10), (99, 5))]
    assert list(said(monkeypatch, *answers)) == [(4, 6), (6, 6)]


def test_it_does_not_wait_where_all_is_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(said(monkeypatch, ((10, 10), (0, 0)))) == []


def test_a_sink_that_stores_nothing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrival, "PATIENCE", timedelta(microseconds=-1))
    with pytest.raises(SinkBehind, match="the sink has not yet stored 6 records of toy"):
        list(said(monkeypatch, ((10, 4), (5, 5)), ((99, 4), (99, 5))))

"""A meter of lag, and what its clients do not know yet."""

from __future__ import annotations

from typing import Any

import pytest
from kafka import TopicPartition

from streams import lag
from streams.lag import LagMeter


class Forgetful:
    """A consumer whose first answer lacks a topic, and everything else a meter asks."""

    def __init__(self) -> None:
        self.forgets = 1

    def partitions_for_topic(self, _: str) -> set[int]:
        return {0}

    def end_offsets(self, tps: list[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(tps, 9)

    def beginning_offsets(self, tps: list[TopicPartition]) -> dict[TopicPartition, int]:
        if self.forgets:
            self.forgets -= 1
            raise KeyError(tps[0])
        return dict.fromkeys(tps, 2)

    def list_group_offsets(self, _: str) -> dict[str, Any]:
        return {}

    def close(self) -> None: ...


def test_a_topic_that_the_client_forgot_for_a_moment_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lag, "new_admin", lambda _: Forgetful())
    monkeypatch.setattr(lag, "new_consumer", lambda _, **__: Forgetful())
    bounds: Any = LagMeter._bounds
    monkeypatch.setattr(bounds.retry, "sleep", lambda _: None)
    with LagMeter("nobody") as meter:
        (found,) = meter.measure("sink", ["toy"], waiting=False)
    assert (found.log_start, found.committed, found.end) == (2, 2, 9)

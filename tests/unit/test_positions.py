"""A position is gone on from only if it can be trusted."""

from __future__ import annotations

import json
from typing import Any

import pytest

from streams.positions import NO_EVENT_TIME, Position, PositionProblem, resume

GOOD = Position(500, 420, 1_714_564_800_000, "id-1", "def-1")


def resumed(committed: int | None = 500, metadata: str = GOOD.metadata(), **changes: Any) -> Position:
    known: dict[str, Any] = {"topic_id": "id-1", "definition": "def-1", "log_start": 0} | changes
    return resume("processor", "toy", 3, committed, metadata, **known)


@pytest.mark.parametrize(
    "position", [GOOD, Position(0, 0, NO_EVENT_TIME, "id-1", "def-1"), Position(7, 7, -5, "id-1", "def-1")]
)
def test_a_position_survives_its_metadata(position: Position) -> None:
    assert resumed(position.processed, position.metadata()) == position


def test_metadata_fits_what_kafka_takes() -> None:
    assert len(Position(2**63 - 1, 2**63 - 1, -(2**63), "x" * 36, "x" * 16).metadata().encode()) < 4096


@pytest.mark.parametrize("committed", [None, -1])
def test_a_group_that_never_committed_starts_at_the_start_of_the_log(committed: int | None) -> None:
    assert resumed(committed, "", log_start=17) == Position(17, 17, NO_EVENT_TIME, "id-1", "def-1")


def test_a_log_that_starts_at_the_rewind_is_enough() -> None:
    assert resumed(log_start=420) == GOOD


def _metadata(**changes: Any) -> str:
    return json.dumps(json.loads(GOOD.metadata()) | changes)


@pytest.mark.parametrize(
    "metadata",
    [
        "", " ", "x", "null", "[]", "{}", "5", '"rewind"', '{"rewind": 1}', GOOD.metadata()[:-1],
        _metadata(rewind=None), _metadata(rewind="x"), _metadata(rewind=[]), _metadata(max_event_ms={}),
        _metadata(rewind=float("nan")), _metadata(rewind=float("inf")),
    ],
)  # fmt: skip
def test_a_commit_of_another_client_carries_no_position(metadata: str) -> None:
    with pytest.raises(PositionProblem, match=r"^processor in toy/3: the commit at 500 carries no position; stop the"):
        resumed(metadata=metadata)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"topic_id": "id-2"}, "the topic was deleted and created again"),
        ({"log_start": 421}, "the log starts at 421, after the rewind offset 420"),
        ({"metadata": _metadata(rewind=501)}, "the commit at 500 is before its rewind offset 501"),
        ({"metadata": _metadata(topic=1)}, "the topic was deleted and created again"),
        ({"metadata": _metadata(rewind=-1)}, "the log starts at 0, after the rewind offset -1"),
    ],
)
def test_a_position_of_something_else_is_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(PositionProblem) as refused:
        resumed(**changes)
    assert str(refused.value) == (
        f"processor in toy/3: {reason}; stop the workers, then run: citystream positions reset processor toy"
    )


def test_a_changed_definition_is_refused() -> None:
    """Reading again would mix parts of the old definition with those of the new one."""
    with pytest.raises(PositionProblem, match=r"the feed's definition changed since the last commit; .* a new name"):
        resumed(definition="def-2")

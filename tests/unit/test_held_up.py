"""Why a worker does not go on is said whether it can commit or not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest.mock import MagicMock
from uuid import uuid4

import pytest

from streams import checkpoints, group_positions
from streams.cluster import Cluster
from streams.positions import Known, Position, first
from streams.topics import TopicState

NOWHERE = Cluster(("127.0.0.1:1",))
HERE = first("id", "def", 0)


def known(topic: str, position: Position, **more: Any) -> tuple[Known, Any]:
    fields: dict[str, Any] = {"checkpoint": None, "topic_id": "id", "definition": "def", "log_start": 0, "log_end": 9}
    fields |= {"committed": position.processed, "metadata": position.metadata(), **more}
    return Known(worker="processor", topic=topic, partition=0, **fields), None


def held_up(monkeypatch: pytest.MonkeyPatch, *found: tuple[Known, Any], there: set[str]) -> dict[str, str]:
    monkeypatch.setattr(group_positions, "new_admin", MagicMock())
    monkeypatch.setattr(group_positions, "found", lambda *_: {name: TopicState(uuid4(), 1) for name in there})
    monkeypatch.setattr(group_positions, "standing", lambda _, worker, topics, feeds: [*found])
    return group_positions.held_up(NOWHERE, "processor", dict.fromkeys(("fine", "paused", "lost", "gone"), "def"))


def test_what_is_committed_missing_or_not_to_be_trusted_is_named_by_topic(monkeypatch: pytest.MonkeyPatch) -> None:
    said = held_up(
        monkeypatch,
        known("fine", HERE),
        known("paused", replace(HERE, paused="no table; run: citystream init")),
        known("lost", HERE, metadata=""),
        there={"fine", "paused", "lost", checkpoints.TOPIC},
    )
    assert said.keys() == {"paused", "lost", "gone"}
    assert said["paused"] == "no table; run: citystream init"
    assert (
        "carries no position; stop the workers, then run: citystream positions restore processor lost" in said["lost"]
    )
    assert said["gone"] == "topic gone does not exist; run: citystream up"


def test_without_checkpoints_only_what_is_missing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    said = held_up(monkeypatch, there={"fine", "paused", "lost", "gone"})
    assert said == {checkpoints.TOPIC: f"topic {checkpoints.TOPIC} does not exist; run: citystream up"}

"""A worker's group in all its partitions: each is decided for itself, and why it does not go on is said."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from kafka import OffsetAndMetadata
from kafka import TopicPartition as ClientPartition

from streams import checkpoints, group_positions
from streams.assignment import TopicPartition
from streams.cluster import Cluster
from streams.group_partition import GroupPartition
from streams.group_positions import GroupPositions, PartitionOffsets
from streams.positions import Position, PositionProblem, first
from streams.topics import TopicState

ID = UUID(int=1)
HERE = first(str(ID), "def", 0)
NEWER = json.dumps({**json.loads(HERE.metadata()), "version": 99})


NOWHERE = Cluster(("127.0.0.1:1",))
OTHER = GroupPositions(NOWHERE, "other", {"other": "def"})


class Admin:
    """What a group committed, which need not be asked of it."""

    def close(self) -> None:
        """Nothing is open."""


class Asked(GroupPositions):
    """A processor's positions in these topics, of which the brokers say this."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *topics: str, there: Iterable[str], **more: Any) -> None:
        super().__init__(NOWHERE, "processor", dict.fromkeys(topics, "def"), **more)
        self.offsets: dict[TopicPartition, PartitionOffsets] = {}
        self.states = {name: TopicState(ID, 1) for name in there}
        self.others: dict[ClientPartition, OffsetAndMetadata] = {}
        self.kept: dict[checkpoints.Place, Position | PositionProblem] = {}
        monkeypatch.setattr(group_positions, "new_admin", lambda _: Admin())
        monkeypatch.setattr(group_positions, "found", lambda *_: self.states)
        monkeypatch.setattr(group_positions, "committed_offsets", lambda *_: self.others)
        monkeypatch.setattr(checkpoints, "read", lambda _: self.kept)

    def say(self, topic: str, committed: int | None, metadata: str = "") -> TopicPartition:
        """Let this be committed in the partition of a topic."""
        place = TopicPartition(topic, 0)
        self.offsets[place] = PartitionOffsets(committed, metadata, 0, 9)
        return place

    def read(self, topics: Iterable[str] | None = None) -> list[GroupPartition]:
        return [*self.partitions(self.offsets, self.states).values()]

    def decided(self) -> Mapping[TopicPartition, Position | PositionProblem]:
        return self.decide(self.offsets, self.states)


def test_what_is_committed_missing_or_not_to_be_trusted_is_named_by_topic(monkeypatch: pytest.MonkeyPatch) -> None:
    there = ("fine", "paused", "lost", "newer", checkpoints.TOPIC)
    group = Asked(monkeypatch, "fine", "paused", "lost", "newer", "gone", there=there)
    group.say("fine", 0, HERE.metadata())
    group.say("paused", 0, replace(HERE, paused="no table; run: citystream init").metadata())
    group.say("lost", 0)
    group.say("newer", 0, NEWER)
    said = group.held_up()
    assert said.keys() == {"paused", "lost", "newer", "gone"}
    assert said["paused"] == "no table; run: citystream init"
    assert (
        "carries no position; stop the workers, then run: citystream positions restore processor lost" in said["lost"]
    )
    assert "was written by a newer release" in said["newer"]
    assert said["gone"] == "topic gone does not exist; run: citystream up"


def test_without_checkpoints_only_what_is_missing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    said = Asked(monkeypatch, "fine", there={"fine"}).held_up()
    assert said == {checkpoints.TOPIC: f"topic {checkpoints.TOPIC} does not exist; run: citystream up"}


@pytest.mark.parametrize("nothing", [None, -1])
def test_checkpoints_are_read_where_nothing_is_committed(monkeypatch: pytest.MonkeyPatch, nothing: int | None) -> None:
    """They are a topic that is read from its beginning, so not at every start."""
    group = Asked(monkeypatch, "fine", "lost", there=("fine", "lost"))
    monkeypatch.setattr(checkpoints, "read", lambda _: pytest.fail("nothing is lost"))
    fine = group.say("fine", 0, HERE.metadata())
    assert group.decided() == {fine: HERE}
    monkeypatch.setattr(checkpoints, "read", lambda _: {("processor", "lost", 0): HERE})
    lost = group.say("lost", nothing)
    assert "there is no commit, but a checkpoint at 0" in str(group.decided()[lost])


def test_a_position_of_a_newer_release_is_in_the_way_of_its_own_partition_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As its commit, as its checkpoint, and as what the other worker committed."""
    topics = ("fine", "commit", "checkpoint", "other")
    group = Asked(monkeypatch, *topics, there=topics, agrees_with=OTHER)
    fine = group.say("fine", 0, HERE.metadata())
    newer = [group.say("commit", 0, NEWER), group.say("checkpoint", None), group.say("other", 0, HERE.metadata())]
    key, value = checkpoints.record(("processor", "checkpoint", 0), HERE)
    checkpoints.take(group.kept, key, json.dumps({**json.loads(value), "version": 99}).encode())
    group.others = {ClientPartition("other", 0): OffsetAndMetadata(0, NEWER, -1)}
    decided = group.decided()
    assert decided[fine] == HERE
    for place in newer:
        assert isinstance(decided[place], PositionProblem)
        assert "was written by a newer release: it is of version 99" in str(decided[place])

"""When an outgrown topic may end, and what its positions are from then on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import pytest
from kafka.errors import KafkaError, LeaderNotAvailableError
from kafka.structs import OffsetAndTimestamp

from operations import growth
from schemas import before
from schemas.feed import Outgrown
from streams.assignment import TopicPartition
from streams.cluster import Cluster
from streams.feed_topics import feed_topics
from streams.group_partition import GroupPartition
from streams.lag import PartitionLag
from streams.positions import Position, PositionProblem
from streams.topics import TopicProblem
from tests.reference.toy import FEED, NOON, instant

NOWHERE = Cluster(("nowhere:1",))
UNTIL = NOON + 1000
OPEN, _ = feed_topics(replace(FEED, outgrown=(Outgrown(partitions=1, until=instant(UNTIL)),))).values()
PROCESSED = Position(40, 31, NOON, "id", FEED.definition, bad=2, max_processed_ms=NOON + 7)
BEFORE = {"processor": PROCESSED, "sink": replace(PROCESSED, definition=FEED.record_definition)}
ENDED = replace(PROCESSED, rewind=40, max_event_ms=NOON + 7, bad=0, since=40, definition=OPEN.definition)
AFTER = {"processor": ENDED, "sink": replace(ENDED, definition=OPEN.record_definition)}


class Brokers:
    """What they say of a topic with one partition, of the two groups, and what is committed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ends: dict[tuple[str, str], int] = {}
        self.positions: dict[str, Position | None] = {**BEFORE}
        self.later: Any = None
        monkeypatch.setattr(growth, "measure", self._measure)
        monkeypatch.setattr(growth, "GroupPositions", lambda *words: Group(self, *words))
        monkeypatch.setattr(growth, "new_admin", lambda _: self)

    def _measure(self, _: str, group: str, topics: Iterable[str]) -> list[PartitionLag]:
        return [PartitionLag(topic, 0, 0, 40, self.ends.get((group, topic), 40), None) for topic in topics]

    def list_partition_offsets(self, times: Mapping[Any, int]) -> dict[Any, OffsetAndTimestamp]:
        assert set(times.values()) == {UNTIL}
        if isinstance(self.later, Exception):
            raise self.later
        return dict.fromkeys(times, OffsetAndTimestamp(-1 if self.later is None else 7, -1, None))

    def close(self) -> None:
        """Nothing is open."""


class Group:
    """A group's positions there."""

    def __init__(self, brokers: Brokers, _: Cluster, group: str, definitions: Mapping[str, str]) -> None:
        self.brokers, self.group = brokers, group
        ((self.topic, self.definition),) = definitions.items()

    def read(self) -> list[GroupPartition]:
        position = self.brokers.positions[self.group]
        return [GroupPartition(
            group=self.group, topic=self.topic, partition=0, committed=position.processed if position else None,
            metadata=position.metadata() if position else "", kept=position,
            topic_id="id", definition=self.definition, log_start=0, log_end=40,
        )]  # fmt: skip

    def write(self, positions: Mapping[TopicPartition, Position]) -> None:
        assert positions.keys() <= {("toy", 0)}
        for position in positions.values():
            self.brokers.positions[self.group] = position


def test_a_topic_ends_once_behind_all_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    brokers = Brokers(monkeypatch)
    for _ in range(2):
        growth.end(NOWHERE, OPEN, UNTIL)
        assert brokers.positions == AFTER
        brokers.ends = {("processor", "toy"): 50}
        brokers.later = "a straggler"
    (there,) = Group(brokers, NOWHERE, "processor", {"toy": FEED.definition}).read()
    with pytest.raises(PositionProblem, match="definition changed"):
        there.start()
    assert replace(there, definition=OPEN.definition, log_start=40).start() == ENDED


def test_ending_goes_on_where_it_was_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    brokers = Brokers(monkeypatch)
    brokers.positions = {**BEFORE, "processor": ENDED}
    growth.end(NOWHERE, OPEN, UNTIL)
    assert brokers.positions == AFTER


def test_a_topic_that_ended_under_the_release_before_is_not_ended_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be refused: for what a straggler published since."""
    brokers = Brokers(monkeypatch)
    now, then = FEED.record_definition, before.record_definition(FEED)
    left = {group: replace(p, definition=p.definition.replace(now, then)) for group, p in AFTER.items()}
    brokers.positions, brokers.later = {**left}, "a straggler"
    growth.end(NOWHERE, OPEN, UNTIL)
    assert brokers.positions == left


@pytest.mark.parametrize("waiting", [("processor", "toy"), ("sink", "toy"), ("sink", "toy_5s_mood")])
def test_nothing_may_wait_to_be_processed_or_stored(monkeypatch: pytest.MonkeyPatch, waiting: tuple[str, str]) -> None:
    brokers = Brokers(monkeypatch)
    assert growth.settled(NOWHERE, OPEN, UNTIL)
    brokers.ends[waiting] = 41
    with pytest.raises(TopicProblem, match=f"toy cannot end yet: records of {waiting[1]}/0 are not processed"):
        growth.end(NOWHERE, OPEN, UNTIL)
    assert brokers.positions == BEFORE
    assert not growth.settled(NOWHERE, OPEN, UNTIL)


def test_its_publishers_have_to_be_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    brokers = Brokers(monkeypatch)
    with pytest.raises(TopicProblem, match=r"12:00:01.* is still to come"):
        growth.end(NOWHERE, OPEN, UNTIL - 1)
    assert not growth.settled(NOWHERE, OPEN, UNTIL - 1)
    brokers.later = "a record"
    with pytest.raises(TopicProblem, match="records came after"):
        growth.end(NOWHERE, OPEN, UNTIL)
    assert brokers.positions == BEFORE


def test_what_is_not_known_of_a_partition_is_not_taken_for_no_record(monkeypatch: pytest.MonkeyPatch) -> None:
    brokers = Brokers(monkeypatch)
    brokers.later = LeaderNotAvailableError("toy/0")
    with pytest.raises(KafkaError, match="toy/0"):
        growth.end(NOWHERE, OPEN, UNTIL)
    assert brokers.positions == BEFORE


def test_a_position_that_cannot_be_trusted_is_not_carried_on(monkeypatch: pytest.MonkeyPatch) -> None:
    brokers = Brokers(monkeypatch)
    brokers.positions["sink"] = replace(PROCESSED, definition="another")
    with pytest.raises(PositionProblem, match="definition changed"):
        growth.end(NOWHERE, OPEN, UNTIL)
    assert brokers.positions["processor"] == PROCESSED


def test_a_topic_no_worker_ever_read_has_nothing_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    brokers = Brokers(monkeypatch)
    brokers.positions = {"processor": None, "sink": None}
    growth.end(NOWHERE, OPEN, UNTIL - 1)
    assert brokers.positions == {"processor": None, "sink": None}

"""What the brokers' answers mean for lag, and a meter whose brokers do not know an answer yet."""

from __future__ import annotations

from typing import Any

import pytest
from kafka import OffsetAndMetadata, TopicPartition
from kafka.admin import OffsetSpec
from kafka.errors import (
    LeaderNotAvailableError,
    NotLeaderForPartitionError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
)
from kafka.structs import OffsetAndTimestamp

from streams import lag
from streams.cluster import Cluster
from streams.lag import LagMeter, Observation, PartitionLag, TopicLag, Unobserved, by_topic, first_arrival, leaders
from streams.wire.record_batch import HEADER, packed

NOW = 10_000
NO_LEADER = Unobserved("toy", 1, LeaderNotAvailableError)
GONE = Unobserved("toy", None, UnknownTopicOrPartitionError)


def at(number: int, committed: int, end: int, since: int | None = None) -> PartitionLag:
    return PartitionLag("toy", number, 0, committed, end, since)


@pytest.mark.parametrize(
    ("partitions", "unobserved", "records", "seconds", "problem"),
    [
        ([at(0, 5, 5)], [], 0, 0.0, None),
        ([at(0, 5, 9, NOW - 2_500), at(1, 1, 2, NOW - 500)], [], 5, 2.5, None),
        ([at(0, 5, 9, NOW + 700)], [], 4, 0.0, None),
        ([at(0, 5, 9), at(1, 1, 2, NOW - 500)], [], 5, None, None),
        (
            [at(0, 1_000, 0), at(1, 0, 1, NOW - 500)],
            [],
            1,
            0.5,
            "toy/0: the position 1,000 is beyond the end of the log, 0",
        ),
        ([at(0, 5, 9, NOW - 2_500)], [NO_LEADER], 4, None, "toy/1 has no leader"),
        ([], [GONE], None, None, "toy does not exist; if it does not come back: citystream init"),
        (
            [at(0, 7, 6)],
            [Unobserved("toy", 1, TopicAuthorizationFailedError)],
            0,
            None,
            "toy/0: the position 7 is beyond the end of the log, 6; "
            "toy/1 cannot be looked at (TopicAuthorizationFailedError)",
        ),
    ],
    ids=["none", "longest wait", "clock behind", "unobserved time", "beyond", "no leader", "gone", "both"],
)
def test_lag_is_never_negative_and_what_is_not_known_is_said(
    partitions: list[PartitionLag],
    unobserved: list[Unobserved],
    records: int | None,
    seconds: float | None,
    problem: str | None,
) -> None:
    assert by_topic(Observation(partitions, unobserved), NOW) == [TopicLag("toy", records, seconds, problem)]


def topic(name: str, *of_partitions: int, error: int = 0) -> dict[str, Any]:
    partitions = [{"partition_index": n, "leader_id": leader} for n, leader in enumerate(of_partitions)]
    return {"name": name, "error_code": error, "partitions": partitions[::-1]}


def test_every_partition_has_a_leader_or_is_said_to_have_none() -> None:
    described = [topic("toy", 4, -1), topic("gone", error=UnknownTopicOrPartitionError.errno)]
    found, unobserved = leaders(["toy", "gone", "never"], described)
    assert found == {TopicPartition("toy", 0): 4}
    assert [str(one).partition(";")[0] for one in unobserved] == [
        "toy/1 has no leader",
        "gone does not exist",
        "never does not exist",
    ]


def batch(base: int, arrived: int, codec: int) -> bytes:
    """A batch of 20 records that no codec can open, as a broker hands it out."""
    raw = bytearray(packed(b"no frame", 20))
    header = list(HEADER.unpack_from(raw))
    header[0], header[5], header[8] = base, header[5] & ~7 | codec | 8, arrived
    HEADER.pack_into(raw, 0, *header)
    return bytes(raw)


@pytest.mark.parametrize("codec", range(5), ids=["none", "gzip", "snappy", "lz4", "zstd"])
def test_times_are_read_of_headers_whatever_the_codec(codec: int) -> None:
    data = batch(0, 1_000, codec) + batch(20, 2_000, codec) + b"cut off"
    assert [first_arrival(data, offset) for offset in (0, 19, 20, 39, 40)] == [1_000, 1_000, 2_000, 2_000, None]


class Brokers:
    """What they say of a topic with two partitions, one of which has just lost its leader."""

    def __init__(self) -> None:
        self.leaders = [0, -1]
        self.refuses: set[int] = set()
        self.asked: list[str] = []

    def describe_topics(self, names: list[str]) -> list[dict[str, Any]]:
        return [topic(name, *self.leaders) for name in names]

    def list_group_offsets(self, group: str) -> dict[str, Any]:
        self.asked.append("commits")
        return {group: {TopicPartition("toy", 0): OffsetAndMetadata(4, "", -1)}}

    def list_partition_offsets(self, asked: dict[TopicPartition, OffsetSpec], timeout_ms: int) -> dict[Any, Any]:
        if self.refuses & {tp.partition for tp in asked}:
            raise NotLeaderForPartitionError
        self.asked.append("offsets")
        return {tp: OffsetAndTimestamp(9 if spec is OffsetSpec.LATEST else 2, -1, None) for tp, spec in asked.items()}

    def close(self) -> None: ...


@pytest.fixture
def brokers(monkeypatch: pytest.MonkeyPatch) -> Brokers:
    brokers = Brokers()
    monkeypatch.setattr(lag, "new_admin", lambda _: brokers)
    return brokers


def test_a_partition_without_leader_hides_no_other(brokers: Brokers) -> None:
    with LagMeter(Cluster(("nobody:1",))) as meter:
        seen = meter.look("sink", ["toy"], waiting=False)
        assert seen == Observation([PartitionLag("toy", 0, 2, 4, 9, None)], [NO_LEADER])
        brokers.leaders, brokers.refuses = [0, 0], {1}
        seen = meter.look("sink", ["toy"], waiting=False)
        assert [p.partition for p in seen.partitions] == [0]
        assert seen.unobserved == [Unobserved("toy", 1, NotLeaderForPartitionError)]


def test_commits_are_asked_for_before_the_ends(brokers: Brokers) -> None:
    """Or those of a worker that runs would be beyond the end."""
    with LagMeter(Cluster(("nobody:1",))) as meter:
        meter.look("sink", ["toy"], waiting=False)
    assert brokers.asked == ["commits", "offsets", "offsets"]


def test_who_needs_all_partitions_waits_for_a_leader(brokers: Brokers, monkeypatch: pytest.MonkeyPatch) -> None:
    asks: Any = LagMeter.measure
    monkeypatch.setattr(asks.retry, "sleep", lambda _: setattr(brokers, "leaders", [0, 0]))
    with LagMeter(Cluster(("nobody:1",))) as meter:
        found = meter.measure("sink", ["toy"], waiting=False)
    assert [(p.log_start, p.committed, p.end) for p in found] == [(2, 4, 9), (2, 2, 9)]


def test_who_needs_all_partitions_is_refused_without_one(brokers: Brokers, monkeypatch: pytest.MonkeyPatch) -> None:
    asks: Any = LagMeter.measure
    monkeypatch.setattr(asks.retry, "sleep", lambda _: None)
    monkeypatch.setattr(asks.retry, "stop", lambda _: True)
    with LagMeter(Cluster(("nobody:1",))) as meter, pytest.raises(LeaderNotAvailableError, match="toy/1 has no leader"):
        meter.measure("sink", ["toy"], waiting=False)

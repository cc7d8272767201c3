"""How far consumer groups are behind, in records and seconds."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack, closing
from dataclasses import dataclass

from kafka import KafkaAdminClient, OffsetAndMetadata, TopicPartition
from kafka.errors import (
    CoordinatorLoadInProgressError,
    CoordinatorNotAvailableError,
    LeaderNotAvailableError,
    NotCoordinatorError,
)
from tenacity import retry, retry_if_exception_type, stop_after_delay, wait_fixed

from streams.clients import new_admin, new_consumer


@dataclass(frozen=True)
class PartitionLag:
    """One group in one partition. ``waiting_since_ms`` is the arrival of the oldest record not yet processed."""

    topic: str
    partition: int
    log_start: int
    committed: int
    end: int
    waiting_since_ms: int | None

    @property
    def records(self) -> int:
        """Records not yet processed."""
        return self.end - self.committed


@dataclass(frozen=True)
class TopicLag:
    """One group in one topic. ``seconds`` is how long the oldest record not yet processed has been waiting."""

    topic: str
    records: int
    seconds: float


def by_topic(partitions: Iterable[PartitionLag], now_ms: int) -> list[TopicLag]:
    """Sum partitions; the longest wait counts."""
    grouped: dict[str, list[PartitionLag]] = {}
    for partition in partitions:
        grouped.setdefault(partition.topic, []).append(partition)
    return [
        TopicLag(
            topic,
            sum(p.records for p in members),
            max((now_ms - p.waiting_since_ms) / 1000 for p in members if p.waiting_since_ms is not None)
            if any(p.waiting_since_ms is not None for p in members)
            else 0.0,
        )
        for topic, members in grouped.items()
    ]


#: For questions that can come before it is known which broker answers them.
_until_known = retry(
    retry=retry_if_exception_type(
        (
            CoordinatorLoadInProgressError,
            CoordinatorNotAvailableError,
            LeaderNotAvailableError,
            NotCoordinatorError,
        )
    ),
    wait=wait_fixed(0.5),
    stop=stop_after_delay(30),
    reraise=True,
)


@_until_known
def committed_offsets(admin: KafkaAdminClient, group: str) -> dict[TopicPartition, OffsetAndMetadata]:
    """What a group committed; a new broker first has to make or load its topic for it."""
    commits: dict[TopicPartition, OffsetAndMetadata] = admin.list_group_offsets(group).get(group, {})
    return commits


class LagMeter:
    """Asks the brokers; keeps its connections between measurements."""

    def __init__(self, bootstrap: str) -> None:
        with ExitStack() as opened:
            self._admin = opened.enter_context(closing(new_admin(bootstrap)))
            self._consumer = opened.enter_context(
                closing(new_consumer(bootstrap, auto_offset_reset="earliest", max_poll_records=1))
            )
            self._opened = opened.pop_all()

    def measure(self, group: str, topics: Iterable[str], *, waiting: bool = True) -> list[PartitionLag]:
        """Lag of a group in all partitions of these topics; ``waiting`` also reads the oldest waiting records."""
        tps = [
            TopicPartition(topic, number)
            for topic in topics
            for number in sorted(self._consumer.partitions_for_topic(topic) or ())
        ]
        ends, starts = self._bounds(tps)
        commits = committed_offsets(self._admin, group)
        committed = {tp: commits[tp].offset if tp in commits and commits[tp].offset >= 0 else starts[tp] for tp in tps}
        behind = [tp for tp in tps if max(committed[tp], starts[tp]) < ends[tp]]
        since = self._oldest({tp: max(committed[tp], starts[tp]) for tp in behind}) if waiting else {}
        return [PartitionLag(tp.topic, tp.partition, starts[tp], committed[tp], ends[tp], since.get(tp)) for tp in tps]

    @_until_known
    def _bounds(self, tps: list[TopicPartition]) -> tuple[dict[TopicPartition, int], dict[TopicPartition, int]]:
        """Ends and beginnings of logs.

        kafka-python leaves a partition whose leader it does not know out of its answer, which is a KeyError there, and
        asks for the leader; the next call has it.
        """
        try:
            return self._consumer.end_offsets(tps), self._consumer.beginning_offsets(tps)
        except KeyError as unknown:
            raise LeaderNotAvailableError(str(unknown)) from unknown

    def _oldest(self, offsets: dict[TopicPartition, int]) -> dict[TopicPartition, int]:
        """Arrival of the record at each offset, as far as the broker answers within a second."""
        found = {}
        for tp, offset in offsets.items():
            self._consumer.assign([tp])
            self._consumer.seek(tp, offset)
            for records in self._consumer.poll(timeout_ms=1000, max_records=1).values():
                found[tp] = records[0].timestamp
        return found

    def close(self) -> None:
        """Close the connections."""
        self._opened.close()

    def __enter__(self) -> LagMeter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def measure(bootstrap: str, group: str, topics: Iterable[str]) -> list[PartitionLag]:
    """Measure once."""
    with closing(LagMeter(bootstrap)) as meter:
        return meter.measure(group, topics)

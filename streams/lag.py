"""How far consumer groups are behind, in records and seconds.

``LagMeter`` asks the brokers; what their answers mean is worked out by functions of them alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

from kafka import KafkaAdminClient, OffsetAndMetadata, TopicPartition
from kafka.admin import OffsetSpec
from kafka.errors import (
    BrokerResponseError,
    CoordinatorLoadInProgressError,
    CoordinatorNotAvailableError,
    KafkaError,
    LeaderNotAvailableError,
    NoError,
    NotCoordinatorError,
    NotLeaderForPartitionError,
    OffsetNotAvailableError,
    UnknownBrokerIdError,
    UnknownTopicOrPartitionError,
    for_code,
)
from kafka.protocol.consumer import FetchRequest
from kafka.record import MemoryRecords
from tenacity import retry, retry_if_exception_type, stop_after_delay, wait_fixed

from streams.clients import new_admin
from streams.cluster import Cluster
from streams.feed_topics import FeedPartition

#: Newest version of a fetch that names topics; later ones have their ids.
FETCH_BY_NAME = 12
#: How long a broker may take to say where a log ends, or to hand out a batch, in ms.
PATIENCE_MS = 2_000


@dataclass(frozen=True)
class PartitionLag:
    """One group in one partition. ``waiting_since_ms`` is the arrival of the oldest record not yet processed.

    It is None if nothing waits, and if it is not known.
    """

    topic: str
    partition: int
    log_start: int
    committed: int
    end: int
    waiting_since_ms: int | None

    @property
    def records(self) -> int:
        """Records not yet processed."""
        return max(0, self.end - self.committed)

    @property
    def beyond(self) -> int:
        """Offsets by which the position lies beyond the end of the log: it is not one of this log."""
        return max(0, self.committed - self.end)

    def seconds(self, now_ms: int) -> float | None:
        """How long the oldest record not yet processed has been waiting; None if that is not known."""
        if not self.records:
            return 0.0
        return None if self.waiting_since_ms is None else max(0, now_ms - self.waiting_since_ms) / 1000


@dataclass(frozen=True)
class Unobserved:
    """A partition of which the brokers do not say where its log ends, or a whole topic, and with which error."""

    topic: str
    partition: int | None
    error: type[KafkaError]

    def __str__(self) -> str:
        place = self.topic if self.partition is None else f"{self.topic}/{self.partition}"
        words = {
            UnknownTopicOrPartitionError: "does not exist; if it does not come back: citystream init",
            LeaderNotAvailableError: "has no leader",
        }
        return f"{place} {words.get(self.error, f'cannot be looked at ({self.error.__name__})')}"


@dataclass(frozen=True)
class Observation:
    """What the brokers said of one group at one moment: of each partition, or why not."""

    partitions: Sequence[PartitionLag]
    unobserved: Sequence[Unobserved] = ()

    def by_feed(self) -> Observation:
        """The same, with all topics of a feed as one."""
        unobserved = [replace(one, topic=FeedPartition.of(one.topic, 0).feed) for one in self.unobserved]
        return Observation(by_feed_partition(self.partitions), unobserved)


def by_feed_partition(log: Iterable[PartitionLag]) -> list[PartitionLag]:
    """The same partitions by feed, and by their numbers in ClickHouse."""
    places = [(one, FeedPartition.of(one.topic, one.partition)) for one in log]
    return [replace(one, topic=place.feed, partition=place.number) for one, place in places]


@dataclass(frozen=True)
class TopicLag:
    """One group in one topic. ``seconds`` is how long the oldest record not yet processed has been waiting.

    ``records`` are those of the partitions that are known, None if none is. ``seconds`` is None if it is not known of
    every partition. ``problem`` says what is wrong with positions, and what is not known.
    """

    topic: str
    records: int | None
    seconds: float | None
    problem: str | None


def by_topic(seen: Observation, now_ms: int) -> list[TopicLag]:
    """Sum partitions; the longest wait counts."""
    names = dict.fromkeys([*(p.topic for p in seen.partitions), *(one.topic for one in seen.unobserved)])
    return [
        _topic_lag(
            name,
            [p for p in seen.partitions if p.topic == name],
            [one for one in seen.unobserved if one.topic == name],
            now_ms,
        )
        for name in names
    ]


def _topic_lag(
    topic: str, partitions: Sequence[PartitionLag], unobserved: Sequence[Unobserved], now_ms: int
) -> TopicLag:
    waits = [p.seconds(now_ms) for p in partitions]
    known = [wait for wait in waits if wait is not None]
    problems = [
        f"{p.topic}/{p.partition}: the position {p.committed:,} is beyond the end of the log, {p.end:,}"
        for p in partitions
        if p.beyond
    ]
    return TopicLag(
        topic,
        sum(p.records for p in partitions) if partitions else None,
        None if unobserved or len(known) < len(waits) else max(known, default=0.0),
        "; ".join([*problems, *map(str, unobserved)]) or None,
    )


def leaders(
    names: Iterable[str], described: Iterable[Mapping[str, Any]]
) -> tuple[dict[TopicPartition, int], list[Unobserved]]:
    """Which broker answers for each partition of these topics, and which have none.

    ``described`` is what ``KafkaAdminClient.describe_topics`` says of them.
    """
    there = {topic["name"]: topic for topic in described}
    found: dict[TopicPartition, int] = {}
    unobserved = []
    for name in names:
        topic = there.get(name, {"error_code": UnknownTopicOrPartitionError.errno, "partitions": []})
        if (error := for_code(topic["error_code"])) is not NoError:
            unobserved.append(Unobserved(name, None, error))
            continue
        for partition in sorted(topic["partitions"], key=lambda one: int(one["partition_index"])):
            number, leader = partition["partition_index"], partition["leader_id"]
            if leader < 0:
                unobserved.append(Unobserved(name, number, LeaderNotAvailableError))
            else:
                found[TopicPartition(name, number)] = leader
    return found, unobserved


def first_arrival(data: bytes, offset: int) -> int | None:
    """When the record at an offset, or the next there is, reached the broker (ms), as the header of its batch says.

    ``data`` are record batches as a broker sends them; none is decompressed.
    """
    return next((int(batch.max_timestamp) for batch in MemoryRecords(data) if batch.last_offset >= offset), None)


#: For questions that can come before it is known which broker answers them.
_until_known = retry(
    retry=retry_if_exception_type(
        (
            CoordinatorLoadInProgressError,
            CoordinatorNotAvailableError,
            LeaderNotAvailableError,
            NotCoordinatorError,
            NotLeaderForPartitionError,
            OffsetNotAvailableError,
            UnknownBrokerIdError,
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

    def __init__(self, cluster: Cluster) -> None:
        self._admin = new_admin(cluster)

    def look(self, group: str, topics: Iterable[str], *, waiting: bool = True) -> Observation:
        """What is known of a group in these topics; ``waiting`` also asks when the oldest waiting records came."""
        names = list(topics)
        found, unobserved = leaders(names, self._admin.describe_topics(names) if names else ())
        commits = committed_offsets(self._admin, group)  # before the ends, or those of a worker that runs are beyond
        starts = self._offsets(found, OffsetSpec.EARLIEST, unobserved)
        ends = self._offsets(starts, OffsetSpec.LATEST, unobserved)
        log = []
        for tp, end in ends.items():
            committed = commits[tp].offset if tp in commits and commits[tp].offset >= 0 else starts[tp]
            next_offset = max(committed, starts[tp])
            since = self._arrival(tp, next_offset, found[tp]) if waiting and next_offset < end else None
            log.append(PartitionLag(tp.topic, tp.partition, starts[tp], committed, end, since))
        return Observation(log, unobserved)

    @_until_known
    def measure(self, group: str, topics: Iterable[str], *, waiting: bool = True) -> list[PartitionLag]:
        """The same for those who need to know it of every partition.

        Raises
        ------
        KafkaError
            A topic does not exist, or a partition has had no leader for half a minute.
        """
        seen = self.look(group, topics, waiting=waiting)
        for one in seen.unobserved:
            raise one.error(str(one))
        return list(seen.partitions)

    def _offsets(
        self, partitions: Iterable[TopicPartition], spec: OffsetSpec, unobserved: list[Unobserved]
    ) -> dict[TopicPartition, int]:
        """Beginnings or ends of logs; one that is not to be had, whose leader just went, is noted as such."""
        wanted = list(partitions)
        try:
            answers = self._admin.list_partition_offsets(dict.fromkeys(wanted, spec), timeout_ms=PATIENCE_MS)
        except (BrokerResponseError, UnknownBrokerIdError) as error:
            if len(wanted) > 1:
                return {tp: n for one in wanted for tp, n in self._offsets([one], spec, unobserved).items()}
            unobserved.append(Unobserved(wanted[0].topic, wanted[0].partition, type(error)))
            return {}
        return {tp: answers[tp].offset for tp in wanted}

    def _arrival(self, tp: TopicPartition, offset: int, leader: int) -> int | None:
        """When the record at an offset came, or None if its leader does not say: kafka-python's own reader would
        decompress its whole batch, and cannot open every codec."""
        kind = FetchRequest.FetchTopic
        place = kind.FetchPartition(partition=tp.partition, fetch_offset=offset, partition_max_bytes=1)
        request = FetchRequest(
            max_wait_ms=0,
            min_bytes=1,
            max_bytes=1,  # a first batch comes whole
            topics=[kind(topic=tp.topic, partitions=[place])],
            max_version=FETCH_BY_NAME,
        )
        manager = self._admin._manager
        try:
            response = manager.run(lambda: manager.wait_for(manager.send(request, node_id=leader), PATIENCE_MS))
        except KafkaError:
            return None
        ((answer,),) = (topic.partitions for topic in response.responses)
        return first_arrival(answer.records or b"", offset) if answer.error_code == NoError.errno else None

    def close(self) -> None:
        """Close the connections."""
        self._admin.close()

    def __enter__(self) -> LagMeter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def measure(cluster: Cluster, group: str, topics: Iterable[str]) -> list[PartitionLag]:
    """Measure once, without the times."""
    with closing(LagMeter(cluster)) as meter:
        return meter.measure(group, topics, waiting=False)

"""The topics of the platform: those of feeds, one an aggregate, dead letters, checkpoints, published files."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType, NewTopic
from kafka.errors import NoError, TopicAlreadyExistsError, UnknownTopicOrPartitionError, for_code

from schemas.feed import Feed, milliseconds
from schemas.reference import Reference
from streams import checkpoints, deadletters, publications, snapshots
from streams.clients import new_admin
from streams.cluster import Cluster
from streams.ending import EX_CONFIG, Stop
from streams.feed_topics import feed_topics
from streams.gathered import gathered_topics
from streams.waiting import KAFKA_ANSWERS, Waiting, until_kafka_answers

#: Largest record batch a topic takes, in bytes.
MAX_BATCH = 8 * 2**20
#: Of a compacted topic, which is read from its beginning: what is not yet compacted is about this long, in bytes.
COMPACTED_SEGMENT = 4 * 2**20
MIN_INSYNC = "min.insync.replicas"


@dataclass(frozen=True)
class Topic:
    """A topic as it should be; without a retention it keeps the last record of each key, and older ones for a time."""

    name: str
    partitions: int
    retention: timedelta | None
    superseded: timedelta = timedelta(0)

    @property
    def config(self) -> dict[str, str]:
        """Its settings on the broker."""
        common = {"message.timestamp.type": "LogAppendTime", "max.message.bytes": str(MAX_BATCH)}
        if self.retention is None:
            kept = {"min.compaction.lag.ms": str(milliseconds(self.superseded))} if self.superseded else {}
            return common | {"cleanup.policy": "compact", "segment.bytes": str(COMPACTED_SEGMENT)} | kept
        return common | {"cleanup.policy": "delete", "retention.ms": str(milliseconds(self.retention))}


@dataclass(frozen=True)
class TopicState:
    """A topic as the broker has it."""

    id: UUID
    partitions: int


class TopicProblem(Stop):
    """A topic is missing, not as declared, or no longer the one it was."""

    code = EX_CONFIG


def topics(feeds: Iterable[Feed]) -> list[Topic]:
    """Every topic these feeds need."""
    compacted = [Topic(checkpoints.TOPIC, 1, None), Topic(publications.TOPIC, 1, None)]
    feeds = list(feeds)
    gathered = [Topic(one.name, one.partitions, one.feed.retention) for one in gathered_topics(*feeds).values()]
    return [*stored(feeds), *gathered, *compacted, Topic(snapshots.TOPIC, 1, None, snapshots.KEPT)]


def stored(feeds: Iterable[Feed]) -> list[Topic]:
    """Those of them whose records are stored in ClickHouse."""
    wanted = [Topic(deadletters.TOPIC, 1, timedelta(days=30))]
    for feed in feeds:
        found = [*feed_topics(feed).values()]
        wanted += [Topic(one.name, one.partitions, feed.retention) for one in found]
        wanted += [Topic(aggregate.topic, found[0].partitions, feed.retention) for aggregate in feed.aggregates]
    return wanted


def of_references(references: Iterable[Reference], feeds: Iterable[Feed]) -> list[Topic]:
    """The topics of tables of reference data: what was known is kept for longer than any record that could be replayed.

    The day more is for a look-up's grace, and for clocks that differ.
    """
    longest = max((feed.retention for feed in feeds), default=timedelta(0))
    return [Topic(reference.name, 1, None, longest + timedelta(days=1)) for reference in references]


def create(cluster: Cluster, wanted: Iterable[Topic]) -> list[str]:
    """Create the topics that are missing, with as many copies as the cluster says; returns their names.

    Raises
    ------
    TopicProblem
        A topic exists with another number of partitions, or with fewer copies.
    """
    wanted = list(wanted)
    with closing(new_admin(cluster)) as admin:
        existing = found(admin)
        for topic in wanted:
            if topic.name in existing:
                check_there(topic, existing[topic.name])
        _check_copies(cluster, admin, [topic.name for topic in wanted if topic.name in existing])
        missing = [topic for topic in wanted if topic.name not in existing]
        if missing:
            copies, own = cluster.replication, {MIN_INSYNC: str(cluster.min_insync_replicas)}
            try:
                admin.create_topics([NewTopic(t.name, t.partitions, copies, None, t.config | own) for t in missing])
            except TopicAlreadyExistsError:
                return create(cluster, wanted)
            admin.wait_for_topics([t.name for t in missing])
    return [topic.name for topic in missing]


def _check_copies(cluster: Cluster, admin: KafkaAdminClient, names: Sequence[str]) -> None:
    """Hold topics to what the settings promise of new ones: a copy that is missing is noticed when it is needed."""
    asked = [ConfigResource(ConfigResourceType.TOPIC, name, {MIN_INSYNC: None}) for name in names]
    configs = admin.describe_configs(asked, config_filter="all")["topic"] if names else {}
    for topic in admin.describe_topics(names) if names else ():
        name, copies = topic["name"], min(len(partition["replica_nodes"]) for partition in topic["partitions"])
        in_sync = int(configs[name][MIN_INSYNC]["value"])
        if copies < cluster.replication or in_sync < cluster.min_insync_replicas:
            raise TopicProblem(
                f"topic {name} is kept by {copies} brokers and acknowledged by {in_sync}, and the settings say "
                f"{cluster.replication} and {cluster.min_insync_replicas}: see Topics that exist in docs/operator.md"
            )


def not_there(name: str) -> TopicProblem:
    """What is wrong where a topic does not exist."""
    return TopicProblem(f"topic {name} does not exist; run: citystream up")


def check_there(declared: Topic, topic: TopicState | None) -> None:
    """Hold a topic to its declaration.

    Raises
    ------
    TopicProblem
        It does not exist, or has another number of partitions.
    """
    if topic is None:
        raise not_there(declared.name)
    if topic.partitions != declared.partitions:
        raise TopicProblem(
            f"topic {declared.name} has {topic.partitions} partitions and is declared with {declared.partitions}; the "
            "number is fixed for the life of a topic, see More partitions in docs/operator.md"
        )


def states(cluster: Cluster, names: Iterable[str]) -> dict[str, TopicState]:
    """The named topics as the broker has them.

    Raises
    ------
    TopicProblem
        One of them does not exist.
    """
    names = list(names)
    with closing(new_admin(cluster)) as admin:
        existing = found(admin, names)
    missing = [name for name in names if name not in existing]
    if missing:
        raise TopicProblem(f"topics {', '.join(missing)} do not exist; run: citystream up")
    return existing


def found(admin: KafkaAdminClient, names: Iterable[str] | None = None) -> dict[str, TopicState]:
    """Those of the named topics, or of all, that exist."""
    described: list[Mapping[str, Any]] = admin.describe_topics(None if names is None else list(names))
    existing = {}
    for topic in described:
        error = for_code(topic["error_code"])
        if error not in (NoError, UnknownTopicOrPartitionError):
            raise error(f"topic {topic['name']}")
        if error is NoError:
            existing[str(topic["name"])] = TopicState(UUID(str(topic["topic_id"])), len(topic["partitions"]))
    return existing


def wait_for_kafka(cluster: Cluster, say: Callable[[str], None], limit: timedelta | None = None) -> None:
    """Wait until a broker answers, with growing pauses.

    Raises
    ------
    KafkaError
        ``limit`` has passed.
    """

    def ask() -> None:
        with closing(new_admin(cluster, bootstrap_timeout_ms=3000)) as admin:
            admin.describe_cluster()

    until = time.monotonic() + limit.total_seconds() if limit else math.inf
    until_kafka_answers(cluster, ask, Waiting(KAFKA_ANSWERS, say), lambda: time.monotonic() < until)

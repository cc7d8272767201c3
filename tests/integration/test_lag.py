"""Lag as real brokers say it, where it matters: a position of another log, codecs, topics that are gone."""

from __future__ import annotations

import asyncio
import time
from contextlib import closing

import pytest
from aiokafka import AIOKafkaProducer
from kafka import KafkaAdminClient, OffsetAndMetadata, TopicPartition
from kafka.admin import NewTopic

from citystream.stack.stack import Stack
from streams.cluster import Cluster
from streams.lag import LagMeter, by_topic, committed_offsets

pytestmark = pytest.mark.integration

TOPIC, GROUP = "behind", "idle"
CODECS = [None, "gzip", "snappy", "lz4", "zstd"]


async def _publish(cluster: Cluster, partition: int, codec: str | None) -> None:
    async with AIOKafkaProducer(**cluster.aiokafka(), compression_type=codec, linger_ms=100) as producer:
        sent = [await producer.send(TOPIC, b"toy" * 50, partition=partition) for _ in range(20)]
        await asyncio.gather(*sent)


def test_waiting_records_are_seen_behind_every_codec_and_beside_a_position_beyond_the_end(stack: Stack) -> None:
    cluster = stack.settings.cluster
    with closing(KafkaAdminClient(**cluster.kafka_python())) as admin:
        admin.create_topics([NewTopic(TOPIC, 6, 1, None, {"message.timestamp.type": "LogAppendTime"})])
        admin.wait_for_topics([TOPIC])
        assert committed_offsets(admin, GROUP) == {}  # a new broker first has to make its topic for commits
        admin.alter_group_offsets(GROUP, {TopicPartition(TOPIC, 5): OffsetAndMetadata(1_000, "", -1)})
    before = time.time_ns() // 1_000_000
    for partition, codec in enumerate(CODECS):
        asyncio.run(_publish(cluster, partition, codec))
    now = time.time_ns() // 1_000_000
    with LagMeter(cluster) as meter:
        seen = meter.look(GROUP, [TOPIC, "never"])
    assert [p.records for p in seen.partitions] == [20, 20, 20, 20, 20, 0]
    since = [p.waiting_since_ms for p in seen.partitions[:5]]
    assert all(arrived is not None and before <= arrived <= now for arrived in since)
    behind, never = by_topic(seen, now)
    assert (behind.records, never.records) == (100, None)
    assert behind.problem == "behind/5: the position 1,000 is beyond the end of the log, 0"
    assert never.problem == "never does not exist; if it does not come back: citystream init"

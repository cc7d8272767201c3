"""What the rules of a partition hold, kept on a compacted topic; the commit of a position names where.

A snapshot is sent when everything before it is acknowledged, and follows from the log alone, so whichever worker wrote
the newest of a partition, it is right; the commit names one because what it needs is read again from the position's
rewind offset. Compaction waits for a day, so the one that is named is there while a worker may begin from it.
"""

from __future__ import annotations

from contextlib import closing
from datetime import timedelta

from kafka import TopicPartition as ClientPartition

from streams.assignment import TopicPartition
from streams.clients import new_consumer
from streams.cluster import Cluster
from streams.ending import EX_CONFIG, Stop
from streams.positions import Snapshot
from streams.waiting import until_kafka_answers

TOPIC = "snapshots"
#: How long the last one stays beside newer ones.
KEPT = timedelta(days=1)


class NoSnapshot(Stop):
    """The state of a feed's rules cannot be gone on from."""

    code = EX_CONFIG


def key(place: TopicPartition) -> bytes:
    """The key of a partition's snapshots."""
    return str(place).encode()


def read(cluster: Cluster, place: TopicPartition, named: Snapshot) -> bytes:
    """The snapshot that a position names, or a newer one of its partition; waits for brokers that are away.

    Raises
    ------
    NoSnapshot
        There is none.
    """
    return until_kafka_answers(cluster, lambda: _read(cluster, place, named))


def _read(cluster: Cluster, place: TopicPartition, named: Snapshot) -> bytes:
    here, wanted = ClientPartition(TOPIC, 0), key(place)
    with closing(new_consumer(cluster, auto_offset_reset="earliest")) as consumer:
        consumer.assign([here])
        end = consumer.end_offsets([here])[here]
        consumer.seek(here, named.offset)
        while named.offset < end and consumer.position(here) < end:
            for records in consumer.poll(timeout_ms=1000).values():
                for record in records:
                    if record.key == wanted and record.value is not None:
                        return bytes(record.value)
    raise NoSnapshot(
        f"{place}: the state of its rules, at offset {named.offset} of topic {TOPIC}, is gone. Begin them anew: "
        f"citystream positions freeze {place.topic}"
    )

"""Clients of kafka-python that leave nothing behind when no broker answers.

Their constructors start a thread with sockets of its own, and raise without ending it: a worker that asks again and
again while the brokers are away would run out of files.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import ExitStack, closing
from typing import Any

from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition
from kafka.protocol.consumer.metadata import ConsumerProtocolAssignment

from streams.cluster import Cluster


class _Admin(KafkaAdminClient):
    """Describes groups whatever other programs sent to them: what cannot be read would fail the whole answer."""

    def _describe_groups_process_response(self, response: Any) -> Any:
        for member in (member for group in response.groups for member in group.members):
            member.member_metadata = b""
            try:
                ConsumerProtocolAssignment.decode(member.member_assignment or b"")
            except (ValueError, struct.error):
                member.member_assignment = b""
        return super()._describe_groups_process_response(response)


def new_admin(cluster: Cluster, **settings: Any) -> KafkaAdminClient:
    """Kafka's administration, to be closed.

    Raises
    ------
    KafkaTimeoutError
        No broker has answered within ``bootstrap_timeout_ms``, by default 30 s.
    """
    return _connected(_Admin, cluster, settings)


def new_consumer(cluster: Cluster, **settings: Any) -> KafkaConsumer:
    """A consumer that commits nothing, to be closed.

    Raises
    ------
    KafkaTimeoutError
        No broker has answered within ``bootstrap_timeout_ms``, by default 30 s.
    """
    return _connected(KafkaConsumer, cluster, {"enable_auto_commit": False, **settings})


def records_of(cluster: Cluster, topic: str) -> Iterator[Any]:
    """The records of a topic of one partition, from its beginning to where it ends now."""
    with closing(new_consumer(cluster)) as consumer:
        here = TopicPartition(topic, 0)
        consumer.assign([here])
        consumer.seek_to_beginning(here)
        end = consumer.end_offsets([here])[here]
        while consumer.position(here) < end:
            for records in consumer.poll(timeout_ms=1000).values():
                yield from records


def _connected(kind: Any, cluster: Cluster, settings: dict[str, Any]) -> Any:
    with ExitStack() as opened:

        def network(**own: Any) -> Any:
            return opened.enter_context(closing(kind.DEFAULT_CONFIG["kafka_client"](**own)))

        client = kind(**cluster.kafka_python(), kafka_client=network, **settings)
        opened.pop_all()
        return client

import time

import pytest
from kafka import KafkaConsumer

from citystream.stack.ports import free_ports
from citystream.stack.stack import Stack
from deploy.docker.healthy import has_time, is_member
from streams.cluster import Cluster

pytestmark = pytest.mark.integration


def test_a_worker_is_healthy_while_it_is_a_member_of_its_group(stack: Stack) -> None:
    cluster, group = stack.settings.cluster, "healthy-test"
    assert not is_member(cluster, group, "127.0.0.1")
    consumer = KafkaConsumer(group_id=group, **cluster.kafka_python())
    consumer.subscribe(pattern="^healthy-nothing$")
    until = time.monotonic() + 30
    while not (joined := is_member(cluster, group, "127.0.0.1")) and time.monotonic() < until:
        consumer.poll(timeout_ms=200)
    assert joined
    assert not is_member(cluster, group, "127.0.0.2")
    consumer.close()
    assert not is_member(cluster, group, "127.0.0.1")


def test_without_a_broker_nobody_is_healthy() -> None:
    (nobody,) = free_ports(1)
    cluster = Cluster((f"127.0.0.1:{nobody}",))
    assert not is_member(cluster, "healthy-test", "127.0.0.1")
    assert not has_time(cluster)

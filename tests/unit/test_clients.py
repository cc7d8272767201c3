"""A client that reaches no broker leaves nothing behind."""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Iterator
from typing import Any
from unittest.mock import create_autospec

import psutil
import pytest
from kafka import KafkaAdminClient
from kafka.errors import KafkaTimeoutError
from kafka.protocol.admin import DescribeGroupsResponse

from citystream.stack.ports import free_ports
from streams.clients import _Admin, new_admin, new_consumer
from streams.cluster import Cluster


def held() -> tuple[int, int]:
    """Threads and files of this process that do not go by themselves."""
    gc.collect()
    return threading.active_count(), psutil.Process().num_fds()


@pytest.fixture
def _nothing_logged() -> Iterator[None]:
    """Pytest keeps what is logged, and with an error all that it refers to."""
    before = logging.root.manager.disable
    logging.disable()
    yield
    logging.disable(before)


@pytest.mark.parametrize("connect", [new_admin, new_consumer])
@pytest.mark.usefixtures("_nothing_logged")
def test_brokers_that_are_away_cost_neither_threads_nor_files(connect: Any) -> None:
    """A worker asks again and again, for days."""
    nobody = Cluster((f"127.0.0.1:{free_ports(1)[0]}",))
    before = held()
    for _ in range(20):
        with pytest.raises(KafkaTimeoutError):
            connect(nobody, bootstrap_timeout_ms=1)
    threads, files = held()
    assert threads <= before[0]
    assert files <= before[1]


def test_a_group_can_be_described_whatever_its_members_sent() -> None:
    """The client's own way raises for what is cut short in another way than it expects."""
    group = DescribeGroupsResponse.DescribedGroup
    sent = [b"\xff", b"\x00\x02garbage!!!", b"\x00\x00\x00\x00\x00\x01\x00\x01\xff"]

    def answer() -> DescribeGroupsResponse:
        one = group.DescribedGroupMember
        found = [one(client_id="rogue", member_metadata=data, member_assignment=data) for data in sent]
        return DescribeGroupsResponse(groups=[group(group_id="sink", members=found)])

    admin = create_autospec(_Admin, instance=True)
    admin._process_acl_operations.side_effect = lambda found: found
    described = _Admin._describe_groups_process_response(admin, answer())
    assert [one["client_id"] for one in described["sink"]["members"]] == ["rogue"] * 3
    with pytest.raises(ValueError, match="underrun"):
        KafkaAdminClient._describe_groups_process_response(admin, answer())

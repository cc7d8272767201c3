"""Whether the worker of this container takes part in its consumer group: python healthy.py GROUP.

Exit code 0 if the group has a member at this host's address, or for ``clock`` if time passes everywhere; else 1.
"""

from __future__ import annotations

import socket
import sys
import time
from contextlib import closing

from kafka.errors import KafkaError

import feeds
from citystream.settings import load_settings
from streams.clients import new_admin
from streams.clock import standing_still
from streams.cluster import Cluster


def is_member(cluster: Cluster, group: str, address: str) -> bool:
    """Whether the broker answers and counts a consumer at this address among the group's members."""
    try:
        with closing(new_admin(cluster, bootstrap_timeout_ms=3000)) as admin:
            members = admin.describe_groups([group])[group]["members"]
    except KafkaError:
        return False
    return any(member["client_host"].lstrip("/") == address for member in members)


def has_time(cluster: Cluster) -> bool:
    """Whether the broker answers, and ticks come wherever they should."""
    try:
        return not standing_still(cluster, feeds.load().values(), time.time_ns() // 1_000_000)
    except KafkaError:
        return False


if __name__ == "__main__":
    cluster, own_address = load_settings().cluster, socket.gethostbyname(socket.gethostname())
    sys.exit(not (has_time(cluster) if sys.argv[1] == "clock" else is_member(cluster, sys.argv[1], own_address)))

"""Whether the worker of this container takes part in its consumer group: python healthy.py GROUP.

Exit code 0 if the group has a member at this host's address, else 1.
"""

from __future__ import annotations

import socket
import sys
from contextlib import closing

from kafka.errors import KafkaError

from citystream.settings import load_settings
from streams.clients import new_admin
from streams.cluster import Cluster


def is_member(cluster: Cluster, group: str, address: str) -> bool:
    """Whether the broker answers and counts a consumer at this address among the group's members."""
    try:
        with closing(new_admin(cluster, bootstrap_timeout_ms=3000)) as admin:
            members = admin.describe_groups([group])[group]["members"]
    except KafkaError:
        return False
    return any(member["client_host"].lstrip("/") == address for member in members)


if __name__ == "__main__":
    own_address = socket.gethostbyname(socket.gethostname())
    sys.exit(not is_member(load_settings().cluster, sys.argv[1], own_address))

"""Whether the worker of this container takes part in its consumer group: python healthy.py GROUP.

Exit code 0 if the group has a member at this host's address, else 1.
"""

from __future__ import annotations

import os
import socket
import sys
from contextlib import closing

from kafka import KafkaAdminClient
from kafka.errors import KafkaError


def is_member(bootstrap: str, group: str, address: str) -> bool:
    """Whether the broker answers and counts a consumer at this address among the group's members."""
    try:
        with closing(KafkaAdminClient(bootstrap_servers=bootstrap, bootstrap_timeout_ms=3000)) as admin:
            members = admin.describe_groups([group])[group]["members"]
    except KafkaError:
        return False
    return any(member["client_host"].lstrip("/") == address for member in members)


if __name__ == "__main__":
    own_address = socket.gethostbyname(socket.gethostname())
    sys.exit(not is_member(os.environ["CITYSTREAM_KAFKA_BOOTSTRAP"], sys.argv[1], own_address))

"""Who reads for a consumer group: its members, and what each has been given."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from streams.clients import new_admin
from streams.cluster import Cluster


def member_name(instance: str, topics: Iterable[str]) -> str:
    """The name of a member of the group that comes back under it after a restart.

    A member that comes back within its session is given the partitions it had, whatever it asks for now: the brokers
    do not look at its subscription. So one that reads other topics is another member, or nobody would read these.
    """
    return f"{instance}.{hashlib.sha256(','.join(sorted(topics)).encode()).hexdigest()[:8]}"


def is_member_name(name: str | None) -> bool:
    """Whether a member of a group has a name of that kind: others are no workers, or were given none."""
    return bool(name and re.fullmatch(r".+\.[0-9a-f]{8}", name))


@dataclass(frozen=True)
class Member:
    """A process that reads for a group; ``topics`` are the partitions it has of each, none while the group is joining.

    ``name`` is the ``--instance`` name it was started under with the mark of what it reads, or what its client calls
    itself.
    """

    group: str
    name: str
    host: str
    topics: Mapping[str, int]


def members(cluster: Cluster, groups: Iterable[str]) -> list[Member]:
    """The members of these groups now."""
    with closing(new_admin(cluster)) as admin:
        described: Mapping[str, Mapping[str, Any]] = admin.describe_groups(list(groups))
    return [_member(group, one) for group, found in described.items() for one in found["members"]]


def _member(group: str, described: Mapping[str, Any]) -> Member:
    assigned = (described["member_assignment"] or {}).get("assigned_partitions", ())
    return Member(
        group,
        described["group_instance_id"] or described["client_id"],
        described["client_host"].removeprefix("/"),
        {one["topic"]: len(one["partitions"]) for one in assigned},
    )


def unread(found: Iterable[Member], group: str, topics: Iterable[str]) -> list[str]:
    """Those of the topics a group should read that no member of it has."""
    read = {topic for member in found if member.group == group for topic in member.topics}
    return [topic for topic in topics if topic not in read]

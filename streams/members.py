"""Who reads for a consumer group: its members, and what each has been given."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from streams.clients import new_admin


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


def members(bootstrap: str, groups: Iterable[str]) -> list[Member]:
    """The members of these groups now."""
    with closing(new_admin(bootstrap)) as admin:
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

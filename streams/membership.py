"""Who is a member of the consumer group, and who may commit: a member, for the assignment its positions belong to."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.errors import IllegalGenerationError


def member_name(instance: str, topics: Iterable[str]) -> str:
    """The name of a member of the group that comes back under it after a restart.

    A member that comes back within its session is given the partitions it had, whatever it asks for now: the brokers
    do not look at its subscription. So one that reads other topics is another member, or nobody would read these.
    """
    return f"{instance}.{hashlib.sha256(','.join(sorted(topics)).encode()).hexdigest()[:8]}"


class MemberCoordinator(GroupCoordinator):
    """Commits as a member of the group's generation that the assignment came from, or not at all.

    A member that was gone too long is no member until it has joined again, and meanwhile would commit without a
    generation: brokers take that for a group that has no other members. Once it has joined again, a commit that was
    held up would count as one of the new generation, in which another member may have the partition.
    """

    async def _do_commit_offsets(self, assignment: Any, offsets: Any) -> None:
        if self.generation < 0 or not assignment.active or self._subscription.reassignment_in_progress:
            raise IllegalGenerationError(self.group_id)
        await super()._do_commit_offsets(assignment, offsets)

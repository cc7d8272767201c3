"""Who may commit: a member of the consumer group, and only for the assignment its positions belong to."""

from __future__ import annotations

from typing import Any

from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.errors import IllegalGenerationError


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

"""Who is a member of the consumer group, and who may commit: a member, for the assignment its positions belong to."""

from __future__ import annotations

import logging
import math
import time
from typing import Any

from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.coordinator.protocol import ConsumerProtocol
from aiokafka.errors import (
    GroupLoadInProgressError,
    IllegalGenerationError,
    NoError,
    RebalanceInProgressError,
    UnknownError,
    UnknownMemberIdError,
)
from aiokafka.errors import KafkaError as AiokafkaError
from aiokafka.protocol.commit import OffsetCommitRequest
from aiokafka.protocol.group import HeartbeatRequest, JoinGroupRequest, SyncGroupRequest

from streams.ending import Stop
from streams.members import is_member_name
from streams.waiting import KAFKA

log = logging.getLogger("citystream")

UNKNOWN, HEARD = UnknownMemberIdError.errno, {NoError.errno, RebalanceInProgressError.errno}
#: What a member is told that joins under a name another one has taken meanwhile; aiokafka does not know this error.
FENCED = 82
#: Sessions within which two processes of one name are sure to meet, however slow they are: it is the newer one then.
MEETING = 3


class NameTaken(AiokafkaError, Stop):
    """Another process works under the instance name of this one."""


class MemberCoordinator(GroupCoordinator):
    """A member that commits for its own assignment or not at all, gives way to an older one of its instance name, and
    as the leader of its group gives partitions to nobody whose request cannot be read.

    A member that was gone too long is no member until it has joined again, and meanwhile would commit without a
    generation: brokers take that for a group that has no other members. Once it has joined again, a commit that was
    held up would count as one of the new generation, in which another member may have the partition.
    """

    #: When the newest request was sent that the brokers took from this member, and the first one without a break of a
    #: session in between.
    _heard = _since = -math.inf
    _taken: NameTaken | None = None

    async def _do_commit_offsets(self, assignment: Any, offsets: Any) -> None:
        if self.generation < 0 or not assignment.active or self._subscription.reassignment_in_progress:
            raise IllegalGenerationError(self.group_id)
        await super()._do_commit_offsets(assignment, offsets)

    async def ensure_active_group(self, subscription: Any, prev_assignment: Any) -> Any:
        """Join the group.

        Raises
        ------
        NameTaken
            See ``_lost``.
        """
        if self._taken:
            raise self._taken
        return await super().ensure_active_group(subscription, prev_assignment)

    async def _send_req(self, request: Any) -> Any:
        sent = time.monotonic()
        response = await super()._send_req(request)
        if isinstance(request, JoinGroupRequest):
            self._note_join(response)
        errors = _errors(request, response)
        if FENCED in errors:
            response.error_code = UNKNOWN
        if errors & {FENCED, UNKNOWN}:
            self._lost(sent)
        elif errors and errors <= HEARD:
            if sent - self._heard > self._session:
                self._since = sent
            self._heard = sent
        return response

    def _note_join(self, response: Any) -> None:
        """Wait while the brokers fail: Kafka 4.1 does for all while a member asks for what it cannot read."""
        if response.error_code == UnknownError.errno:
            response.error_code = GroupLoadInProgressError.errno
            if not KAFKA.waits(self):
                KAFKA.begin(
                    self,
                    f"Kafka lets nobody into the group {self.group_id}: end the unknown member that citystream status "
                    "shows, which it forgets within 5 minutes; trying again",
                )
        elif response.error_code == NoError.errno:
            KAFKA.end(self)

    @property
    def _session(self) -> float:
        return float(self._session_timeout_ms) / 1000

    def _lost(self, at: float) -> None:
        """The brokers do not know this member: its session has ended, or another one has joined under its name.

        They give a name to whoever joins last. So the one that had it joins again, and the one that came last gives it
        up, or they would take it from each other for ever.
        """
        name = (self._group_instance_id or "").rpartition(".")[0]
        if not name or time.monotonic() - self._heard > self._session:
            return  # its session may have ended while the request was on its way
        if at - self._since < MEETING * self._session:
            self._taken = NameTaken(
                f"Another process works in the group {self.group_id} under the name {name}: end it, or give this one "
                "another --instance"
            )
        else:
            log.warning("Another process has joined the group %s under the name %s; taking it back",
                        self.group_id, name)  # fmt: skip

    async def _perform_assignment(self, response: Any) -> Any:
        """Share the partitions among those whose requests can be read, and name those that may be no workers."""
        members = []
        for member in response.members:
            member_id, name, asked = member
            readable = self._can_read(response.group_protocol, asked)
            if readable:
                members.append(member)
            if not readable or (self._group_instance_id and not is_member_name(name)):
                log.warning(
                    "An unknown member of the group %s gets %s: %s. If it is none of your workers, end it; workers "
                    "have --instance names",
                    *(self.group_id, "partitions" if readable else "nothing", member_id),
                )
        response.members = members
        return await super()._perform_assignment(response)

    def _can_read(self, protocol: str, asked: bytes) -> bool:
        try:
            self._lookup_assignor(protocol)._get_client_metadata(ConsumerProtocol.METADATA.decode(asked))
        except Exception:  # noqa: BLE001 - it is another program's, and may be anything
            return False
        return True


def _errors(request: Any, response: Any) -> set[int]:
    """The error codes with which the brokers answered what only a member can ask for."""
    if isinstance(request, OffsetCommitRequest):
        return {code for _, partitions in response.topics for _, code in partitions}
    if isinstance(request, HeartbeatRequest | JoinGroupRequest | SyncGroupRequest):
        return {response.error_code}
    return set()

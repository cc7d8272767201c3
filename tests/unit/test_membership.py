"""Two processes under one name, and strangers in the group of the workers."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import create_autospec

import pytest
from aiokafka.client import AIOKafkaClient
from aiokafka.cluster import ClusterMetadata
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.consumer.subscription_state import SubscriptionState
from aiokafka.coordinator.protocol import ConsumerProtocolMemberMetadata
from aiokafka.errors import GroupLoadInProgressError, UnknownError, UnknownMemberIdError
from aiokafka.protocol.commit import OffsetCommitRequest
from aiokafka.protocol.group import HeartbeatRequest, JoinGroupRequest, SyncGroupRequest
from faust import App
from faust.assignor.client_assignment import ClientMetadata
from faust.assignor.partition_assignor import PartitionAssignor

from streams.members import is_member_name, member_name
from streams.transport import membership
from streams.transport.membership import FENCED, MEETING, MemberCoordinator, NameTaken
from streams.waiting import KAFKA_ANSWERS

SESSION = 10
UNKNOWN = UnknownMemberIdError.errno


class Broker:
    """Gives a name to whoever joins last, until a session has passed without a word of that one; knows the time."""

    def __init__(self) -> None:
        self.now = 0.0
        self.holder: object = None
        self.heard = 0.0

    def answer(self, member: object, request: Any) -> Any:
        if self.now - self.heard > SESSION:
            self.holder = None
        if isinstance(request, JoinGroupRequest):
            self.holder = member
        if self.holder is not member:
            return SimpleNamespace(error_code=UNKNOWN)
        self.heard = self.now
        return SimpleNamespace(error_code=0, member_id="x")


@asynccontextmanager
async def member(instance: str | None = "sink-1.0a1b2c3d") -> AsyncIterator[MemberCoordinator]:
    """What makes a process a member of its group; its client reaches nobody."""
    client = create_autospec(AIOKafkaClient, instance=True, cluster=ClusterMetadata())
    coordinator = MemberCoordinator(
        client, SubscriptionState(), group_id="sink", group_instance_id=instance, session_timeout_ms=SESSION * 1000
    )
    try:
        yield coordinator
    finally:
        await coordinator.close()


class Process:
    """A member that has something to say to the brokers every so many seconds, but for some time."""

    def __init__(self, start: float, every: float = 3, away: tuple[float, float] = (0, 0), end: float = 1e9) -> None:
        self.start, self.every, self.away, self.end = start, every, away, end
        self.next, self.out = start, True
        self.ended: float | None = None
        self.coordinator: MemberCoordinator

    async def act(self, now: float) -> None:
        """Join if it is out of the group, and else send a heartbeat."""
        if self.ended is not None or now < self.next or now >= self.end or self.away[0] <= now < self.away[1]:
            return
        self.next = now + (0.5 if self.out else self.every)
        if not self.out:
            response = await self.coordinator._send_req(HeartbeatRequest("sink", 1, "x"))
            self.out = response.error_code != 0
            return
        try:
            await self.coordinator.ensure_active_group(None, None)
        except NameTaken:
            self.ended = now
        self.out = False


def meet(monkeypatch: pytest.MonkeyPatch, processes: Sequence[Process], seconds: float = 300) -> Broker:
    """Let them live with each other."""
    broker = Broker()

    async def send(coordinator: Any, request: Any) -> Any:
        return broker.answer(coordinator, request)

    async def join(coordinator: Any, *_: Any) -> None:
        await coordinator._send_req(JoinGroupRequest("sink", 1, 1, "", "sink-1", "consumer", []))
        await coordinator._send_req(SyncGroupRequest("sink", 1, "x", "sink-1", []))

    monkeypatch.setattr(GroupCoordinator, "_send_req", send)
    monkeypatch.setattr(GroupCoordinator, "ensure_active_group", join)
    monkeypatch.setattr(membership, "time", SimpleNamespace(monotonic=lambda: broker.now))

    async def live() -> None:
        async with AsyncExitStack() as members:
            for process in processes:
                process.coordinator = await members.enter_async_context(member())
            while broker.now < seconds:
                for process in processes:
                    await process.act(broker.now)
                broker.now += 0.25

    asyncio.run(live())
    return broker


@pytest.mark.parametrize(
    ("processes", "stays"),
    [
        ([Process(0), Process(100)], 0),
        ([Process(0), Process(100), Process(110), Process(119)], 0),
        ([Process(0, every=9), Process(100, every=1)], 0),
        ([Process(0, every=9), Process(100, every=9)], 0),
        ([Process(0, every=1), Process(100, every=9)], 0),
        ([Process(0), Process(1)], 1),
        ([Process(0, away=(20, 100)), Process(40)], 1),
        ([Process(0, end=20), Process(25)], 1),
        ([Process(0, away=(5, 40))], 0),
    ],
    ids=[
        "a second one",
        "a second one that is started again and again",
        "a slow first one",
        "two slow ones",
        "a slow second one",
        "both at once",
        "one that was thought dead",
        "a restart within the session",
        "one whose session has ended",
    ],
)
def test_of_several_processes_under_a_name_one_goes_on(
    processes: list[Process], stays: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = meet(monkeypatch, processes)
    assert broker.holder is processes[stays].coordinator
    for number, one in enumerate(processes):
        alive = one.ended is None and one.end > broker.now
        assert alive is (number == stays)
        if one.ended is not None:
            assert one.ended - max(one.start, one.away[1]) <= MEETING * SESSION


@asynccontextmanager
async def answered(
    monkeypatch: pytest.MonkeyPatch, request: Any, response: Any, instance: str | None = "sink-1.0a1b2c3d"
) -> AsyncIterator[MemberCoordinator]:
    """A member that came just now, after an answer."""

    async def send(*_: Any) -> Any:
        return response

    monkeypatch.setattr(GroupCoordinator, "_send_req", send)
    monkeypatch.setattr(membership, "time", SimpleNamespace(monotonic=lambda: 1001.0))
    async with member(instance) as coordinator:
        coordinator._heard = coordinator._since = 1000.0
        assert await coordinator._send_req(request) is response
        yield coordinator


def test_a_commit_finds_out_and_joining_too_and_the_message_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    commit = OffsetCommitRequest("sink", 1, "x", -1, [])
    refused = SimpleNamespace(topics=[("toy", [(0, 0), (1, UNKNOWN)])])
    fenced = SimpleNamespace(error_code=FENCED)
    join = JoinGroupRequest("sink", 1, 1, "x", "sink-1", "consumer", [])

    async def find_out(request: Any, response: Any) -> None:
        async with answered(monkeypatch, request, response) as coordinator:
            await coordinator.ensure_active_group(None, None)

    for request, response in ((commit, refused), (join, fenced)):
        with pytest.raises(NameTaken, match=r"in the group sink under the name sink-1: end it, or give .* --instance"):
            asyncio.run(find_out(request, response))
    assert fenced.error_code == UNKNOWN, "aiokafka joins again"


def test_a_session_that_ended_while_a_request_was_held_up_is_no_other_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine that is too busy for it."""
    now = iter([1001.0, 1000.0 + SESSION + 1, 1000.0 + SESSION + 1])

    async def send(*_: Any) -> Any:
        return SimpleNamespace(error_code=UNKNOWN)

    async def work() -> None:
        async with member() as coordinator:
            coordinator._heard = coordinator._since = 1000.0
            await coordinator._send_req(HeartbeatRequest("sink", 1, "x"))
            assert coordinator._taken is None

    monkeypatch.setattr(GroupCoordinator, "_send_req", send)
    monkeypatch.setattr(membership, "time", SimpleNamespace(monotonic=lambda: next(now)))
    asyncio.run(work())


def test_brokers_that_let_nobody_join_are_waited_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Kafka 4.1 answers all who join a group so while it cannot read what one of them asks for."""
    answers = [UnknownError.errno, UnknownError.errno, 0, 0]

    async def send(*_: Any) -> Any:
        return SimpleNamespace(error_code=answers.pop(0))

    monkeypatch.setattr(GroupCoordinator, "_send_req", send)
    join = JoinGroupRequest("sink", 1, 1, "x", "sink-1", "consumer", [])

    async def joins() -> list[int]:
        async with member() as coordinator:
            return [(await coordinator._send_req(join)).error_code for _ in range(4)]

    assert asyncio.run(joins()) == [GroupLoadInProgressError.errno, GroupLoadInProgressError.errno, 0, 0], (
        "aiokafka tries again"
    )
    first, last = (record.getMessage() for record in caplog.records)
    assert first.startswith("Kafka lets nobody into the group sink: end the unknown member")
    assert last == KAFKA_ANSWERS


def test_a_member_without_a_name_has_none_to_lose(monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = SimpleNamespace(error_code=UNKNOWN)

    async def taken() -> NameTaken | None:
        async with answered(monkeypatch, HeartbeatRequest("sink", 1, "x"), unknown, None) as coordinator:
            return coordinator._taken

    assert asyncio.run(taken()) is None


def test_the_name_of_a_worker_is_told_from_others() -> None:
    assert is_member_name(member_name("sink-1", ["toy"]))
    assert not any(map(is_member_name, (None, "", "sink-1", "faust-0.15.3", "sink-1.0a1b2c3g", ".0a1b2c3d")))


def asked(user_data: bytes) -> bytes:
    """What a member asks for."""
    return bytes(ConsumerProtocolMemberMetadata(2, ["toy"], user_data).encode())


GOOD = asked(ClientMetadata(assignment={"actives": {}, "standbys": {}}, url="", changelog_distribution={}).dumps())
OURS = ("sink-1.0a1b2c3d-77", "sink-1.0a1b2c3d", GOOD)


@pytest.mark.parametrize(
    ("stranger", "given"),
    [
        (("rogue-1", None, b"\xff"), "nothing"),
        (("rogue-1", None, b""), "nothing"),
        (("rogue-1", None, asked(b"garbage")), "nothing"),
        (("rogue-1", "sink-9.0a1b2c3d", asked(b"")), "nothing"),
        (("rogue-1", None, GOOD), "partitions"),
        (("rogue-1", "rogue", GOOD), "partitions"),
        (("sink-2", "sink-2.0a1b2c3d", GOOD), None),
    ],
    ids=["bytes", "none", "garbage", "a worker's name", "without a name", "another name", "a worker"],
)
def test_a_stranger_ends_no_leader_and_is_named(
    stranger: tuple[Any, ...],
    given: str | None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    shared: list[Any] = []

    async def share(_: Any, response: Any) -> None:
        shared.extend(member for member, *_ in response.members)

    monkeypatch.setattr(GroupCoordinator, "_perform_assignment", share)
    response = SimpleNamespace(group_protocol="faust", members=[OURS, stranger])

    async def lead() -> None:
        async with member() as coordinator:
            coordinator._assignors = (PartitionAssignor(App("sink")),)
            await coordinator._perform_assignment(response)

    asyncio.run(lead())
    assert shared == [OURS[0], *([stranger[0]] if given != "nothing" else [])]
    said = [f"An unknown member of the group sink gets {given}: rogue-1"] if given else []
    assert [re.split(r"\. If", record.getMessage())[0] for record in caplog.records] == said

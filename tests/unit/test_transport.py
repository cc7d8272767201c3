"""Which commits leave, and that the extension points the transport stands on are where they were.

A failure of a contract test means: faust-streaming or aiokafka moved something; read streams/transport.py against the
new version before changing the test.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import aiokafka
import faust
import pytest
from aiokafka.client import AIOKafkaClient
from aiokafka.consumer import fetcher
from aiokafka.consumer.group_coordinator import CoordinatorGroupRebalance, GroupCoordinator
from aiokafka.consumer.subscription_state import SubscriptionState
from aiokafka.errors import (
    CommitFailedError,
    GroupAuthorizationFailedError,
    IllegalGenerationError,
    IllegalStateError,
    KafkaError,
    NodeNotReadyError,
    OffsetOutOfRangeError,
    RequestTimedOutError,
)
from aiokafka.record.control_record import ABORT_MARKER, ControlRecord
from aiokafka.structs import OffsetAndMetadata, TopicPartition
from aiokafka.util import commit_structure_validate
from faust.assignor.partition_assignor import PartitionAssignor
from faust.tables.recovery import Recovery
from faust.transport.consumer import Consumer as FaustConsumer
from faust.transport.drivers import aiokafka as driver
from faust.types import TP
from mode import threads

from streams import checkpoints, runs, transport
from streams.members import member_name
from streams.membership import MemberCoordinator
from streams.positions import Position, parse
from streams.transport import Consumer, ConsumerThread
from streams.waiting import CLIENTS, KAFKA
from tests.reference.batches import ABORT, COMMIT, marker_key, plain

HERE = TopicPartition("toy", 0)
TP0, TP1 = TP("toy", 0), TP("toy", 1)


def parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


@pytest.mark.parametrize(
    ("owner", "name", "expected"),
    [
        (fetcher.MemoryRecords, "has_next", None),
        (fetcher.MemoryRecords, "size_in_bytes", None),
        (
            fetcher.PartitionRecords,
            "__init__",
            "self tp records aborted_transactions fetch_offset key_deserializer value_deserializer check_crcs "
            "isolation_level",
        ),
        (fetcher.FetchResult, "__init__", "self tp assignment partition_records backoff"),
        (driver.Consumer, "_to_message", "self tp record"),
        (driver.Consumer, "_new_consumer_thread", "self"),
        (driver.Consumer, "_add_gap", "self tp offset_from offset_to"),
        (driver.Consumer, "_filter_tps_with_pending_acks", "self topics"),
        (driver.Consumer, "_new_offset", "self tp"),
        (driver.Consumer, "on_buffer_full", "self tp"),
        (driver.Consumer, "verify_event_path", "self now tp"),
        (driver.Consumer, "perform_seek", "self"),
        (driver.Consumer, "_getmany", "self active_partitions timeout"),
        (driver.Consumer, "_commit", "self offsets"),
        (driver.Consumer, "_should_commit", "self tp offset"),
        (driver.AIOKafkaConsumerThread, "_create_worker_consumer", "self transport"),
        (driver.AIOKafkaConsumerThread, "_commit", "self offsets"),
        (driver.AIOKafkaConsumerThread, "on_start", "self"),
        (driver.AIOKafkaConsumerThread, "_wakeup_timer_in_thread", "self"),
        (driver.AIOKafkaConsumerThread, "_ensure_consumer", "self"),
        (driver.AIOKafkaConsumerThread, "assignment", "self"),
        (driver.AIOKafkaConsumerThread, "seek_wait", "self partitions"),
        (driver.AIOKafkaConsumerThread, "call_thread", "self fun args kwargs"),
        (GroupCoordinator, "fetch_committed_offsets", "self partitions"),
        (GroupCoordinator, "_do_commit_offsets", "self assignment offsets"),
        (GroupCoordinator, "check_errors", "self"),
        (GroupCoordinator, "ensure_active_group", "self subscription prev_assignment"),
        (GroupCoordinator, "_send_req", "self request"),
        (GroupCoordinator, "_perform_assignment", "self response"),
        (GroupCoordinator, "_lookup_assignor", "self name"),
        (PartitionAssignor, "_get_client_metadata", "metadata"),
        (aiokafka.AIOKafkaConsumer, "beginning_offsets", "self partitions"),
        (aiokafka.AIOKafkaConsumer, "commit", "self offsets"),
        (aiokafka.AIOKafkaConsumer, "pause", "self partitions"),
        (aiokafka.AIOKafkaConsumer, "resume", "self partitions"),
    ],
    ids=lambda part: part if isinstance(part, str) and " " not in part else getattr(part, "__name__", ""),
)
def test_an_extension_point_is_where_it_was(owner: Any, name: str, expected: str | None) -> None:
    function = getattr(owner, name, None)
    assert function is not None, f"{owner.__name__}.{name} is gone"
    if expected is not None:
        assert parameters(function) == expected.split()


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (fetcher.Fetcher._proc_fetch_request, {"MemoryRecords", "PartitionRecords", "has_next", "size_in_bytes"}),
        (fetcher.FetchResult.getall, {"_update_position"}),
        (fetcher.FetchResult._update_position, {"next_fetch_offset", "consumed_to"}),
        (fetcher.FetchResult.check_assignment, {"next_fetch_offset", "position", "paused"}),
        (
            aiokafka.AIOKafkaConsumer.start,
            {"_isolation_level", "_auto_offset_reset", "_fetch_max_wait_ms", "GroupCoordinator"},
        ),
        (GroupCoordinator.commit_offsets, {"_do_commit_offsets", "IllegalGenerationError"}),
        (GroupCoordinator.reset_generation, {"DEFAULT_GENERATION_ID", "generation"}),
        (GroupCoordinator._on_join_prepare, {"begin_reassignment"}),
        (CoordinatorGroupRebalance.perform_group_join, {"_send_req", "error_code", "GroupLoadInProgressError"}),
        (GroupCoordinator._do_heartbeat, {"_send_req", "error_code"}),
        (GroupCoordinator.coordinator_dead, {"coordinator_id"}),
        (GroupCoordinator._perform_assignment, {"members", "group_protocol"}),
        (threads.ServiceThread._keepalive2, {"last_wakeup_at", "_wakeup_timer_in_thread"}),
        (fetcher.Fetcher._proc_fetch_request, {"OffsetOutOfRangeError", "_set_error"}),
        (fetcher.Fetcher._update_fetch_positions, {"NoOffsetForPartitionError", "_set_error"}),
        (aiokafka.AIOKafkaConsumer.start, {"_fetch_max_bytes", "_fetcher"}),
        (aiokafka.AIOKafkaConsumer.beginning_offsets, {"_request_timeout_ms"}),
        (AIOKafkaClient._get_conn, {"_request_timeout_ms"}),
        (Recovery._resume_streams, {"perform_seek", "broker_request_timeout"}),
        (Recovery._restart_recovery.fun, {"_resume_streams", "IllegalStateError"}),
        (faust.App.on_rebalance_start, {"rebalancing_count"}),
        (driver.ConsumerRebalanceListener.on_partitions_assigned, {"consumer_generation_id"}),
        (fetcher.Fetcher._proc_fetch_request, {"_prefetch_backoff"}),
        (fetcher.Fetcher._get_actions_per_node, {"_fetch_max_bytes", "calculate_backoff", "paused", "resume_fut"}),
        (fetcher.FetchResult.calculate_backoff, {"_backoff"}),
        (FaustConsumer.force_commit, {"_filter_tps_with_pending_acks", "_commit_tps"}),
        (FaustConsumer._filter_committable_offsets, {"_new_offset", "_should_commit"}),
        (FaustConsumer._commit_offsets, {"_commit", "assignment", "flush"}),
        (FaustConsumer.__init__, {"_committed_offset", "_read_offset"}),
        (driver.AIOKafkaConsumerThread._create_worker_consumer, {"AIOKafkaConsumer"}),
        (driver.AIOKafkaConsumerThread._commit, {"commit"}),
    ],
    ids=lambda part: getattr(part, "__qualname__", ""),
)
def test_a_library_still_goes_through_its_extension_point(function: Any, names: set[str]) -> None:
    source = inspect.unwrap(function)
    assert names <= set(source.__code__.co_names), f"{source.__qualname__} works otherwise now"


@pytest.mark.parametrize("ours", [Consumer, ConsumerThread, MemberCoordinator])
def test_every_override_has_the_signature_of_what_it_overrides(ours: Any) -> None:
    (theirs,) = ours.__bases__
    overrides = [name for name in vars(ours) if hasattr(theirs, name) and inspect.isfunction(vars(ours)[name])]
    assert overrides
    for name in overrides:
        if name != "__init__":
            assert parameters(vars(ours)[name]) == parameters(getattr(theirs, name)), name
            assert inspect.iscoroutinefunction(vars(ours)[name]) == inspect.iscoroutinefunction(getattr(theirs, name))


def test_the_names_replaced_are_those_aiokafka_uses() -> None:
    assert runs.fetcher_memory_records.__module__.startswith("aiokafka")
    assert runs.fetcher_partition_records.__name__ == "PartitionRecords"
    assert ControlRecord.parse(marker_key(ABORT)) == ABORT_MARKER != ControlRecord.parse(marker_key(COMMIT))
    assert driver.Transport.Consumer is driver.Consumer
    assert transport.Transport.Consumer is Consumer


def position(processed: int, rewind: int = 0) -> Position:
    return Position(processed, rewind, 5, "id", "def")


class _Client:
    """An aiokafka consumer that takes commits."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.commits: list[dict[TopicPartition, OffsetAndMetadata]] = []

    async def commit(self, offsets: Any) -> None:
        self.commits.append(commit_structure_validate(offsets))
        if self.error:
            raise self.error


class _App:
    def __init__(self) -> None:
        self.crashes: list[Exception] = []

    async def crash(self, reason: Exception) -> None:
        self.crashes.append(reason)


def committing() -> Consumer:
    """A consumer about to commit."""
    consumer = Consumer.__new__(Consumer)
    consumer.committing = {TP0: position(20, 15), TP1: position(30, 25)}
    consumer.committed, consumer.paused, consumer.told = {}, {}, {}
    return consumer


def commit(
    offsets: dict[TP, int],
    client: _Client,
    assigned: set[TP],
    app: _App | None = None,
    consumer: Consumer | None = None,
) -> bool:
    consumer = consumer or committing()

    class Thread(ConsumerThread):
        def __init__(self) -> None:
            self.consumer = consumer
            self.app = app or _App()
            self.log = logging.getLogger("test")

        def _ensure_consumer(self) -> Any:
            return client

        def assignment(self) -> set[TP]:
            return assigned

    return bool(asyncio.run(Thread()._commit(offsets)))


def test_a_commit_carries_its_position() -> None:
    client = _Client()
    assert commit({TP0: 20, TP1: 30}, client, {TP0, TP1})
    assert client.commits == [
        {
            TopicPartition("toy", 0): OffsetAndMetadata(20, position(20, 15).metadata()),
            TopicPartition("toy", 1): OffsetAndMetadata(30, position(30, 25).metadata()),
        }
    ]


def test_a_partition_revoked_before_the_commit_is_left_out() -> None:
    client = _Client()
    assert commit({TP0: 20, TP1: 30}, client, {TP1})
    assert [set(offsets) for offsets in client.commits] == [{TopicPartition("toy", 1)}]


def test_a_commit_of_nothing_but_revoked_partitions_is_none_and_no_error() -> None:
    """aiokafka refuses to commit nothing, which would end the process in the middle of a rebalance."""
    client, app = _Client(), _App()
    assert not commit({TP0: 20}, client, set(), app)
    assert (client.commits, app.crashes) == ([], [])


def test_an_offset_that_is_not_that_of_the_position_is_not_committed() -> None:
    client = _Client()
    assert not commit({TP0: 19}, client, {TP0})
    assert client.commits == []


@pytest.mark.parametrize(
    ("error", "waits"),
    [(CommitFailedError("already rebalanced"), False), (RequestTimedOutError(), True), (NodeNotReadyError(), True)],
)
def test_a_commit_that_a_rebalance_or_an_absent_broker_prevents_is_made_later(error: Exception, waits: bool) -> None:
    KAFKA.end(CLIENTS)
    app, consumer = _App(), committing()
    assert not commit({TP0: 20}, _Client(error), {TP0}, app, consumer)
    assert app.crashes == []
    assert consumer._should_commit(TP0, 20)
    assert KAFKA.waits(CLIENTS) is waits
    assert commit({TP0: 20}, _Client(), {TP0}, app, consumer)
    assert not consumer._should_commit(TP0, 20)
    assert consumer._should_commit(TP0, 21)


def test_a_commit_that_will_never_be_taken_ends_the_process() -> None:
    app = _App()
    assert not commit({TP0: 20}, _Client(error := GroupAuthorizationFailedError("processor")), {TP0}, app)
    assert app.crashes == [error]


async def unchanged(_: set[str]) -> None:
    """The topics are those they were."""


def kept(takes: set[TP], error: Exception | None = None) -> list[tuple[str, bytes, bytes]]:
    """The checkpoints sent when the brokers take the commits of these partitions; sending may fail."""
    sent: list[tuple[str, bytes, bytes]] = []

    class Producer:
        def _ensure_producer(self) -> Producer:
            return self

        async def send(self, topic: str, key: bytes, value: bytes) -> asyncio.Future[None]:
            sent.append((topic, key, value))
            answer = asyncio.get_running_loop().create_future()
            if error is None:
                answer.set_result(None)
            else:
                answer.set_exception(error)
            return answer

    class Thread:
        async def commit(self, offsets: dict[TP, int]) -> bool:
            consumer.committed.update({tp: offsets[tp] for tp in takes})
            return bool(takes)

    consumer = committing()
    consumer._thread = Thread()
    consumer.app = SimpleNamespace(producer=Producer(), conf=SimpleNamespace(id="processor"), unchanged=unchanged)

    async def commit_both() -> bool:
        done = await consumer._commit({TP0: 20, TP1: 30})
        await asyncio.sleep(0)
        return bool(done)

    assert asyncio.run(commit_both()) == bool(takes)
    return sent


@pytest.mark.parametrize("takes", [{TP0, TP1}, {TP1}, set()], ids=["all", "one", "none"])
def test_a_checkpoint_follows_each_commit_that_was_taken_and_no_other(takes: set[TP]) -> None:
    places = {tp: ("processor", *tp) for tp in sorted(takes)}
    expected = {TP0: position(20, 15), TP1: position(30, 25)}
    assert kept(takes) == [
        (checkpoints.TOPIC, *checkpoints.record(place, expected[tp])) for tp, place in places.items()
    ]


def test_a_checkpoint_that_was_not_taken_is_said_and_nothing_stops(caplog: pytest.LogCaptureFixture) -> None:
    assert len(kept({TP0}, RequestTimedOutError("slow"))) == 1
    assert "A checkpoint was not written" in caplog.text


def test_nothing_is_committed_until_the_topics_are_seen_to_be_those_they_were() -> None:
    done: list[str] = []

    class Thread:
        async def commit(self, offsets: dict[TP, int]) -> bool:
            done.append("committed")
            return False

    async def look(_: set[str]) -> None:
        await asyncio.sleep(0)
        done.append("seen")

    consumer = committing()
    consumer._thread = Thread()
    consumer.app = SimpleNamespace(unchanged=look)
    assert not asyncio.run(consumer._commit({TP0: 20}))
    assert done == ["seen", "committed"]


def test_what_was_about_to_be_committed_of_a_revoked_partition_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Assigned again, it may have been read further by another member."""

    async def revoked(*_: Any) -> None:
        """What Faust does then."""

    monkeypatch.setattr(driver.Consumer, "on_partitions_revoked", revoked)
    consumer, client = committing(), _Client()
    consumer.flushed, consumer.resumed = {TP0: position(20, 15)}, {}
    asyncio.run(consumer.on_partitions_revoked({TP0}))
    assert commit({TP0: 20, TP1: 30}, client, {TP0, TP1}, consumer=consumer)
    assert [set(offsets) for offsets in client.commits] == [{TopicPartition("toy", 1)}]


def test_a_member_that_reads_other_topics_is_another_member() -> None:
    """Under its old name the brokers would give it the partitions of its old topics alone, and say nothing."""
    before, after = member_name("sink-1", ["a", "b"]), member_name("sink-1", ["a", "b", "b.from4"])
    assert before != after
    assert before == member_name("sink-1", ["b", "a"]), "a restart moves no partitions"
    assert before != member_name("sink-2", ["a", "b"])


@pytest.mark.parametrize(
    ("generation", "active", "joining", "commits"),
    [(7, True, False, True), (-1, True, False, False), (7, False, False, False), (7, True, True, False)],
    ids=["a member", "no member any more", "of an older assignment", "joining again"],
)
def test_only_a_member_commits_and_only_for_its_assignment(
    monkeypatch: pytest.MonkeyPatch, generation: int, active: bool, joining: bool, commits: bool
) -> None:
    """Brokers take a commit without a generation where the group has no members, whoever was there before."""
    sent: list[Any] = []

    async def send(_: Any, assignment: Any, offsets: Any) -> None:
        sent.append(offsets)

    monkeypatch.setattr(GroupCoordinator, "_do_commit_offsets", send)
    coordinator = MemberCoordinator.__new__(MemberCoordinator)
    coordinator.generation, coordinator.group_id = generation, "processor"
    coordinator._subscription = SimpleNamespace(reassignment_in_progress=joining)
    attempt = coordinator._do_commit_offsets(SimpleNamespace(active=active), {TP0: 20})
    if commits:
        asyncio.run(attempt)
    else:
        with pytest.raises(IllegalGenerationError):
            asyncio.run(attempt)
    assert sent == ([{TP0: 20}] if commits else [])


def test_a_busy_loop_is_no_thread_that_does_not_respond(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "monotonic", iter(range(100, 10_000, 100)).__next__)
    thread = MagicMock(should_stop=False, last_wakeup_at=0.0)
    rounds = iter(range(6))

    async def sleep(_: float) -> None:
        thread.should_stop = next(rounds) == 5

    thread.sleep = sleep
    thread._wakeup_timer_in_thread = lambda: ConsumerThread._wakeup_timer_in_thread(thread)
    thread.parent_loop = MagicMock()
    asyncio.run(ConsumerThread._keepalive2(thread))
    thread.log.error.assert_not_called()


def test_an_offset_the_log_does_not_have_stops_the_worker() -> None:
    stopped: list[Any] = []

    class Thread:
        async def getmany(self, partitions: Any, timeout: float) -> Any:  # noqa: ASYNC109
            raise OffsetOutOfRangeError({HERE: 17})

        async def committed(self, tps: list[TP]) -> dict[TP, tuple[int, str, int]]:
            return dict.fromkeys(tps, (15, "metadata", 20))

    async def stop(*why: Any) -> None:
        stopped.append(why)

    consumer = Consumer.__new__(Consumer)
    consumer._thread = Thread()
    consumer.app = SimpleNamespace(stop_out_of_range=stop)
    with pytest.raises(OffsetOutOfRangeError):
        asyncio.run(consumer._getmany({TP0}, 1.0))
    assert stopped == [(17, TP0, (15, "metadata", 20))]


class _Broker:
    """A client whose broker has one partition, with a batch at offset 10 and nothing committed."""

    _metadata_max_age_ms = 1000

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.cluster = SimpleNamespace(leader_for_partition=lambda _: 1)

    async def send(self, _: int, request: Any) -> Any:
        (((_, ((_, offset, _),)),),) = (request.topics,)
        if offset > 10:
            await asyncio.sleep(60)
        assert offset == 10
        return SimpleNamespace(API_VERSION=4, topics=[("toy", [(0, 0, 13, 13, [], plain(10))])])


def test_a_partition_without_a_commit_is_read_from_where_a_seek_sets_it() -> None:
    """Until then aiokafka has an error for it, and wakes a call for records that began before the assignment."""

    async def read() -> list[tuple[TP, list[int]]]:
        state = SubscriptionState()
        state.subscribe({"toy"})
        reading = fetcher.Fetcher(_Broker(), state, auto_offset_reset="none", isolation_level="read_committed")
        state.assign_from_subscribed({HERE})

        class Thread:
            async def getmany(self, partitions: Any, timeout: float) -> Any:  # noqa: ASYNC109
                return await reading.fetched_records(partitions, timeout)

        consumer = Consumer.__new__(Consumer)
        consumer._thread = Thread()
        waiting = asyncio.create_task(consumer._getmany({TP0}, 60))
        await state.subscription.assignment.commit_refresh_needed.wait()
        state.subscription.assignment.state_value(HERE).update_committed(OffsetAndMetadata(-1, ""))
        assert await waiting == {}
        reading.seek_to(HERE, 10)
        found = await consumer._getmany({TP0}, 60)
        await reading.close()
        return [(TP(*tp), [record.offset for record in records]) for tp, records in found.items()]

    assert asyncio.run(asyncio.wait_for(read(), 30)) == [(TP0, [10, 11, 12])]


class _Refusing(_Broker):
    """A client that is not let into the group, and does not know who leads a partition."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.cluster = MagicMock()
        self.cluster.leader_for_partition.side_effect = KeyError("toy")

    async def coordinator_lookup(self, kind: Any, group: str) -> int:
        raise GroupAuthorizationFailedError(group)


@pytest.mark.parametrize("broken", ["coordinator", "fetcher", "neither"])
def test_an_error_of_a_task_of_aiokafka_is_raised_where_somebody_looks(broken: str) -> None:
    """Its coordinator waits until somebody has, and its fetcher is gone."""

    async def look() -> None:
        state = SubscriptionState()
        reading = fetcher.Fetcher(_Refusing(), state, auto_offset_reset="none")
        coordinator = GroupCoordinator(_Refusing(), state, group_id="processor")
        if broken != "neither":
            state.subscribe({"toy"})
        if broken == "fetcher":
            await coordinator.close()
            state.assign_from_subscribed({HERE})
        thread = ConsumerThread.__new__(ConsumerThread)
        thread.thread_loop = asyncio.get_running_loop()
        thread._consumer = SimpleNamespace(_coordinator=coordinator, _fetcher=reading)
        await asyncio.sleep(0.05)
        try:
            await thread.check()
        finally:
            await coordinator.close()
            reading._fetch_task.cancel()

    looking = asyncio.wait_for(look(), 30)
    if broken == "neither":
        asyncio.run(looking)
    else:
        with pytest.raises(KafkaError, match={"coordinator": "processor", "fetcher": "data retrieval"}[broken]):
            asyncio.run(looking)


def test_nobody_looks_into_a_client_that_is_not_there_yet() -> None:
    async def look(client: Any) -> None:
        thread = ConsumerThread.__new__(ConsumerThread)
        thread.thread_loop = asyncio.get_running_loop()
        thread._consumer = client
        await thread.check()

    for client in (None, SimpleNamespace(_coordinator=None, _fetcher=None)):
        asyncio.run(look(client))


def test_only_what_was_flushed_is_committed() -> None:
    consumer = Consumer.__new__(Consumer)
    consumer.flushed, consumer.committing, consumer.paused = {TP0: position(20)}, {}, {}
    assert list(consumer._filter_tps_with_pending_acks()) == [TP0]
    assert list(consumer._filter_tps_with_pending_acks({"toy"})) == [TP0]
    assert list(consumer._filter_tps_with_pending_acks({TP1})) == []
    assert consumer._new_offset(TP1) is None
    assert consumer._new_offset(TP0) == 20
    assert consumer.committing == {TP0: position(20)}


class _Assigning:
    """An application that decides where to read from; something may happen meanwhile."""

    rebalancing_count, consumer_generation_id = 1, 7

    def __init__(self, meanwhile: Callable[[_Assigning], None] = lambda _: None) -> None:
        self.meanwhile = meanwhile

    async def decide_positions(self, commits: dict[TP, tuple[int, str, int]]) -> dict[TP, Position]:
        assert commits == {TP0: (20, "metadata", 3)}
        self.meanwhile(self)
        return {TP0: position(20, 12)}


class _Assigned:
    """The thread of a consumer with one partition."""

    def __init__(self) -> None:
        self.sought: list[dict[TP, int]] = []

    def assignment(self) -> set[TP]:
        return {TP0}

    async def committed(self, tps: set[TP]) -> dict[TP, tuple[int | None, str, int]]:
        return dict.fromkeys(tps, (20, "metadata", 3))

    async def seek_wait(self, partitions: dict[TP, int]) -> None:
        self.sought.append(partitions)


def assigned(app: _Assigning) -> Consumer:
    """A consumer that has just got its partition."""
    consumer = Consumer.__new__(Consumer)
    consumer.app, consumer._thread = app, _Assigned()
    consumer.flushed, consumer.resumed, consumer.committing, consumer.committed = {TP1: position(9)}, {}, {}, {}
    consumer._committed_offset, consumer._read_offset = {}, {}
    consumer.paused, consumer.told = {}, {}
    return consumer


class _Pausing:
    """The thread of a consumer that is told which partitions to fetch."""

    def __init__(self) -> None:
        self.told: list[tuple[TP, bool]] = []

    def set_paused(self, tp: TP, paused: bool) -> None:
        self.told.append((tp, paused))


def test_the_commit_of_a_paused_partition_says_why() -> None:
    """It is the last one that was flushed, or the one read from; when it goes on, the next commit says that."""
    consumer, client = committing(), _Client()
    consumer._thread = thread = _Pausing()
    consumer.resumed, consumer.flushed = {TP0: position(9), TP1: position(5)}, {TP0: position(20)}
    consumer.committing, consumer.committed = {}, {TP0: 20, TP1: 5}
    for tp in (TP0, TP1, TP("toy", 2)):
        consumer.pause(tp, "no table")
    assert thread.told == [(TP0, True), (TP1, True)], "the third is not assigned"
    offsets = consumer._filter_committable_offsets({TP0, TP1})
    assert offsets == {TP0: 20, TP1: 5}
    assert commit(offsets, client, {TP0, TP1}, consumer=consumer)
    written = {tp: parse("", c.offset, c.metadata) for tp, c in client.commits[0].items()}
    assert written == {
        TopicPartition(*tp): replace(position(at), paused="no table") for tp, at in ((TP0, 20), (TP1, 5))
    }
    assert consumer._filter_committable_offsets({TP0, TP1}) == {}
    consumer.go_on(TP0)
    consumer.go_on(TP0)
    assert thread.told[2:] == [(TP0, False)]
    assert consumer._filter_committable_offsets({TP0, TP1}) == {TP0: 20}
    assert consumer.committing[TP0] == position(20)


def test_the_assignment_is_put_in_fausts_words_once() -> None:
    """It is asked for of each partition at every flush."""

    async def look() -> None:
        state = SubscriptionState()
        state.subscribe({"toy"})
        thread = ConsumerThread.__new__(ConsumerThread)
        thread._consumer = SimpleNamespace(assignment=state.assigned_partitions)
        assert thread.assignment() == set()
        for tps in ({TP0, TP1}, {TP1}):
            state.assign_from_subscribed({TopicPartition(*tp) for tp in tps})
            assert thread.assignment() == tps
            assert {type(tp) for tp in thread.assignment()} == {TP}
            assert thread.assignment() is thread.assignment()

    asyncio.run(look())


def test_only_what_is_assigned_is_paused_at_the_client() -> None:
    """It may have been taken away meanwhile."""
    client = MagicMock(assignment=lambda: {TopicPartition("toy", 0)})
    thread: Any = SimpleNamespace(_ensure_consumer=lambda: client)
    for tp in (TopicPartition("toy", 0), TopicPartition("toy", 1)):
        for paused in (True, False):
            ConsumerThread._set_paused(thread, tp, paused)
    client.pause.assert_called_once_with(TopicPartition("toy", 0))
    client.resume.assert_called_once_with(TopicPartition("toy", 0))


def test_what_a_position_says_of_an_earlier_life_is_taken_back_by_the_next() -> None:
    class App(_Assigning):
        async def decide_positions(self, commits: Any) -> dict[TP, Position]:
            return {TP0: replace(position(20, 12), paused="no table")}

    consumer = assigned(App())
    asyncio.run(consumer.perform_seek())
    assert consumer.resumed == consumer.flushed == {TP0: position(20, 12)}
    assert consumer.flushed[TP0] is consumer.resumed[TP0]
    assert consumer._filter_committable_offsets({TP0}) == {TP0: 20}


def test_a_seek_reads_from_the_rewind_and_counts_from_the_processed_offset() -> None:
    consumer = assigned(_Assigning())
    asyncio.run(consumer.perform_seek())
    assert consumer._thread.sought == [{TP0: 12}]
    assert (consumer._read_offset, consumer._committed_offset) == ({TP0: 12}, {TP0: 20})
    assert consumer.resumed == {TP0: position(20, 12)}
    assert not consumer._should_commit(TP0, 20)
    assert consumer.flushed == {}
    before = consumer.resumed[TP0]
    asyncio.run(consumer.perform_seek())
    assert consumer.resumed[TP0] is not before


@pytest.mark.parametrize("changed", ["rebalancing_count", "consumer_generation_id"])
def test_a_seek_that_another_assignment_overtook_sets_nothing(changed: str) -> None:
    """Its positions may be read further by now, here or by another member. Faust waits for the next assignment then."""
    consumer = assigned(_Assigning(lambda app: setattr(app, changed, 8)))
    with pytest.raises(IllegalStateError):
        asyncio.run(consumer.perform_seek())
    assert consumer._thread.sought == []
    assert (consumer._read_offset, consumer._committed_offset, consumer.resumed, consumer.committed) == ({}, {}, {}, {})
    assert consumer.flushed == {TP1: position(9)}

"""Which commits leave, and that the extension points the transport stands on are where they were.

A failure of a contract test means: faust-streaming or aiokafka moved something; read streams/transport/ against the
new version before changing the test.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, TypeVar
from unittest.mock import MagicMock, create_autospec
from uuid import uuid4

import aiokafka
import faust
import pytest
from aiokafka.client import AIOKafkaClient
from aiokafka.cluster import ClusterMetadata
from aiokafka.consumer import fetcher
from aiokafka.consumer.group_coordinator import CoordinatorGroupRebalance, GroupCoordinator
from aiokafka.consumer.subscription_state import SubscriptionState
from aiokafka.errors import (
    CommitFailedError,
    GroupAuthorizationFailedError,
    IllegalGenerationError,
    IllegalStateError,
    NodeNotReadyError,
    OffsetOutOfRangeError,
    RequestTimedOutError,
    TopicAuthorizationFailedError,
)
from aiokafka.errors import KafkaError as AiokafkaError
from aiokafka.record.control_record import ABORT_MARKER, ControlRecord
from aiokafka.structs import OffsetAndMetadata
from aiokafka.structs import TopicPartition as ClientPartition
from aiokafka.util import commit_structure_validate
from faust.assignor.partition_assignor import PartitionAssignor
from faust.tables.recovery import Recovery
from faust.transport.consumer import Consumer as FaustConsumer
from faust.transport.drivers import aiokafka as driver
from faust.types import TP
from mode import threads

from streams import checkpoints
from streams.assignment import Assigned, TopicPartition
from streams.cluster import Cluster
from streams.group_positions import GroupPositions, PartitionOffsets
from streams.members import member_name
from streams.positions import Position
from streams.topics import TopicProblem, TopicState
from streams.transport import fetching
from streams.transport.app import BatchApp
from streams.transport.consumer import Committed, Consumer, ConsumerThread, Transport
from streams.transport.membership import MemberCoordinator
from streams.waiting import CLIENTS, KAFKA
from streams.wire.fetched_batches import Run
from tests.reference.batches import ABORT, COMMIT, marker_key, plain

T = TypeVar("T")

CLIENT = aiokafka.AIOKafkaConsumer
HERE = ClientPartition("toy", 0)
TP0, TP1 = TopicPartition("toy", 0), TopicPartition("toy", 1)
ID = uuid4()


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
        (driver.Consumer, "on_buffer_full", "self tp"),
        (driver.Consumer, "verify_event_path", "self now tp"),
        (driver.Consumer, "perform_seek", "self"),
        (driver.Consumer, "commit", "self topics start_new_transaction"),
        (driver.Consumer, "_getmany", "self active_partitions timeout"),
        (driver.AIOKafkaConsumerThread, "_create_worker_consumer", "self transport"),
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
            {"_isolation_level", "_auto_offset_reset", "_fetch_max_wait_ms", "GroupCoordinator", "Fetcher"},
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
        (driver.AIOKafkaConsumerThread._create_worker_consumer, {"AIOKafkaConsumer"}),
        (FaustConsumer.commit_and_end_transactions, {"commit"}),
        (FaustConsumer._commit_handler.fun, {"commit", "commit_interval"}),
        (FaustConsumer._drain_messages, {"_read_offset", "acks_enabled_for", "getmany"}),
    ],
    ids=lambda part: getattr(part, "__qualname__", ""),
)
def test_a_library_still_goes_through_its_extension_point(function: Any, names: set[str]) -> None:
    source = inspect.unwrap(function)
    assert names <= set(source.__code__.co_names), f"{source.__qualname__} works otherwise now"


@pytest.mark.parametrize("ours", [Consumer, ConsumerThread, MemberCoordinator, fetching.PacedFetcher])
def test_every_override_has_the_signature_of_what_it_overrides(ours: Any) -> None:
    (theirs,) = ours.__bases__
    overrides = [name for name in vars(ours) if hasattr(theirs, name) and inspect.isfunction(vars(ours)[name])]
    assert overrides
    for name in overrides:
        if name != "__init__":
            assert parameters(vars(ours)[name]) == parameters(getattr(theirs, name)), name
            assert inspect.iscoroutinefunction(vars(ours)[name]) == inspect.iscoroutinefunction(getattr(theirs, name))


def test_the_names_replaced_are_those_aiokafka_uses() -> None:
    assert fetching.fetcher_memory_records.__module__.startswith("aiokafka")
    assert fetching.fetcher_partition_records.__name__ == "PartitionRecords"
    assert ControlRecord.parse(marker_key(ABORT)) == ABORT_MARKER != ControlRecord.parse(marker_key(COMMIT))
    assert driver.Transport.Consumer is driver.Consumer
    assert Transport.Consumer is Consumer


def position(processed: int, rewind: int = 0) -> Position:
    return Position(processed, rewind, 5, "id", "def")


class Commits:
    """An aiokafka client that has these partitions and takes commits."""

    def __init__(self, *places: TopicPartition, error: Exception | None = None) -> None:
        self.error = error
        self.taken: list[dict[ClientPartition, OffsetAndMetadata]] = []
        self._assigned = frozenset(ClientPartition(*place) for place in places)

    def assignment(self) -> frozenset[ClientPartition]:
        return self._assigned

    async def commit(self, offsets: Any) -> None:
        found = commit_structure_validate(offsets)
        if self.error:
            raise self.error
        self.taken.append(found)


class Working:
    """A worker that stops what it is told to."""

    def __init__(self) -> None:
        self.stops: dict[str, BaseException] = {}

    async def receive(self, place: TopicPartition, run: Run, /) -> None:
        """Nothing comes."""

    def stop(self, topic: str, error: BaseException, /) -> None:
        self.stops[topic] = error

    def why_stopped(self, topic: str, /) -> str:
        return str(self.stops.get(topic, ""))


class App(BatchApp):
    """An application without brokers, whose topics are found to be these."""

    def __init__(self) -> None:
        super().__init__(GroupPositions(Cluster(("127.0.0.1:1",)), "processor", {"toy": "def"}), [])
        self.worker: Working = Working()
        self.crashes: list[BaseException] = []
        self.changed: dict[str, TopicProblem] = {}
        self.topic_watch.began = {"toy": TopicState(ID, 2)}
        self.topic_watch.look = self.look  # type: ignore[method-assign]
        self.done: list[str] = []

    async def look(self, topics: Iterable[str]) -> dict[str, TopicProblem]:
        await asyncio.sleep(0)
        self.done.append("seen")
        return {topic: self.changed[topic] for topic in topics if topic in self.changed}

    async def crash(self, reason: BaseException) -> None:
        self.crashes.append(reason)


def with_app(work: Callable[[App], Coroutine[Any, Any, T]]) -> T:
    """Do something with a real application that never reaches a broker."""

    async def working() -> T:
        return await work(App())

    return asyncio.run(working())


def commit(client: Commits, positions: dict[TopicPartition, Position], crashes: list[Any] | None = None) -> Any:
    """What the thread of a client says was taken."""

    async def work(app: App) -> Any:
        thread = app.batch_consumer._client
        thread._consumer = client
        found = await thread._commit_positions(positions)
        assert app.crashes == (crashes or [])
        assert found.refused == {}
        return found.taken

    return with_app(work)


BOTH = {TP0: position(20, 15), TP1: position(30, 25)}


def test_a_partition_revoked_before_the_commit_is_left_out() -> None:
    client = Commits(TP1)
    assert commit(client, BOTH) == [TP1]
    assert [set(offsets) for offsets in client.taken] == [{TP1}]


def test_a_commit_of_nothing_but_revoked_partitions_is_none_and_no_error() -> None:
    """aiokafka refuses to commit nothing, which would end the process in the middle of a rebalance."""
    client = Commits()
    assert commit(client, BOTH) == []
    assert client.taken == []


@pytest.mark.parametrize(
    ("error", "waits"),
    [(CommitFailedError("already rebalanced"), False), (RequestTimedOutError(), True), (NodeNotReadyError(), True)],
)
def test_a_commit_that_a_rebalance_or_an_absent_broker_prevents_is_none(error: Exception, waits: bool) -> None:
    KAFKA.end(CLIENTS)
    assert commit(Commits(TP0, error=error), BOTH) == []
    assert KAFKA.waits(CLIENTS) is waits


def test_a_commit_that_will_never_be_taken_ends_the_process() -> None:
    error = GroupAuthorizationFailedError("processor")
    assert commit(Commits(TP0, error=error), BOTH, crashes=[error]) == []


def test_a_topic_of_which_no_position_is_taken_stops_its_feed_and_no_other() -> None:
    """aiokafka raises for a whole request what is wrong with one topic of it."""
    other, error = TopicPartition("other", 0), TopicAuthorizationFailedError({"toy"})

    class Refusing(Commits):
        async def commit(self, offsets: Any) -> None:
            self.taken.append(offsets)
            if any(place.topic == "toy" for place in offsets):
                raise error

    async def work(app: App) -> None:
        client, app.producer = Refusing(TP0, other), Kept()
        thread = app.batch_consumer._client
        thread._consumer = client
        thread.call_thread = lambda call, *words: call(*words)
        for place in (TP0, other):
            one: Assigned[Any] = Assigned(place, position(0), position(0))
            app.batch_consumer.assigned[place], one.flushed = one, position(20)
        assert await app.batch_consumer.commit()
        assert app.crashes == []
        assert app.worker.stops.keys() == {"toy"}
        said = "toy: Kafka takes no position of the processor there (TopicAuthorizationFailedError("
        assert str(app.worker.stops["toy"]).startswith(said)
        assert app.batch_consumer.assigned[other].due is None
        asked = len(client.taken)
        app.pause(TP0, "no right")
        assert not await app.batch_consumer.commit()
        assert len(client.taken) == asked, "it is not asked again and again"

    with_app(work)


class Client:
    """The thread of a consumer with these partitions, whose commits are taken for some of them."""

    def __init__(self, app: App, *places: TopicPartition) -> None:
        self.places = places
        self.takes = {*places}
        self.commits: list[dict[TopicPartition, Position]] = []
        self.sought: list[dict[TP, int]] = []
        self.paused: list[tuple[TopicPartition, bool]] = []
        self._app = app
        app.batch_consumer._thread = self

    def assignment(self) -> set[TP]:
        return {TP(*place) for place in self.places}

    async def commit_positions(self, positions: dict[TopicPartition, Position]) -> Committed:
        self._app.done.append("committed")
        self.commits.append(dict(positions))
        return Committed([place for place in positions if place in self.takes])

    async def committed(self, places: Iterable[TopicPartition]) -> dict[TopicPartition, PartitionOffsets]:
        return {
            place: PartitionOffsets(20, replace(position(20, 12), topic_id=str(ID)).metadata(), 3, 40)
            for place in places
        }

    async def seek_wait(self, partitions: dict[TP, int]) -> None:
        self.sought.append(partitions)

    def set_paused(self, place: TopicPartition, paused: bool) -> None:
        self.paused.append((place, paused))


def assign(app: App, **positions: Position) -> None:
    """Let these partitions of the toy be assigned: ``p0`` and ``p1``."""
    app.batch_consumer.assigned = {
        place: Assigned(place, positions[name], positions[name])
        for name, place in (("p0", TP0), ("p1", TP1))
        if name in positions
    }


class Kept:
    """A producer of checkpoints, which may fail."""

    def __init__(self, error: Exception | None = None) -> None:
        self.sent: list[tuple[str, bytes, bytes]] = []
        self.error = error

    def _ensure_producer(self) -> Kept:
        return self

    async def send(self, topic: str, key: bytes, value: bytes) -> asyncio.Future[None]:
        self.sent.append((topic, key, value))
        answer = asyncio.get_running_loop().create_future()
        if self.error is None:
            answer.set_result(None)
        else:
            answer.set_exception(self.error)
        return answer


def kept(takes: set[TopicPartition], error: Exception | None = None) -> list[tuple[str, bytes, bytes]]:
    """The checkpoints sent when the brokers take the commits of these partitions; sending may fail."""

    async def work(app: App) -> list[tuple[str, bytes, bytes]]:
        client, producer = Client(app, TP0, TP1), Kept(error)
        client.takes, app.producer = takes, producer
        assign(app, p0=position(0), p1=position(0))
        for place, one in app.batch_consumer.assigned.items():
            one.flushed = BOTH[place]
        assert await app.batch_consumer.commit() == bool(takes)
        await asyncio.sleep(0)
        assert {p for p, one in app.batch_consumer.assigned.items() if one.due is None} == takes, (
            "the others are due again"
        )
        return producer.sent

    return with_app(work)


@pytest.mark.parametrize("takes", [{TP0, TP1}, {TP1}, set()], ids=["all", "one", "none"])
def test_a_checkpoint_follows_each_commit_that_was_taken_and_no_other(takes: set[TopicPartition]) -> None:
    assert kept(takes) == [
        (checkpoints.TOPIC, *checkpoints.record(("processor", *place), BOTH[place])) for place in sorted(takes)
    ]


def test_a_checkpoint_that_was_not_taken_is_said_and_nothing_stops(caplog: pytest.LogCaptureFixture) -> None:
    assert len(kept({TP0}, RequestTimedOutError("slow"))) == 1
    assert "A checkpoint was not written" in caplog.text


def test_nothing_is_committed_until_the_topics_are_seen_to_be_those_they_were() -> None:
    async def work(app: App) -> None:
        client, app.producer = Client(app, TP0), Kept()
        assign(app, p0=position(10))
        app.batch_consumer.assigned[TP0].flushed = position(20)
        assert await app.batch_consumer.commit()
        assert app.done == ["seen", "committed"]
        app.batch_consumer.assigned[TP0].flushed = position(30)
        app.changed = {"toy": TopicProblem("topic toy was deleted")}
        assert not await app.batch_consumer.commit()
        assert [{place: one.processed for place, one in found.items()} for found in client.commits] == [{TP0: 20}]
        assert app.worker.stops == app.changed

    with_app(work)


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

    async def attempt() -> None:
        state = SubscriptionState()
        state.subscribe({"toy"})
        state.assign_from_subscribed({HERE})
        coordinator = MemberCoordinator(_Refusing(), state, group_id="processor")
        coordinator.generation = generation
        if joining:
            state.begin_reassignment()
        try:
            await coordinator._do_commit_offsets(SimpleNamespace(active=active), {TP0: 20})
        finally:
            await coordinator.close()

    if commits:
        asyncio.run(attempt())
    else:
        with pytest.raises(IllegalGenerationError):
            asyncio.run(attempt())
    assert sent == ([{TP0: 20}] if commits else [])


def test_a_busy_loop_is_no_thread_that_does_not_respond(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(threads, "monotonic", iter(range(100, 10_000, 100)).__next__)
    rounds = iter(range(6))

    async def work(app: App) -> None:
        thread = app.batch_consumer._client

        async def sleep(_: float) -> None:
            if next(rounds) == 5:
                thread._stopped.set()

        thread.sleep = sleep
        await thread._keepalive2()

    with_app(work)
    assert next(rounds, None) is None
    assert "not responding" not in caplog.text


def test_an_offset_the_log_does_not_have_stops_its_feed() -> None:
    class OutOfRange(Client):
        async def getmany(self, partitions: Any, timeout: float) -> Any:  # noqa: ASYNC109
            raise OffsetOutOfRangeError({HERE: 2})

    async def work(app: App) -> None:
        OutOfRange(app, TP0)
        assert await app.batch_consumer._getmany({TP(*TP0)}, 1.0) == {}
        assert "the log starts at 3, after offset 2" in str(app.worker.stops["toy"])

    with_app(work)


class _Broker:
    """A client whose broker has one partition, with a batch at offset 10 and nothing committed."""

    _metadata_max_age_ms = 1000

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.cluster = create_autospec(ClusterMetadata, instance=True, leader_for_partition=lambda _: 1)

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

        consumer = App().batch_consumer
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
        self.cluster = create_autospec(ClusterMetadata, instance=True)
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
        thread = App().batch_consumer._client
        thread.thread_loop = asyncio.get_running_loop()
        thread._consumer = create_autospec(CLIENT, instance=True, _coordinator=coordinator, _fetcher=reading)
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
        with pytest.raises(AiokafkaError, match={"coordinator": "processor", "fetcher": "data retrieval"}[broken]):
            asyncio.run(looking)


def test_nobody_looks_into_a_client_that_is_not_there_yet() -> None:
    async def look(client: Any) -> None:
        thread = App().batch_consumer._client
        thread.thread_loop = asyncio.get_running_loop()
        thread._consumer = client
        await thread.check()

    for client in (None, create_autospec(CLIENT, instance=True, _coordinator=None, _fetcher=None)):
        asyncio.run(look(client))


def test_the_assignment_is_put_in_fausts_words_once() -> None:
    """It is asked for of each partition at every flush."""

    async def look() -> None:
        state = SubscriptionState()
        state.subscribe({"toy"})
        thread = App().batch_consumer._client
        thread._consumer = MagicMock(spec=CLIENT, assignment=state.assigned_partitions)
        assert thread.assignment() == set()
        for tps in ({TP0, TP1}, {TP1}):
            state.assign_from_subscribed({TopicPartition(*tp) for tp in tps})
            assert thread.assignment() == tps
            assert {type(tp) for tp in thread.assignment()} == {TP}
            assert thread.assignment() is thread.assignment()

    asyncio.run(look())


def test_only_what_is_assigned_is_paused_at_the_client() -> None:
    """It may have been taken away meanwhile."""

    async def work(app: App) -> None:
        state = SubscriptionState()
        state.subscribe({"toy"})
        state.assign_from_subscribed({HERE})
        told: list[tuple[str, ClientPartition]] = []
        thread = app.batch_consumer._client
        thread._consumer = MagicMock(
            spec=CLIENT,
            assignment=state.assigned_partitions,
            pause=lambda place: told.append(("pause", place)),
            resume=lambda place: told.append(("resume", place)),
        )
        for place in (HERE, ClientPartition("toy", 1)):
            for paused in (True, False):
                thread._set_paused(place, paused)
        assert told == [("pause", HERE), ("resume", HERE)]

    with_app(work)


class Deciding(App):
    """An application that decides where to read from; something may happen meanwhile."""

    def __init__(self, meanwhile: Callable[[Deciding], None] = lambda _: None, paused: str = "") -> None:
        super().__init__()
        self.meanwhile = meanwhile
        self.decided = {TP0: replace(position(20, 12), paused=paused)}

    async def decide_positions(
        self, offsets: Mapping[TopicPartition, PartitionOffsets]
    ) -> dict[TopicPartition, Position]:
        self.meanwhile(self)
        return self.decided


def test_a_partition_whose_position_cannot_be_trusted_stops_its_feed_and_is_not_read() -> None:
    async def work(app: App) -> None:
        client = Client(app, TP0)
        await app.batch_consumer.perform_seek()
        assert app.done == ["seen"], "one look at the topics"
        assert "the feed's definition changed" not in str(app.worker.stops)
        assert app.assigned[TP0].start.processed == 20
        app.topic_watch.began = {"toy": TopicState(uuid4(), 2)}
        await app.batch_consumer.perform_seek()
        assert "the topic was deleted and created again" in str(app.worker.stops["toy"])
        assert app.assigned == {}
        assert client.sought[1:] == [{TP(*TP0): 0}]
        assert client.paused[-1] == (TP0, True)

    with_app(work)


def test_the_brokers_are_asked_nothing_of_a_topic_that_is_gone() -> None:
    """They have no offsets of it, and a client would ask for them for a minute and a half, again and again."""

    class Gone(Client):
        async def committed(self, places: Iterable[TopicPartition]) -> dict[TopicPartition, PartitionOffsets]:
            assert not [*places]
            return {}

    async def work(app: App) -> None:
        client = Gone(app, TP0)
        app.changed = {"toy": TopicProblem("topic toy was deleted")}
        await app.batch_consumer.perform_seek()
        assert app.worker.stops == app.changed
        assert client.paused[-1] == (TP0, True)

    with_app(work)


@pytest.mark.parametrize("changed", ["rebalancing_count", "consumer_generation_id"])
def test_a_seek_that_another_assignment_overtook_sets_nothing(changed: str) -> None:
    """Its positions may be read further by now, here or by another member. Faust waits for the next assignment then."""

    async def work() -> None:
        app = Deciding(lambda app: setattr(app, changed, 8))
        client = Client(app, TP0)
        assign(app, p1=position(9))
        with pytest.raises(IllegalStateError):
            await app.batch_consumer.perform_seek()
        assert client.sought == []
        assert app.batch_consumer._read_offset == {}
        assert app.assigned[TP1].current

    asyncio.run(work())


def test_faust_keeps_no_list_of_the_runs_that_were_taken() -> None:
    """It notes what an agent acknowledged until it commits that; here positions are committed, and nobody clears it."""

    async def work(app: App) -> None:
        app.read(["toy"])
        (agent,) = app.agents.values()
        app.topics.add(agent.channel)
        await app.topics._update_indices()
        consumer = app.batch_consumer
        for last in (19, 29):
            record = SimpleNamespace(
                topic="toy", partition=0, offset=last, timestamp=0, value=Run("toy", 0, 10, 20, ())
            )
            message = consumer._to_message(TP(*TP0), record)
            message.incref()
            message.ack(consumer)
            assert message.acked
        assert not any(consumer._acked.values())
        assert not any(consumer._acked_index.values())

    with_app(work)

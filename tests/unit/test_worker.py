"""How a worker ends when it must, whichever part of it finds out."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import selectors
import signal
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any
from unittest.mock import create_autospec

import pytest
from aiokafka.errors import GroupAuthorizationFailedError, GroupCoordinatorNotAvailableError
from faust.types import TP
from kafka.errors import CoordinatorLoadInProgressError, KafkaError
from tenacity import stop_after_attempt, wait_none

from citystream.commands.workers import Patience
from streams import ending, group_positions, waiting
from streams.cluster import Cluster
from streams.group_positions import GroupPositions
from streams.lag import committed_offsets
from streams.positions import LogGap
from streams.transport import app as worker
from streams.transport.app import BatchApp
from streams.waiting import CLIENTS, KAFKA, KAFKA_ANSWERS
from streams.wire.record_batch import CorruptBatch

NOWHERE = Cluster(("127.0.0.1:1",))
PROCESSOR = GroupPositions(NOWHERE, "processor", {"toy": "def"})


@pytest.fixture(autouse=True)
def exits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The codes a process would have ended with."""
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    return codes


def with_app(work: Callable[[BatchApp], Coroutine[Any, Any, None]]) -> None:
    """Do something with a real application that never reaches a broker."""

    async def working() -> None:
        await work(BatchApp(PROCESSOR, []))

    asyncio.run(working())


class Skipping(selectors.DefaultSelector):
    """Notes how long it was to wait, and does not."""

    skipped = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout:
            self.skipped += timeout
        return super().select(0 if timeout else timeout)


class Hurried(asyncio.SelectorEventLoop):
    """An event loop in which time passes at once when everything waits for it."""

    def __init__(self) -> None:
        self._waits = Skipping()
        super().__init__(self._waits)

    def time(self) -> float:
        return super().time() + self._waits.skipped


def test_a_seek_waits_for_brokers_that_are_away_for_a_day() -> None:
    """Faust would give up after a while and never read again."""

    async def seek() -> None:
        await asyncio.sleep(86_400)

    async def resume() -> bool:
        app = BatchApp(PROCESSOR, [])
        app.consumer.assignment = lambda: {TP("toy", 0)}
        app.consumer.perform_seek = seek
        app._fetcher.maybe_start = create_autospec(app._fetcher.maybe_start)
        app.consumer.stop_flow()
        await app.tables.recovery._resume_streams()
        return bool(app.consumer.flow_active and app.tables.recovery.completed.is_set())

    with asyncio.Runner(loop_factory=Hurried) as runner:
        assert runner.run(resume())


def test_a_request_to_a_broker_does_not_wait_as_long_as_a_seek() -> None:
    """Else a connection that died silently would never be given up."""

    async def create(app: BatchApp) -> None:
        client = app.batch_consumer._thread._create_worker_consumer(app.transport)
        assert client._request_timeout_ms == client._client._request_timeout_ms == 90_000
        await client.stop()

    with_app(create)


class Starting:
    """An application whose start takes until ``start`` is set, or fails."""

    group = "processor"

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.joined = asyncio.Event()
        self.stopped = False

    async def start(self) -> None:
        if self.error is not None:
            raise self.error
        await self.joined.wait()

    async def stop(self) -> None:
        self.stopped = True


@pytest.fixture
def _process_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a worker sets for its whole process is not set here."""
    monkeypatch.setattr(gc, "freeze", lambda: None)


@pytest.mark.usefixtures("_process_as_it_is")
@pytest.mark.parametrize("joined", [False, True], ids=["before it has joined its group", "later"])
def test_a_signal_ends_a_worker_whenever_it_comes(joined: bool, exits: list[int]) -> None:
    """Joining its group takes as long as the brokers are away."""

    async def serve() -> bool:
        app: Any = Starting()
        if joined:
            app.joined.set()
        asyncio.get_running_loop().call_later(0.1, os.kill, os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(worker._serve(app), 10)
        return bool(app.stopped)

    assert asyncio.run(serve())
    assert exits == [0]


@pytest.mark.usefixtures("_process_as_it_is")
def test_a_worker_that_cannot_start_ends_the_process(exits: list[int]) -> None:
    """An error alone would leave it: the threads of the clients go on."""

    async def serve() -> None:
        asyncio.get_running_loop().call_later(0.1, os.kill, os.getpid(), signal.SIGTERM)
        app: Any = Starting(ValueError("no such broker"))
        await asyncio.wait_for(worker._serve(app), 10)

    asyncio.run(serve())
    assert exits[0] == ending.EX_SOFTWARE


class Checked:
    """The thread of a consumer in which something went wrong."""

    def __init__(self, error: Exception) -> None:
        self.checks = 0
        self.again = asyncio.Event()
        self.error = error

    async def check(self) -> bool:
        self.checks += 1
        if self.checks > 1:
            self.again.set()
        raise self.error


def look_twice(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a worker that has started and not read anything yet look for an error that is there."""
    thread = Checked(error)

    async def look(app: BatchApp) -> None:
        monkeypatch.setattr(app.topic_watch, "look", create_autospec(app.topic_watch.look, return_value={}))
        app.batch_consumer._thread = thread
        await app.on_start()
        await asyncio.wait_for(thread.again.wait(), 30)
        for task in app._futures:
            task.cancel()

    monkeypatch.setattr(worker, "LOOK_EVERY", timedelta(milliseconds=1))
    with_app(look)


def test_a_worker_that_is_not_let_into_its_group_ends(
    monkeypatch: pytest.MonkeyPatch, exits: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    """It would wait for ever: also before it has read anything."""
    look_twice(GroupAuthorizationFailedError("processor"), monkeypatch)
    assert set(exits) == {ending.EX_SOFTWARE}
    assert "Kafka does not let the processor go on: " in caplog.text
    assert "GroupAuthorizationFailedError" in caplog.text


def test_a_worker_whose_brokers_will_let_it_in_again_goes_on(
    monkeypatch: pytest.MonkeyPatch, exits: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    look_twice(GroupCoordinatorNotAvailableError(), monkeypatch)
    assert exits == []
    assert "GroupCoordinatorNotAvailableError" in caplog.text


def test_kafka_answers_again_when_the_client_of_a_worker_knows_its_coordinator(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said once, after what the client and the worker said of it."""
    looks: list[Any] = [GroupCoordinatorNotAvailableError(), False, True, True]
    after: list[int] = []

    async def look(app: BatchApp) -> None:
        monkeypatch.setattr(app.batch_consumer, "check", create_autospec(app.batch_consumer.check, side_effect=looks))
        for _ in looks:
            await app._check_client()
            after.append(caplog.text.count(KAFKA_ANSWERS))

    KAFKA.end(CLIENTS)
    caplog.clear()
    assert Patience(lambda: 0.0).filter(logging.LogRecord("kafka", logging.ERROR, "", 0, "no broker", None, None))
    with_app(look)
    assert "Kafka does not let the processor go on (GroupCoordinatorNotAvailableError" in caplog.text
    assert after == [0, 0, 1, 1]


@pytest.mark.parametrize("part", ["_fetcher", "consumer", "tables"])
def test_an_error_in_a_service_of_faust_ends_the_process(
    part: str, exits: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    """Faust would only mark the application as crashed: it would go on as a member of its group and read nothing."""

    async def crash(app: BatchApp) -> None:
        await getattr(app, part).crash(CorruptBatch("toy/0: the batch at offset 10 has a wrong checksum"))

    with_app(crash)
    assert set(exits) == {ending.EX_SOFTWARE}
    assert caplog.records[-1].getMessage() == "toy/0: the batch at offset 10 has a wrong checksum"


def test_an_error_while_a_worker_is_told_to_end_does_not_change_how_it_ends(exits: list[int]) -> None:
    async def crash(app: BatchApp) -> None:
        app._stopped.set()
        await app._fetcher.crash(RuntimeError("the connection is closed"))

    with_app(crash)
    assert exits == []


def test_a_coordinator_that_is_loading_its_commits_is_waited_for_like_brokers_that_are_away() -> None:
    """However long it takes: what asks for the commits of a group goes on asking at any of Kafka's errors."""

    class Admin:
        def list_group_offsets(self, group: str) -> dict[str, Any]:
            raise CoordinatorLoadInProgressError(group)

    asking = committed_offsets.retry_with(wait=wait_none(), stop=stop_after_attempt(2))
    with pytest.raises(CoordinatorLoadInProgressError) as given_up:
        asking(Admin(), "processor")
    assert isinstance(given_up.value, KafkaError)


def test_what_others_committed_is_asked_for_until_kafka_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    away: list[Exception] = [KafkaError("no broker answers"), OSError("refused")]

    class Admin:
        def __init__(self, _: str) -> None:
            if away:
                raise away.pop()

        def list_group_offsets(self, group: str) -> dict[str, Any]:
            return {group: {}}

        def close(self) -> None: ...

    monkeypatch.setattr(group_positions, "new_admin", Admin)
    monkeypatch.setattr(waiting, "wait_exponential", lambda **_: wait_none())

    async def seek() -> None:
        app = BatchApp(GroupPositions(NOWHERE, "sink", {}, agrees_with=PROCESSOR), [])
        assert await app.decide_positions({}) == {}

    asyncio.run(seek())
    assert away == []


def test_an_error_of_kafka_that_nobody_waits_for_ends_a_worker_that_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    began = []

    def begin() -> None:
        began.append(True)
        raise KafkaError("not one to wait for")

    monkeypatch.setattr(worker, "wait_for_kafka", lambda *_: None)

    async def run(app: BatchApp) -> None:
        monkeypatch.setattr(app.topic_watch, "begin", begin)
        with pytest.raises(KafkaError):
            app.run(create_autospec(worker.Worker, instance=True))

    with_app(run)
    assert began == [True]


@pytest.mark.parametrize(
    ("reason", "plain"),
    [
        ("Kafka is gone", True),
        (LogGap("offsets 3 to 4 are missing"), True),
        (CorruptBatch("a wrong checksum"), True),
        (ValueError("what nobody thought of"), False),
    ],
)
def test_what_an_operator_can_act_on_is_said_without_a_trace(
    reason: Any, plain: bool, exits: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    ending.end_process(reason)
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert (record.exc_info is None) is plain
    assert str(reason) in record.getMessage()
    assert exits == [ending.EX_SOFTWARE]

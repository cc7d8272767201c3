"""What both Faust workers share: the application on the batch transport, and how it ends when it must."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import wraps
from typing import Any, Generic, TypeVar

import faust
from faust.types import TP
from kafka import KafkaAdminClient
from kafka.errors import KafkaError
from tenacity import before_sleep_log, retry, retry_if_exception_type, wait_exponential
from yarl import URL

from streams import checkpoints
from streams.lag import committed_offsets
from streams.positions import Known, Position, PositionProblem, Stop, check_agreement, resume
from streams.topics import TopicState, states, wait_for_kafka
from streams.transport import Consumer, Run, Transport, deliver_runs

log = logging.getLogger("citystream")

S = TypeVar("S")

#: How long a worker that is told to end tries to commit.
STOP_SECONDS = 10

FLUSH_EVERY = timedelta(seconds=1)

EX_SOFTWARE = 70
EX_CONFIG = 78


def end_process(reason: BaseException | str, code: int = EX_SOFTWARE) -> None:
    """End at once and commit nothing: what was not flushed is processed again after the restart."""
    if isinstance(reason, Stop | str):
        log.error("%s", reason)
    else:
        log.error("Stopping: %s: %s", type(reason).__name__, reason, exc_info=reason)
    sys.stderr.flush()
    os._exit(code)


class BatchApp(faust.App):
    """A Faust application whose agents get runs, and which decides itself where to read from."""

    def __init__(
        self,
        group: str,
        bootstrap: str,
        definitions: Mapping[str, str],
        *,
        instance: str | None = None,
        agrees_with: str | None = None,
    ) -> None:
        self._definitions = definitions
        self._agrees_with = agrees_with
        self.bootstrap = bootstrap
        self.topic_states: dict[str, TopicState] = {}
        super().__init__(
            group,
            broker=f"kafka://{bootstrap}",
            store="memory://",
            web_enabled=False,
            topic_disable_leader=True,
            topic_allow_declare=False,
            consumer_auto_offset_reset="none",
            consumer_group_instance_id=instance,
            consumer_max_fetch_size=8 * 2**20,
            broker_session_timeout=10.0,
            broker_heartbeat_interval=3.0,
            broker_commit_interval=1.0,
            stream_buffer_maxsize=2,
            stream_wait_empty=False,
            stream_recovery_delay=0.0,
            producer_acks=-1,
            producer_compression_type="lz4",
            producer_max_batch_size=512 * 1024,
            producer_linger_ms=5,
            worker_redirect_stdouts=False,
        )
        self.transport = Transport([URL(f"kafka://{bootstrap}")], self)

    def _create_directories(self) -> None:
        """All state is in the log; nothing is kept on disk."""

    async def crash(self, reason: BaseException) -> None:
        """Faust would tear the services down one by one; nothing they do then is needed."""
        end_process(reason)

    @property
    def batch_consumer(self) -> Consumer:
        """The transport's consumer."""
        consumer = self.consumer
        assert isinstance(consumer, Consumer)
        return consumer

    async def decide_positions(self, commits: Mapping[TP, tuple[int | None, str, int]]) -> dict[TP, Position]:
        """Where to read partitions from, given commit, metadata and log start of each.

        Ends the process if a position cannot be trusted, or another worker goes by another definition of a feed.
        """
        known = await asyncio.to_thread(self._known, commits)
        try:
            if self._agrees_with:
                others = await asyncio.to_thread(_commits, self.bootstrap, self._agrees_with)
                for tp, one in known.items():
                    check_agreement(one, self._agrees_with, others.get(tp, ""))
            return {tp: resume(one) for tp, one in known.items()}
        except PositionProblem as problem:
            end_process(problem, EX_CONFIG)
            raise

    def _known(self, commits: Mapping[TP, tuple[int | None, str, int]]) -> dict[TP, Known]:
        """Checkpoints are read only if there is no commit somewhere."""
        lost = any(offset is None or offset < 0 for offset, _, _ in commits.values())
        kept = _checkpoints(self.bootstrap) if lost else {}
        return {
            tp: Known(
                worker=self.conf.id,
                topic=tp.topic,
                partition=tp.partition,
                committed=offset,
                metadata=metadata,
                checkpoint=kept.get((self.conf.id, tp.topic, tp.partition)),
                topic_id=str(self.topic_states[tp.topic].id),
                definition=self._definitions[tp.topic],
                log_start=log_start,
            )
            for tp, (offset, metadata, log_start) in commits.items()
        }

    def background(self, call: Callable[[], Awaitable[None]]) -> None:
        """Run something beside the agents; an error in it ends the process."""
        self.task(_or_end(call))


def _or_end(call: Callable[..., Awaitable[None]]) -> Callable[..., Coroutine[Any, Any, None]]:
    """The same call, whose errors end the process."""

    @wraps(call)
    async def guarded(*arguments: Any) -> None:
        try:
            await call(*arguments)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 - whatever it is ends the process
            end_process(error)

    return guarded


@dataclass
class Held(Generic[S]):
    """The state of a partition since the assignment that ``start`` belongs to; ``lock`` is held while it changes."""

    start: Position
    state: S
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class BatchWorker(Generic[S]):
    """Takes runs into the states of their partitions, several partitions side by side, and flushes them.

    It flushes once a second, and at once when the end of the log is reached after a backlog.
    """

    def __init__(self, app: BatchApp, topics: Iterable[str]) -> None:
        self.app = app
        self.held: dict[TP, Held[S]] = {}
        self._hands = asyncio.Semaphore(os.cpu_count() or 1)
        self._working: set[asyncio.Task[None]] = set()
        self._behind: set[TP] = set()
        self._due = asyncio.Event()
        for topic in topics:
            raw = app.topic(topic, key_serializer="raw", value_serializer="raw")
            app.agent(raw, name=f"{app.conf.id}.{topic}")(_or_end(self._read))
        app.background(self._keep_flushing)

    def begin(self, tp: TP, start: Position) -> S:
        """The state of a partition that is read from a position on."""
        raise NotImplementedError

    def take(self, state: S, run: Run) -> None:
        """Take a run into a state; in a thread, one run of a partition after the other."""
        raise NotImplementedError

    async def room(self) -> None:
        """Wait until more can be taken."""

    async def flush(self, held: Mapping[TP, Held[S]]) -> None:
        """Write what changed and let the positions be committed."""
        raise NotImplementedError

    def keeps(self, tp: TP, held: Held[S]) -> bool:
        """Whether the partition is still assigned as it was when the state began."""
        consumer = self.app.batch_consumer
        return consumer.resumed.get(tp) is held.start and tp in consumer.assignment()

    def flush_soon(self) -> None:
        """Flush without waiting for the next second."""
        self._due.set()

    async def _read(self, stream: faust.StreamT) -> None:
        async for event in stream.events():
            await self.room()
            await self._hands.acquire()
            task = asyncio.create_task(_or_end(self._take)(event.message.tp, event.message.value))
            self._working.add(task)
            task.add_done_callback(self._working.discard)

    async def _take(self, tp: TP, run: Run) -> None:
        try:
            start = self.app.batch_consumer.resumed[tp]
            held = self.held.get(tp)
            if held is None or held.start is not start:
                held = self.held[tp] = Held(start, self.begin(tp, start))
            async with held.lock:
                await asyncio.to_thread(self.take, held.state, run)
        finally:
            self._hands.release()
        if run.next < self.app.batch_consumer.highwater(tp):
            self._behind.add(tp)
        elif tp in self._behind:
            self._behind.discard(tp)
            if not self._behind:
                self.flush_soon()

    async def _keep_flushing(self) -> None:
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._due.wait(), FLUSH_EVERY.total_seconds())
            self._due.clear()
            self.held = {tp: held for tp, held in self.held.items() if self.keeps(tp, held)}
            self._behind &= self.held.keys()
            await self.flush(dict(self.held))


_until_kafka_answers = retry(
    retry=retry_if_exception_type((KafkaError, OSError)),
    wait=wait_exponential(min=1, max=30),
    before_sleep=before_sleep_log(log, logging.WARNING),
)


@_until_kafka_answers
def _checkpoints(bootstrap: str) -> Mapping[checkpoints.Place, Position]:
    return checkpoints.read(bootstrap)


@_until_kafka_answers
def _commits(bootstrap: str, group: str) -> dict[TP, str]:
    """The metadata of a group's commits."""
    with closing(KafkaAdminClient(bootstrap_servers=bootstrap)) as admin:
        return {TP(tp.topic, tp.partition): commit.metadata for tp, commit in committed_offsets(admin, group).items()}


def run(app: BatchApp, topics: Iterable[str]) -> None:
    """Wait for Kafka, then work until a signal ends it."""
    os.environ.setdefault("RUST_BACKTRACE", "0")  # corrupt bytes can make Polars panic, which is caught
    names = list(topics)
    deliver_runs(names)
    wait_for_kafka(app.bootstrap, log.warning)
    app.topic_states = states(app.bootstrap, [*names, checkpoints.TOPIC])
    asyncio.get_event_loop().run_until_complete(_serve(app))


async def _serve(app: BatchApp) -> None:
    sys.setswitchinterval(0.0005)  # threads that decode wait for each other at every column
    gc.collect()
    gc.freeze()  # what was loaded stays: looking through it again takes longer than processing a run
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    await app.start()
    log.info("%s works", app.conf.id)
    await stop.wait()
    with suppress(TimeoutError):
        await asyncio.wait_for(app.stop(), STOP_SECONDS)
    os._exit(0)  # threads may be waiting for a server that is away; nothing they do is needed

"""What both Faust workers share: the application on the batch transport, and how it ends when it must."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import TypeVar

import faust
from aiokafka.errors import KafkaError
from faust.types import TP

from streams import checkpoints
from streams.choices import out_of_range
from streams.cluster import Cluster
from streams.members import member_name
from streams.membership import NameTaken
from streams.positions import Answer, Known, Position, PositionProblem, Stop, check_agreement, resume
from streams.recordbatch import CorruptBatch
from streams.runs import deliver_runs
from streams.standing import committed_positions, known_of
from streams.topics import Topic, TopicProblem, wait_for_kafka
from streams.transport import Consumer, Transport, passes
from streams.waiting import CLIENTS, KAFKA, until_kafka_answers
from streams.watch import Watch

log = logging.getLogger("citystream")

T = TypeVar("T")

#: Between two looks at the topics while there is nothing to write or commit.
LOOK_EVERY = timedelta(seconds=5)
#: How long a worker that is told to end tries to commit; what it does not commit is processed again.
STOP_SECONDS = 4
#: A worker waits for servers that are away as long as it takes; Faust would leave the group after 17 minutes. Ending
#: the process instead, before Faust gives up a seek, would only help where something starts it again.
LONGEST_WAIT = timedelta(days=365)

EX_SOFTWARE = 70
EX_CONFIG = 78


def end_process(reason: BaseException | str, code: int = EX_SOFTWARE) -> None:
    """End at once and commit nothing: what was not flushed is processed again after the restart."""
    if isinstance(reason, Stop | CorruptBatch | NameTaken | str):
        log.error("%s", reason)
    else:
        log.error("Stopping: %s: %s", type(reason).__name__, reason, exc_info=reason)
    sys.stderr.flush()
    os._exit(code)


class BatchApp(faust.App):
    """A Faust application whose agents get runs, and which decides itself where to read from.

    ``definitions`` are those of the topics it reads; ``topics`` are all it reads or writes.
    """

    def __init__(
        self,
        group: str,
        cluster: Cluster,
        definitions: Mapping[str, str],
        topics: Iterable[Topic],
        *,
        instance: str | None = None,
        agrees_with: tuple[str, Mapping[str, str]] | None = None,
    ) -> None:
        """``definitions`` are those of this worker's positions, by topic; ``agrees_with`` names another group and the
        definitions it has to work by."""
        self._definitions = definitions
        self._agrees_with = agrees_with
        self.cluster = cluster
        self.watch = Watch(cluster, group, topics)
        super().__init__(
            group,
            **cluster.faust(),
            store="memory://",
            web_enabled=False,
            topic_disable_leader=True,
            topic_allow_declare=False,
            consumer_auto_offset_reset="none",
            consumer_group_instance_id=member_name(instance, definitions) if instance else None,
            consumer_max_fetch_size=8 * 2**20,
            broker_session_timeout=10.0,
            broker_heartbeat_interval=3.0,
            broker_commit_interval=1.0,
            broker_max_poll_interval=LONGEST_WAIT,
            broker_request_timeout=LONGEST_WAIT,  # of a seek: Faust would give it up and never resume
            stream_buffer_maxsize=2,
            stream_wait_empty=False,
            stream_recovery_delay=0.0,
            producer_acks=-1,
            producer_compression_type="lz4",
            producer_max_batch_size=512 * 1024,
            producer_linger_ms=5,
            worker_redirect_stdouts=False,
        )
        self.transport = Transport(self.conf.broker, self)

    async def on_start(self) -> None:
        """Look from the beginning: Faust's own tasks of an application begin when it has joined its group."""
        await super().on_start()
        self.add_future(self._keep_looking())

    def _create_directories(self) -> None:
        """All state is in the log; nothing is kept on disk."""

    async def crash(self, reason: BaseException) -> None:
        """Faust would tear the services down one by one; nothing they do then is needed."""
        end_process(reason)

    def _crash(self, reason: BaseException) -> None:
        """What Faust calls for an error in one of its services, which would leave a member that reads nothing."""
        if self.should_stop:
            super()._crash(reason)
        else:
            end_process(reason)

    @property
    def batch_consumer(self) -> Consumer:
        """The transport's consumer."""
        consumer = self.consumer
        assert isinstance(consumer, Consumer)
        return consumer

    async def unchanged(self, topics: Iterable[str] | None = None) -> None:
        """Return when these topics, or all, are seen to be those it began with: what was read before came from these.

        Ends the process if they are not.
        """
        try:
            await self.watch.unchanged(self.watch.began if topics is None else topics)
        except TopicProblem as problem:
            end_process(problem, EX_CONFIG)
            raise

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY.total_seconds())
            if self.should_stop:
                return
            await self.unchanged()
            await self._check_client()

    async def _check_client(self) -> None:
        """End the process for an error with which the client would wait for ever, and let it go on from others."""
        try:
            if await self.batch_consumer.check():
                KAFKA.end(CLIENTS)
        except NameTaken as taken:
            end_process(taken)
        except KafkaError as error:
            if not passes(error):
                end_process(f"Kafka does not let the {self.conf.id} go on: {error!r}; its user may lack a right")
            KAFKA.begin(CLIENTS, f"Kafka does not let the {self.conf.id} go on ({error!r}); it will be tried again")

    async def stop_out_of_range(self, offset: int, tp: TP, answer: Answer) -> None:
        """End the process: the log does not have the offset of a partition that was to be read next."""
        await self.unchanged()
        known = await asyncio.to_thread(self._known, {tp: answer})
        end_process(out_of_range(known[tp], offset), EX_CONFIG)

    async def decide_positions(self, answers: Mapping[TP, Answer]) -> dict[TP, Position]:
        """Where to read partitions from, given what the brokers say of each.

        Ends the process if a topic is not what it was, a position cannot be trusted, or another worker goes by another
        definition of a feed.
        """
        await self.unchanged()
        known = await asyncio.to_thread(self._known, answers)
        try:
            if self._agrees_with:
                other, definitions = self._agrees_with
                others = await asyncio.to_thread(self._answer, committed_positions, other)
                for tp, one in known.items():
                    if tp.topic in definitions:
                        whole = replace(one, definition=definitions[tp.topic])
                        check_agreement(whole, other, others.get(tp))
            positions = {tp: resume(one) for tp, one in known.items()}
        except PositionProblem as problem:
            end_process(problem, EX_CONFIG)
            raise
        places = ", ".join(f"{tp.topic}/{tp.partition} from {positions[tp].rewind}" for tp in sorted(positions))
        log.info("%s reads %s", self.conf.id, places or "nothing: other workers have all partitions")
        return positions

    def _answer(self, ask: Callable[..., T], *words: str) -> T:
        return until_kafka_answers(self.cluster, lambda: ask(self.cluster, *words))

    def _known(self, answers: Mapping[TP, Answer]) -> dict[TP, Known]:
        """Checkpoints are read only if there is no commit somewhere."""
        lost = any(answer.committed is None or answer.committed < 0 for answer in answers.values())
        kept = self._answer(checkpoints.read) if lost else {}
        feeds = self._agrees_with[1] if self._agrees_with else self._definitions  # a sink reads other topics, too
        return known_of(self.conf.id, answers, kept, self.watch.began, self._definitions, feeds)


def run(app: BatchApp, topics: Iterable[str]) -> None:
    """Wait for Kafka, then work until a signal ends it."""
    os.environ.setdefault("RUST_BACKTRACE", "0")  # corrupt bytes can make Polars panic, which is caught
    names = list(topics)
    deliver_runs(names)
    wait_for_kafka(app.cluster, log.warning)
    try:
        app.watch.begin()
    except TopicProblem as problem:
        end_process(problem, EX_CONFIG)
    asyncio.get_event_loop().run_until_complete(_serve(app))


async def _start(app: BatchApp) -> None:
    """Start; an error that came out of here would leave a process of which only threads are left."""
    try:
        await app.start()
    except Exception as error:  # noqa: BLE001 - whatever it is ends the process
        end_process(error)
    log.info("%s works", app.conf.id)


async def _serve(app: BatchApp) -> None:
    sys.setswitchinterval(0.0005)  # threads that decode wait for each other at every column
    gc.freeze()  # what was loaded stays: looking through it again takes longer than processing a run
    gc.enable()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    starting = asyncio.create_task(_start(app))  # which takes as long as the brokers are away
    await stop.wait()
    starting.cancel()
    log.info("%s was told to end", app.conf.id)
    threading.excepthook = lambda _: None  # the client's thread may be cancelled while a server is away
    ending = asyncio.create_task(app.stop())
    ended, _ = await asyncio.wait([ending], timeout=STOP_SECONDS)
    if ended:
        log.info("%s ended", app.conf.id)
    else:
        log.warning("%s ended before it could commit; the next one processes the rest again", app.conf.id)
    os._exit(0)  # threads may be waiting for a server that is away; nothing they do is needed

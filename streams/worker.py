"""What both Faust workers share: the application on the batch transport, and how it ends when it must."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import Iterable, Mapping
from contextlib import closing, suppress

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
from streams.transport import Consumer, Transport, deliver_runs

log = logging.getLogger("citystream")

#: How long a worker that is told to end tries to commit.
STOP_SECONDS = 10

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

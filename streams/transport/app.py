"""A Faust application that hands whole runs to a worker, and decides where each partition is read from."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import threading
from collections.abc import Callable, Coroutine, Iterable, Mapping
from datetime import timedelta
from typing import Any, Protocol

import faust
from aiokafka.errors import KafkaError as AiokafkaError

from streams.assignment import Assigned, TopicPartition
from streams.ending import end_process
from streams.group_positions import GroupPositions, PartitionOffsets
from streams.members import member_name
from streams.positions import Position, PositionProblem
from streams.topic_watch import TopicWatch
from streams.topics import MAX_BATCH, Topic, TopicProblem, wait_for_kafka
from streams.transport.consumer import Consumer, Transport, is_transient
from streams.transport.fetching import deliver_runs
from streams.transport.membership import NameTaken
from streams.transport.sending import Sender
from streams.waiting import CLIENTS, KAFKA, until_kafka_answers
from streams.wire.fetched_batches import Run
from streams.wire.record_batch import CorruptBatch

log = logging.getLogger("citystream")

#: Of a partition in one fetch.
PARTITION_FETCH_BYTES = 8 * 2**20
#: Between two looks at the topics while there is nothing to write or commit.
LOOK_EVERY = timedelta(seconds=5)
#: How long a worker that is told to end tries to commit; what it does not commit is processed again.
STOP_SECONDS = 4
#: A worker waits for servers that are away as long as it takes; Faust would leave the group after 17 minutes. Ending
#: the process instead, before Faust gives up a seek, would only help where something starts it again.
LONGEST_WAIT = timedelta(days=365)


class Worker(Protocol):
    """What an application works for."""

    async def receive(self, place: TopicPartition, run: Run, /) -> None:
        """Take in what was fetched of a partition; the next is not handed on before this returns."""

    def stop(self, topic: str, error: BaseException, /) -> None:
        """Go on without the feed of a topic."""

    def why_stopped(self, topic: str, /) -> str:
        """Why the feed of a topic is stopped; empty if it is not."""


class BatchApp(faust.App):
    """A Faust application whose agents get runs, and which decides itself where to read from."""

    worker: Worker

    def __init__(
        self,
        positions: GroupPositions,
        topics: Iterable[Topic],
        *,
        instance: str | None = None,
    ) -> None:
        """``positions`` are those of the worker, ``topics`` all that it reads or writes."""
        self._positions = positions
        self._instance = instance
        self.cluster, group = positions.cluster, positions.group
        self.topic_watch = TopicWatch(self.cluster, group, topics)
        self._missing: Mapping[str, TopicProblem] = {}
        super().__init__(
            group,
            **self.cluster.faust(),
            store="memory://",
            web_enabled=False,
            topic_disable_leader=True,
            topic_allow_declare=False,
            consumer_auto_offset_reset="none",
            consumer_max_fetch_size=PARTITION_FETCH_BYTES,
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
            producer_max_request_size=MAX_BATCH,
            producer_linger_ms=5,
            worker_redirect_stdouts=False,
        )
        self.transport = Transport(self.conf.broker, self)

    def run(self, worker: Worker) -> None:
        """Wait for Kafka, then let a worker work until a signal ends it."""
        self.worker = worker
        os.environ.setdefault("RUST_BACKTRACE", "0")  # corrupt bytes can make Polars panic, which is caught
        wait_for_kafka(self.cluster, log.warning)
        self._missing = self.topic_watch.begin()
        self.read(topic for topic in self._positions.definitions if topic not in self._missing)
        asyncio.get_event_loop().run_until_complete(_serve(self))

    def read(self, topics: Iterable[str]) -> None:
        """Read these topics for the worker."""
        names = [*topics]
        deliver_runs(names)
        if self._instance:
            self.conf.consumer_group_instance_id = member_name(self._instance, names)

        async def hand_on(stream: faust.StreamT) -> None:
            async for event in stream.events():
                place, fetched = TopicPartition(*event.message.tp), event.message.value
                try:
                    if isinstance(fetched, CorruptBatch):
                        self.worker.stop(place.topic, fetched)
                    else:
                        await self.worker.receive(place, fetched)
                except asyncio.CancelledError:
                    raise
                except BaseException as error:  # noqa: BLE001 - whatever it is ends the process
                    end_process(error)

        for name in names:
            raw = self.topic(name, key_serializer="raw", value_serializer="raw", acks=False)  # positions are committed
            self.agent(raw, name=f"{self.group}.{name}")(hand_on)

    async def on_start(self) -> None:
        """Look from the beginning: Faust's own tasks of an application begin when it has joined its group."""
        await super().on_start()
        for topic, problem in self._missing.items():
            self.worker.stop(topic, problem)
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
    def group(self) -> str:
        """The consumer group."""
        return str(self.conf.id)

    @property
    def batch_consumer(self) -> Consumer:
        """The consumer."""
        consumer = self.consumer
        assert isinstance(consumer, Consumer)
        return consumer

    @property
    def assigned(self) -> Mapping[TopicPartition, Assigned[Any]]:
        """The partitions that are read."""
        return self.batch_consumer.assigned

    def assignment(self) -> list[TopicPartition]:
        """All partitions that were given to this worker, also those it cannot read."""
        return [TopicPartition(*tp) for tp in self.batch_consumer.assignment()]

    def log_end(self, place: TopicPartition) -> int:
        """Where a partition's log ended at the last fetch; 0 if it is not known."""
        return int(self.batch_consumer.highwater(place))

    def pause(self, place: TopicPartition, reason: str) -> None:
        """Read no more of a partition, and commit why, until it goes on."""
        self.batch_consumer.pause(place, reason)

    def go_on(self, place: TopicPartition) -> None:
        """Read a paused partition on."""
        self.batch_consumer.go_on(place)

    def keep(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run this from the start on."""
        self.task(work)

    def sender(self) -> Sender:
        """What sends the results of one flush."""
        return Sender(self.producer)

    async def unchanged(self, topics: Iterable[str]) -> None:
        """Return when these topics are seen to be those it began with: what was read before came from these.

        Raises
        ------
        TopicProblem
            One of them is not.
        """
        for problem in (await self.topic_watch.look(topics)).values():
            raise problem

    async def stop_changed(self, topics: Iterable[str]) -> set[str]:
        """Stop the feeds of those of these topics that are not those it began with; gives the others."""
        names = {*topics}
        changed = await self.topic_watch.look(names)
        for topic, problem in changed.items():
            self.worker.stop(topic, problem)
        return names - changed.keys()

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY.total_seconds())
            if self.should_stop:
                return
            await self.stop_changed(self.topic_watch.began)
            await self._check_client()

    async def _check_client(self) -> None:
        """End the process for an error with which the client would wait for ever, and let it go on from others."""
        try:
            if await self.batch_consumer.check():
                KAFKA.end(CLIENTS)
        except NameTaken as taken:
            end_process(taken)
        except AiokafkaError as error:
            if not is_transient(error):
                cause = error.__cause__ or error
                end_process(f"Kafka does not let the {self.group} go on: {cause!r}; its user may lack a right")
            KAFKA.begin(CLIENTS, f"Kafka does not let the {self.group} go on ({error!r}); it will be tried again")

    async def stop_out_of_range(self, offset: int, place: TopicPartition, offsets: PartitionOffsets) -> None:
        """Stop a feed: the log does not have the offset of a partition that was to be read next."""

        def ask() -> PositionProblem:
            return self._positions.partitions({place: offsets}, self.topic_watch.began)[place].out_of_range(offset)

        self.worker.stop(place.topic, await asyncio.to_thread(until_kafka_answers, self.cluster, ask))

    async def decide_positions(
        self, offsets: Mapping[TopicPartition, PartitionOffsets]
    ) -> dict[TopicPartition, Position]:
        """Where to read partitions from, given what the brokers say of each.

        The feed of a partition is stopped, and nothing decided for it, if its position cannot be trusted or another
        worker goes by another definition of it.
        """

        def ask() -> dict[TopicPartition, Position | PositionProblem]:
            return self._positions.decide(offsets, self.topic_watch.began)

        positions = {}
        for place, decided in (await asyncio.to_thread(until_kafka_answers, self.cluster, ask)).items():
            if isinstance(decided, PositionProblem):
                self.worker.stop(place.topic, decided)
            else:
                positions[place] = decided
        places = ", ".join(f"{place} from {positions[place].rewind}" for place in sorted(positions))
        log.info("%s reads %s", self.group, places or "nothing: other workers have all partitions")
        return positions


async def _start(app: BatchApp) -> None:
    """Start; an error that came out of here would leave a process of which only threads are left."""
    try:
        await app.start()
    except Exception as error:  # noqa: BLE001 - whatever it is ends the process
        end_process(error)
    log.info("%s works", app.group)


async def _serve(app: BatchApp) -> None:
    gc.freeze()  # what was loaded stays: looking through it again takes longer than processing a run
    gc.enable()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    starting = asyncio.create_task(_start(app))  # which takes as long as the brokers are away
    await stop.wait()
    starting.cancel()
    log.info("%s was told to end", app.group)
    threading.excepthook = lambda _: None  # the client's thread may be cancelled while a server is away
    ending = asyncio.create_task(app.stop())
    ended, _ = await asyncio.wait([ending], timeout=STOP_SECONDS)
    if ended:
        log.info("%s ended", app.group)
    else:
        log.warning("%s ended before it could commit; the next one processes the rest again", app.group)
    os._exit(0)  # threads may be waiting for a server that is away; nothing they do is needed

"""Faust's Kafka transport, delivering one message per fetched run of a partition instead of one per record.

Extension points of faust-streaming 0.15.3 and aiokafka 0.14.0 that this stands on (a contract test fails if one moves):
Faust's ``Consumer._to_message``, ``_add_gap``, ``_filter_tps_with_pending_acks``, ``_new_offset``, ``_should_commit``,
``on_buffer_full``, ``on_partitions_revoked``, ``verify_event_path``, ``perform_seek``, ``_getmany``,
``_commit_offsets``, ``_commit``; its consumer thread's ``_create_worker_consumer``, ``on_start``, ``assignment``,
``_commit``, ``_wakeup_timer_in_thread``; aiokafka's ``_fetch_max_bytes``, ``_request_timeout_ms`` and
``_prefetch_backoff``; ``aiokafka.consumer.consumer.GroupCoordinator``, see ``streams.membership``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import replace
from typing import Any, cast

from aiokafka.consumer import consumer as clients
from aiokafka.errors import (
    CommitFailedError,
    IllegalStateError,
    KafkaError,
    KafkaTimeoutError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
)
from aiokafka.structs import OffsetAndMetadata, TopicPartition
from faust.transport.drivers import aiokafka as driver
from faust.types import TP, ConsumerMessage
from tenacity import AsyncRetrying

from streams import checkpoints
from streams.membership import MemberCoordinator, NameTaken
from streams.positions import Answer, Position
from streams.producing import send_unwaited
from streams.waiting import CLIENTS, KAFKA, kafka_away

log = logging.getLogger("citystream")

#: Bytes of a fetch at most, over all partitions of a broker.
FETCH_BYTES = 32 * 2**20
#: How long the brokers gather what comes before they answer a fetch, and with how many bytes they answer at once: an
#: answer has a cost of its own, however little it brings.
FETCH_WAIT_MS, ENOUGH_BYTES = 400, 512 * 2**10
#: Longest wait for the answer to a request. Faust's setting for it is the patience of a seek as well, which has no end.
REQUEST_MS = 90_000
#: Seconds for which a partition with fetched records keeps the other partitions of its broker from being fetched.
UNTIL_TAKEN = 86_400.0


def passes(error: BaseException) -> bool:
    """Whether an error of Kafka's goes away when one waits for the brokers."""
    return isinstance(error, KafkaError) and (bool(error.retriable) or isinstance(error, KafkaTimeoutError))


def _plain(tp: TP) -> TopicPartition:
    return TopicPartition(tp.topic, tp.partition)


class ConsumerThread(driver.AIOKafkaConsumerThread):
    """Reads committed records only, never resets an offset by itself, and commits positions with their metadata."""

    #: What the client said last of its assignment, and the same in Faust's words.
    _assigned: tuple[frozenset[TopicPartition], frozenset[TP]] = frozenset(), frozenset()

    def _create_worker_consumer(self, transport: Any) -> Any:
        clients.GroupCoordinator = MemberCoordinator
        consumer = super()._create_worker_consumer(transport)
        consumer._isolation_level = "read_committed"
        consumer._auto_offset_reset = "none"
        consumer._fetch_max_wait_ms = FETCH_WAIT_MS
        consumer._fetch_min_bytes = ENOUGH_BYTES
        consumer._fetch_max_bytes = FETCH_BYTES
        consumer._request_timeout_ms = consumer._client._request_timeout_ms = REQUEST_MS
        return consumer

    async def on_start(self) -> None:
        """Fetch again only when what was fetched is taken: one fetch waits for the worker, however many partitions."""
        await super().on_start()
        self._ensure_consumer()._fetcher._prefetch_backoff = UNTIL_TAKEN

    async def _wakeup_timer_in_thread(self) -> None:
        """Leave out the time, by which Mode says that the thread does not respond.

        It knows nothing of the thread, and says so when the main loop was busy for 3 s. ``check`` asks the thread.
        """
        await self.sleep(0)

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        consumer, ours = self._ensure_consumer(), cast("Consumer", self.consumer)
        committing = dict(ours.committing)
        positions = {
            _plain(tp): OffsetAndMetadata(offset, committing[tp].metadata())
            for tp, offset in offsets.items()
            if tp in self.assignment() and tp in committing and committing[tp].processed == offset
        }
        if not positions:
            return False
        try:
            await consumer.commit(positions)
        except CommitFailedError:
            log.info("A commit came after a rebalance; its events will be processed again")
            return False
        except KafkaError as error:
            if not passes(error):
                await self.app.crash(error)
            KAFKA.begin(CLIENTS, f"Kafka did not take a commit ({error}); it will be tried again")
            return False
        taken = [tp for tp in offsets if _plain(tp) in positions]
        ours.committed.update({tp: offsets[tp] for tp in taken})
        ours.told.update({tp: committing[tp].paused for tp in taken})
        return True

    def assignment(self) -> Set[TP]:
        """Partitions of the present assignment.

        Faust makes the set anew for each question, which is asked of each partition at every flush: with 200 of them
        that was most of what an idle worker did.
        """
        plain = self._ensure_consumer().assignment()
        if plain is not self._assigned[0]:
            self._assigned = plain, frozenset(TP(*tp) for tp in plain)
        return self._assigned[1]

    def set_paused(self, tp: TP, paused: bool) -> None:
        """Fetch no more of a partition, or go on; what was fetched and is not handed on yet is fetched again then."""
        self.thread_loop.call_soon_threadsafe(self._set_paused, _plain(tp), paused)

    def _set_paused(self, tp: TopicPartition, paused: bool) -> None:
        consumer = self._ensure_consumer()
        if tp in consumer.assignment():
            (consumer.pause if paused else consumer.resume)(tp)

    def highwater(self, tp: TP) -> int:
        """End of a partition's log at the last fetch; 0 if it is not known or not assigned (any more)."""
        try:
            return self._ensure_consumer().highwater(_plain(tp)) or 0
        except (AssertionError, AttributeError):
            return 0

    async def check(self) -> bool:
        """Raise what the client's tasks ended with or wait for somebody to see, which Faust never looks at.

        Asked for in the thread, past the calls that may be waiting there. Gives whether the group's coordinator is
        known.
        """
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._check(), self.thread_loop))

    async def _check(self) -> bool:
        coordinator, reading = (getattr(self._consumer, name, None) for name in ("_coordinator", "_fetcher"))
        if coordinator is not None:
            coordinator.check_errors()
        if reading is not None and reading.error_future.done():
            reading.error_future.result()
        return coordinator is not None and coordinator.coordinator_id is not None

    async def committed(self, tps: Iterable[TP]) -> dict[TP, Answer]:
        """What the brokers say of each partition."""
        asking = AsyncRetrying(**KAFKA.retrying(passes, kafka_away(self.app.cluster)))
        return cast("dict[TP, Answer]", await self.call_thread(asking, self._committed, list(tps)))

    async def _committed(self, tps: list[TP]) -> dict[TP, Answer]:
        consumer = self._ensure_consumer()
        partitions = [_plain(tp) for tp in tps]
        commits = await consumer._coordinator.fetch_committed_offsets(partitions)
        starts = await consumer.beginning_offsets(partitions)
        ends = await consumer.end_offsets(partitions)
        found = {}
        for tp, p in zip(tps, partitions, strict=True):
            committed, metadata = (commits[p].offset, commits[p].metadata) if p in commits else (None, "")
            found[tp] = Answer(committed, metadata, starts[p], ends[p])
        return found


class Consumer(driver.Consumer):
    """Tracks positions in place of acknowledged messages.

    ``resumed`` holds, per assigned partition, the position read from after the last assignment; each assignment makes
    new objects, so a state built for an older one can be told apart. ``flushed`` holds what may be committed.
    ``paused`` are the partitions that are not read on for now, each with the reason, which its commit says, too: so it
    can be seen from outside. ``told`` is what the last commit said.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.resumed: dict[TP, Position] = {}
        self.flushed: dict[TP, Position] = {}
        self.committing: dict[TP, Position] = {}
        self.committed: dict[TP, int] = {}
        self.paused: dict[TP, str] = {}
        self.told: dict[TP, str] = {}

    def _new_consumer_thread(self) -> ConsumerThread:
        return ConsumerThread(self, loop=self.loop, beacon=self.beacon)

    def _to_message(self, tp: TP, record: Any) -> ConsumerMessage:
        return ConsumerMessage(
            record.topic,
            record.partition,
            record.offset,
            record.timestamp / 1000,
            1,
            [],
            None,
            record.value,
            None,
            0,
            0,
            tp,
            generation_id=self.app.consumer_generation_id,
        )

    async def _add_gap(self, tp: TP, offset_from: int, offset_to: int) -> None:
        """A run's offset is its last one, so gaps are the rule."""

    def _filter_tps_with_pending_acks(self, topics: Any = None) -> Iterator[TP]:
        return iter([tp for tp in self.flushed if topics is None or tp in topics or tp.topic in topics])

    def _new_offset(self, tp: TP) -> int | None:
        position = self.flushed.get(tp)
        if position is None:
            return None
        if position.paused != (reason := self.paused.get(tp, "")):
            position = replace(position, paused=reason)
        self.committing[tp] = position
        return position.processed

    def on_buffer_full(self, tp: TP) -> None:
        """A full buffer makes delivery wait, which is enough; pausing partitions would leave them idle for a poll."""

    def verify_event_path(self, now: float, tp: TP) -> None:
        """Faust's own watchdog goes by acknowledged messages; lag is watched from outside."""

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """A partition that is taken away has no position, and what was flushed of it is no longer ours to commit."""
        for tp in revoked:
            self.flushed.pop(tp, None)
            self.committing.pop(tp, None)
            self.resumed.pop(tp, None)
            self.paused.pop(tp, None)
        await super().on_partitions_revoked(revoked)

    def _should_commit(self, tp: TP, offset: int) -> bool:
        return self.committed.get(tp) != offset or self.told.get(tp, "") != self.paused.get(tp, "")

    def pause(self, tp: TP, reason: str) -> None:
        """Read no more of a partition until it is told to go on."""
        if tp in self.resumed:
            self.paused[tp] = reason
            self.flushed.setdefault(tp, self.resumed[tp])
            cast("ConsumerThread", self._thread).set_paused(tp, True)

    def go_on(self, tp: TP) -> None:
        """Read a paused partition on."""
        if self.paused.pop(tp, None) is not None:
            cast("ConsumerThread", self._thread).set_paused(tp, False)

    async def _commit_offsets(self, offsets: Mapping[TP, int], start_new_transaction: bool = True) -> bool:  # noqa: ARG002
        """Commit without drawing a table of all partitions for a log that nobody reads, as Faust does."""
        await self.app.producer.flush()
        return await self._commit(offsets)

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        """Commit, and keep what was committed a second time; nothing waits for that to be acknowledged."""
        await self.app.unchanged({tp.topic for tp in offsets})
        positions = dict(self.committing)
        done = bool(await super()._commit(offsets))
        if done:
            taken = [tp for tp, at in offsets.items() if tp in positions and self.committed.get(tp) == at]
            kept = [checkpoints.record((self.app.conf.id, *tp), positions[tp]) for tp in taken]
            await send_unwaited(self.app.producer, checkpoints.TOPIC, kept, "A checkpoint")
        return done

    async def _getmany(self, active_partitions: set[TP] | None, timeout: float) -> Any:  # noqa: ASYNC109
        """What was fetched; ends the process where the log does not have the offset that was asked for."""
        try:
            return await super()._getmany(active_partitions, timeout)
        except NoOffsetForPartitionError:  # just assigned and never committed: perform_seek is about to set its offset
            return {}
        except NameTaken as taken:
            await self.app.crash(taken)
            raise
        except OffsetOutOfRangeError as error:
            (((topic, partition), offset),) = error.args[0].items()
            tp = TP(topic, partition)
            commits = await cast("ConsumerThread", self._thread).committed([tp])
            await self.app.stop_out_of_range(offset, tp, commits[tp])
            raise

    async def check(self) -> bool:
        """See ``ConsumerThread``."""
        return await cast("ConsumerThread", self._thread).check()

    async def perform_seek(self) -> None:
        """Read again from each partition's rewind offset, with the processed offset as the committed one.

        Raises
        ------
        IllegalStateError
            Another assignment came meanwhile, for which Faust seeks again: positions asked for before may be outdated.
        """
        assignment = self._assignment_number()
        tps = self.assignment()
        thread = cast("ConsumerThread", self._thread)
        positions = await self.app.decide_positions(await thread.committed(tps))
        if assignment != self._assignment_number():
            raise IllegalStateError("the group is rebalancing again")
        self.flushed.clear()
        for tp in [*self.paused]:
            self.go_on(tp)
        for tp, position in positions.items():
            self.resumed[tp] = replace(position, paused="")
            self.told[tp] = position.paused
            if position.paused:
                self.flushed[tp] = self.resumed[tp]
            self.committed[tp] = position.processed
            self._committed_offset[tp] = position.processed
            self._read_offset[tp] = position.rewind
        if positions:
            await self._thread.seek_wait({tp: position.rewind for tp, position in positions.items()})

    def _assignment_number(self) -> tuple[int, int]:
        """Changes when an assignment ends and when the next one begins."""
        return self.app.rebalancing_count, self.app.consumer_generation_id


class Transport(driver.Transport):
    """Faust's aiokafka transport with the consumer above."""

    Consumer = Consumer

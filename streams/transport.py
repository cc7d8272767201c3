"""Faust's Kafka transport, delivering one message per fetched run of a partition instead of one per record.

Extension points of faust-streaming 0.15.3 and aiokafka 0.14.0 that this stands on (a contract test fails if one
moves): ``aiokafka.consumer.fetcher.MemoryRecords`` and ``PartitionRecords``; Faust's ``Consumer._to_message``,
``_add_gap``, ``_filter_tps_with_pending_acks``, ``_new_offset``, ``_should_commit``, ``on_buffer_full``,
``on_partitions_revoked``, ``verify_event_path``, ``perform_seek``, ``_getmany``, ``_commit``; its consumer thread's
``_create_worker_consumer``, ``on_start`` and ``_commit``; aiokafka's ``_fetch_max_bytes`` and ``_prefetch_backoff``;
``aiokafka.consumer.consumer.GroupCoordinator``, see ``streams.membership``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from time import monotonic
from typing import Any, cast

from aiokafka.consumer import consumer as clients
from aiokafka.consumer import fetcher
from aiokafka.errors import CommitFailedError, KafkaError, KafkaTimeoutError, OffsetOutOfRangeError
from aiokafka.record.control_record import ABORT_MARKER, ControlRecord
from aiokafka.record.default_records import DefaultRecordBatch
from aiokafka.structs import OffsetAndMetadata, TopicPartition
from faust.transport.drivers import aiokafka as driver
from faust.types import TP, ConsumerMessage
from tenacity import before_sleep_log, retry, retry_if_exception, wait_exponential

from streams import checkpoints
from streams.membership import MemberCoordinator
from streams.positions import Position
from streams.producing import send_unwaited
from streams.recordbatch import CorruptBatch, RecordBatch, split

log = logging.getLogger("citystream")

#: Bytes of a fetch at most, over all partitions of a broker.
FETCH_BYTES = 32 * 2**20
#: Seconds for which a partition with fetched records keeps the other partitions of its broker from being fetched.
UNTIL_TAKEN = 86_400.0
#: Records of a run at most, unless a batch alone has more: a few bytes of a log can hold millions.
LONGEST_RUN = 500_000


@dataclass(frozen=True)
class Run:
    """What one fetch brought of a partition, or a part of it: the batches of the offsets from ``start`` up to ``next``.

    The first batch may begin before ``start`` and control or aborted batches are left out, so rows below ``start``
    have to be dropped and not every offset has a record.
    """

    topic: str
    partition: int
    start: int
    next: int
    batches: tuple[RecordBatch, ...] = field(repr=False)


@dataclass(frozen=True)
class _RunRecord:
    """A run in the shape of an aiokafka record."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    value: Run


class _Fetched:
    """Stands in for ``MemoryRecords``: keeps the bytes of a fetch."""

    def __init__(self, data: bytes) -> None:
        self.data = bytes(data)
        self._records = fetcher_memory_records(self.data)

    def has_next(self) -> bool:
        return bool(self._records.has_next())

    def size_in_bytes(self) -> int:
        return len(self.data)


class _RunRecords:
    """Stands in for ``PartitionRecords``: yields what was fetched as one run, or several if it is long."""

    def __init__(self, tp: TopicPartition, data: bytes, aborted: Iterable[tuple[int, int]], fetch_offset: int) -> None:
        self._tp = tp
        self._data = data
        self._aborted = sorted(aborted, key=lambda transaction: transaction[1])
        self._start = fetch_offset
        self.next_fetch_offset = fetch_offset
        self._iterator = self._read()

    def __iter__(self) -> Iterator[_RunRecord]:
        return self

    def __next__(self) -> _RunRecord:
        return next(self._iterator)

    def _read(self) -> Iterator[_RunRecord]:
        batches = list(self._committed(split(self._tp.partition, self._data)))
        if self.next_fetch_offset == self._start:
            return
        pieces = list(_pieces(batches))
        borders = [self._start, *(piece[0].base_offset for piece in pieces[1:]), self.next_fetch_offset]
        for (start, end), piece in zip(pairwise(borders), pieces, strict=True):
            run = Run(self._tp.topic, self._tp.partition, start, end, piece)
            yield _RunRecord(run.topic, run.partition, end - 1, piece[-1].arrived_ms if piece else 0, run)

    def _committed(self, batches: Iterable[RecordBatch]) -> Iterator[RecordBatch]:
        """Batches that count under read_committed; moves ``next_fetch_offset`` past all."""
        open_aborted: set[int] = set()
        for batch in batches:
            while self._aborted and self._aborted[0][1] <= batch.base_offset:
                open_aborted.add(self._aborted.pop(0)[0])
            self.next_fetch_offset = batch.last_offset + 1
            if batch.is_control:
                marker = next(DefaultRecordBatch(bytearray(batch.raw)), None)  # compaction can leave it empty
                if marker is not None and ControlRecord.parse(marker.key) == ABORT_MARKER:
                    open_aborted.discard(batch.producer_id)
            elif not (batch.is_transactional and batch.producer_id in open_aborted):
                if not batch.is_log_append_time:
                    raise CorruptBatch(
                        f"{self._tp.topic}/{self._tp.partition} holds records with timestamps of their producers; set "
                        "message.timestamp.type=LogAppendTime, or results would depend on the producers' clocks"
                    )
                yield batch


def _pieces(batches: Iterable[RecordBatch]) -> Iterator[tuple[RecordBatch, ...]]:
    """Batches in runs that are not too long; one run if there are none."""
    piece: list[RecordBatch] = []
    records = 0
    for batch in batches:
        if piece and records + batch.count > LONGEST_RUN:
            yield tuple(piece)
            piece, records = [], 0
        piece.append(batch)
        records += batch.count
    yield tuple(piece)


fetcher_memory_records = fetcher.MemoryRecords
fetcher_partition_records = fetcher.PartitionRecords
_run_topics: set[str] = set()


def _partition_records(
    tp: TopicPartition, records: _Fetched, aborted: list[tuple[int, int]] | None, fetch_offset: int, *rest: Any
) -> Any:
    if tp.topic in _run_topics:
        return _RunRecords(tp, records.data, aborted or (), fetch_offset)
    return fetcher_partition_records(tp, fetcher_memory_records(records.data), aborted, fetch_offset, *rest)


def deliver_runs(topics: Iterable[str]) -> None:
    """Deliver these topics as runs in this process; others stay as aiokafka has them."""
    _run_topics.update(topics)
    fetcher.MemoryRecords = _Fetched
    fetcher.PartitionRecords = _partition_records


def passes(error: BaseException) -> bool:
    """Whether an error of Kafka's goes away when one waits for the brokers."""
    return isinstance(error, KafkaError) and (bool(error.retriable) or isinstance(error, KafkaTimeoutError))


def _plain(tp: TP) -> TopicPartition:
    return TopicPartition(tp.topic, tp.partition)


class ConsumerThread(driver.AIOKafkaConsumerThread):
    """Reads committed records only, never resets an offset by itself, and commits positions with their metadata."""

    def _create_worker_consumer(self, transport: Any) -> Any:
        clients.GroupCoordinator = MemberCoordinator
        consumer = super()._create_worker_consumer(transport)
        consumer._isolation_level = "read_committed"
        consumer._auto_offset_reset = "none"
        consumer._fetch_max_wait_ms = 200
        consumer._fetch_max_bytes = FETCH_BYTES
        return consumer

    async def on_start(self) -> None:
        """Fetch again only when what was fetched is taken: one fetch waits for the worker, however many partitions."""
        await super().on_start()
        self._ensure_consumer()._fetcher._prefetch_backoff = UNTIL_TAKEN

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        consumer = self._ensure_consumer()
        committing = dict(cast("Consumer", self.consumer).committing)
        positions = {
            _plain(tp): OffsetAndMetadata(offset, committing[tp].metadata())
            for tp, offset in offsets.items()
            if tp in self.assignment() and tp in committing and committing[tp].processed == offset
        }
        if not positions:
            return False
        self.tp_last_committed_at.update({tp: monotonic() for tp in offsets})
        try:
            await consumer.commit(positions)
        except CommitFailedError:
            log.info("A commit came after a rebalance; its events will be processed again")
            return False
        except KafkaError as error:
            if not passes(error):
                await self.app.crash(error)
            log.warning("Kafka did not take a commit (%s); it will be tried again", error)
            return False
        cast("Consumer", self.consumer).committed.update({tp: offsets[tp] for tp in offsets if _plain(tp) in positions})
        return True

    def highwater(self, tp: TP) -> int:
        """End of a partition's log at the last fetch; 0 if it is not known or not assigned (any more)."""
        try:
            return self._ensure_consumer().highwater(_plain(tp)) or 0
        except (AssertionError, AttributeError):
            return 0

    async def committed(self, tps: Iterable[TP]) -> dict[TP, tuple[int | None, str, int]]:
        """Committed offset, metadata and log start of each partition."""
        return cast("dict[TP, tuple[int | None, str, int]]", await self.call_thread(self._committed, list(tps)))

    @retry(
        retry=retry_if_exception(passes), wait=wait_exponential(min=1, max=30), before_sleep=before_sleep_log(log, 30)
    )
    async def _committed(self, tps: list[TP]) -> dict[TP, tuple[int | None, str, int]]:
        consumer = self._ensure_consumer()
        partitions = [_plain(tp) for tp in tps]
        commits = await consumer._coordinator.fetch_committed_offsets(partitions)
        starts = await consumer.beginning_offsets(partitions)
        return {
            tp: (commits[p].offset, commits[p].metadata, starts[p]) if p in commits else (None, "", starts[p])
            for tp, p in zip(tps, partitions, strict=True)
        }


class Consumer(driver.Consumer):
    """Tracks positions in place of acknowledged messages.

    ``resumed`` holds, per assigned partition, the position read from after the last assignment; each assignment makes
    new objects, so a state built for an older one can be told apart. ``flushed`` holds what may be committed.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.resumed: dict[TP, Position] = {}
        self.flushed: dict[TP, Position] = {}
        self.committing: dict[TP, Position] = {}
        self.committed: dict[TP, int] = {}

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
        await super().on_partitions_revoked(revoked)

    def _should_commit(self, tp: TP, offset: int) -> bool:
        return self.committed.get(tp) != offset

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        """Commit, and keep what was committed a second time; nothing waits for that to be acknowledged."""
        await self.app.unchanged()
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
        except OffsetOutOfRangeError as error:
            (((topic, partition), offset),) = error.args[0].items()
            tp = TP(topic, partition)
            commits = await cast("ConsumerThread", self._thread).committed([tp])
            await self.app.stop_out_of_range(offset, tp, commits[tp])
            raise

    async def perform_seek(self) -> None:
        """Read again from each partition's rewind offset, with the processed offset as the committed one."""
        tps = self.assignment()
        thread = cast("ConsumerThread", self._thread)
        positions = await self.app.decide_positions(await thread.committed(tps))
        self.flushed.clear()
        for tp, position in positions.items():
            self.resumed[tp] = position
            self.committed[tp] = position.processed
            self._committed_offset[tp] = position.processed
            self._read_offset[tp] = position.rewind
        if positions:
            await self._thread.seek_wait({tp: position.rewind for tp, position in positions.items()})


class Transport(driver.Transport):
    """Faust's aiokafka transport with the consumer above."""

    Consumer = Consumer

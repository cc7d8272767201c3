"""What stands in for aiokafka's records of a fetch, so that whole batches are handed on and none is opened; and when
the brokers are asked.

It replaces ``aiokafka.consumer.fetcher.MemoryRecords`` and ``PartitionRecords`` and extends ``Fetcher`` of aiokafka
0.14.0; a contract test fails if they move.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from aiokafka.consumer import fetcher
from aiokafka.record.control_record import ABORT_MARKER, ControlRecord
from aiokafka.record.default_records import DefaultRecordBatch
from aiokafka.structs import TopicPartition

from streams.wire.fetched_batches import Run, pieces
from streams.wire.record_batch import CorruptBatch, RecordBatch, split

#: Seconds between two fetches: an answer has a cost of its own, however little it brings, for the brokers too.
FETCH_SECONDS = 1.0
#: How long a broker may wait for a record before it answers, if its answer before was empty (ms).
QUIET_MS = 2000
#: With so many bytes in an answer there is a backlog, and the next fetch does not wait.
BACKLOG_BYTES = 512 * 2**10


def until_next(began: float, last: float, now: float) -> float:
    """Seconds from now until the first moment after a fetch, where the moments begin at ``began``."""
    passed = (last - began) // FETCH_SECONDS
    return max(0.0, began + (passed + 1) * FETCH_SECONDS - now)


class PacedFetcher(fetcher.Fetcher):
    """Asks all brokers at the same moments, so that what came of all partitions is there at once.

    They do not wait for more, as a broker would look at every partition of a fetch whenever it stores something. Only
    one whose last answer was empty waits for the first record.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._began = self._loop.time()
        self._fetched_at = dict[int, float]()
        #: The brokers whose last answer was empty.
        self._quiet = set[int]()

    async def _proc_fetch_request(self, assignment: Any, node_id: int, request: Any) -> bool:
        try:
            if (last := self._fetched_at.get(node_id)) is not None:
                await asyncio.sleep(until_next(self._began, last, self._loop.time()))
        except asyncio.CancelledError:
            return False
        self._fetched_at[node_id] = self._loop.time()
        request._max_wait_ms = QUIET_MS if node_id in self._quiet else 0
        came = bool(await super()._proc_fetch_request(assignment, node_id, request))
        if came or not assignment.active:
            self._quiet.discard(node_id)
        else:
            self._quiet.add(node_id)
        places = [TopicPartition(topic, number) for topic, wanted in request.topics for number, *_ in wanted]
        if sum(self._size(place) for place in places) >= BACKLOG_BYTES:
            del self._fetched_at[node_id]
        return came

    def _set_error(self, tp: TopicPartition, error: BaseException) -> None:
        """Keep what a partition has: while its leader changes two brokers answer, and aiokafka ends at the second."""
        if tp not in self._records:
            super()._set_error(tp, error)

    def _size(self, place: TopicPartition) -> int:
        """Bytes that wait of a partition."""
        waiting = self._records.get(place)
        records = waiting and getattr(waiting, "_partition_records", None)
        return records.size if isinstance(records, _RunRecords) else 0


@dataclass(frozen=True)
class _RunRecord:
    """A run, or what is wrong with what was fetched, in the shape of an aiokafka record."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    value: Run | CorruptBatch


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
        self.size = len(data)
        self._iterator = self._read()

    def __iter__(self) -> Iterator[_RunRecord]:
        return self

    def __next__(self) -> _RunRecord:
        return next(self._iterator)

    def _read(self) -> Iterator[_RunRecord]:
        try:
            batches = list(self._committed(self._split()))
        except CorruptBatch as error:
            self.next_fetch_offset = self._start
            yield _RunRecord(self._tp.topic, self._tp.partition, self._start, 0, error)
            return
        if self.next_fetch_offset == self._start:
            return
        found = [*pieces(batches, lambda batch: batch.count)] or [[]]
        borders = [self._start, *(piece[0].base_offset for piece in found[1:]), self.next_fetch_offset]
        for (start, end), piece in zip(pairwise(borders), found, strict=True):
            run = Run(self._tp.topic, self._tp.partition, start, end, tuple(piece))
            yield _RunRecord(run.topic, run.partition, end - 1, piece[-1].arrived_ms if piece else 0, run)

    def _split(self) -> Iterator[RecordBatch]:
        try:
            yield from split(self._tp.partition, self._data)
        except CorruptBatch as error:
            raise CorruptBatch(f"{self._tp.topic}/{self._tp.partition}: {error}") from error

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

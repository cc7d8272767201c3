"""Reads the tables of reference data that a worker looks things up in, beside its feeds and for all of them.

How far a log has come, only the log says: every record before one that was read is read. So where nobody publishes, a
reader writes a mark, a record of no row, and has come as far as the broker stamped it. No clock but the brokers' takes
part: what differs between them makes a look-up wait, and changes nothing in what it finds.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from typing import Any

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError

from schemas.catalogue import Catalogue
from schemas.reference import Reference
from schemas.reference_rows import MARK, NoRow, Row, SchemaMissing, read_row
from streams.clients import new_consumer
from streams.cluster import Cluster
from streams.ending import Stop
from streams.history import GRACE_MS, History
from streams.missing_schemas import NotYet
from streams.publisher import Producer
from streams.topics import states

log = logging.getLogger("citystream")

#: How long one fetch waits for records at most, in ms, and how long the reader waits when the brokers are away, in s.
POLL_MS, PAUSE_SECONDS = 1000, 1.0
#: A mark of a table is written no sooner than so many seconds after the last one.
MARK_EVERY_SECONDS = 1.0
#: Before all times, in ms.
NEVER = -(2**62)


class Log:
    """What was read of one table's topic."""

    def __init__(self, reference: Reference, catalogue: Catalogue) -> None:
        self.reference = reference
        self.next = 0
        #: The highest broker's time (ms) that was read: what is stamped before it is read, all of it.
        self.read_to = NEVER
        #: Arrival (ms) of the newest record that something was looked up for.
        self.asked_for = NEVER
        self._catalogue = catalogue
        self._versions: list[tuple[int, Row]] = []
        self._history: History | None = None
        self._changing = threading.Lock()

    def take(self, offset: int, key: bytes | None, value: bytes | None, stamped_ms: int) -> None:
        """Take the next record.

        Raises
        ------
        SchemaMissing
            It cannot be read yet, and was not taken.
        """
        row = None
        if key != MARK or value is not None:
            try:
                row = read_row(self.reference, self._catalogue, key, value)
            except NoRow as reason:
                log.warning(
                    "%s: the record at offset %d is no row (%s) and is left out; publish the table with: "
                    "citystream reference publish",
                    *(self.reference.name, offset, reason),
                )
        with self._changing:
            if row is not None:
                self._versions.append((stamped_ms, row))
                self._history = None
            self.next = offset + 1
            self.read_to = max(self.read_to, stamped_ms)

    def history(self) -> History:
        """All that was read; made anew when there is a new version of a row."""
        with self._changing:
            if self._history is None:
                self._history = History(self.reference, self._versions)
            return self._history

    def has_come_to(self, arrived_ms: int) -> bool:
        """Whether all is read that counts for a record of this arrival."""
        return self.read_to > arrived_ms - GRACE_MS

    def wants_mark(self) -> bool:
        """Whether a mark keeps look-ups from waiting: before half of the grace is over."""
        return self.read_to <= self.asked_for - GRACE_MS // 2


class References:
    """The tables that a worker looks things up in, read by one thread; ``start`` it first.

    ``clock`` is in seconds, and says only when a mark is written again.
    """

    def __init__(
        self,
        cluster: Cluster,
        references: Iterable[Reference],
        catalogue: Catalogue,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cluster = cluster
        self._logs = {reference.name: Log(reference, catalogue) for reference in references}
        self._clock = clock
        self._marked: dict[str, float] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="references", daemon=True)
        #: Why nothing is read for now, and why no mark is written.
        self._waits_for = self._unmarked = ""

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def stop(self) -> None:
        """End reading."""
        self._ended.set()
        self._thread.join()

    def history(self, name: str, arrived_ms: int) -> History:
        """What is known of a table for records up to this arrival (ms); called for every run that looks something up.

        Raises
        ------
        NotYet
            The table is not read so far.
        """
        one = self._logs[name]
        one.asked_for = max(one.asked_for, arrived_ms)
        if not one.has_come_to(arrived_ms):
            reason = self._waits_for or self._unmarked or "its topic is being read"
            raise NotYet(f"the reference data {name} are not known up to the records that are looked up yet: {reason}")
        return one.history()

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                states(self._cluster, self._logs)
                with closing(self._consumer()) as consumer, closing(Producer(self._cluster)) as producer:
                    while not self._ended.is_set():
                        self._mark(producer)
                        self._take(consumer, consumer.poll(timeout_ms=POLL_MS))
            except (KafkaError, OSError, Stop) as error:
                self._waits_for = str(error) or type(error).__name__
                log.warning("reference data cannot be read: %s", self._waits_for)
                self._ended.wait(PAUSE_SECONDS)

    def _consumer(self) -> KafkaConsumer:
        consumer = new_consumer(self._cluster, auto_offset_reset="none", fetch_max_wait_ms=POLL_MS)
        consumer.assign([TopicPartition(name, 0) for name in self._logs])
        for name, one in self._logs.items():
            place = TopicPartition(name, 0)
            if one.next:
                consumer.seek(place, one.next)
            else:
                consumer.seek_to_beginning(place)
        return consumer

    def _take(self, consumer: KafkaConsumer, found: Mapping[TopicPartition, Iterable[Any]]) -> None:
        missing = ""
        for place, records in found.items():
            one = self._logs[place.topic]
            try:
                for record in records:
                    one.take(record.offset, record.key, record.value, record.timestamp)
            except SchemaMissing as reason:
                missing = str(reason)
                consumer.seek(place, max(one.next, record.offset))
        self._waits_for = missing

    def _mark(self, producer: Producer) -> None:
        now = self._clock()
        for name, one in self._logs.items():
            if one.wants_mark() and now - self._marked.get(name, -MARK_EVERY_SECONDS) >= MARK_EVERY_SECONDS:
                self._marked[name] = now
                sent = producer.send(name, key=MARK, value=None)
                sent.add_callback(self._note_mark, "")
                sent.add_errback(self._note_mark)

    def _note_mark(self, error: Exception | str, *_: Any) -> None:
        self._unmarked = f"no mark can be written to its topic: {error}" if error else ""

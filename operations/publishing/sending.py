"""Sending checked records in the order of their event time."""

from __future__ import annotations

import mmap
import tempfile
from array import array
from collections.abc import Callable, Iterator

import numpy as np
from kafka.errors import KafkaError
from kafka.producer.future import RecordMetadata

from streams.publisher import Publisher


class Spool:
    """Encoded records in a temporary file, and 26 bytes of memory for each to read them by event time."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115
        self._lines, self._events, self._ends = array("q"), array("q"), array("q", [0])
        self._key_lengths = array("H")

    def add(self, line: int, event_ms: int, key: bytes, value: bytes) -> None:
        """Keep a record; ``line`` is where it stands in the file."""
        self._lines.append(line)
        self._events.append(event_ms)
        self._key_lengths.append(len(key))
        self._ends.append(self._ends[-1] + self._file.write(key) + self._file.write(value))

    def __len__(self) -> int:
        return len(self._lines)

    @property
    def newest_ms(self) -> int | None:
        """The newest event time."""
        return max(self._events, default=None)

    def by_event_time(self) -> Iterator[tuple[int, bytes, bytes]]:
        """Line, key and value of each record; those of one event time in the order of their lines."""
        if not self._lines:
            return
        self._file.flush()
        order = np.argsort(np.frombuffer(self._events, dtype=np.int64), kind="stable")
        with mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            for n in order.tolist():
                begin = self._ends[n]
                middle = begin + self._key_lengths[n]
                yield self._lines[n], content[begin:middle], content[middle : self._ends[n + 1]]

    def close(self) -> None:
        """Let the file go."""
        self._file.close()


class Sent:
    """What became of the records, known at any time: the offsets of those Kafka has, by partition, and the first
    failure."""

    def __init__(self) -> None:
        self.offsets: dict[int, array[int]] = {}
        self.failure: str | None = None

    @property
    def acknowledged(self) -> int:
        """How many records Kafka has."""
        return sum(map(len, self.offsets.values()))

    def take(self, result: RecordMetadata | Exception) -> None:
        """Note the result of one record."""
        if not isinstance(result, Exception):
            self.offsets.setdefault(result.partition, array("q")).append(result.offset)
        elif self.failure is None:
            self.failure = str(result) or type(result).__name__


def send(publisher: Publisher, spool: Spool, sent: Sent, progress: Callable[[int], None]) -> None:
    """Send all records and wait for their acknowledgements; the first failure ends it.

    ``progress`` hears how many are acknowledged.
    """
    try:
        for n, (_, key, value) in enumerate(spool.by_event_time()):
            if sent.failure:
                break
            publisher.send(key, value, sent.take)
            if n % 1000 == 0:
                progress(publisher.acknowledged)
        publisher.flush()
    except KafkaError as error:
        sent.take(error)
    progress(publisher.acknowledged)

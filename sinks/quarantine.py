"""Quarantined records as they are chosen for publishing them again, and the note of which were."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from clickhouse_driver import Client

from schemas.feed import Feed
from sinks.clickhouse import Server
from sinks.tables import MASKED, QUARANTINE

#: What is looked at together: letters, and bytes of them in hexadecimal.
MOST_LETTERS, MOST_BYTES = 1_000, 16 * 2**20

#: Topic, partition and offset.
Place = tuple[str, int, int]
#: Key, event time in ms and event id.
Identity = tuple[str, int, str]


@dataclass(frozen=True)
class Selection:
    """Which quarantined records are meant; what is None or empty does not narrow it.

    ``cause`` is a part of the cause in any case of letters; the record reached the broker from ``since_ms`` on and
    before ``until_ms``.
    """

    topics: Sequence[str]
    cause: str | None = None
    since_ms: int | None = None
    until_ms: int | None = None
    partition: int | None = None
    offset: int | None = None

    @property
    def condition(self) -> str:
        """As SQL, for the parameters of ``parameters``."""
        narrows = {
            "cause": "positionCaseInsensitiveUTF8(cause, %(cause)s) > 0",
            "since_ms": "toUnixTimestamp64Milli(published_at) >= %(since_ms)s",
            "until_ms": "toUnixTimestamp64Milli(published_at) < %(until_ms)s",
            "partition": "source_partition = %(partition)s",
            "offset": "%(offset)s BETWEEN source_offset AND last_offset",
        }
        given = [condition for name, condition in narrows.items() if getattr(self, name) is not None]
        return " AND ".join(["topic IN %(topics)s", *given])

    @property
    def parameters(self) -> dict[str, Any]:
        """What ``condition`` speaks of."""
        return {**vars(self), "topics": tuple(self.topics)}


@dataclass(frozen=True)
class Letter:
    """A quarantined record; without bytes if it stands for a whole batch or was too large."""

    topic: str
    partition: int
    offset: int
    cause: str
    key: bytes | None
    value: bytes | None
    arrived_ms: int

    @property
    def place(self) -> Place:
        """Where it was."""
        return self.topic, self.partition, self.offset


@dataclass(frozen=True)
class Redriven:
    """A quarantined record that was published again, and where it is now."""

    place: Place
    to_partition: int
    to_offset: int
    corrected: bool


_OPEN = (
    "(topic, source_partition, source_offset) NOT IN (SELECT topic, source_partition, source_offset FROM raw.redriven)"
)


def reader_of(feeds: Iterable[Feed]) -> str:
    """The ClickHouse user that sees the bytes of these feeds' letters; those that may name a person only the owner."""
    return "owner" if any(field.personal for feed in feeds for field in feed.fields) else "operator"


class Quarantine:
    """The quarantine as the owner reads it, or the operator."""

    def __init__(self, server: Server) -> None:
        self._letters = f"{QUARANTINE} FINAL" if server.user == "owner" else MASKED
        self._client: Client = server.connect(max_query_size=2**20)
        self._columns: Client = server.connect(use_numpy=True)

    def close(self) -> None:
        """Close the connections."""
        self._client.disconnect()
        self._columns.disconnect()

    def chunks(self, selection: Selection) -> list[tuple[str, int, list[int]]]:
        """Topic, partition and offsets of the chosen records that were not redriven, cut to be looked at together."""
        places = self._client.execute(
            f"SELECT DISTINCT topic, source_partition FROM raw.quarantine WHERE {selection.condition} ORDER BY ALL",
            selection.parameters,
        )
        return [(*place, chunk) for place in places for chunk in self._offsets(selection, *place)]

    def _offsets(self, selection: Selection, topic: str, partition: int) -> Iterator[list[int]]:
        offsets, sizes = self._columns.execute(
            f"SELECT source_offset, toUInt64(length(ifNull(value, ''))) FROM {self._letters} "
            f"WHERE topic = %(here)s AND source_partition = %(there)s AND {selection.condition} AND {_OPEN} "
            "ORDER BY source_offset",
            selection.parameters | {"here": topic, "there": partition},
            columnar=True,
        ) or (np.array([]), np.array([]))
        return (offsets[start:end].tolist() for start, end in cuts(sizes))

    def letters(self, topic: str, partition: int, offsets: Sequence[int]) -> list[Letter]:
        """The letters at these offsets, in their order."""
        rows = self._client.execute(
            "SELECT source_offset, cause, unhex(key), unhex(value), toUnixTimestamp64Milli(published_at) "
            f"FROM {self._letters} WHERE topic = %(topic)s AND source_partition = %(partition)s "
            "AND source_offset IN %(offsets)s ORDER BY source_offset",
            {"topic": topic, "partition": partition, "offsets": tuple(offsets)},
            settings={"strings_as_bytes": True},
        )
        return [
            Letter(topic, partition, offset, cause.decode(), key, value, arrived_ms)
            for offset, cause, key, value, arrived_ms in rows
        ]

    def known(self, places: Iterable[Place]) -> set[Place]:
        """Which of these are in quarantine."""
        wanted = list(places)
        if not wanted:
            return set()
        rows = self._client.execute(
            "SELECT topic, source_partition, source_offset FROM raw.quarantine "
            "WHERE (topic, source_partition, source_offset) IN (SELECT w.1, w.2, w.3 FROM "
            "(SELECT arrayJoin(%(wanted)s) AS w))",
            {"wanted": wanted},
        )
        return set(rows)

    def stored(self, feed: Feed, identities: Iterable[Identity]) -> dict[Identity, tuple[int, int]]:
        """Partition and offset of those events that are stored already."""
        wanted = list(identities)
        if not wanted:
            return {}
        rows = self._client.execute(
            f"SELECT {feed.key}, toUnixTimestamp64Milli({feed.event_time}), toString(event_id), "
            f"any((source_partition, source_offset)) FROM raw.{feed.name} "
            f"WHERE ({feed.key}, {feed.event_time}, event_id) IN (SELECT w.1, fromUnixTimestamp64Milli(w.2), "
            "toUUID(w.3) FROM (SELECT arrayJoin(%(wanted)s) AS w)) GROUP BY ALL",
            {"wanted": wanted},
        )
        return {(key, event_ms, event_id): place for key, event_ms, event_id, place in rows}

    def note(self, redriven: Sequence[Redriven]) -> None:
        """Remember what was published again."""
        if redriven:
            self._client.execute(
                "INSERT INTO raw.redriven (topic, source_partition, source_offset, to_partition, to_offset, corrected) "
                "VALUES",
                [(*one.place, one.to_partition, one.to_offset, one.corrected) for one in redriven],
            )


def cuts(sizes: npt.NDArray[Any]) -> Iterator[tuple[int, int]]:
    """Where to cut a list of things of these sizes: pieces of ``MOST_LETTERS`` and ``MOST_BYTES``, or of one thing."""
    ends = np.cumsum(sizes)
    start = 0
    while start < len(sizes):
        before = ends[start] - sizes[start]
        end = int(np.searchsorted(ends, before + MOST_BYTES, side="right"))
        end = min(max(end, start + 1), start + MOST_LETTERS)
        yield start, end
        start = end

"""What ClickHouse has to show of a feed, computed from the feed's topic alone, one record after the other.

Slow and obviously right: it knows the declarations of feeds and the frozen schemas, reads the topic from its beginning
with another client than the workers do, and shares no code with them. Every event counts once, wherever it came in the
log, so a window is what its distinct events add up to; only ``final``, ``late`` and ``as_of`` depend on their order.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import fastavro
from kafka import KafkaConsumer, TopicPartition

from schemas.catalogue import FROZEN
from schemas.feed import Aggregate, Feed
from tests.reference.partition import MILLISECOND, Key, Logged, Values, is_closed
from tests.reference.partition import problems as broken_fields
from tests.reference.partition import window_start as start_of
from tests.reference.results import results_of

#: Partition and offset.
Place = tuple[int, int]
#: An event and where it lies.
Event = tuple[Place, Values]

#: Bytes before the body of a record: 0, and the number of its schema.
FRAME = 5
BEGINNING = -(2**63)
#: Key and value of a quarantined record, in bytes; of a larger one they stay in the log.
LARGEST_KEPT = 512 * 1024

#: Words for what is wrong with bytes; a cause has to have one of those that fit.
NO_KEY, NO_VALUE, NO_FRAME = "has no key", "has no value", "does not start with"
UNREADABLE = ("is cut off", "is not of schema", "are left over", "not in canonical Avro")


class NoRecord(ValueError):
    """Bytes that are not exactly one record of a topic; its arguments are words, one of which the cause has to have."""


@dataclass(frozen=True)
class Read(Logged):
    """A record of a topic with its bytes; ``wrong`` are words for what is wrong with them if they are no record."""

    value: bytes | None
    wrong: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Letter:
    """A record that has to be quarantined, as it came; ``arrived_ms`` is when the broker stored it.

    ``causes`` are the words of which its cause has to have one, or for VALIDATE the fields of which it has to name one.
    """

    stage: Literal["DECODE", "VALIDATE"]
    causes: frozenset[str]
    key: bytes | None
    value: bytes | None
    arrived_ms: int

    def is_explained_by(self, cause: str) -> bool:
        """Whether a cause says what is wrong with it."""
        if self.stage == "VALIDATE":
            return re.split("[:.]", cause)[0] in self.causes
        return any(words in cause for words in self.causes)

    @property
    def kept(self) -> tuple[bytes | None, bytes | None]:
        """Key and value as the quarantine has them."""
        size = len(self.key or b"") + len(self.value or b"")
        return (self.key, self.value) if size <= LARGEST_KEPT else (None, None)


@dataclass
class Shown:
    """A window as its view has to show it; ``last`` is where its last event lies."""

    last: Place
    events: int
    results: dict[str, float | None]
    final: bool
    as_of_ms: int


@dataclass
class Truth:
    """Everything that follows from one feed's topic; ``ends`` are the ends of its partitions."""

    ends: dict[int, int] = field(default_factory=dict)
    rows: dict[Place, tuple[Any, ...]] = field(default_factory=dict)
    repeats: set[Place] = field(default_factory=set)
    letters: dict[Place, Letter] = field(default_factory=dict)
    control: set[Place] = field(default_factory=set)
    windows: dict[str, dict[Key, Shown]] = field(default_factory=dict)
    late: int = 0


@dataclass(frozen=True)
class _Frozen:
    """A schema by its number: as it was declared, and ``plain``, without logical types."""

    subject: str
    declared: Any
    plain: Any


class Schemas:
    """The frozen schemas as they lie in their files."""

    def __init__(self, folder: Path = FROZEN) -> None:
        self._frozen: dict[int, _Frozen] = {}
        for number, entry in json.loads((folder / "ids.json").read_text()).items():
            schema = json.loads((folder / entry["subject"] / f"{entry['version']}.avsc").read_text())
            parsed = fastavro.parse_schema(schema), fastavro.parse_schema(_plain(schema))
            self._frozen[int(number)] = _Frozen(entry["subject"], *parsed)

    def record(self, topic: str, offset: int, key: bytes | None, value: bytes | None, arrived_ms: int) -> Read:
        """A record of a topic."""
        try:
            return Read(offset, key, self._values(topic, value), arrived_ms, value)
        except NoRecord as error:
            return Read(offset, key, None, arrived_ms, value, frozenset(error.args))

    def _values(self, topic: str, value: bytes | None) -> Values:
        """The fields of a record as they are on the wire.

        Raises
        ------
        NoRecord
            The bytes are not exactly what is written for one record of the topic.
        """
        if value is None:
            raise NoRecord(NO_VALUE)
        if len(value) < FRAME or value[0] != 0:
            raise NoRecord(NO_FRAME)
        number, body = int.from_bytes(value[1:FRAME]), value[FRAME:]
        frozen = self._frozen.get(number)
        if frozen is None:
            raise NoRecord(f"schema id {number} is not")
        if frozen.subject != topic:
            raise NoRecord(*([f"schema {number} is of {frozen.subject}"] if _fits(frozen, body) else UNREADABLE))
        again = io.BytesIO()
        try:
            found = fastavro.schemaless_reader(io.BytesIO(body), frozen.plain, None)
            fastavro.schemaless_writer(again, frozen.plain, found)
        except Exception as error:
            raise NoRecord(*UNREADABLE) from error
        if again.getvalue() != body:
            raise NoRecord(*UNREADABLE)
        assert isinstance(found, dict)
        return found


def _fits(frozen: _Frozen, body: bytes) -> bool:
    """Whether bytes can be read by a schema to their last."""
    rest = io.BytesIO(body)
    try:
        fastavro.schemaless_reader(rest, frozen.declared, None)
    except Exception:  # noqa: BLE001 - whatever the library makes of noise
        return False
    return rest.tell() == len(body)


def _plain(schema: Any) -> Any:
    """A schema without logical types: numbers stay numbers."""
    if isinstance(schema, dict):
        return {name: _plain(value) for name, value in schema.items() if name != "logicalType"}
    return [_plain(one) for one in schema] if isinstance(schema, list) else schema


def read_topic(bootstrap: str, topic: str, schemas: Schemas) -> Iterator[tuple[int, int, list[Read]]]:
    """Partition, end and records of each partition of a topic, from offset 0, as committed.

    Raises
    ------
    OffsetOutOfRangeError
        Its first records are not in the log any more.
    """
    with closing(
        KafkaConsumer(
            bootstrap_servers=bootstrap,
            isolation_level="read_committed",
            enable_auto_commit=False,
            auto_offset_reset="none",
        )
    ) as consumer:
        for number in sorted(consumer.partitions_for_topic(topic)):
            here = TopicPartition(topic, number)
            consumer.assign([here])
            consumer.seek(here, 0)
            end = consumer.end_offsets([here])[here]
            records = []
            while consumer.position(here) < end:
                for batch in consumer.poll(timeout_ms=1000).values():
                    records += [schemas.record(topic, r.offset, r.key, r.value, r.timestamp) for r in batch]
            yield number, end, records


def truth(feed: Feed, partitions: Iterable[tuple[int, int, Sequence[Read]]]) -> Truth:
    """Go through a feed's topic: the number, end and records of each of its partitions."""
    result = Truth()
    windows: dict[str, dict[Key, list[Event]]] = {aggregate.name: {} for aggregate in feed.aggregates}
    newest: dict[int, int] = {}
    for number, end, records in partitions:
        result.ends[number] = end
        result.control |= {(number, offset) for offset in range(end)} - {(number, r.offset) for r in records}
        seen = None
        identities = set()
        for record in records:
            place = number, record.offset
            wrong = _letter(feed, record)
            if wrong:
                result.letters[place] = wrong
                continue
            assert record.values is not None
            values = record.values
            event_ms: int = values[feed.event_time]
            identity = values[feed.key], event_ms, values["event_id"]
            if identity in identities:
                result.repeats.add(place)
            else:
                identities.add(identity)
                late = any(is_closed(feed, a, start_of(a, event_ms), seen) for a in feed.aggregates)
                result.late += late
                before = BEGINNING if seen is None else seen
                result.rows[place] = (*_cells(feed, values), record.arrived_ms, before, int(late))
                for aggregate in feed.aggregates:
                    key = (*(values[name] for name in aggregate.by), start_of(aggregate, event_ms))
                    windows[aggregate.name].setdefault(key, []).append((place, values))
            seen = event_ms if seen is None else max(seen, event_ms)
        if seen is not None:
            newest[number] = seen
    for aggregate in feed.aggregates:
        result.windows[aggregate.name] = {
            key: _shown(feed, aggregate, key, events, newest) for key, events in windows[aggregate.name].items()
        }
    return result


def _letter(feed: Feed, record: Read) -> Letter | None:
    came = record.key, record.value, record.arrived_ms
    if record.key is None:
        return Letter("DECODE", frozenset([NO_KEY]), *came)
    if record.values is None:
        return Letter("DECODE", record.wrong, *came)
    wrong = broken_fields(feed, record.values, record.key, record.arrived_ms)
    return Letter("VALIDATE", frozenset(wrong), *came) if wrong else None


def _cells(feed: Feed, values: Values) -> Iterator[Any]:
    """A record as the columns of its table: times as ms, a place as two."""
    for described in feed.fields:
        value = values[described.name]
        if described.kind == "place":
            yield from (None, None) if value is None else (value["longitude"], value["latitude"])
        else:
            yield value


def _shown(feed: Feed, aggregate: Aggregate, key: Key, events: Sequence[Event], newest: Mapping[int, int]) -> Shown:
    """A window is final, and its numbers complete, as far as every partition that can add to it has come."""
    partitions = {number for (number, _), _ in events}
    able = partitions if feed.key in aggregate.by else range(feed.partitions)
    seen = min((newest[number] for number in able), default=0) if all(n in newest for n in able) else 0
    results: dict[str, float | None] = {}
    for measure in aggregate.measures:
        results |= results_of(measure, [values for _, values in events])
    final = is_closed(feed, aggregate, key[-1], seen)
    return Shown(events[-1][0], len(events), results, final, seen - feed.disorder // MILLISECOND)

"""What ClickHouse has to show of a feed, computed from the feed's topics alone, one record after the other.

Slow and obviously right: it knows the declarations of feeds and the frozen schemas, reads the topics from their
beginning with another client than the workers do, and shares no code with them. Every event counts once, wherever it
came in the log, so a window is what its distinct events add up to; only ``final``, ``late`` and ``as_of`` depend on
their order.

A topic that a feed has outgrown has ended: ``citystream init`` ran, and what the topic counts is stored.
"""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal
from zoneinfo import ZoneInfo

import fastavro
from kafka import KafkaConsumer, TopicPartition

from schemas.catalogue import FROZEN
from schemas.feed import Aggregate, Feed, RollUp
from schemas.model import COMPONENTS, Field
from schemas.reference import Reference
from streams.cluster import Cluster
from tests.reference.partition import MILLISECOND, Key, Logged, Values, is_closed, moved_by
from tests.reference.partition import Truth as PartitionTruth
from tests.reference.partition import problems as broken_fields
from tests.reference.partition import truth as truth_of_partition
from tests.reference.partition import window_start as start_of
from tests.reference.results import results_of
from tests.reference.rules import Tables, Told, Version, alerts_of, alerts_of_groups, known_of
from tests.reference.spans import Change, spans
from tests.reference.topics import Topic, topics

#: How much older than a record's arrival what is looked up for it is, in ms.
GRACE_MS = 10_000
#: Partition and offset.
Place = tuple[int, int]

#: Bytes before the body of a record: 0, and the number of its schema.
FRAME = 5
#: In the place of the maximum of event time: before the first event, and where its topic does not count an event.
BEGINNING, ASIDE = -(2**63), 2**63 - 1
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


#: Number, end and records of a partition.
Log = tuple[int, int, list[Read]]


@dataclass(frozen=True)
class Letter:
    """A record that has to be quarantined, as it came; ``arrived_ms`` is when the broker stored it.

    ``causes`` are the words of which its cause has to have one, or for VALIDATE the fields it has to name.
    """

    stage: Literal["DECODE", "VALIDATE"]
    causes: frozenset[str]
    key: bytes | None
    value: bytes | None
    arrived_ms: int

    def is_explained_by(self, cause: str) -> bool:
        """Whether a cause says what is wrong with it."""
        if self.stage == "VALIDATE":
            return {re.split("[:.]", reason)[0] for reason in cause.split("; ")} == self.causes
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


@dataclass(frozen=True)
class Event:
    """A valid record; ``before`` is the maximum of event time before it, in its partition."""

    place: Place
    values: Values
    arrived_ms: int
    before: int

    @property
    def rank(self) -> tuple[bool, Place]:
        """Of several records of one event the lowest stays: that which its topic counts, then the first one."""
        return self.before == ASIDE, self.place


@dataclass
class Truth:
    """Everything that follows from one feed's topics; ``ends`` are the ends of their partitions."""

    ends: dict[int, int] = field(default_factory=dict)
    rows: dict[Place, tuple[Any, ...]] = field(default_factory=dict)
    repeats: set[Place] = field(default_factory=set)
    letters: dict[Place, Letter] = field(default_factory=dict)
    control: set[Place] = field(default_factory=set)
    windows: dict[str, dict[Key, Shown]] = field(default_factory=dict)
    alerts: list[Told] = field(default_factory=list)
    late: int = 0
    #: The distinct events, and how far each partition has come (ms).
    events: Sequence[Event] = ()
    newest: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Frozen:
    """A schema by its number: as it was declared, and ``plain``, without logical types."""

    subject: str
    declared: Any
    plain: Any


class Schemas:
    """The frozen schemas as they lie in their files."""

    def __init__(self, folder: Path | None = None) -> None:
        folder = folder or FROZEN
        self._frozen: dict[int, _Frozen] = {}
        entries = json.loads((folder / "ids.json").read_text())
        for number, entry in ((number, entry) for number, entry in entries.items() if number != "version"):
            schema = json.loads((folder / entry["subject"] / f"{entry['version']}.avsc").read_text())
            parsed = fastavro.parse_schema(schema), fastavro.parse_schema(_plain(schema))
            self._frozen[int(number)] = _Frozen(entry["subject"], *parsed)

    def record(self, subject: str, offset: int, key: bytes | None, value: bytes | None, arrived_ms: int) -> Read:
        """A record of a topic whose schemas are those of a subject."""
        tick_ms, delay_ms = (None, None) if key is not None or value is None else self._tick(value)
        if tick_ms is not None or delay_ms is not None:
            return Read(offset, key, None, arrived_ms, value, tick_ms=tick_ms, delay_ms=delay_ms)
        try:
            return Read(offset, key, self._values(subject, value), arrived_ms, value)
        except NoRecord as error:
            return Read(offset, key, None, arrived_ms, value, frozenset(error.args))

    def _tick(self, value: bytes) -> tuple[int | None, int | None]:
        """The time that a tick says, or how long before its arrival it is; both in ms."""
        frozen = self._frozen.get(int.from_bytes(value[1:FRAME])) if value[:1] == b"\0" else None
        if frozen is None or frozen.subject != "tick" or not _fits(frozen, value[FRAME:]):
            return None, None
        said: Any = fastavro.schemaless_reader(io.BytesIO(value[FRAME:]), frozen.plain, None)
        return said["event_time"], None if said["event_time"] is not None else said["delay"]

    def _values(self, subject: str, value: bytes | None) -> Values:
        """The fields of a record as they are on the wire.

        Raises
        ------
        NoRecord
            The bytes are not exactly what is written for one record of the subject.
        """
        if value is None:
            raise NoRecord(NO_VALUE)
        if len(value) < FRAME or value[0] != 0:
            raise NoRecord(NO_FRAME)
        number, body = int.from_bytes(value[1:FRAME]), value[FRAME:]
        frozen = self._frozen.get(number)
        if frozen is None:
            raise NoRecord(f"schema id {number} is not")
        if frozen.subject != subject:
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


def read_feed(cluster: Cluster, feed: Feed, schemas: Schemas) -> Iterator[Log]:
    """Each partition of all topics of a feed, under its number among them."""
    for topic in topics(feed):
        for number, end, records in read_topic(cluster, topic.name, schemas, subject=feed.name):
            yield topic.numbers[number], end, records


def read_topic(
    cluster: Cluster, topic: str, schemas: Schemas, *, whole: bool = True, subject: str | None = None
) -> Iterator[Log]:
    """Each partition of a topic, as committed, from offset 0, or if it is not ``whole`` from the first that is there.

    ``subject`` is that of its schemas, by default the topic's name.

    Raises
    ------
    OffsetOutOfRangeError
        Its first records are not in the log any more.
    """
    with closing(
        KafkaConsumer(
            **cluster.kafka_python(),
            isolation_level="read_committed",
            enable_auto_commit=False,
            auto_offset_reset="none",
        )
    ) as consumer:
        for number in sorted(consumer.partitions_for_topic(topic)):
            here = TopicPartition(topic, number)
            consumer.assign([here])
            consumer.seek(here, 0 if whole else consumer.beginning_offsets([here])[here])
            end = consumer.end_offsets([here])[here]
            records = []
            while consumer.position(here) < end:
                for batch in consumer.poll(timeout_ms=1000).values():
                    records += [schemas.record(subject or topic, r.offset, r.key, r.value, r.timestamp) for r in batch]
            yield number, end, records


def tables(cluster: Cluster, references: Iterable[Reference], schemas: Schemas) -> Tables:
    """What is known of tables of reference data, by their topics."""
    versions: dict[str, list[Version]] = {}
    for one in references:
        ((_, _, records),) = read_topic(cluster, one.name, schemas)
        versions[one.name] = []
        for record in records:
            members = json.loads(record.key or b"[]")
            if members:
                *key, begins = members
                ends = None if record.values is None or one.valid_to is None else record.values[one.valid_to]
                versions[one.name].append((record.arrived_ms, tuple(key), begins, ends, record.values))

    def look(table: str, key: tuple[Any, ...], arrived: int, event: int) -> Any:
        return known_of(versions[table], GRACE_MS, key, arrived, event)

    return look


def truth(feed: Feed, partitions: Iterable[Log], known: Tables | None = None) -> Truth:
    """Go through a feed's topics: the number, end and records of each of their partitions.

    What its topic does not count moves no maximum, and is late for every window. ``known`` is what its rules look up.
    """
    result = Truth()
    first: dict[tuple[Any, ...], Event] = {}
    newest: dict[int, int] = {}
    apart: list[PartitionTruth] = []
    for number, end, records in partitions:
        result.ends[number] = end
        if feed.raises_alerts:
            apart.append(truth_of_partition(feed, records))
            result.alerts += alerts_of(feed, records, apart[-1], known)
        result.control |= {(number, offset) for offset in range(end)} - {(number, r.offset) for r in records}
        topic = next(one for one in topics(feed) if number in one.numbers)
        seen = BEGINNING
        for record in records:
            place = number, record.offset
            wrong = _letter(feed, record)
            if wrong:
                result.letters[place] = wrong
                continue
            if record.is_tick:
                result.control.add(place)
                newest[number] = seen = max(seen, moved_by(feed, record))
                continue
            assert record.values is not None
            values = record.values
            event_ms: int = values[feed.event_time]
            counts = topic.counts(event_ms, record.arrived_ms)
            event = Event(place, values, record.arrived_ms, seen if counts else ASIDE)
            identity = values[feed.key], event_ms, values["event_id"]
            kept, dropped = event, first.get(identity)
            if dropped is not None:
                kept, dropped = sorted((event, dropped), key=lambda one: one.rank)
                result.repeats.add(dropped.place)
            first[identity] = kept
            if counts:
                seen = max(seen, event_ms)
                newest[number] = seen
    result.alerts += alerts_of_groups(feed, apart)
    _add_events(feed, result, sorted(first.values(), key=lambda event: event.place), newest)
    return result


def _add_events(feed: Feed, result: Truth, events: Sequence[Event], newest: Mapping[int, int]) -> None:
    """The rows of distinct events, and the windows that they add up to."""
    result.events, result.newest = events, newest
    windows: dict[str, dict[Key, list[Event]]] = {aggregate.name: {} for aggregate in feed.aggregates}
    for event in events:
        starts = [(aggregate, start_of(aggregate, event.values[feed.event_time])) for aggregate in feed.aggregates]
        late = any(is_closed(feed, aggregate, start, event.before) for aggregate, start in starts)
        result.late += late
        result.rows[event.place] = (*_cells(feed, event.values), event.arrived_ms, event.before, int(late))
        for aggregate, start in starts:
            key = (*(event.values[name] for name in aggregate.by), start)
            windows[aggregate.name].setdefault(key, []).append(event)
    last = [*topics(feed)][-1]
    for aggregate in feed.aggregates:
        result.windows[aggregate.name] = {
            key: _shown(feed, aggregate, key[-1], there, last, newest) for key, there in windows[aggregate.name].items()
        }


def rolled(feed: Feed, aggregate: Aggregate, rollup: RollUp, zone: ZoneInfo, wanted: Truth) -> dict[Key, Shown]:
    """The hours or days of a roll-up as its view has to show them, ``capture`` among the results."""
    spans: dict[Key, list[Event]] = {}
    for event in wanted.events:
        begin, _ = span_of(rollup, start_of(aggregate, event.values[feed.event_time]), zone)
        spans.setdefault((*(event.values[name] for name in aggregate.by), begin), []).append(event)
    found = {}
    for key, events in spans.items():
        _, end = span_of(rollup, key[-1], zone)
        window = aggregate.window // MILLISECOND
        counts = Counter(start_of(aggregate, event.values[feed.event_time]) for event in events)
        there = sum(min(count, aggregate.expected) for count in counts.values())
        capture = there / (aggregate.expected * ((end - key[-1]) // window))
        shown = _shown(feed, aggregate, end - window, events, [*topics(feed)][-1], wanted.newest)
        results = {name: value if capture >= rollup.capture else None for name, value in shown.results.items()}
        found[key] = replace(shown, results={**results, "capture": capture})
    return found


def span_of(rollup: RollUp, at_ms: int, zone: ZoneInfo) -> tuple[int, int]:
    """Where the hour or the day of the city begins and ends (ms) that an instant lies in."""
    local = datetime.fromtimestamp(at_ms / 1000, zone)
    if rollup.to == "hour":
        begin = at_ms - (local.minute * 60 + local.second) * 1000 - local.microsecond // 1000
        return begin, begin + 3_600_000
    midnight = datetime(local.year, local.month, local.day, tzinfo=zone)
    begin, end = (round(day.timestamp() * 1000) for day in (midnight, midnight + timedelta(days=1)))
    return begin, end


def latest(feed: Feed, by: str, shown: Truth, until_ms: int | None = None) -> dict[Any, tuple[Any, ...]]:
    """The row of the newest event of each entity, up to a time (ms)."""
    names = [name for described in feed.fields for name in _columns(described)]
    found: dict[Any, tuple[Any, ...]] = {}
    for row in shown.rows.values():
        values = dict(zip(names, row, strict=False))
        rank = values[feed.event_time], values["event_id"], values[feed.key]
        if until_ms is None or rank[0] <= until_ms:
            found[values[by]] = max((rank, row), found.get(values[by], (rank, row)))
    return {entity: row for entity, (_, row) in found.items()}


def states(feed: Feed, of: str, by: str, shown: Truth, since: int, until: int) -> set[tuple[Any, ...]]:
    """Event id, key, state, the state before, when it began and ended (ms) of each state from one time to another."""
    names = [name for described in feed.fields for name in _columns(described)]
    changes = []
    for row in shown.rows.values():
        values = dict(zip(names, row, strict=False))
        rank = values["event_id"], values[feed.key]
        changes.append(Change(values[by], values[feed.event_time], rank, values[of]))
    found = spans(changes, since, until)
    return {(*one.first.rank, one.first.state, one.before, one.began, one.ended) for one in found}


def _columns(described: Field) -> list[str]:
    return [f"{described.name}_{p}" for p in COMPONENTS["place"]] if described.kind == "place" else [described.name]


def _letter(feed: Feed, record: Read) -> Letter | None:
    came = record.key, record.value, record.arrived_ms
    if record.is_tick:
        return None
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


def _shown(
    feed: Feed, aggregate: Aggregate, start: int, events: Sequence[Event], last: Topic, newest: Mapping[int, int]
) -> Shown:
    """A window is final, and its numbers complete, as far as every partition that can still add to it has come.

    Those are of the last topic; all that happened before what it counts is there.
    """
    own = {event.place[0] for event in events} & set(last.numbers) if feed.key in aggregate.by else set()
    seen = min(newest.get(number, 0) for number in own or last.numbers)
    if last.after_ms is not None:
        seen = max(seen, last.after_ms)
    results: dict[str, float | None] = {}
    for measure in aggregate.measures:
        results |= results_of(
            measure, [event.values for event in events], lambda event: (event[feed.event_time], event["event_id"])
        )
    final = is_closed(feed, aggregate, start, seen)
    return Shown(events[-1].place, len(events), results, final, seen - feed.disorder // MILLISECOND)

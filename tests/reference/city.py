"""What ClickHouse has to show of a feed, computed from the feed's topic alone, one record after the other.

Slow and obviously right: it knows the declarations of feeds and the frozen schemas, reads the topic from its beginning
with another client than the workers do, and shares no code with them. Every event counts once, wherever it came in the
log, so a window is what its distinct events add up to; only ``final``, ``late`` and ``as_of`` depend on their order.
"""

from __future__ import annotations

import io
import json
import re
import struct
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fastavro
from kafka import KafkaConsumer, TopicPartition

from schemas.catalogue import FROZEN
from schemas.expressions import Scaled
from schemas.feed import Aggregate, Feed
from schemas.measures import Measure
from tests.reference.partition import GAMMA, MILLISECOND, Key, Logged, Values, Window, count_in, is_closed
from tests.reference.partition import problems as broken_fields
from tests.reference.partition import window_start as start_of

#: Partition and offset.
Place = tuple[int, int]

FRAME = struct.Struct(">bI")
BEGINNING = -(2**63)


@dataclass(frozen=True)
class Letter:
    """A record that has to be quarantined: the stage, and the fields of which its cause has to name one."""

    stage: str
    fields: frozenset[str] = frozenset()


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
    """Everything that follows from one feed's topic."""

    rows: dict[Place, tuple[Any, ...]] = field(default_factory=dict)
    repeats: set[Place] = field(default_factory=set)
    letters: dict[Place, Letter] = field(default_factory=dict)
    control: set[Place] = field(default_factory=set)
    windows: dict[str, dict[Key, Shown]] = field(default_factory=dict)
    published: int = 0
    late: int = 0


class Schemas:
    """The frozen schemas as they lie in their files."""

    def __init__(self, folder: Path = FROZEN) -> None:
        self._parsed: dict[int, tuple[str, Any]] = {}
        for number, entry in json.loads((folder / "ids.json").read_text()).items():
            schema = json.loads((folder / entry["subject"] / f"{entry['version']}.avsc").read_text())
            self._parsed[int(number)] = entry["subject"], fastavro.parse_schema(_plain(schema))

    def read(self, topic: str, value: bytes | None) -> Values | None:
        """The fields of a record as they are on the wire; None if the bytes are not exactly one record of the topic."""
        if value is None or len(value) < FRAME.size:
            return None
        magic, number = FRAME.unpack_from(value)
        subject, schema = self._parsed.get(number, (None, None))
        if magic != 0 or subject != topic:
            return None
        try:
            found = fastavro.schemaless_reader(io.BytesIO(value[FRAME.size :]), schema, None)
            again = io.BytesIO()
            fastavro.schemaless_writer(again, schema, found)
        except Exception:  # noqa: BLE001 - whatever the library makes of noise
            return None
        if again.getvalue() != value[FRAME.size :]:
            return None
        assert isinstance(found, dict)
        return found


def _plain(schema: Any) -> Any:
    """A schema without logical types: numbers stay numbers."""
    if isinstance(schema, dict):
        return {name: _plain(value) for name, value in schema.items() if name != "logicalType"}
    return [_plain(one) for one in schema] if isinstance(schema, list) else schema


def read_topic(bootstrap: str, topic: str, schemas: Schemas) -> Iterator[tuple[int, int, list[Logged]]]:
    """Partition, end and records of each partition of a topic, from its beginning, as committed."""
    with closing(
        KafkaConsumer(bootstrap_servers=bootstrap, isolation_level="read_committed", enable_auto_commit=False)
    ) as consumer:
        for number in sorted(consumer.partitions_for_topic(topic)):
            here = TopicPartition(topic, number)
            consumer.assign([here])
            consumer.seek(here, 0)
            end = consumer.end_offsets([here])[here]
            records = []
            while consumer.position(here) < end:
                for batch in consumer.poll(timeout_ms=1000).values():
                    records += [Logged(r.offset, r.key, schemas.read(topic, r.value), r.timestamp) for r in batch]
            yield number, end, records


def truth(feed: Feed, partitions: Iterator[tuple[int, int, list[Logged]]]) -> Truth:
    """Go through a feed's topic."""
    result = Truth()
    windows: dict[str, dict[Key, Counted]] = {aggregate.name: {} for aggregate in feed.aggregates}
    newest: dict[int, int] = {}
    for number, end, records in partitions:
        result.published += end
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
                    counted = windows[aggregate.name].setdefault(key, Counted())
                    counted.add(aggregate, values, place)
            seen = event_ms if seen is None else max(seen, event_ms)
        if seen is not None:
            newest[number] = seen
    for aggregate in feed.aggregates:
        result.windows[aggregate.name] = {
            key: _shown(feed, aggregate, key, counted, newest) for key, counted in windows[aggregate.name].items()
        }
    return result


@dataclass
class Counted:
    """What the events of a window add up to."""

    window: Window = field(default_factory=Window)
    last: Place = (0, -1)
    partitions: set[int] = field(default_factory=set)

    def add(self, aggregate: Aggregate, values: Values, place: Place) -> None:
        """Count an event."""
        count_in(aggregate, self.window, values, place[1])
        self.last = place
        self.partitions.add(place[0])


def _letter(feed: Feed, record: Logged) -> Letter | None:
    if record.key is None or record.values is None:
        return Letter("DECODE")
    wrong = broken_fields(feed, record.values, record.key, record.arrived_ms)
    return Letter("VALIDATE", frozenset(wrong)) if wrong else None


def _cells(feed: Feed, values: Values) -> Iterator[Any]:
    """A record as the columns of its table: times as ms, a place as two."""
    for described in feed.fields:
        value = values[described.name]
        if described.kind == "place":
            yield from (None, None) if value is None else (value["longitude"], value["latitude"])
        else:
            yield value


def _shown(feed: Feed, aggregate: Aggregate, key: Key, counted: Counted, newest: Mapping[int, int]) -> Shown:
    """A window is final, and its numbers complete, as far as every partition that can add to it has come."""
    able = counted.partitions if feed.key in aggregate.by else range(feed.partitions)
    seen = min((newest[number] for number in able), default=0) if all(n in newest for n in able) else 0
    results: dict[str, float | None] = {}
    for measure in aggregate.measures:
        results |= _results(measure, counted.window.partials)
    final = is_closed(feed, aggregate, key[-1], seen)
    return Shown(counted.last, counted.window.events, results, final, seen - feed.disorder // MILLISECOND)


def _results(measure: Measure, partials: Mapping[str, Any]) -> dict[str, float | None]:
    """What an analyst sees of a measure, by the kind that the names of its partials tell."""
    found = [partials[partial.name] for partial in measure.partials]
    names = [result.name for result in measure.results]
    match [partial.name.rpartition("_")[2] for partial in measure.partials]:
        case ["sum"]:
            values = [_divided(found[0], _scale(measure))]
        case ["low", "high", "sum", "count"]:
            low, high, total, count = found
            mean = _divided(total, count)
            values = [_divided(low, _scale(measure)), _divided(high, _scale(measure)), _divided(mean, _scale(measure))]
        case ["true", "known"] | ["over", "under"]:
            values = [_divided(*found)]
        case ["histogram"]:
            values = [_quantile(found[0], result.name, result.sql) for result in measure.results]
        case other:
            raise TypeError(other)
    return dict(zip(names, values, strict=True))


def _divided(over: float | None, under: float) -> float | None:
    return None if over is None or not under else over / under


def _scale(measure: Measure) -> int:
    value = measure.partials[0].value
    assert isinstance(value, Scaled)
    return value.scale


def _quantile(histogram: Mapping[int, int], name: str, sql: str) -> float | None:
    """The bucket of rank floor(q * (n - 1)); the divisor is written nowhere but in the SQL."""
    if not histogram:
        return None
    divisor = int(re.findall(r"/ (\d+)\)$", sql)[0])
    rank = int(float(name.rpartition("_p")[2]) / 100 * (sum(histogram.values()) - 1))
    for bucket in sorted(histogram):
        rank -= histogram[bucket]
        if rank < 0:
            return (0.0 if bucket < 0 else 2 * GAMMA**bucket / (GAMMA + 1)) / divisor
    raise AssertionError(histogram)

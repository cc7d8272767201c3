"""What ClickHouse has of a feed, read as plain data: the queries, and no judgement."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clickhouse_driver import Client

from schemas.alerts import FEED_NAME
from schemas.feed import Aggregate, Feed, RollUp
from sinks.tables import LEDGER_BLOCK
from tests.reference.city import Place
from tests.reference.partition import Key
from tests.reference.rules import Told

#: As many rows at a time as are held beside the reference.
_BLOCK = {"max_block_size": 50_000}


@dataclass(frozen=True)
class FoundLetter:
    """A row of the quarantine: the offsets from ``first`` to ``last``; key and value hexadecimal, times in ms."""

    partition: int
    first: int
    last: int
    stage: str
    cause: str
    key: str | None
    value: str | None
    published_ms: int


@dataclass(frozen=True)
class FoundWindow:
    """A window as its view shows it."""

    key: Key
    events: int
    final: bool
    as_of_ms: int
    results: Mapping[str, float | None]


@dataclass(frozen=True)
class Stretch:
    """A row about the offsets from ``first`` to ``last`` of a partition, in a table that all topics share."""

    table: str
    topic: str
    partition: int
    first: int
    last: int


def rows(client: Client, feed: Feed) -> Iterator[tuple[Place, tuple[Any, ...]]]:
    """Place and cells of each row of a feed's table, as they are read."""
    columns = [column for described in feed.fields for column in _columns(described.name, described.kind)]
    query = (
        f"SELECT source_partition, source_offset, {', '.join(columns)}, toUnixTimestamp64Milli(arrived_at), "
        f"seen_before, late FROM raw.{feed.name} FINAL"
    )
    for partition, offset, *cells in client.execute_iter(query, settings=_BLOCK):
        yield (partition, offset), tuple(cells)


def _columns(name: str, kind: str) -> list[str]:
    match kind:
        case "instant":
            return [f"toUnixTimestamp64Milli({name})"]
        case "date":
            return [f"toInt32({name})"]
        case "uuid":
            return [f"toString({name})"]
        case "place":
            return [f"{name}_longitude", f"{name}_latitude"]
    return [name]


def alerts(client: Client, feed: str) -> Iterator[Told]:
    """What was said of alerts that a feed raised."""
    query = (
        "SELECT rule, entity, toUnixTimestamp64Milli(sent), msg_type, severity, toUnixTimestamp64Milli(onset), numbers "
        f"FROM raw.{FEED_NAME} FINAL WHERE feed = %(feed)s"
    )
    for rule, entity, sent, does, severity, onset, numbers in client.execute(query, {"feed": feed}):
        found = tuple(None if number is None else float(number) for number in json.loads(numbers).values())
        yield Told(rule, tuple(entity.split(", ")), sent, does, severity, onset, found)


def latest(client: Client, feed: Feed, view: str, by: str) -> dict[Any, tuple[Any, ...]]:
    """The cells of the row that a view of newest states has of each entity."""
    columns = [column for described in feed.fields for column in _columns(described.name, described.kind)]
    query = f"SELECT {by}, {', '.join(columns)}, toUnixTimestamp64Milli(arrived_at) FROM city.{view}"
    rows = client.execute(query)
    assert len({entity for entity, *_ in rows}) == len(rows)
    return {entity: tuple(cells) for entity, *cells in rows}


def spans(client: Client, feed: Feed, of: str, since: int, until: int) -> set[tuple[Any, ...]]:
    """Event id, key, state, the state before, when it began and ended (ms) of each row of a view of spans."""
    moments = ", ".join(f"{n}=fromUnixTimestamp64Milli({ms})" for n, ms in (("since", since), ("until", until)))
    began, ended = ("toUnixTimestamp64Milli(began)", "toUnixTimestamp64Milli(ended)")
    rows = client.execute(
        f"SELECT toString(event_id), {feed.key}, {of}, before, {began}, {ended}, "
        f"ifNull(duration = ({ended} - {began}) / 1000, duration IS NULL AND ended IS NULL) "
        f"FROM city.{feed.name}_spans({moments})"
    )
    assert all(right for *_, right in rows)
    assert len(set(rows)) == len(rows)
    return {tuple(row[:-1]) for row in rows}


def letters(client: Client, topic: str) -> list[FoundLetter]:
    """The quarantine of a topic."""
    query = (
        "SELECT source_partition, source_offset, last_offset, stage, cause, key, value, "
        "toUnixTimestamp64Milli(published_at) FROM raw.quarantine FINAL WHERE topic = %(topic)s"
    )
    return [FoundLetter(*row) for row in client.execute(query, {"topic": topic})]


def ledger(client: Client, topic: str) -> dict[str, set[Place]]:
    """The offsets of a topic in the ledger, by kind."""
    query = (
        "SELECT source_partition, CAST(kind AS String), block, bitmapToArray(groupBitmapMergeState(offsets)) "
        "FROM raw.ledger WHERE topic = %(topic)s GROUP BY source_partition, kind, block"
    )
    found: dict[str, set[Place]] = {}
    for partition, kind, block, bits in client.execute(query, {"topic": topic}):
        found.setdefault(kind, set()).update((partition, block * LEDGER_BLOCK + bit) for bit in bits)
    return found


def windows(client: Client, aggregate: Aggregate, rollup: RollUp | None = None) -> Iterator[FoundWindow]:
    """The windows of an aggregate's view, or the hours or days of a roll-up's."""
    names = [result.name for measure in aggregate.measures for result in measure.results]
    names += [] if rollup is None else ["capture"]
    query = (
        f"SELECT {', '.join(aggregate.by)}, toUnixTimestamp64Milli(window_start), events, final, "
        f"toUnixTimestamp64Milli(as_of), {', '.join(names)} FROM city.{(rollup or aggregate).name}"
    )
    width = len(aggregate.by) + 1
    for row in client.execute(query):
        events, final, as_of_ms, *values = row[width:]
        yield FoundWindow(tuple(row[:width]), events, final, as_of_ms, dict(zip(names, values, strict=True)))


def counted_last(client: Client, aggregate: Aggregate) -> dict[Key, Place]:
    """Where the last event lies that the stream counted into each window."""
    keys = f"{', '.join(aggregate.by)}, toUnixTimestamp64Milli(window_start)"
    query = (
        f"SELECT {keys}, max((source_partition, intDiv(version, 2))) FROM raw.{aggregate.topic} FINAL GROUP BY {keys}"
    )
    return {tuple(key): place for *key, place in client.execute(query)}


def control(client: Client, topic: str) -> list[Stretch]:
    """The offsets without a record of a topic."""
    query = (
        "SELECT source_partition, source_offset, last_offset FROM raw.control FINAL "
        "WHERE topic = %(topic)s ORDER BY ALL"
    )
    return [Stretch("raw.control", topic, *row) for row in client.execute(query, {"topic": topic})]


def elsewhere(client: Client, topics: Sequence[str]) -> list[Stretch]:
    """Letters and offsets without a record of all topics but these."""
    return [
        Stretch(table, *row)
        for table in ("raw.quarantine", "raw.control")
        for row in client.execute(
            f"SELECT topic, source_partition, source_offset, last_offset FROM {table} FINAL "
            "WHERE topic NOT IN %(topics)s ORDER BY ALL",
            {"topics": tuple(topics)},
        )
    ]

"""What is stored of the past, as rules watch it: records, final windows, and every version of reference data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import polars as pl
from clickhouse_driver import Client

from schemas.alerts import LONGEST_ENTITY
from schemas.feed import Aggregate, Feed, milliseconds
from schemas.measures import Partial
from schemas.model import COMPONENTS, UUID_HALVES, Field, Kind
from schemas.reference import Reference
from schemas.reference_rows import Row
from schemas.sql import literal
from sinks.sql import entity_name, merged, read
from streams.watermark import ASIDE

#: Rows that are handed on together, and bytes of them that ClickHouse sorts before it goes on from disk.
ROWS_AT_ONCE, SORTING_BYTES = 100_000, 500_000_000
_SETTINGS = {"max_bytes_before_external_sort": SORTING_BYTES, "max_block_size": ROWS_AT_ONCE}

_TYPES: Mapping[Kind, pl.DataType] = {
    "string": pl.String(), "enum": pl.String(), "int": pl.Int64(), "float": pl.Float64(), "bool": pl.Boolean(),
    "instant": pl.Int64(), "date": pl.Int32(),
}  # fmt: skip


@dataclass(frozen=True)
class Stretch:
    """Event times from one to another (ms), both included, of everybody or of one entity.

    ``entity`` is named as its alerts name it, by the fields ``of``, and cut off where they cut it.
    """

    begin: int
    end: int
    of: tuple[str, ...] = ()
    entity: str | None = None

    def where(self, time: str, later: int = 0) -> str:
        """SQL of what lies in it, by a column that lies ``later`` ms before its event time."""
        begin, end = (f"fromUnixTimestamp64Milli({ms - later})" for ms in (self.begin, self.end))
        return f"{time} BETWEEN {begin} AND {end}{self._whose}"

    @property
    def _whose(self) -> str:
        if self.entity is None:
            return ""
        return f" AND substringUTF8({entity_name(self.of)}, 1, {LONGEST_ENTITY}) = {literal(self.entity)}"


def records(client: Client, feed: Feed, names: Iterable[str], stretch: Stretch) -> Iterator[pl.DataFrame]:
    """Records of a stretch by event time and offset, repeats gone, as a worker has them when they are decoded.

    They have these fields, ``_partition``, ``_offset``, ``_arrived`` (ms), and in ``_seen`` the maximum of event time
    before each in its partition (ms).
    """
    fields = [field for field in feed.fields if field.name in {*names, feed.event_time} and field.kind != "uuid"]
    columns = [column for field in fields for column in _columns(field)]
    query = (
        "SELECT source_partition, source_offset, toUnixTimestamp64Milli(arrived_at), seen_before, "
        f"{', '.join(columns)} FROM raw.{feed.name} FINAL "
        f"WHERE seen_before < {ASIDE} AND {stretch.where(feed.event_time)} "
        f"ORDER BY {feed.event_time}, source_partition, source_offset"
    )
    nobody = pl.struct(pl.lit(0, pl.UInt64).alias(half) for half in UUID_HALVES).alias("event_id")
    for rows in client.execute_iter(query, chunk_size=ROWS_AT_ONCE, settings=_SETTINGS):
        yield _frame(["_partition", "_offset", "_arrived", "_seen"], fields, rows).with_columns(nobody)


def final_windows(
    client: Client, feed: Feed, aggregate: Aggregate, partials: Sequence[Partial], stretch: Stretch
) -> Iterator[Sequence[tuple[Any, ...]]]:
    """Final windows whose ends lie in a stretch, in their order: partition, start (ms), group, events, partials.

    Those whose groups come together are merged, and of partition 0.
    """
    query = f"SELECT * EXCEPT _last FROM ({_of_final_windows(feed, aggregate, partials, stretch)}) {_IN_ORDER}"
    query += ", ".join(aggregate.by)
    yield from client.execute_iter(query, chunk_size=ROWS_AT_ONCE, settings=_SETTINGS)


def final_windows_and_last_records(
    client: Client,
    feed: Feed,
    aggregate: Aggregate,
    partials: Sequence[Partial],
    names: Iterable[str],
    stretch: Stretch,
) -> Iterator[tuple[Sequence[tuple[Any, ...]], pl.DataFrame]]:
    """The same of groups that lie in one partition, and beside them the record of each that was counted in last.

    It has these fields, and when it ``_arrived`` (ms), which is in 1970 if it is not known: not stored any more, or of
    a window that was built without withdrawn rows, whose version names no record of its own.
    """
    window, by = milliseconds(aggregate.window), ", ".join(aggregate.by)
    fields = [field for field in feed.fields if field.name in {*names, feed.event_time}]
    lasts = f"SELECT source_partition, intDiv(version, 2) FROM {_final_parts(aggregate, stretch)}"
    columns = [f"{column} AS _{n}" for n, column in enumerate(column for field in fields for column in _columns(field))]
    during = replace(stretch, begin=stretch.begin - window).where(feed.event_time)
    records = (
        f"SELECT source_partition AS _of, source_offset AS _at, {feed.key} AS _key, "
        f"toUnixTimestamp64Milli(arrived_at) AS _arrived, {', '.join(columns)} FROM raw.{feed.name} WHERE {during} "
        f"AND (source_partition, source_offset) IN ({lasts})"
    )
    query = (
        f"SELECT windows.*, _arrived, {', '.join(f'_{n}' for n in range(len(columns)))} FROM "
        f"({_of_final_windows(feed, aggregate, partials, stretch)}) AS windows ANY LEFT JOIN ({records}) AS records "
        f"ON _partition = _of AND _last = _at AND windows.{feed.key} = _key {_IN_ORDER}{by}"
    )
    width = 4 + len(aggregate.by) + len(partials)
    for rows in client.execute_iter(query, chunk_size=ROWS_AT_ONCE, settings=_SETTINGS):
        own = [(*row[: width - 1],) for row in rows]
        yield own, _frame(["_arrived"], fields, [row[width:] for row in rows])


#: Behind a query of final windows.
_IN_ORDER = "ORDER BY _start, _partition, "


def _of_final_windows(feed: Feed, aggregate: Aggregate, partials: Sequence[Partial], stretch: Stretch) -> str:
    """SQL of ``final_windows``, and behind them the offset of the record that was counted in last."""
    keys, names = ", ".join(aggregate.by), ["events", *(one.name for one in partials)]
    partition = "source_partition" if feed.key in aggregate.by else "toUInt16(0)"
    parts = (
        f"SELECT {partition} AS _partition, window_start, {keys}, events"
        + "".join(f", {read(one)} AS {one.name}" for one in partials)
        + f", version FROM {_final_parts(aggregate, stretch)}"
    )
    values = ["sum(events)", *map(merged, partials)]
    return (
        f"SELECT _partition, toUnixTimestamp64Milli(window_start) AS _start, {keys}"
        + "".join(f", {value} AS _value_{name}" for value, name in zip(values, names, strict=True))
        + f", intDiv(max(version), 2) AS _last FROM ({parts}) GROUP BY _partition, window_start, {keys}"
    )


def _final_parts(aggregate: Aggregate, stretch: Stretch) -> str:
    """SQL of the final parts of a stretch, from the table on."""
    during = stretch.where("window_start", milliseconds(aggregate.window))
    return f"raw.{aggregate.topic} FINAL WHERE version % 2 = 1 AND events > 0 AND {during}"


def oldest(client: Client, feed: Feed, aggregate: Aggregate | None) -> int:
    """Event time (ms) of the oldest record that is stored, or beginning of the oldest window; 0 without any."""
    if aggregate is None:
        time, series = feed.event_time, f"raw.{feed.name} WHERE seen_before < {ASIDE}"
    else:
        time, series = "window_start", f"raw.{aggregate.topic}"
    ((found,),) = client.execute(f"SELECT toUnixTimestamp64Milli(min({time})) FROM {series}")
    return int(found)


def come_to(client: Client, feed: Feed, aggregates: Iterable[Aggregate]) -> dict[int, int]:
    """By partition, the maximum of event time (ms) up to which these aggregates' windows are stored.

    Without aggregates, that of the records that are stored; what ticks said after the last one is not known.
    """
    if topics := [one.topic for one in aggregates]:
        found = client.execute(
            "SELECT source_partition, max(p.watermark) FROM raw.progress AS p WHERE aggregate IN %(topics)s "
            "GROUP BY source_partition",
            {"topics": topics},
        )
    else:
        found = client.execute(
            f"SELECT source_partition, greatest(max(toUnixTimestamp64Milli({feed.event_time})), max(seen_before)) "
            f"FROM raw.{feed.name} WHERE seen_before < {ASIDE} GROUP BY source_partition"
        )
    return dict(found)


def versions(client: Client, reference: Reference) -> list[tuple[int, Row]]:
    """Every version of the rows of a table that was stored, in the order of its log, each with its arrival (ms)."""
    columns = [column for field in reference.fields for column in _columns(field)]
    names = [name for field in reference.fields for name, _ in _parts(field)]
    found = []
    for arrived, removed, *cells in client.execute(
        f"SELECT toUnixTimestamp64Milli(arrived_at), removed, {', '.join(columns)} FROM raw.{reference.name} FINAL "
        "ORDER BY source_offset"
    ):
        values = dict(zip(names, cells, strict=True))
        for field in (field for field in reference.fields if field.kind == "place"):
            halves = {half: values.pop(f"{field.name}_{half}") for half in COMPONENTS["place"]}
            values[field.name] = None if None in halves.values() else halves
        key = tuple(values[name] for name in reference.key)
        begins = values[reference.valid_from] if reference.valid_from else None
        found.append((arrived, Row(key, begins, None if removed else values)))
    return found


def _columns(field: Field) -> list[str]:
    """SQL of a field's columns, instants in ms."""
    if field.kind == "place":
        return [f"{field.name}_{half}" for half in COMPONENTS["place"]]
    if field.kind == "instant":
        return [f"toUnixTimestamp64Milli({field.name})"]
    return [f"toString({field.name})" if field.kind == "uuid" else field.name]


def _frame(numbers: Sequence[str], fields: Sequence[Field], rows: Sequence[Sequence[Any]]) -> pl.DataFrame:
    """Rows of whole numbers and the columns of fields."""
    kinds = {**dict.fromkeys(numbers, pl.Int64()), **{name: kind for field in fields for name, kind in _parts(field)}}
    frame = pl.DataFrame(rows, kinds, orient="row")
    return frame.with_columns(_place(field) for field in fields if field.kind == "place")


def _parts(field: Field) -> list[tuple[str, pl.DataType]]:
    """The names and types of its columns."""
    if field.kind == "place":
        return [(f"{field.name}_{half}", pl.Float64()) for half in COMPONENTS["place"]]
    return [(field.name, _TYPES.get(field.kind, pl.String()))]


def _place(field: Field) -> pl.Expr:
    halves = [pl.col(f"{field.name}_{half}").alias(half) for half in COMPONENTS["place"]]
    return pl.when(pl.col(f"{field.name}_longitude").is_not_null()).then(pl.struct(halves)).alias(field.name)

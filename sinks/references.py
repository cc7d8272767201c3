"""Tables of reference data in ClickHouse: every version that was known, what holds now, and what held at any time."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import polars as pl

from schemas.catalogue import Catalogue
from schemas.model import COMPONENTS, Field
from schemas.reference import Reference
from schemas.reference_rows import MARK, NoRow, Row, SchemaMissing, plain, read_row
from sinks.dialect import Dialect
from sinks.sql import literal
from sinks.tables import TableColumn, body, field_columns, instant
from sinks.topic_rows import Read, Unread
from sinks.views import FIXED, view
from streams.missing_schemas import NotYet
from streams.wire.record_batch import MalformedBatch, NotOpened, RecordBatch

log = logging.getLogger("citystream")

_FRAME: Mapping[str, Any] = {
    "Bool": pl.Boolean, "Date32": pl.Int32, "DateTime64": pl.Int64, "Float64": pl.Float64, "Int32": pl.Int32,
    "String": pl.String, "UInt64": pl.Int64,
}  # fmt: skip
#: Offset, key, value and arrival (ms) of a record.
Record = tuple[int, bytes | None, bytes | None, int]

_EPOCH = 719_163  # day 0 of 1970 by date.toordinal


def columns_of(reference: Reference, timezone: str) -> list[TableColumn]:
    """Columns of what a row says; all may be null but the key's, as in rows that say that one was taken away."""
    found = []
    for field in reference.fields:
        for column in field_columns(field, timezone):
            kind = "String" if field.kind == "uuid" else _bare(column.type)
            nullable = field.name not in reference.key
            found.append(TableColumn(column.name, f"Nullable({kind})" if nullable else kind, column.comment))
    return found


def _bare(kind: str) -> str:
    """A type that is never null."""
    return kind.removeprefix("Nullable(")[:-1] if kind.startswith("Nullable(") else kind


def stored_columns(reference: Reference, timezone: str) -> list[TableColumn]:
    """Columns the sink writes."""
    return [
        *columns_of(reference, timezone),
        TableColumn("removed", "Bool", "The row was taken away"),
        TableColumn("source_offset", "UInt64", "Offset in the topic"),
        instant("arrived_at", "When the broker stored it: from ten seconds later on it counts for records", timezone),
    ]


def statements(reference: Reference, dialect: Dialect) -> list[str]:
    """What there has to be of a table; running it again changes nothing."""
    columns, keys = stored_columns(reference, dialect.timezone), ", ".join(reference.key)
    moment = f"{{t:DateTime64(3, {literal(dialect.timezone)})}}"
    views = [("", "now64(3)", "as it holds now"), ("_at", moment, "as it was known and held at the time t")]
    return [
        dialect.table(
            f"raw.{reference.name}", body(columns), "ReplacingMergeTree", f"{keys}, source_offset",
            f"{reference.description}: every version of every row",
        ),
        f"ALTER TABLE raw.{reference.name} " + ", ".join(f"ADD COLUMN IF NOT EXISTS {c.declaration}" for c in columns),
        *(
            view(
                dialect, f"city.{reference.name}{ending}", view_columns(reference, dialect.timezone),
                f"{reference.description}; {about}", _holding(reference, at, dialect.timezone), FIXED,
            )
            for ending, at, about in views
        ),
    ]  # fmt: skip


def view_columns(reference: Reference, timezone: str) -> list[TableColumn]:
    """Columns of its views."""
    return [*columns_of(reference, timezone), instant("arrived_at", "When the broker stored it", timezone)]


def _holding(reference: Reference, at: str, timezone: str) -> str:
    """The newest version of each row up to a time, of those that are there and hold, the one that begins last."""
    begins, ends, keys = reference.valid_from, reference.valid_to, ", ".join(reference.key)
    row = f"{keys}, {begins}" if begins else keys
    known = (
        f"SELECT * FROM raw.{reference.name} FINAL WHERE arrived_at <= {at} "
        f"ORDER BY source_offset DESC LIMIT 1 BY {row}"
    )
    holds = f" AND ifNull({begins} <= {at}, true) AND ifNull({ends} > {at}, true)" if begins else ""
    last = f"{keys}, {begins} DESC NULLS LAST" if begins else keys
    names = ", ".join(column.name for column in view_columns(reference, timezone))
    return f"SELECT {names} FROM ({known}) WHERE NOT removed{holds} ORDER BY {last} LIMIT 1 BY {keys}"


class RowReader:
    """The topic of one table into ClickHouse; marks, and what is no row, are left out."""

    def __init__(self, reference: Reference, catalogue: Catalogue, timezone: str) -> None:
        self.topic = reference.name
        self.table = f"raw.{reference.name}"
        self.columns = stored_columns(reference, timezone)
        self._reference = reference
        self._catalogue = catalogue
        self._types = {
            name: _FRAME[_bare(column.type).partition("(")[0]] for column in self.columns for name in column.sent
        }

    def read(self, wanted: Sequence[Unread]) -> list[Read]:
        """The rows of runs.

        Raises
        ------
        NotYet
            A row names a schema that is not here and may come.
        """
        return [Read(self.rows_of(self._records(run.batches, start)), newest) for run, start, newest in wanted]

    def _records(self, batches: Sequence[RecordBatch], start: int) -> Iterator[Record]:
        for batch in batches:
            try:
                found = batch.records()
            except (NotOpened, MalformedBatch) as error:
                log.warning("%s: the batch at offset %d cannot be read (%s)", self.topic, batch.base_offset, error)
                continue
            yield from ((offset, key, value, batch.arrived_ms) for offset, key, value, _ in found if offset >= start)

    def rows_of(self, records: Iterable[Record]) -> pl.DataFrame:
        """The rows that these records are.

        Raises
        ------
        NotYet
            As ``read``.
        """
        found: list[dict[str, Any]] = []
        for offset, key, value, arrived_ms in records:
            if key == MARK and value is None:
                continue
            try:
                row = read_row(self._reference, self._catalogue, key, value)
            except SchemaMissing as wait:
                raise NotYet(str(wait)) from None
            except NoRow as reason:
                log.warning("%s: the record at offset %d is no row (%s)", self.topic, offset, reason)
                continue
            stored = {"removed": row.values is None, "source_offset": offset, "arrived_at": arrived_ms}
            found.append(self._values(row) | stored)
        return pl.DataFrame(found, self._types)

    def _values(self, row: Row) -> dict[str, Any]:
        found: dict[str, Any] = dict(zip(self._reference.key, row.key, strict=True))
        if self._reference.valid_from:
            found[self._reference.valid_from] = row.begins_ms
        for field in self._reference.fields:
            if row.values is not None:
                found |= _parts(field, plain(row.values[field.name]))
        return found


def _parts(field: Field, value: Any) -> dict[str, Any]:
    if field.kind == "place":
        return {f"{field.name}_{half}": value and value[half] for half in COMPONENTS["place"]}
    if field.kind == "date" and value is not None:
        return {field.name: value.toordinal() - _EPOCH}
    return {field.name: value}

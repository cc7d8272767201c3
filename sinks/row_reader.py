"""Topics of reference data into ClickHouse: every version of every row."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import polars as pl

from schemas.catalogue import Catalogue
from schemas.model import COMPONENTS, Field
from schemas.reference import Reference
from schemas.reference_rows import MARK, NoRow, Row, SchemaMissing, plain, read_row
from sinks.references import bare, stored_columns
from sinks.topic_rows import Read, Unread
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


class RowReader:
    """The topic of one table into ClickHouse; marks, and what is no row, are left out."""

    def __init__(self, reference: Reference, catalogue: Catalogue, timezone: str) -> None:
        self.topic = reference.name
        self.table = f"raw.{reference.name}"
        self.columns = stored_columns(reference, timezone)
        self._reference = reference
        self._catalogue = catalogue
        self._types = {
            name: _FRAME[bare(column.type).partition("(")[0]] for column in self.columns for name in column.sent
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

"""Rows of the records a schema declares, as the columns they are encoded from and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from processors.partition import Output, Partition
from processors.reading import Reader
from schemas.avro import Schema, aggregate_schema
from schemas.feed import Aggregate, Feed
from streams.decode import Decoder
from streams.feed_topics import topic_of
from streams.positions import Position
from streams.wire.column_writer import Columns
from streams.wire.fetched_batches import Run


def columns_of(records: Sequence[Mapping[str, Any]], names: Iterable[str]) -> Columns:
    """Records of texts, integers, nulls and lists of integers, as columns of these names."""
    letters, items = bytearray(), list[int]()
    cells, known = {}, {}
    for name in names:
        column = []
        for value in (record[name] for record in records):
            if isinstance(value, str):
                column.append(len(letters) << 32 | len(value.encode()))
                letters += value.encode()
            elif isinstance(value, list):
                column.append(len(items) << 32 | len(value))
                items += value
            else:
                column.append(value or 0)
        cells[name] = np.array(column, np.int64)
        known[name] = np.array([record[name] is not None for record in records], np.bool_)
    return Columns(len(records), cells, known, np.frombuffer(letters, np.uint8), np.array(items, np.int64))


def frame_of(schema: Schema, columns: Columns) -> pl.DataFrame:
    """Columns as a frame of a schema's fields."""

    def value(kind: Any, cell: int, known: bool) -> Any:
        start, size = cell >> 32, cell & 0xFFFF_FFFF
        if kind == "string" and known:
            return columns.letters[start : start + size].tobytes().decode()
        if isinstance(kind, dict) and kind["type"] == "array":
            return columns.items[start : start + size].tolist()
        return (bool(cell) if kind == "boolean" else cell) if known else None

    found = {}
    for field in schema["fields"]:
        name, kind = field["name"], field["type"]
        if isinstance(kind, list):
            kind = kind[1]
        known = columns.known.get(name, np.ones(columns.height, np.bool_)).tolist()
        values = [value(kind, *one) for one in zip(columns.cells[name].tolist(), known, strict=True)]
        is_list = isinstance(kind, dict) and kind["type"] == "array"
        dtype = {"string": pl.String(), "boolean": pl.Boolean()}.get(
            str(kind), pl.List(pl.Int64) if is_list else pl.Int64()
        )
        found[name] = pl.Series(name, values, dtype)
    return pl.DataFrame(found)


def parts_of(output: Output, feed: Feed, aggregate: Aggregate) -> pl.DataFrame:
    """The parts of an aggregate's windows that a flush writes."""
    return frame_of(aggregate_schema(feed, aggregate), output.parts[aggregate.name])


class Staged(Partition):
    """A partition with the stage before it."""

    def __init__(self, feed: Feed, number: int, decoder: Decoder, start: Position, **options: Any) -> None:
        beside = options.pop("histories", None), options.pop("makings", ())
        self.reader = Reader(topic_of(feed, number), decoder, *beside)
        self.reader.check(f"{feed.name}/{number}", start)
        super().__init__(feed, number, start, **options)


def process(partition: Staged, run: Run) -> int:
    """Read a run and take it in; returns how many offsets come after those that an earlier worker processed."""
    before = max(partition.next, partition.start.processed)
    (rows,) = partition.reader.read([(partition, run)])
    partition.take(rows)
    return max(0, partition.next - before)

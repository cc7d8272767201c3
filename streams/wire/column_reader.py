"""Many records at a time: record batches to columns, without Python per record.

The decompressed body of a v2 Kafka record batch is walked as it is (``streams/wire/kernel.py``), the records' envelopes
included, and nothing is believed unless every length and border is as stated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import polars as pl

from schemas.avro import UUID_FORMAT, Schema
from schemas.catalogue import FrozenSchema
from schemas.model import UUID_HALVES
from schemas.record_codec import PREFIX, prefix
from streams.wire import kernel
from streams.wire.arrow import long_lists, texts
from streams.wire.kernel import walk_batches, walk_values

#: Bytes of a record's envelope at least: room is reserved for as many records as a batch states.
SMALLEST_ENVELOPE = 12
#: Bytes decoded at once at most: positions in them have 31 bits.
LARGEST_BODY = 2**31 - 1

_KINDS = {
    "long": kernel.LONG,
    "int": kernel.LONG,
    "double": kernel.DOUBLES,
    "boolean": kernel.BOOLEAN,
    "string": kernel.STRING,
}


@dataclass(frozen=True)
class OpenedBatch:
    """The decompressed body of a record batch and what its header states."""

    body: bytes
    count: int
    partition: int
    base_offset: int
    last_offset: int
    arrived_ms: int

    def first_prefix(self) -> bytes:
        """The prefix of the first record's value, by the record format; other bytes if it does not hold."""
        at = 0
        for skip in (0, 1, 0):
            at = _after_varint(self.body, at + skip)
        key_length, at = read_varint(self.body, at)
        at = _after_varint(self.body, at + max(key_length, 0))
        return self.body[at : at + PREFIX.size]


class ColumnReader:
    """Reads record batches, and single values, of one frozen schema as columns."""

    def __init__(self, frozen: FrozenSchema) -> None:
        self.frozen = frozen
        self.prefix = prefix(frozen.id)
        self._prefix = np.frombuffer(self.prefix, np.uint8)
        self._columns: list[_Column] = []
        for field in frozen.schema["fields"]:
            last = self._columns[-1] if self._columns else None
            self._columns.append(_column(field, last.cell + last.width if last else 0))
        self._width = sum(column.width for column in self._columns)
        self._smallest = SMALLEST_ENVELOPE + sum(column.smallest for column in self._columns)
        self._program = np.array([c.step for c in self._columns], np.int64)

    def read_batches(self, batches: Sequence[OpenedBatch]) -> tuple[pl.DataFrame, list[int]]:
        """Decode whole record batches.

        Returns
        -------
        The schema's fields (instants and dates as integers, enums as strings, UUIDs as two integers) with ``_key``
        (bytes), ``_partition``, ``_offset`` and ``_arrived`` (ms), and the positions of the batches in which
        anything is unexpected: they have no rows, and their records have to be read one by one.
        """
        body, ends = _joined([b.body for b in batches])
        counts = np.array([b.count if self._may_hold(b) else 0 for b in batches], np.int64)
        cells, present = self._room(int(counts.sum()))
        good = np.zeros(len(batches), np.bool_)
        walk_batches(body, ends, counts, self._prefix, self._program, cells, present, good)
        offset = np.array([b.base_offset for b in batches], np.int64) - (np.cumsum(counts) - counts)
        columns = [
            np.repeat(np.array([b.partition for b in batches], np.int64), counts),
            np.arange(cells.shape[1]) + np.repeat(offset, counts),
            np.repeat(np.array([b.arrived_ms for b in batches], np.int64), counts),
        ]
        if not good.all():
            kept = np.repeat(good, counts)
            cells, present = np.compress(kept, cells, axis=1), np.compress(kept, present, axis=1)
            columns = [column[kept] for column in columns]
        rows = self._frame_of(body, cells, present).hstack(
            [
                texts(body, cells[-1], utf8=False).alias("_key"),
                *map(pl.Series, ("_partition", "_offset", "_arrived"), columns),
            ]
        )
        return rows, np.flatnonzero(~good).tolist()

    def _may_hold(self, batch: OpenedBatch) -> bool:
        """Whether its body has room for the records a batch states, up to its last offset."""
        fits = 0 < batch.count <= len(batch.body) // self._smallest
        return fits and batch.last_offset - batch.base_offset + 1 == batch.count

    def read_values(self, values: Sequence[bytes]) -> tuple[pl.DataFrame, list[int]]:
        """Decode values of this schema, prefix included.

        Returns
        -------
        A frame of the values that decode and the positions of those that do not.
        """
        body, ends = _joined([value[PREFIX.size :] for value in values])
        cells, present = self._room(len(values))
        good = np.zeros(len(values), np.bool_)
        walk_values(body, ends, self._program, cells, present, good)
        if good.all():
            return self._frame_of(body, cells, present), []
        cells, present = np.compress(good, cells, axis=1), np.compress(good, present, axis=1)
        return self._frame_of(body, cells, present), np.flatnonzero(~good).tolist()

    def _room(self, rows: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        return np.empty((self._width + 1, rows), np.int64), np.empty((self._width, rows), np.bool_)

    def _frame_of(
        self, body: npt.NDArray[np.uint8], cells: npt.NDArray[np.int64], present: npt.NDArray[np.bool_]
    ) -> pl.DataFrame:
        return pl.DataFrame([c.series(body, cells[c.cell : c.cell + c.width], present[c.cell]) for c in self._columns])


@dataclass(frozen=True)
class _Column:
    """A field: its step in the kernel's program, and how its cells become a column."""

    name: str
    kind: int
    nullable: bool
    cell: int
    symbols: tuple[str, ...]
    components: tuple[str, ...]

    @property
    def width(self) -> int:
        return max(1, len(self.components))

    @property
    def step(self) -> tuple[int, int, int, int]:
        return self.kind, self.nullable, self.cell, len(self.symbols) or self.width

    @property
    def smallest(self) -> int:
        return 8 * self.width if self.kind == kernel.DOUBLES and not self.nullable else 1

    def series(
        self, body: npt.NDArray[np.uint8], cells: npt.NDArray[np.int64], present: npt.NDArray[np.bool_]
    ) -> pl.Series:
        values = self._values(body, cells).alias(self.name)
        if not (self.nullable or self.kind == kernel.UUID) or present.all():
            return values
        there = pl.Series(present)
        if values.dtype == pl.Struct:
            return pl.select(pl.when(there).then(values).alias(self.name)).to_series()
        return values.set(~there, None)

    def _values(self, body: npt.NDArray[np.uint8], cells: npt.NDArray[np.int64]) -> pl.Series:
        """A column that owns its memory: Polars takes arrays as they are, and a kept one would keep its neighbours."""
        first = cells[0]
        match self.kind:
            case kernel.UUID:
                return self._struct(cells, np.uint64)
            case kernel.DOUBLES if self.components:
                return self._struct(cells, np.float64)
            case kernel.DOUBLES:
                return pl.Series(first.copy().view(np.float64))
            case kernel.BOOLEAN:
                return pl.Series(first.astype(np.bool_))
            case kernel.ENUM:
                return pl.Series(self.symbols, dtype=pl.String).gather(pl.Series(first))
            case kernel.STRING:
                return texts(body, first, utf8=True)
            case kernel.LONGS:
                return long_lists(body, first)
        return pl.Series(first.copy())

    def _struct(self, cells: npt.NDArray[np.int64], bits: type[np.uint64 | np.float64]) -> pl.Series:
        """A struct of the components, whose cells are the bits of such numbers."""
        return pl.DataFrame(
            {name: numbers.copy().view(bits) for name, numbers in zip(self.components, cells, strict=True)}
        ).to_struct()


def _column(field: Schema, cell: int) -> _Column:
    match field["type"]:
        case ["null", member]:
            return replace(_column({**field, "type": member}, cell), nullable=True)
        case "string" if field.get("format") == UUID_FORMAT:
            return _Column(field["name"], kernel.UUID, False, cell, (), UUID_HALVES)
        case {"type": "enum", "symbols": symbols}:
            return _Column(field["name"], kernel.ENUM, False, cell, tuple(symbols), ())
        case {"type": "record", "fields": [{"name": x, "type": "double"}, {"name": y, "type": "double"}]}:
            return _Column(field["name"], kernel.DOUBLES, False, cell, (), (x, y))
        case {"type": "array", "items": "int" | "long"}:
            return _Column(field["name"], kernel.LONGS, False, cell, (), ())
        case {"type": str(name)} | str(name) if name in _KINDS:
            return _Column(field["name"], _KINDS[name], False, cell, (), ())
    raise TypeError(f"no columnar codec for {field['type']!r}")


def _joined(bodies: Sequence[bytes]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """The bodies one after the other, padded, and where each ends."""
    ends = np.cumsum([len(body) for body in bodies], dtype=np.int64)
    assert not len(ends) or ends[-1] <= LARGEST_BODY
    return np.frombuffer(b"".join([*bodies, bytes(kernel.PADDING)]), np.uint8), ends


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """A zigzag varint of at most ten bytes, or what there is of it, and the position after it."""
    encoded = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        encoded |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
    return (encoded >> 1) ^ -(encoded & 1), at


def _after_varint(data: bytes, at: int) -> int:
    return read_varint(data, at)[1]

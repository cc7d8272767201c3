"""Columns to the bodies of Kafka's record batches: the way back of schemas.columnar, for the aggregates' schemas."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from numba import njit

from schemas.catalogue import FrozenSchema
from schemas.kernel import LONG, LONGS, STRING
from schemas.rowcodec import frame

Cells = npt.NDArray[np.int64]

SOME = 0x02  # index of the second branch of ["null", type]
LONGEST_VARINT = 10


@dataclass(frozen=True)
class Body:
    """The records of a batch, not compressed, and how many they are."""

    data: bytes
    count: int


def encode_bodies(frozen: FrozenSchema, keys: pl.Series, rows: pl.DataFrame, largest: int) -> list[Body]:
    """Encode rows, in their order, as records under a frozen schema, frame included, without headers or timestamps.

    ``keys`` are the records' keys as text. The frame has a column for each field: strings, integers, nullable integers
    and lists of integers. A body has at most ``largest`` bytes, unless one record is longer than that.
    """
    if rows.is_empty():
        return []
    fields = [_written(field["type"]) for field in frozen.schema["fields"]]
    columns = [rows[field["name"]] for field in frozen.schema["fields"]]
    texts, lists = _Heap(), _Heap()
    cells = np.empty((len(columns) + 1, rows.height), np.int64)
    present = np.ones((len(columns), rows.height), np.bool_)
    for row, ((kind, nullable), values) in enumerate(zip(fields, columns, strict=True)):
        if nullable:
            present[row] = values.is_not_null().to_numpy()
        cells[row] = _cells(kind, values, texts, lists)
    cells[-1] = _cells(STRING, keys, texts, lists)
    letters = np.frombuffer(b"".join(texts.parts), np.uint8)
    items = np.concatenate([np.empty(0, np.int64), *lists.parts])
    longest = 5 * LONGEST_VARINT + len(fields) * (LONGEST_VARINT + 2)
    out = np.empty(rows.height * longest + len(letters) + LONGEST_VARINT * len(items), np.uint8)
    head = np.frombuffer(frame(frozen.id), np.uint8)
    borders = write_records(head, np.array(fields), cells, present, letters, items, largest, out)
    return [
        Body(out[start:end].tobytes(), int(count))
        for start, (end, count) in zip([0, *borders[:-1, 0]], borders, strict=True)
    ]


class _Heap:
    """Where texts or list items of all columns lie, one after the other."""

    def __init__(self) -> None:
        self.parts: list[Any] = []
        self._size = 0

    def add(self, part: Any, sizes: Cells) -> Cells:
        """Keep a column's content; returns ``start << 32 | size`` of each row."""
        self.parts.append(part)
        starts = np.cumsum(sizes) - sizes + self._size
        self._size += len(part)
        spans: Cells = starts << 32 | sizes
        return spans


def _written(avro_type: Any) -> tuple[int, bool]:
    """Kind of a field for the kernel, and whether it may be null."""
    match avro_type:
        case "string":
            return STRING, False
        case "int" | "long" | {"type": "int" | "long"}:
            return LONG, False
        case ["null", "int" | "long" | {"type": "int" | "long"}]:
            return LONG, True
        case {"type": "array", "items": "int" | "long"}:
            return LONGS, False
    raise TypeError(f"no columnar codec for writing {avro_type!r}")


def _cells(kind: int, values: pl.Series, texts: _Heap, lists: _Heap) -> Cells:
    if kind == STRING:
        return texts.add(values.str.join("").item().encode(), values.str.len_bytes().cast(pl.Int64).to_numpy())
    if kind == LONGS:
        items = values.explode().drop_nulls().cast(pl.Int64).to_numpy()
        return lists.add(items, values.list.len().cast(pl.Int64).to_numpy())
    return values.cast(pl.Int64).fill_null(0).to_numpy()


@njit(nogil=True, cache=True, inline="always")
def _zigzag(value: int) -> Any:
    return np.uint64((value << 1) ^ (value >> 63))


@njit(nogil=True, cache=True, inline="always")
def _size(value: int) -> int:
    """Bytes of a varint."""
    rest = _zigzag(value)
    size = 1
    while rest > np.uint64(0x7F):
        rest >>= np.uint64(7)
        size += 1
    return size


@njit(nogil=True, cache=True, inline="always")
def _put(out: Any, at: int, value: int) -> int:
    """Write a varint; the position after it."""
    rest = _zigzag(value)
    while rest > np.uint64(0x7F):
        out[at] = (rest & np.uint64(0x7F)) | np.uint64(0x80)
        rest >>= np.uint64(7)
        at += 1
    out[at] = rest
    return at + 1


@njit(nogil=True, cache=True, inline="always")
def _put_text(out: Any, at: int, texts: Any, span: int) -> int:
    start, size = span >> 32, span & 0xFFFF_FFFF
    at = _put(out, at, size)
    for n in range(size):
        out[at + n] = texts[start + n]
    return at + size


@njit(nogil=True, cache=True)
def _fields_size(program: Any, cells: Any, present: Any, items: Any, row: int) -> int:
    size = 0
    for step in range(len(program)):
        kind, cell = program[step, 0], cells[step, row]
        size += program[step, 1]
        if not present[step, row]:
            continue
        if kind == LONG:
            size += _size(cell)
        elif kind == STRING:
            size += _size(cell & 0xFFFF_FFFF) + (cell & 0xFFFF_FFFF)
        else:
            count = cell & 0xFFFF_FFFF
            size += 1 + (_size(count) if count else 0)
            for n in range(count):
                size += _size(items[(cell >> 32) + n])
    return size


@njit(nogil=True, cache=True)
def _put_fields(program: Any, cells: Any, present: Any, texts: Any, items: Any, row: int, out: Any, at: int) -> int:
    for step in range(len(program)):
        kind, cell = program[step, 0], cells[step, row]
        if program[step, 1]:
            out[at] = SOME if present[step, row] else 0
            at += 1
        if not present[step, row]:
            continue
        if kind == LONG:
            at = _put(out, at, cell)
        elif kind == STRING:
            at = _put_text(out, at, texts, cell)
        else:
            count = cell & 0xFFFF_FFFF
            if count:
                at = _put(out, at, count)
            for n in range(count):
                at = _put(out, at, items[(cell >> 32) + n])
            out[at] = 0
            at += 1
    return at


@njit(nogil=True, cache=True)
def write_records(
    head: Any, program: Any, cells: Any, present: Any, texts: Any, items: Any, largest: int, out: Any
) -> Any:
    """Write a record a row into ``out``; returns where each body ends and how many records it has.

    A step of the program is (kind, nullable); cells are as in schemas.kernel, the last row of them the keys.
    """
    borders = np.empty((cells.shape[1], 2), np.int64)
    at, start, bodies, delta = 0, 0, 0, 0
    for row in range(cells.shape[1]):
        key = cells[-1, row] & 0xFFFF_FFFF
        value = len(head) + _fields_size(program, cells, present, items, row)
        rest = 3 + _size(key) + key + _size(value) + value
        if delta and at - start + LONGEST_VARINT + _size(delta) + rest > largest:
            borders[bodies, 0], borders[bodies, 1] = at, delta
            start, bodies, delta = at, bodies + 1, 0
        at = _put(out, at, _size(delta) + rest)
        out[at], out[at + 1] = 0, 0
        at = _put_text(out, _put(out, at + 2, delta), texts, cells[-1, row])
        at = _put(out, at, value)
        for n in range(len(head)):
            out[at + n] = head[n]
        at = _put_fields(program, cells, present, texts, items, row, out, at + len(head))
        out[at] = 0
        at += 1
        delta += 1
    borders[bodies, 0], borders[bodies, 1] = at, delta
    return borders[: bodies + 1]

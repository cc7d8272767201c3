"""Columns to the bodies of Kafka's record batches: the way back of column_reader, for the aggregates' schemas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from numba import njit

from schemas.catalogue import FrozenSchema
from schemas.record_codec import prefix
from streams.wire.arrow import bytes_of
from streams.wire.kernel import BOOLEAN, LONG, LONGS, STRING

Cells = npt.NDArray[np.int64]

SOME = 0x02  # index of the second branch of ["null", type]
LONGEST_VARINT = 10
#: Between the texts of which a key is made.
KEY_SEPARATOR = "\x1f"
_SEPARATOR = ord(KEY_SEPARATOR)


@dataclass(frozen=True)
class Body:
    """The records of a batch, not compressed, and how many they are."""

    data: bytes
    count: int


@dataclass(frozen=True)
class Columns:
    """Rows to be encoded. A cell is an integer, or ``start << 32 | size`` of a text in ``letters`` (bytes) or of a list
    in ``items``; where ``known`` has a field's name and says no, the cell is null.
    """

    height: int
    cells: Mapping[str, Cells]
    known: Mapping[str, npt.NDArray[np.bool_]] = field(default_factory=dict)
    letters: npt.NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8))
    items: Cells = field(default_factory=lambda: np.empty(0, np.int64))


def spans(sizes: Cells, begin: int) -> Cells:
    """Where texts or lists of these sizes lie, one after the other from a place on: ``start << 32 | size`` of each."""
    found: Cells = np.cumsum(sizes) - sizes + begin << 32 | sizes
    return found


def encode_bodies(frozen: FrozenSchema, key: Sequence[str], rows: Columns, largest: int) -> list[Body]:
    """Encode rows, in their order, as records under a frozen schema, prefix included, without headers or timestamps.

    ``key`` names the columns that make a record's key: their texts joined by ``KEY_SEPARATOR``, of a number its digits,
    of null nothing. The rows have a column for each field: strings, integers, booleans, null or not, and lists of
    integers. A body has at most ``largest`` bytes, unless
    one record is longer than that.
    """
    if not rows.height:
        return []
    fields = {field["name"]: _written(field["type"]) for field in frozen.schema["fields"]}
    cells = np.stack([rows.cells[name] for name in fields])
    present = np.ones((len(fields), rows.height), np.bool_)
    for n, name in enumerate(fields):
        if name in rows.known:
            present[n] = rows.known[name]
    keys, letters_of_keys = _keys(rows, [(name, fields[name][0] if name in fields else STRING) for name in key])
    texts = [*keys, *(rows.cells[name] for name, (kind, _) in fields.items() if kind == STRING)]
    longest = (5 + len(key)) * LONGEST_VARINT + len(fields) * (LONGEST_VARINT + 2)
    letters = sum(int((text & 0xFFFF_FFFF).sum()) for text in texts)
    out = np.empty(rows.height * longest + letters + LONGEST_VARINT * len(rows.items), np.uint8)
    head, program = np.frombuffer(prefix(frozen.id), np.uint8), np.array([*fields.values()], np.int64)
    borders = write_records(head, program, cells, present, keys, (letters_of_keys, rows.items), largest, out)
    return [
        Body(out[start:end].tobytes(), int(count))
        for start, (end, count) in zip([0, *borders[:-1, 0]], borders, strict=True)
    ]


def _written(avro_type: Any) -> tuple[int, bool]:
    """Kind of a field for the kernel, and whether it may be null."""
    match avro_type:
        case "string":
            return STRING, False
        case "boolean":
            return BOOLEAN, False
        case "int" | "long" | {"type": "int" | "long"}:
            return LONG, False
        case {"type": "array", "items": "int" | "long"}:
            return LONGS, False
        case ["null", member]:
            return _written(member)[0], True
    raise TypeError(f"no columnar codec for writing {avro_type!r}")


def _keys(rows: Columns, written: Sequence[tuple[str, int]]) -> tuple[Cells, npt.NDArray[np.uint8]]:
    """Spans of the texts that keys are made of, from columns and their kinds, and the letters they lie in."""
    found, letters = [], [rows.letters]
    for name, kind in written:
        cells, begin = rows.cells[name], sum(map(len, letters))
        if kind != STRING:
            sizes, digits = bytes_of(pl.Series(cells).cast(pl.String))
            cells = spans(sizes, begin)
            letters.append(np.frombuffer(digits, np.uint8))
        found.append(np.where(rows.known[name], cells, 0) if name in rows.known else cells)
    return np.stack(found), np.concatenate(letters) if len(letters) > 1 else rows.letters


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
def _put_letters(out: Any, at: int, texts: Any, span: Any) -> Any:
    start, size = span >> 32, span & 0xFFFF_FFFF
    for n in range(size):
        out[at + n] = texts[start + n]
    return at + size


@njit(nogil=True, cache=True, inline="always")
def _put_text(out: Any, at: int, texts: Any, span: Any) -> Any:
    return _put_letters(out, _put(out, at, span & 0xFFFF_FFFF), texts, span)


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
        elif kind == BOOLEAN:
            size += 1
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
        elif kind == BOOLEAN:
            out[at] = cell
            at += 1
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
    head: Any, program: Any, cells: Any, present: Any, keys: Any, heaps: Any, largest: int, out: Any
) -> Any:
    """Write a record a row into ``out``; returns where each body ends and how many records it has.

    A step of the program is (kind, nullable); cells are as in the kernel, and so are the texts
    of the keys. The heaps are of letters and of items.
    """
    texts, items = heaps
    borders = np.empty((cells.shape[1], 2), np.int64)
    at, start, bodies, delta = 0, 0, 0, 0
    for row in range(cells.shape[1]):
        key = len(keys) - 1
        for text in range(len(keys)):
            key += keys[text, row] & 0xFFFF_FFFF
        value = len(head) + _fields_size(program, cells, present, items, row)
        rest = 3 + _size(key) + key + _size(value) + value
        if delta and at - start + LONGEST_VARINT + _size(delta) + rest > largest:
            borders[bodies, 0], borders[bodies, 1] = at, delta
            start, bodies, delta = at, bodies + 1, 0
        at = _put(out, at, _size(delta) + rest)
        out[at], out[at + 1] = 0, 0
        at = _put(out, _put(out, at + 2, delta), key)
        for text in range(len(keys)):
            if text:
                out[at] = _SEPARATOR
                at += 1
            at = _put_letters(out, at, texts, keys[text, row])
        at = _put(out, at, value)
        for n in range(len(head)):
            out[at + n] = head[n]
        at = _put_fields(program, cells, present, texts, items, row, out, at + len(head))
        out[at] = 0
        at += 1
        delta += 1
    borders[bodies, 0], borders[bodies, 1] = at, delta
    return borders[: bodies + 1]

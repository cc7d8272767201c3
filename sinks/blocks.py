"""Rows as a block of ClickHouse's native format, in the very types of the table: the server copies it into a part."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from clickhouse_driver.varint import make_varint

from sinks.tables import TableColumn
from streams.wire.arrow import bytes_of

#: How values of a type stand in a block, by its name without parameters.
_NUMBERS = {
    "Bool": "u1",
    "Date32": "<i4",
    "DateTime64": "<i8",
    "Float64": "<f8",
    "Int32": "<i4",
    "Int64": "<i8",
    "UInt16": "<u2",
    "UInt64": "<u8",
}
#: Bytes from which on a text's length takes another byte; the native format has seven bits of it in each.
_LONGER = np.array([1 << 7, 1 << 14, 1 << 21, 1 << 28])


def block(columns: Sequence[TableColumn], rows: pl.DataFrame) -> bytes:
    """The rows with a column of the table for each of these, from the columns of ``rows`` they name.

    A query of Polars takes longer than all else that a block of few rows needs: there is none.
    """
    values = {name: rows[name] for column in columns for name in column.sent}
    nulls = {name: found.is_null() for name, found in values.items() if found.null_count()}
    values |= {name: values[name].set(which, _filler(values[name])) for name, which in nulls.items()}
    out = [make_varint(len(columns)), make_varint(rows.height)]
    for column in columns:
        out += [_text(column.name), _text(column.type)]
        kind = column.type.removeprefix("Nullable(")
        if kind != column.type:
            kind = kind.removesuffix(")")
            which = nulls.pop(column.sent[0], None)
            out.append(bytes(rows.height) if which is None else which.to_numpy().tobytes())
        out += _values(kind, [values[name] for name in column.sent])
    if nulls:
        raise ValueError(f"there are nulls in {', '.join(nulls)}, and the table takes none")
    return b"".join(out)


def _filler(values: pl.Series) -> Any:
    """What stands in the place of null."""
    return "" if values.dtype == pl.String else False if values.dtype == pl.Boolean else 0


def _values(kind: str, values: list[pl.Series]) -> list[bytes]:
    if kind == "String":
        return [_behind_lengths(*bytes_of(values[0]))]
    if kind == "UUID":
        return [np.stack([half.to_numpy() for half in values], axis=1).astype("<u8").tobytes()]
    if kind.startswith("Tuple("):
        kinds = kind.removeprefix("Tuple(").removesuffix(")").split(", ")
        return [part for each, of in zip(kinds, values, strict=True) for part in _values(each, [of])]
    if kind.startswith("Array("):
        inner, (lists,) = kind.removeprefix("Array(").removesuffix(")"), values
        ends = lists.list.len().to_numpy().cumsum(dtype="<u8").tobytes()
        return [ends, *_values(inner, [lists.explode(empty_as_null=False)])]
    return [values[0].to_numpy().astype(_NUMBERS[kind.partition("(")[0]], copy=False).tobytes()]


def _behind_lengths(lengths: npt.NDArray[np.int64], texts: bytes) -> bytes:
    """Each text behind the number of its bytes."""
    widths = np.searchsorted(_LONGER, lengths, side="right") + 1
    starts = np.cumsum(lengths + widths) - lengths - widths
    out = np.empty(len(texts) + widths.sum(), np.uint8)
    of_text = np.ones(len(out), np.bool_)
    for place in range(widths.max(initial=0)):
        there = widths > place
        at = starts[there] + place
        out[at] = lengths[there] >> 7 * place & 0x7F | (widths[there] > place + 1) << 7
        of_text[at] = False
    out[of_text] = np.frombuffer(texts, np.uint8)
    return out.tobytes()


@cache
def _text(text: str) -> bytes:
    encoded = text.encode()
    return bytes(make_varint(len(encoded))) + encoded

"""Text, bytes and lists of integers handed to Polars as Arrow's buffers, without a copy; and texts as bytes again.

https://arrow.apache.org/docs/format/Columnar.html. Each column has memory of its own, which goes when the column ends,
in any thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import nanoarrow
import numpy as np
import numpy.typing as npt
import polars as pl
from nanoarrow.c_array import c_array_from_buffers
from nanoarrow.c_schema import c_schema

from streams.wire.kernel import PADDING, fill_longs, fill_texts

Words = npt.NDArray[np.int64]

#: Rows up to which a Python object for each text costs less than a query of Polars.
FEW_ROWS = 1_000

_TEXT, _BYTES = c_schema(nanoarrow.large_string()), c_schema(nanoarrow.large_binary())
_LONG, _LISTS = c_schema(nanoarrow.int64()), c_schema(nanoarrow.large_list(nanoarrow.int64()))


def texts(body: npt.NDArray[np.uint8], spans: Words, utf8: bool) -> pl.Series:
    """A String (or Binary) column of what lies at the spans, ``start << 32 | size``; UTF-8 is the caller's promise."""
    offsets = np.empty(len(spans) + 1, np.int64)
    heap = np.empty(int((spans & 0xFFFF_FFFF).sum()) + PADDING, np.uint8)
    fill_texts(body, spans, offsets, heap)
    return pl.Series(_array(_TEXT if utf8 else _BYTES, len(spans), offsets, heap))


def bytes_of(values: pl.Series) -> tuple[Words, bytes]:
    """The number of bytes of each text of a column, and all of them one after the other."""
    if len(values) <= FEW_ROWS:
        found = values.cast(pl.Binary).to_list()
        return np.fromiter(map(len, found), np.int64, len(found)), b"".join(found)
    return values.str.len_bytes().to_numpy().astype(np.int64), values.str.join().item().encode()


def long_lists(body: npt.NDArray[np.uint8], spans: Words) -> pl.Series:
    """A column of lists of integers, their varints at the spans, ``start << 32 | items``."""
    offsets = np.empty(len(spans) + 1, np.int64)
    items = np.empty(int((spans & 0xFFFF_FFFF).sum()), np.int64)
    fill_longs(body, spans, offsets, items)
    return pl.Series(_array(_LISTS, len(spans), offsets, children=[_array(_LONG, len(items), items)]))


def _array(schema: Any, length: int, *buffers: npt.NDArray[Any], children: Sequence[Any] = ()) -> Any:
    """An Arrow array without nulls; what was just written is not looked at again."""
    return c_array_from_buffers(
        schema, length, [None, *buffers], null_count=0, children=children, validation_level="none"
    )

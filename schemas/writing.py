"""Columns to Avro bodies, without Python per record: the way back of schemas.columnar for the aggregates' schemas."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from schemas.catalogue import FrozenSchema
from schemas.rowcodec import frame

Bytes = npt.NDArray[np.uint8]
Lengths = npt.NDArray[np.int64]

SOME = 0x02  # index of the second branch of ["null", type]


@dataclass(frozen=True)
class _Pieces:
    """What one column contributes to each row: the bytes of all rows in order, and how many each row has."""

    data: Bytes
    lengths: Lengths


def encode_rows(frozen: FrozenSchema, rows: pl.DataFrame) -> list[bytes]:
    """Encode every row under a frozen schema, frame included.

    The frame has a column for each field: strings, integers, nullable integers and lists of integers.
    """
    if rows.is_empty():
        return []
    head = np.frombuffer(frame(frozen.id), np.uint8)
    columns = [_Pieces(np.tile(head, rows.height), np.full(rows.height, len(head)))]
    for field in frozen.schema["fields"]:
        columns += _encode(field["type"], rows[field["name"]])
    ends = np.cumsum(np.sum([column.lengths for column in columns], axis=0))
    out = np.empty(ends[-1], np.uint8)
    at = np.concatenate([[0], ends[:-1]])
    for column in columns:
        before = np.cumsum(column.lengths) - column.lengths
        out[np.repeat(at - before, column.lengths) + np.arange(len(column.data))] = column.data
        at = at + column.lengths
    blob, borders = out.tobytes(), [0, *ends.tolist()]
    return [blob[start:end] for start, end in pairwise(borders)]


def _encode(avro_type: Any, values: pl.Series) -> list[_Pieces]:
    match avro_type:
        case "string":
            size = values.str.len_bytes().cast(pl.Int64).to_numpy()
            text = "".join(values.to_list()).encode()
            return [_varints(size), _Pieces(np.frombuffer(text, np.uint8), size)]
        case "int" | "long" | {"type": "int" | "long"}:
            return [_varints(values.cast(pl.Int64).to_numpy())]
        case ["null", "int" | "long" | {"type": "int" | "long"}]:
            known = values.is_not_null().to_numpy()
            index = _Pieces(np.where(known, SOME, 0).astype(np.uint8), np.ones(len(values), np.int64))
            return [index, _spread(_varints(values.drop_nulls().cast(pl.Int64).to_numpy()), known.astype(np.int64))]
        case {"type": "array", "items": "int" | "long"}:
            count = values.list.len().cast(pl.Int64).to_numpy()
            filled = count > 0
            blocks = _spread(_varints(count[filled]), filled.astype(np.int64))
            items = _spread(_varints(values.explode().drop_nulls().cast(pl.Int64).to_numpy()), count)
            return [blocks, items, _Pieces(np.zeros(len(values), np.uint8), np.ones(len(values), np.int64))]
    raise TypeError(f"no columnar codec for writing {avro_type!r}")


def _varints(values: npt.NDArray[np.int64]) -> _Pieces:
    """Zigzag varints."""
    rest = ((values << 1) ^ (values >> 63)).view(np.uint64)
    digits = np.empty((len(values), 10), np.uint8)
    lengths = np.ones(len(values), np.int64)
    width = 0
    while True:
        digits[:, width] = rest & 0x7F
        rest = rest >> np.uint64(7)
        more = rest > 0
        width += 1
        if not more.any():
            break
        digits[more, width - 1] |= 0x80
        lengths += more
    return _Pieces(digits[:, :width][np.arange(width) < lengths[:, None]], lengths)


def _spread(pieces: _Pieces, counts: Lengths) -> _Pieces:
    """Join pieces so that row i gets the next ``counts[i]`` of them."""
    ends = np.concatenate([[0], np.cumsum(pieces.lengths)])
    last = np.cumsum(counts)
    return _Pieces(pieces.data, ends[last] - ends[last - counts])

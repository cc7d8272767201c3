"""Many records at a time: Avro bodies to columns, with Polars and without Python per record.

A v2 Kafka record batch is an Avro block: its varints are Avro's zigzag varints, so the decompressed body of a batch
whose records have a key, no headers and one schema id is a block of the record ``_length, _attributes,
_timestamp_delta, _offset_delta, _key, _value_length, _magic, _schema, <the feed's fields>, _header_count``, where
``_schema``, four bytes, is read as a float and compared with that of the schema's id. Polars ignores bytes left over
in a block, so nothing it returns is believed before every border is proved from the columns: the lengths the records
state equal the lengths their values have in canonical encoding, and add up to the body.
"""

from __future__ import annotations

import io
import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from schemas.avro import Schema
from schemas.catalogue import FrozenSchema
from schemas.rowcodec import FRAME, NotDecodable, frame

MAGIC = b"Obj\x01"
SYNC = bytes(16)
#: Bytes of a record without any field: Polars reserves room for as many as a batch states.
SMALLEST_RECORD = 12

_BEFORE: list[Schema] = [
    {"name": "_length", "type": "long"},
    {"name": "_attributes", "type": "long"},
    {"name": "_timestamp_delta", "type": "long"},
    {"name": "_offset_delta", "type": "long"},
    {"name": "_key", "type": "bytes"},
    {"name": "_value_length", "type": "long"},
    {"name": "_magic", "type": "long"},
    {"name": "_schema", "type": "float"},
]
_AFTER: list[Schema] = [{"name": "_header_count", "type": "long"}]
_ENVELOPE = [f["name"] for f in _BEFORE + _AFTER if f["name"] not in ("_key", "_offset_delta")]

#: What Polars raises for bytes that are no such block. It can panic, and a panic is not an ``Exception``.
DECODE_ERRORS: tuple[type[BaseException], ...] = (
    pl.exceptions.PolarsError,
    pl.exceptions.PanicException,
    OSError,
    ValueError,
)


@dataclass(frozen=True)
class Block:
    """The decompressed body of a record batch and what its header states."""

    body: bytes
    count: int
    base_offset: int
    last_offset: int
    arrived_ms: int

    def first_frame(self) -> bytes:
        """The frame of the first record's value, by the record format; other bytes if it does not hold."""
        at = 0
        for skip in (0, 1, 0):
            at = _after_varint(self.body, at + skip)
        key_length, at = read_varint(self.body, at)
        at = _after_varint(self.body, at + max(key_length, 0))
        return self.body[at : at + FRAME.size]


class Layout:
    """How the bodies of one frozen schema are read as columns."""

    def __init__(self, frozen: FrozenSchema) -> None:
        self.frozen = frozen
        self.frame = frame(frozen.id)
        self._schema = struct.unpack("<f", self.frame[1:])[0]
        fields = [{"name": f["name"], "type": _physical(f["type"])} for f in frozen.schema["fields"]]
        self._fields: list[tuple[str, Any]] = [(f["name"], f["type"]) for f in fields]
        self._enveloped = _header(_BEFORE + fields + _AFTER)
        self._bare = _header(fields)

    def read_blocks(self, blocks: Sequence[Block]) -> pl.DataFrame:
        """Decode whole record batches.

        Returns
        -------
        The schema's fields (instants and dates as integers, enums as strings) with ``_key`` (bytes), ``_offset``
        and ``_arrived`` (ms).

        Raises
        ------
        NotDecodable
            Anything at all is unexpected; the records then have to be read one by one.
        """
        if self._schema == 0 or math.isnan(self._schema):
            raise NotDecodable("the schema's id, read as a float, equals that of another")
        if any(not 0 < b.count <= len(b.body) // SMALLEST_RECORD for b in blocks):
            raise NotDecodable("a batch states more records than fit its body, or none")
        rows = self._decode(self._enveloped, [(b.body, b.count) for b in blocks])
        counts = pl.Series([b.count for b in blocks], dtype=pl.UInt32)
        batch = pl.select(pl.arange(len(blocks), dtype=pl.UInt32).repeat_by(counts).explode()).to_series()
        key = pl.col("_key").bin.size()
        value = pl.lit(FRAME.size, pl.Int64) + _sum([_encoded_length(pl.col(n), t, rows[n]) for n, t in self._fields])
        inner = _sum(
            [
                pl.lit(2, pl.Int64),
                *(_varint(pl.col(n), rows[n]) for n in ("_timestamp_delta", "_offset_delta", "_value_length")),
                key.cast(pl.Int64) + _varint(key, rows["_key"].bin.size()),
                pl.col("_value_length"),
            ]
        )
        proof = rows.with_columns(_batch=batch).select(
            bordered=(
                (pl.col("_magic") == 0)
                & (pl.col("_attributes") == 0)
                & (pl.col("_schema") == pl.lit(self._schema, pl.Float32))
                & (pl.col("_header_count") == 0)
                & (pl.col("_value_length") == value)
                & (pl.col("_length") == inner)
            ),
            size=pl.col("_length") + _varint(pl.col("_length"), rows["_length"]),
            delta=pl.col("_offset_delta"),
            batch=pl.col("_batch"),
        )
        if not proof["bordered"].all():
            raise NotDecodable("a record's stated length is not that of its values")
        sizes = proof.group_by("batch", maintain_order=True).agg(
            pl.col("size").sum(),
            ordered=(pl.col("delta") == pl.int_range(pl.len())).all(),
        )
        if (
            sizes["size"].to_list() != [len(b.body) for b in blocks]
            or not sizes["ordered"].all()
            or any(b.last_offset - b.base_offset + 1 != b.count for b in blocks)
        ):
            raise NotDecodable("the records do not fill their batch")
        base = pl.Series([b.base_offset for b in blocks], dtype=pl.Int64)
        arrived = pl.Series([b.arrived_ms for b in blocks], dtype=pl.Int64)
        return rows.with_columns(
            _offset=pl.col("_offset_delta") + base.gather(batch), _arrived=arrived.gather(batch)
        ).drop(_ENVELOPE, "_offset_delta")

    def read_values(self, values: Sequence[bytes]) -> tuple[pl.DataFrame, list[int]]:
        """Decode values of this schema, frame included, one by one where they do not decode together.

        Returns
        -------
        A frame of the values that decode and the positions of those that do not.
        """
        try:
            bodies = [value[FRAME.size :] for value in values]
            rows = self._decode(self._bare, [(b"".join(bodies), len(bodies))])
            lengths = rows.select(_sum([_encoded_length(pl.col(n), t, rows[n]) for n, t in self._fields])).to_series()
            if lengths.to_list() == [len(body) for body in bodies]:
                return rows, []
        except NotDecodable:
            pass
        if len(values) == 1:
            return self._decode(self._bare, []), [0]
        half = len(values) // 2
        left, left_bad = self.read_values(values[:half])
        right, right_bad = self.read_values(values[half:])
        return pl.concat([left, right]), left_bad + [half + position for position in right_bad]

    def _decode(self, header: bytes, blocks: Sequence[tuple[bytes, int]]) -> pl.DataFrame:
        container = io.BytesIO()
        container.write(header)
        for body, count in blocks:
            container.write(_zigzag(count) + _zigzag(len(body)))
            container.write(body)
            container.write(SYNC)
        container.seek(0)
        try:
            rows = pl.read_avro(container)
        except DECODE_ERRORS as error:
            raise NotDecodable(f"not a block of {self.frozen.subject}: {type(error).__name__}") from error
        if rows.height != sum(count for _, count in blocks):
            raise NotDecodable("a block holds another number of records than stated")
        required = [n for n, t in self._fields if not isinstance(t, list)]
        if rows.height and any(rows[name].null_count() for name in required):
            raise NotDecodable("a field that is never null has no value")
        enums = [n for n, t in self._fields if isinstance(t, dict) and t["type"] == "enum"]
        return rows.with_columns(pl.col(name).cast(pl.String) for name in enums)


def _physical(avro_type: Any) -> Any:
    """A type without logical types and with every integer a long: the bytes are the same."""
    if isinstance(avro_type, list):
        return [_physical(member) for member in avro_type]
    if isinstance(avro_type, dict):
        if avro_type["type"] in ("int", "long"):
            return "long"
        if avro_type["type"] == "array":
            return {"type": "array", "items": _physical(avro_type["items"])}
        return avro_type
    return "long" if avro_type == "int" else avro_type


def _header(fields: Sequence[Schema]) -> bytes:
    schema = json.dumps({"type": "record", "name": "_Envelope", "fields": list(fields)}).encode()
    entries = [(b"avro.schema", schema), (b"avro.codec", b"null")]
    encoded = b"".join(_zigzag(len(part)) + part for entry in entries for part in entry)
    return MAGIC + _zigzag(len(entries)) + encoded + _zigzag(0) + SYNC


def _zigzag(value: int) -> bytes:
    encoded = (value << 1) ^ (value >> 63)
    out = bytearray()
    while encoded > 0x7F:
        out.append(encoded & 0x7F | 0x80)
        encoded >>= 7
    out.append(encoded)
    return bytes(out)


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


def _sum(terms: Sequence[pl.Expr]) -> pl.Expr:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def _varint(value: pl.Expr, values: pl.Series) -> pl.Expr:
    """Bytes of the zigzag varints of ``value``; ``values`` is the column itself, whose range saves comparisons."""
    low, high = values.min(), values.max()
    if not isinstance(low, int) or not isinstance(high, int):
        return pl.lit(1, pl.Int64)
    longest = max(len(_zigzag(low)), len(_zigzag(high)))
    shortest = 1 if low < 0 <= high else min(len(_zigzag(low)), len(_zigzag(high)))
    length: pl.Expr = pl.lit(shortest, pl.Int64)
    value = value.cast(pl.Int64)
    for size in range(shortest, longest):
        limit = 1 << (7 * size - 1)
        length = length + ((value >= limit) | (value < -limit)).cast(pl.Int64)
    return length


def _encoded_length(value: pl.Expr, avro_type: Any, values: pl.Series) -> pl.Expr:
    """Bytes of a column's values in canonical Avro encoding."""
    match avro_type:
        case ["null", member]:
            known = _encoded_length(value, member, values) + 1
            return pl.when(value.is_null()).then(pl.lit(1, pl.Int64)).otherwise(known)
        case "long":
            return _varint(value, values)
        case "string":
            size = value.str.len_bytes().cast(pl.Int64)
            return size + _varint(size, values.str.len_bytes())
        case "double":
            return pl.lit(8, pl.Int64)
        case "boolean":
            return pl.lit(1, pl.Int64)
        case {"type": "enum", "symbols": symbols}:
            if len(symbols) > 64:
                raise NotDecodable("an enum of more than 64 symbols")
            return pl.lit(1, pl.Int64)
        case {"type": "record", "fields": fields}:
            return pl.lit(8 * len(fields), pl.Int64)
        case {"type": "array"}:
            size = value.list.len().cast(pl.Int64)
            items = value.list.eval(_item_length(pl.element())).list.sum().cast(pl.Int64)
            blocks = pl.when(size > 0).then(_varint(size, values.list.len()) + items).otherwise(0)
            return blocks + 1
    raise TypeError(f"no columnar codec for {avro_type!r}")


def _item_length(value: pl.Expr) -> pl.Expr:
    limits = [1 << (7 * size - 1) for size in range(1, 10)]
    return _sum([pl.lit(1, pl.Int64), *(((value >= limit) | (value < -limit)).cast(pl.Int64) for limit in limits)])

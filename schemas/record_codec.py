"""One record at a time: Confluent's wire format (0x00, schema id, Avro object) with fastavro."""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping
from typing import Any

import fastavro

from schemas.catalogue import Catalogue, FrozenSchema
from schemas.fields import Record

PREFIX = struct.Struct(">bI")


class NotDecodable(ValueError):
    """Bytes that are no record of a known schema; the message says why."""


def prefix(schema_id: int) -> bytes:
    """The five bytes before an Avro object: 0x00 and the schema id."""
    return PREFIX.pack(0, schema_id)


def schema_id(value: bytes) -> int | None:
    """The schema id a value states, or None if it has no prefix."""
    if len(value) < PREFIX.size or value[0] != 0:
        return None
    return int(PREFIX.unpack_from(value)[1])


def encode(frozen: FrozenSchema, record: Record | Mapping[str, Any]) -> bytes:
    """Encode a record under a frozen schema."""
    out = io.BytesIO()
    out.write(prefix(frozen.id))
    fastavro.schemaless_writer(out, frozen.parsed, record.model_dump() if isinstance(record, Record) else dict(record))
    return out.getvalue()


def decode(catalogue: Catalogue, value: bytes) -> dict[str, Any]:
    """Decode a record with the schema its prefix names.

    Raises
    ------
    NotDecodable
        The prefix, the schema id or the body is wrong, or bytes are left over.
    """
    stated = schema_id(value)
    if stated is None:
        raise NotDecodable("the value does not start with 0x00 and a schema id")
    if stated not in catalogue.by_id:
        raise NotDecodable(f"schema id {stated} is not in the catalogue")
    body = io.BytesIO(value)
    body.seek(PREFIX.size)
    try:
        record = fastavro.schemaless_reader(body, catalogue.by_id[stated].parsed, None)
    except EOFError as error:
        raise NotDecodable(f"the record is cut off: a record of schema {stated} has more bytes") from error
    except Exception as error:
        raise NotDecodable(f"the body is not of schema {stated}: {type(error).__name__}") from error
    if body.tell() != len(value):
        raise NotDecodable(f"{len(value) - body.tell()} bytes are left over after the record")
    assert isinstance(record, dict)
    return record

"""What one record comes to by itself: fastavro, its own encoding compared with the bytes, pydantic. No columns.

Also where records begin and end in a batch, by Kafka's format alone.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import fastavro

from schemas.avro import Schema
from schemas.catalogue import Catalogue
from schemas.feed import Feed
from streams.deadletters import Stage
from tests.reference.partition import is_valid
from tests.reference.toy import halves


@dataclass(frozen=True)
class Outcome:
    """A row, written out so that -0.0 differs from 0.0, or the stage that made a dead letter of the record."""

    row: str | None = None
    stage: Stage | None = None


class Alone:
    """Reads single records of one feed."""

    def __init__(self, catalogue: Catalogue, feed: Feed) -> None:
        self._feed = feed
        self._writers = {one.id: _parsed(one.schema) for one in catalogue.versions(feed.name)}
        self._newest = _parsed(catalogue.latest(feed.name).schema)

    def outcome(self, offset: int, key: bytes | None, value: bytes | None, arrived_ms: int) -> Outcome:
        """A row with its key, partition (always 0), offset and arrival, or the stage it fails at."""
        values = None if key is None or value is None else self._decoded(value)
        if key is None or values is None:
            return Outcome(stage="DECODE")
        if not is_valid(self._feed, values, key, arrived_ms):
            return Outcome(stage="VALIDATE")
        fields = {"event_id": halves(values.pop("event_id")), **values}
        return Outcome(repr({**fields, "_key": key, "_partition": 0, "_offset": offset, "_arrived": arrived_ms}))

    def _decoded(self, value: bytes) -> dict[str, Any] | None:
        """The record as the newest version has it, if the bytes are exactly what a writer writes for it."""
        if len(value) < 5 or value[0] != 0:
            return None
        writer = self._writers.get(int.from_bytes(value[1:5], "big"))
        if writer is None:
            return None
        body, again = io.BytesIO(value[5:]), io.BytesIO()
        try:
            fastavro.schemaless_writer(again, writer, fastavro.schemaless_reader(body, writer, None))
        except Exception:  # noqa: BLE001 - whatever it is, it is no record
            return None
        if again.getvalue() != value[5:]:
            return None
        found: Any = fastavro.schemaless_reader(io.BytesIO(value[5:]), writer, self._newest)
        return dict(found)


def _parsed(schema: Schema) -> Any:
    """The schema with plain numbers, and integers of any size: whether one fits is a matter of rules."""

    def plain(avro_type: Any) -> Any:
        if isinstance(avro_type, list):
            return [plain(member) for member in avro_type]
        return "long" if avro_type == "int" or "logicalType" in avro_type else avro_type

    fields = [field | {"type": plain(field["type"])} for field in schema["fields"]]
    return fastavro.parse_schema(schema | {"fields": fields})


class NoBorders(ValueError):
    """Bytes that are not so many records one after the other."""


def borders(body: bytes, count: int) -> Iterator[tuple[int, bytes | None, bytes | None]]:
    """Offset delta, key and value of each record of a batch's body; a negative length means null."""
    at = 0
    for _ in range(count):
        length, at = _varint(body, at)
        end = at + length
        _, at = _varint(body, at + 1)
        delta, at = _varint(body, at)
        key, at = _sized(body, at)
        value, at = _sized(body, at)
        headers, at = _varint(body, at)
        if headers < 0:
            raise NoBorders
        for _ in range(headers):
            name, at = _sized(body, at)
            _, at = _sized(body, at)
            if name is None:
                raise NoBorders
        if at != end:
            raise NoBorders
        yield delta, key, value
    if at != len(body):
        raise NoBorders


def _varint(body: bytes, at: int) -> tuple[int, int]:
    raw = 0
    for n in range(10):
        if at + n >= len(body):
            raise NoBorders
        raw |= (body[at + n] & 0x7F) << (7 * n)
        if body[at + n] < 0x80:
            return raw >> 1 ^ -(raw & 1), at + n + 1
    raise NoBorders


def _sized(body: bytes, at: int) -> tuple[bytes | None, int]:
    size, at = _varint(body, at)
    if size < 0:
        return None, at
    if at + size > len(body):
        raise NoBorders
    return body[at : at + size], at + size

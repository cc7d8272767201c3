"""Rows of reference data as they are on their topic.

A row is a record in Avro under the key of its identity: the values of its key fields, and the beginning of its
validity. The same key without a value takes the row away.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from pydantic import ValidationError

from schemas.catalogue import Catalogue, FrozenSchema
from schemas.fields import Record
from schemas.record_codec import NotDecodable, decode, encode, schema_id
from schemas.reference import Reference
from schemas.shapes import shape_problem
from schemas.verdict import instant_ms

#: Key of a record without a value that says how far the log has come, and nothing of any row.
MARK = b"[]"


class NoRow(ValueError):
    """A record is no row of its table; the message says why."""


class SchemaMissing(Exception):
    """A row names a schema id whose files may still come."""


@dataclass(frozen=True)
class Row:
    """A row as one record says it; ``values`` is None where it was taken away.

    ``key`` has the values it is looked up by, ``begins_ms`` is the beginning of its validity, None if it is open.
    """

    key: tuple[str | int, ...]
    begins_ms: int | None
    values: Mapping[str, Any] | None


def identity(reference: Reference, values: Mapping[str, Any]) -> bytes:
    """The key of a row on its topic."""
    begins = values[reference.valid_from] if reference.valid_from else None
    key = [str(value) if isinstance(value, StrEnum) else value for value in map(values.__getitem__, reference.key)]
    members = [*key, None if begins is None else instant_ms(begins)]
    return json.dumps(members, ensure_ascii=False, separators=(",", ":")).encode()


def encoded(reference: Reference, frozen: FrozenSchema, record: Record) -> tuple[bytes, bytes]:
    """Key and value of a row as they are sent."""
    return identity(reference, record.model_dump()), encode(frozen, record)


def problems(reference: Reference, values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the table's own rules say against values that its record allows: field and reason, read after the value."""
    found = []
    for field in reference.fields:
        text = values.get(field.name)
        if field.shape and text is not None and (reason := shape_problem(field.shape, text)):
            found.append((field.name, reason))
    if reference.valid_from and reference.valid_to:
        begins, ends = values.get(reference.valid_from), values.get(reference.valid_to)
        if begins is not None and ends is not None and ends <= begins:
            found.append((reference.valid_to, f"is not after {reference.valid_from}"))
    return found


def read_row(reference: Reference, catalogue: Catalogue, key: bytes | None, value: bytes | None) -> Row:
    """The row that a record of the topic is; values are those of its Avro record, of the fields that are declared.

    Raises
    ------
    SchemaMissing
        It names a schema id that is not here and may come.
    NoRow
        It is no row, whatever comes.
    """
    members = _members(reference, key or b"")
    if value is None:
        return Row(tuple(members[:-1]), members[-1], None)
    stated = schema_id(value)
    if stated is not None and stated not in catalogue.by_id:
        catalogue.refresh()
        if catalogue.may_come(stated):
            raise SchemaMissing(
                f"a row of {reference.name} names the schema id {stated}, which is not frozen here; bring the files "
                "that citystream schemas freeze made where it is declared"
            )
    try:
        found = decode(catalogue, value)
        if catalogue.by_id[stated or 0].subject != reference.name:
            raise NoRow(f"schema {stated} is of {catalogue.by_id[stated or 0].subject}")
        record = reference.record.model_validate(_declared(reference, found))
    except NotDecodable as error:
        raise NoRow(str(error)) from None
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        raise NoRow(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    values = record.model_dump()
    for name, reason in problems(reference, values):
        raise NoRow(f"{name} {reason}")
    if identity(reference, values) != key:
        raise NoRow("its values are not those of its key")
    return Row(tuple(members[:-1]), members[-1], values)


def _members(reference: Reference, key: bytes) -> list[Any]:
    try:
        members = json.loads(key)
    except ValueError:
        raise NoRow("its key is no JSON") from None
    if not isinstance(members, list) or len(members) != len(reference.key) + 1:
        raise NoRow(f"its key is no list of {len(reference.key) + 1} values")
    types = [int if reference.field(name).kind == "int" else str for name in reference.key]
    if any(type(one) is not kind for one, kind in zip(members[:-1], types, strict=True)):
        raise NoRow("its key has a value of another type")
    if type(members[-1]) not in (int, type(None)):
        raise NoRow("its key ends with no time")
    return members


def _declared(reference: Reference, values: Mapping[str, Any]) -> dict[str, Any]:
    """Values of the declared fields; strict models want enum members, Avro gives their symbols."""
    found = {}
    for field in (field for field in reference.fields if field.name in values):
        value, kind = values[field.name], reference.record.model_fields[field.name].annotation
        if field.kind == "enum" and isinstance(kind, type) and issubclass(kind, StrEnum):
            value = kind(value) if value in field.symbols else kind("unknown")
        found[field.name] = value
    return found


def plain(value: Any) -> Any:
    """A value as columns have it: an instant in ms since 1970."""
    return instant_ms(value) if isinstance(value, datetime) else str(value) if isinstance(value, StrEnum) else value

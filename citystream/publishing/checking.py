"""From a row of a file to a valid record of a feed, or to what a department has to correct."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from citystream.publishing.mapping import FileMapping, MappingProblem, Take, bind, paths
from citystream.publishing.sources import Row
from citystream.publishing.values import Convert, NotConvertible, converter, time_converter
from schemas.feed import Feed
from schemas.fields import Place, Record
from schemas.verdict import instant_ms, problem


class Rejected(ValueError):
    """A row is no valid record; the message holds everything that is wrong with it."""


class Checker:
    """Makes records of one feed from the rows of one file.

    ``id_key`` keys the derived ids of feeds with personal fields, so that an id gives no hint of a personal value.
    ``now_ms`` is when the records are published: a time far after it is refused here and not by the processor.

    Raises
    ------
    MappingProblem
        The mapping does not fit the feed or the file.
    """

    def __init__(
        self, feed: Feed, mapping: FileMapping, columns: Sequence[str] | None, *, id_key: bytes, now_ms: int
    ) -> None:
        self._feed = feed
        self._id_key = id_key
        self._now_ms = now_ms
        self._taken = bind(feed, mapping, columns)
        self._derived = mapping.derived
        kinds = paths(feed)
        self._convert = {
            path: converter(
                kinds[path],
                _symbols(feed, path),
                time_converter(mapping.time_format, mapping.time_zone, take.plus_minutes),
            )
            for path, take in self._taken.items()
        }
        iso = time_converter("iso", mapping.time_zone)
        self._constants = {
            path: _constant(path, value, converter(kinds[path], _symbols(feed, path), iso))
            for path, value in mapping.constants.items()
        }
        self._personal = {field.name for field in feed.fields if field.personal}
        filled = {path.split(".")[0] for path in (*self._taken, *self._constants, *self._derived)}
        self.empty_fields = [f.name for f in feed.fields if f.name not in filled and f.name != "event_id"]

    def check(self, row: Row) -> Record:
        """The record of a row.

        Raises
        ------
        Rejected
            It cannot be read or breaks a rule of the feed.
        """
        if row.problem is not None:
            raise Rejected(row.problem)
        values = self._values(row.columns)
        identity = derived_id(self._id_key if self._personal else b"", self._feed, values, self._derived)
        values |= dict.fromkeys(self._derived, identity)
        if values.get("event_id") is None:
            values["event_id"] = identity
        try:
            record = self._feed.record.model_validate(values)
        except ValidationError as error:
            raise Rejected("; ".join(self._explain(one) for one in error.errors(include_url=False))) from None
        key = str(values[self._feed.key]).encode()
        broken = problem(self._feed, values, key, self._now_ms)
        if broken is not None:
            raise Rejected(broken.replace("after arrival", "in the future"))
        return record

    def _values(self, row: Mapping[str, Any]) -> dict[str, Any]:
        found, problems = dict(self._constants), []
        for path, take in self._taken.items():
            try:
                value = _taken(row, take)
                found[path] = None if value is None else self._convert[path](value)
            except NotConvertible as reason:
                problems.append(f"{self._where(path)}: {self._shown(path, _taken(row, take))} {reason}")
        if problems:
            raise Rejected("; ".join(problems))
        return self._fields(found)

    def _fields(self, found: Mapping[str, Any]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for field in self._feed.fields:
            if field.kind == "place":
                halves = {half: found.get(f"{field.name}.{half}") for half in Place.model_fields}
                values[field.name] = halves if any(half is not None for half in halves.values()) else None
            elif found.get(field.name) is not None or field.nullable:
                values[field.name] = found.get(field.name)
        return values

    def _explain(self, error: ErrorDetails) -> str:
        path = ".".join(str(part) for part in error["loc"])
        limits = error.get("ctx", {})
        shown = self._shown(path, error["input"])
        match error["type"]:
            case "missing" | "float_type":
                what = "a value is needed"
            case "greater_than_equal":
                what = f"{shown} is below {limits['ge']}"
            case "less_than_equal":
                what = f"{shown} is above {limits['le']}"
            case "string_too_short":
                what = f"{shown} is shorter than {limits['min_length']} characters"
            case "string_too_long":
                what = f"{shown} is longer than {limits['max_length']} characters"
            case "string_pattern_mismatch":
                what = f"{shown} is not of the form {limits['pattern']}"
            case _:
                what = f"{shown}: {error['msg']}"
        return f"{self._where(path)}: {what}"

    def _where(self, path: str) -> str:
        take = self._taken.get(path)
        return path if take is None or take.column == path else f"{path} (column {take.column})"

    def _shown(self, path: str, value: Any) -> str:
        if path in self._personal:
            return "the value"
        text = value.isoformat() if isinstance(value, datetime) else str(value)
        printable = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text[:40])
        return printable if len(text) <= 40 else f"{printable}..."


def derived_id(key: bytes, feed: Feed, values: Mapping[str, Any], derived: Sequence[str] = ()) -> str:
    """A UUID (version 8) that equal records of a feed share: HMAC-SHA256 of all their values that are not null.

    ``event_id`` and the ``derived`` fields are left out.
    """
    content = {
        name: value for name, value in values.items() if value is not None and name not in ("event_id", *derived)
    }
    text = json.dumps([feed.name, content], sort_keys=True, separators=(",", ":"), default=_plain)
    number = int.from_bytes(hmac.digest(key, text.encode(), hashlib.sha256)[:16])
    return str(UUID(int=number & ~(0xF << 76 | 0x3 << 62) | 0x8 << 76 | 0x2 << 62))


def _plain(value: Any) -> int | str:
    return instant_ms(value) if isinstance(value, datetime) else str(value)


def _taken(row: Mapping[str, Any], take: Take) -> Any:
    """What stands in the column, None if nothing does."""
    value = row.get(take.column)
    if isinstance(value, str):
        value = value.strip()
        if take.before is not None:
            value = value.partition(take.before)[0].strip()
    return None if value == "" else value


def _symbols(feed: Feed, path: str) -> type[StrEnum] | None:
    info = feed.record.model_fields.get(path)
    kind = info.annotation if info is not None else None
    return kind if isinstance(kind, type) and issubclass(kind, StrEnum) else None


def _constant(path: str, value: Any, convert: Convert) -> Any:
    try:
        return convert(value)
    except NotConvertible as reason:
        raise MappingProblem(f"the constant {path} = {value!r} {reason}") from None

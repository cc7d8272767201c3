"""From a row of a file to a valid record of a feed, or to what a department has to correct."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Generic, TypeVar
from uuid import UUID

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from operations.printable import printable
from operations.publishing.mapping import FileMapping, MappingProblem, Take, bind, paths
from operations.publishing.rows import Row
from operations.publishing.values import Convert, NotConvertible, converter, time_converter
from schemas.feed import Feed
from schemas.fields import Place, Record
from schemas.reference import Reference
from schemas.reference_rows import problems
from schemas.verdict import broken, instant_ms

D = TypeVar("D", bound=Feed | Reference)


@dataclass(frozen=True)
class Problem:
    """What is wrong with a value, or with a whole row where ``where`` is empty."""

    where: str
    shown: str
    what: str

    @property
    def kind(self) -> str:
        """The problem without the value, alike for all values that have it."""
        return f"{self.where}: {self.what}" if self.where else self.what

    def __str__(self) -> str:
        if not self.where:
            return f"{self.what} ({self.shown})" if self.shown else self.what
        return f"{self.where}: {self.shown} {self.what}" if self.shown else f"{self.where}: {self.what}"


class Rejected(ValueError):
    """A row is no valid record; ``problems`` are all that is wrong with it."""

    def __init__(self, *problems: Problem) -> None:
        super().__init__("; ".join(map(str, problems)))
        self.problems = problems


class RecordChecker(Generic[D]):
    """Makes records of what is declared, a feed or a table of reference data, from the rows of one file.

    Raises
    ------
    MappingProblem
        The mapping does not fit what is declared, or the file.
    """

    def __init__(self, feed: D, mapping: FileMapping, columns: Sequence[str] | None) -> None:
        self._feed: D = feed
        self._taken = bind(feed, mapping, columns)
        self._derived = mapping.derived
        #: How many local times were read that exist twice.
        self.twice = 0
        kinds = paths(feed)
        self._convert = {
            path: converter(
                kinds[path],
                _symbols(feed, path),
                time_converter(mapping.time_format, mapping.time_zone, take.plus_minutes, self._on_twice),
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
            It cannot be read or breaks a rule of what is declared.
        """
        if row.problem is not None:
            raise Rejected(Problem("", row.detail, row.problem))
        found, unreadable = self._converted(row.columns)
        values = self.completed(self._fields(found))
        unread = {path.split(".")[0] for path in unreadable}
        wrong, reasons, record = set(unread), [*unreadable.values()], None
        try:
            record = self._feed.record.model_validate({n: v for n, v in values.items() if n not in unread})
        except ValidationError as error:
            others = [one for one in error.errors(include_url=False) if one["loc"][0] not in unread]
            wrong |= {str(one["loc"][0]) for one in others}
            reasons += map(self._explain, others)
        reasons += self.broken(values, wrong)
        if record is None or reasons:
            raise Rejected(*reasons)
        return record

    def completed(self, values: dict[str, Any]) -> dict[str, Any]:
        """The values of a row with those that no column gives."""
        return values

    def broken(self, values: Mapping[str, Any], wrong: Container[str]) -> Iterable[Problem]:
        """What breaks the rules of what is declared, but for fields that are ``wrong`` already."""
        raise NotImplementedError

    def _converted(self, row: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Problem]]:
        """The values of the fields that can be read, and the problems of the others, by path."""
        found, problems = dict(self._constants), {}
        for path, take in self._taken.items():
            try:
                value = _taken(row, take)
                found[path] = None if value is None else self._convert[path](value)
            except NotConvertible as reason:
                problems[path] = Problem(self._where(path), self._shown(path, _taken(row, take)), str(reason))
        return found, problems

    def _on_twice(self) -> None:
        self.twice += 1

    def _fields(self, found: Mapping[str, Any]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for field in self._feed.fields:
            if field.kind == "place":
                halves = {half: found.get(f"{field.name}.{half}") for half in Place.model_fields}
                values[field.name] = halves if any(half is not None for half in halves.values()) else None
            elif found.get(field.name) is not None or field.nullable:
                values[field.name] = found.get(field.name)
        return values

    def _explain(self, error: ErrorDetails) -> Problem:
        path = ".".join(str(step) for step in error["loc"])
        limits = error.get("ctx", {})
        shown = self._shown(path, error["input"])
        match error["type"]:
            case "missing" | "float_type":
                shown, what = "", "a value is needed"
            case "greater_than_equal":
                what = f"is below {limits['ge']}"
            case "less_than_equal":
                what = f"is above {limits['le']}"
            case "string_too_short":
                what = f"is shorter than {limits['min_length']} characters"
            case "string_too_long":
                what = f"is longer than {limits['max_length']} characters"
            case "string_pattern_mismatch":
                what = f"is not of the form {limits['pattern']}"
            case _:
                what = f"is refused: {error['msg']}"
        return Problem(self._where(path), shown, what)

    def _where(self, path: str) -> str:
        take = self._taken.get(path)
        return path if take is None or take.column == path else f"{path} (column {take.column})"

    def _shown(self, path: str, value: Any) -> str:
        if path in self._personal:
            return "the value"
        text = value.isoformat() if isinstance(value, datetime) else str(value)
        return printable(text) if len(text) <= 40 else f"{printable(text[:40])}..."


class Checker(RecordChecker[Feed]):
    """Makes records of one feed.

    ``id_key`` keys the derived ids of feeds with personal fields, so that an id gives no hint of a personal value.
    ``now_ms`` is when the records are published: a time far after it is refused here and not by the processor.
    """

    def __init__(
        self, feed: Feed, mapping: FileMapping, columns: Sequence[str] | None, *, id_key: bytes, now_ms: int
    ) -> None:
        self._id_key = id_key
        self._now_ms = now_ms
        super().__init__(feed, mapping, columns)

    def completed(self, values: dict[str, Any]) -> dict[str, Any]:
        """With the ids that are derived from them."""
        identity = derived_id(self._id_key if self._personal else b"", self._feed, values, self._derived)
        values |= dict.fromkeys(self._derived, identity)
        if values.get("event_id") is None:
            values["event_id"] = identity
        return values

    def broken(self, values: Mapping[str, Any], wrong: Container[str]) -> Iterable[Problem]:
        """What the processor would refuse."""
        key = str(values.get(self._feed.key)).encode()
        for rule in broken(self._feed, values, key, self._now_ms, wrong):
            yield Problem("", "", rule.replace("after arrival", "in the future"))


class RowChecker(RecordChecker[Reference]):
    """Makes rows of one table of reference data; a shape may be an object, too."""

    def __init__(self, reference: Reference, mapping: FileMapping, columns: Sequence[str] | None) -> None:
        super().__init__(reference, mapping, columns)
        for name in (field.name for field in reference.fields if field.shape and field.name in self._taken):
            self._convert[name] = _shape

    def broken(self, values: Mapping[str, Any], wrong: Container[str]) -> Iterable[Problem]:
        """What a reader of the table would leave out."""
        for name, what in problems(self._feed, {n: v for n, v in values.items() if n not in wrong}):
            yield Problem(self._where(name), self._shown(name, values[name]), what)


def _shape(value: Any) -> str:
    if isinstance(value, dict):
        return json.dumps(value)
    if not isinstance(value, str):
        raise NotConvertible("is no GeoJSON geometry")
    return value


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


def _symbols(feed: Feed | Reference, path: str) -> type[StrEnum] | None:
    info = feed.record.model_fields.get(path)
    kind = info.annotation if info is not None else None
    return kind if isinstance(kind, type) and issubclass(kind, StrEnum) else None


def _constant(path: str, value: Any, convert: Convert) -> Any:
    try:
        return convert(value)
    except NotConvertible as reason:
        raise MappingProblem(f"the constant {path} = {value!r} {reason}") from None

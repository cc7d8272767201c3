"""How the columns of a file become the fields of a feed.

The whole language: a field takes a column, a constant or a value derived from the rest of the record. A field nothing
is said about takes the column of its own name, if there is one. Half a place is written ``place.longitude``.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from operations.publishing.values import refuse_pattern
from schemas.feed import Feed
from schemas.model import Kind
from schemas.reference import Reference

Scalar = str | int | float | bool


class MappingProblem(ValueError):
    """A mapping makes no sense for its feed or file; the message says what to change."""


class Take(BaseModel):
    """The value of a column: all of it, or what stands ``before`` a text; a time may be moved by minutes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    column: str
    before: str | None = Field(None, min_length=1)
    plus_minutes: int = 0


class FileMapping(BaseModel):
    """What has to be said about a file.

    ``columns`` names the columns of a file without a header line. ``time_format`` is ``iso``, ``unix`` (seconds),
    ``unix_ms`` or a pattern such as ``%d-%m-%Y %H:%M``; ``time_zone`` is that of times without a UTC offset.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    columns: tuple[str, ...] | None = None
    time_format: str = "iso"
    time_zone: ZoneInfo | None = None
    fields: dict[str, Take] = {}
    constants: dict[str, Scalar] = {}
    derived: tuple[str, ...] = ()

    @field_validator("time_format")
    @classmethod
    def _format(cls, pattern: str) -> str:
        refuse_pattern(pattern)
        return pattern

    @field_validator("time_zone", mode="before")
    @classmethod
    def _zone(cls, name: Any) -> Any:
        if not isinstance(name, str):
            return name
        try:
            return ZoneInfo(name)
        except (KeyError, ValueError, OSError) as error:
            raise ValueError(f"{name!r} is no IANA time zone, such as Asia/Shanghai") from error

    @field_validator("fields", mode="before")
    @classmethod
    def _fields(cls, given: Any) -> Any:
        flat = _flatten(given)
        return {path: Take(column=take) if isinstance(take, str) else take for path, take in flat.items()}

    @field_validator("constants", mode="before")
    @classmethod
    def _constants(cls, given: Any) -> Any:
        return _flatten(given)


def _flatten(given: Any) -> dict[str, Any]:
    """TOML reads ``place.longitude = ...`` as a table in a table."""
    if not isinstance(given, dict):
        raise MappingProblem("a table is needed, such as [fields]")
    flat: dict[str, Any] = {}
    for name, value in given.items():
        if isinstance(value, dict) and "column" not in value:
            flat |= {f"{name}.{half}": inner for half, inner in _flatten(value).items()}
        else:
            flat[name] = value
    return flat


def read_mapping(path: Path) -> dict[str, Any]:
    """The content of a mapping file.

    Raises
    ------
    MappingProblem
        It cannot be read or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise MappingProblem(f"the mapping file {path} cannot be read: {error}") from None


def make_mapping(
    content: Mapping[str, Any], maps: Sequence[str] = (), constants: Sequence[str] = (), **options: Any
) -> FileMapping:
    """A mapping from a mapping file's content and what the command line says, which wins.

    Parameters
    ----------
    maps : ``column=field``, constants : ``field=value``
    options : other attributes of a FileMapping; None means not said.

    Raises
    ------
    MappingProblem
        Something is not of its form.
    """
    merged: dict[str, Any] = {**content, **{name: value for name, value in options.items() if value is not None}}
    for one in maps:
        column, equals, path = one.rpartition("=")
        if not equals or not column or not path:
            raise MappingProblem(f"--map {one}: column=field is needed, such as --map car_park=site_id")
        merged["fields"] = {**_flatten(merged.get("fields", {})), path: column}
    for one in constants:
        path, equals, value = one.partition("=")
        if not equals or not path:
            raise MappingProblem(f"--constant {one}: field=value is needed, such as --constant lane=0")
        merged["constants"] = {**_flatten(merged.get("constants", {})), path: value}
    try:
        return FileMapping.model_validate(merged)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(step) for step in first["loc"])
        raise MappingProblem(f"mapping, {where}: {first['msg'].removeprefix('Value error, ')}") from None


def paths(feed: Feed | Reference) -> dict[str, Kind]:
    """What a mapping can fill, and of which kind: the fields, a place as its two halves."""
    found: dict[str, Kind] = {}
    for field in feed.fields:
        if field.kind == "place":
            found |= {f"{field.name}.longitude": "float", f"{field.name}.latitude": "float"}
        else:
            found[field.name] = field.kind
    return found


def bind(feed: Feed | Reference, mapping: FileMapping, columns: Sequence[str] | None) -> dict[str, Take]:
    """Which column each field takes; fields with a constant, derived ones and those without a column are left out.

    ``columns`` are those of the file, None if every record brings its own.

    Raises
    ------
    MappingProblem
        A field or column does not exist, is said twice, or a field that is always needed would get no value.
    """
    known = paths(feed)
    said = [*mapping.fields, *mapping.constants, *mapping.derived]
    for path in said:
        if path not in known:
            raise MappingProblem(f"{feed.name} has no field {path}{_near(path, known)}")
        if said.count(path) > 1:
            raise MappingProblem(f"{path} can have only one of a column, a constant and derived")
    for path in mapping.derived:
        if known[path] != "string" or path == "event_id":
            raise MappingProblem(f"{path} cannot be derived: only a text can, and event_id always is if it is missing")
    for path, take in mapping.fields.items():
        if take.plus_minutes and known[path] != "instant":
            raise MappingProblem(f"{path} is no time: plus_minutes cannot be used")
    rest = [path for path in known if path not in said]
    taken = dict(mapping.fields) | {path: Take(column=path) for path in rest if columns is None or path in columns}
    if columns is not None:
        _check_columns(feed, mapping, taken, columns)
    return taken


def _check_columns(
    feed: Feed | Reference, mapping: FileMapping, taken: Mapping[str, Take], columns: Sequence[str]
) -> None:
    hint = "" if mapping.columns else "; if its first line is no header, name the columns with --columns"
    for path, take in taken.items():
        if columns.count(take.column) != 1:
            wrong = "two columns" if take.column in columns else "no column"
            raise MappingProblem(f"the file has {wrong} {take.column!r} for {path}{_near(take.column, columns)}{hint}")
    for field in feed.fields:
        halves = [path for path in paths(feed) if path.split(".")[0] == field.name]
        given = [p for p in halves if p in taken or p in mapping.constants or p in mapping.derived]
        optional = field.nullable or field.has_default or field.name == "event_id"
        if len(given) < len(halves) and (given or not optional):
            missing = next(path for path in halves if path not in given)
            raise MappingProblem(
                f"nothing gives {missing} a value: use --map column={missing} or --constant {missing}=value "
                f"(columns: {', '.join(columns)}){hint}"
            )


def _near(name: str, known: Iterable[str]) -> str:
    names = list(known)
    near = difflib.get_close_matches(name, names, 1)
    hint = f"; {near[0]} is meant, perhaps" if near else ""
    return f"{hint} (there are: {', '.join(names)})"

"""The frozen schemas: every version of every subject ever published, and its id.

``frozen/ids.json`` maps an id to subject, version and fingerprint, and says of which version it is itself;
``frozen/<subject>/<version>.avsc`` holds the schema. A subject is a topic's name. Ids are given once and never again.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import fastavro
from avro.compatibility import ReaderWriterCompatibilityChecker, SchemaCompatibilityType
from avro.schema import parse

from schemas.avro import Schema, aggregate_schema, feed_schema, tick_schema
from schemas.feed import Feed
from schemas.persisted import Newer, check_version
from schemas.reference import Reference

FROZEN = Path(__file__).parent / "frozen"
IDS = "ids.json"
#: Of that file; one of version 1 need not say it.
VERSION = 1
FREEZE = "run: citystream schemas freeze"
#: How far behind the newest id known here one may lie that is on its way: more than are frozen at once. Ids are given
#: one after the other, so one further behind is none, and one before the newest was never given.
AHEAD = 64
#: No table of reference data.
NONE: Mapping[str, Reference] = {}
#: Subject of the ticks, which may stand on the topic of any feed.
TICK = "tick"


class SchemaProblem(ValueError):
    """A schema is missing, was changed after it was frozen, or is not compatible with an older version."""


@dataclass(frozen=True)
class FrozenSchema:
    """One version of one subject."""

    id: int
    subject: str
    version: int
    schema: Schema

    @cached_property
    def parsed(self) -> Any:
        """The schema as fastavro wants it."""
        return fastavro.parse_schema(self.schema)


class Catalogue:
    """All frozen schemas, by id and by subject; with a folder, as its files are when they are asked for again."""

    def __init__(self, schemas: Mapping[int, FrozenSchema], folder: Path | None = None) -> None:
        self.by_id = dict(schemas)
        self.folder = folder
        self._read: object = None
        self._reading = threading.Lock()

    @classmethod
    def load(cls, folder: Path = FROZEN) -> Catalogue:
        """Read the frozen schemas.

        Raises
        ------
        SchemaProblem
            A file was changed after it was frozen, or is missing.
        """
        catalogue = cls({}, folder)
        catalogue.refresh()
        return catalogue

    def refresh(self) -> None:
        """Read the files again if they changed; one thread at a time, or one could bring back what was before.

        Raises
        ------
        SchemaProblem
            As ``load``; what was read before stays.
        """
        if self.folder is None:
            return
        with self._reading:
            if (found := _stamp(self.folder / IDS)) != self._read:
                self.by_id = _read(self.folder)
                self._read = found

    @property
    def newest_id(self) -> int:
        """The newest schema id; ids are given one after the other, from 1."""
        return max(self.by_id, default=0)

    def may_come(self, schema_id: int) -> bool:
        """Whether the files may bring this id, which is not known, by and by."""
        return self.folder is not None and self.newest_id < schema_id <= self.newest_id + AHEAD

    def versions(self, subject: str) -> list[FrozenSchema]:
        """All versions of a subject, oldest first."""
        return sorted((s for s in self.by_id.values() if s.subject == subject), key=lambda s: s.version)

    def latest(self, subject: str) -> FrozenSchema:
        """The newest version of a subject.

        Raises
        ------
        SchemaProblem
            The subject was never frozen.
        """
        versions = self.versions(subject)
        if not versions:
            raise SchemaProblem(f"{subject} has no frozen schema; {FREEZE}")
        return versions[-1]

    def of(self, subject: str, schema: Schema) -> FrozenSchema:
        """The newest version of a subject that is this schema.

        Raises
        ------
        SchemaProblem
            The schema was never frozen.
        """
        self.latest(subject)
        found = [frozen for frozen in self.versions(subject) if frozen.schema == schema]
        if not found:
            raise SchemaProblem(f"{subject} is not frozen as it is declared; {FREEZE}")
        return found[-1]


def _read(folder: Path) -> dict[int, FrozenSchema]:
    schemas: dict[int, FrozenSchema] = {}
    ids = folder / IDS
    try:
        entries = json.loads(ids.read_text() if ids.exists() else "{}")
        check_version(entries, VERSION)
    except Newer as newer:
        raise SchemaProblem(f"{ids} {newer}") from None
    except ValueError:
        raise SchemaProblem(f"{ids} is no JSON; restore it") from None
    entries.pop("version", None)
    for key, entry in entries.items():
        path = folder / entry["subject"] / f"{entry['version']}.avsc"
        if not path.exists():
            raise SchemaProblem(f"{path.name} of {entry['subject']} is missing; restore it, frozen schemas are kept")
        text = path.read_text()
        if _fingerprint(text) != entry["sha256"]:
            raise SchemaProblem(
                f"{entry['subject']} version {entry['version']} was changed after it was frozen; restore the file "
                "and freeze the change as a new version"
            )
        schemas[int(key)] = FrozenSchema(int(key), entry["subject"], entry["version"], json.loads(text))
    return schemas


def _stamp(path: Path) -> tuple[int, ...]:
    """Differs when a file was written anew."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return ()
    return found.st_ino, found.st_mtime_ns, found.st_size


def declared(feeds: Mapping[str, Feed], references: Mapping[str, Reference] = NONE) -> dict[str, Schema]:
    """The schema each subject should have now, from the declarations."""
    subjects = {name: feed_schema(reference) for name, reference in references.items()}
    for feed in feeds.values():
        subjects[feed.name] = feed_schema(feed)
        subjects |= {aggregate.topic: aggregate_schema(feed, aggregate) for aggregate in feed.aggregates}
    return subjects | {TICK: tick_schema()}


def incompatibilities(new: Any, old: Schema) -> list[str]:
    """What keeps the readers of one of two versions from the records of the other, by field; empty if nothing does.

    Both ways, since workers and publishers of both run at the same time. It is stricter than Avro, for which an
    integer may become a date and a lost symbol is unknown: a value that was stored has to stay what it was. In one
    thing it is wider: from a version on a field may be null, for which a worker of an older declaration stops. ``new``
    may be any Avro schema, ``old`` is a record.
    """
    if not (isinstance(new, dict) and new["type"] == "record"):
        return ["it is no record"]
    now, then = ({field["name"]: field for field in schema["fields"]} for schema in (new, old))
    reasons = [
        *(f"{name} is new and has no default" for name in _required(now, then)),
        *(f"{name} is gone and had no default" for name in _required(then, now)),
        *(f"{name} {reason}" for name in now if name in then for reason in _changes(now[name], then[name])),
    ]
    return reasons or [
        *_mismatch(new, old),
        *_mismatch({**old, "fields": [_letting(now, f) for f in then.values()]}, new),
    ]


def _required(fields: Mapping[str, Schema], others: Mapping[str, Schema]) -> list[str]:
    return [name for name, field in fields.items() if name not in others and "default" not in field]


def _widened(now: Schema, then: Schema) -> bool:
    """Whether a field may be null that had to have a value."""
    return _type(now) == f"{_type(then)} or null"


def _letting(now: Mapping[str, Schema], field: Schema) -> Schema:
    """An older field as it would read what may be null now."""
    newer = now.get(field["name"], field)
    return {"name": field["name"], "type": newer["type"]} if _widened(newer, field) else field


def _changes(now: Schema, then: Schema) -> Iterator[str]:
    if _type(now) != _type(then) and not _widened(now, then):
        yield f"was {_type(then)} and is {_type(now)}"
    elif lost := [symbol for symbol in _symbols(then) if symbol not in _symbols(now)]:
        yield f"has lost the symbol {', '.join(lost)}"
    if "default" in now and "default" in then and now["default"] != then["default"]:
        yield f"had the default {json.dumps(then['default'])} and has {json.dumps(now['default'])}"


def _type(field: Schema) -> str:
    """The type of a field's values in a word or two; enums are alike whatever their symbols."""
    match field["type"]:
        case list(types):
            return " or ".join(_type({**field, "type": one}) for one in sorted(types, key=lambda one: one == "null"))
        case {"type": "array", "items": items}:
            return f"array of {_type({'type': items})}"
        case {"logicalType": name} | {"type": name}:
            return str(name)
    return str(field.get("format", field["type"]))


def _symbols(field: Schema) -> list[str]:
    return list(field["type"]["symbols"]) if _type(field) == "enum" else []


def _mismatch(reader: Schema, writer: Schema) -> list[str]:
    result = ReaderWriterCompatibilityChecker().get_compatibility(parse(json.dumps(reader)), parse(json.dumps(writer)))
    return [] if result.compatibility is SchemaCompatibilityType.compatible else sorted(result.messages)


def _differences(schema: Schema, frozen: Schema) -> list[str]:
    """Names of the fields that are not alike."""
    declared, kept = ({field["name"]: field for field in one["fields"]} for one in (schema, frozen))
    return [name for name in declared | kept if declared.get(name) != kept.get(name)]


def _redefined(schema: Schema, frozen: Schema) -> list[str]:
    """Names of what is not alike in the definitions of an aggregate, whose parts would not add up."""
    declared, kept = schema.get("definition", {}), frozen.get("definition", {})
    return [name for name in declared if declared[name] != kept.get(name)]


def check(catalogue: Catalogue, feeds: Mapping[str, Feed], references: Mapping[str, Reference] = NONE) -> list[str]:
    """Problems between declarations and frozen schemas; empty if each declared schema is the latest frozen one."""
    problems = []
    for subject, schema in declared(feeds, references).items():
        versions = catalogue.versions(subject)
        if versions and versions[-1].schema == schema:
            continue
        if versions and (changed := _redefined(schema, versions[-1].schema)):
            problems.append(f"{subject}: its definition changed ({', '.join(changed)}); raise its version")
            continue
        reasons = [
            f"{subject} is not compatible with its version {old.version}: {reason}"
            for old in versions
            for reason in incompatibilities(schema, old.schema)
        ]
        fields = f" ({', '.join(_differences(schema, versions[-1].schema)) or 'description'})" if versions else ""
        problems += reasons or [f"{subject}: not frozen as declared{fields}; {FREEZE}"]
    return problems


def freeze(
    feeds: Mapping[str, Feed], folder: Path = FROZEN, references: Mapping[str, Reference] = NONE
) -> list[FrozenSchema]:
    """Write what is declared and not yet frozen; returns the new versions.

    Raises
    ------
    SchemaProblem
        A new version could not read an old one, or an old one the new but for null, or an aggregate has another
        definition under an old version; nothing is written.
    """
    catalogue = Catalogue.load(folder)
    problems = [problem for problem in check(catalogue, feeds, references) if FREEZE not in problem]
    if problems:
        raise SchemaProblem("\n".join(problems))
    new = []
    for subject, schema in declared(feeds, references).items():
        versions = catalogue.versions(subject)
        if versions and versions[-1].schema == schema:
            continue
        frozen = FrozenSchema(catalogue.newest_id + 1, subject, len(versions) + 1, schema)
        catalogue.by_id[frozen.id] = frozen
        new.append(frozen)
        path = folder / subject / f"{frozen.version}.avsc"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_text(schema))
    if new:
        written = folder / f"{IDS}.new"
        written.write_text(ids(catalogue.by_id.values()))
        written.replace(folder / IDS)  # workers may be reading it
    return new


def ids(frozen: Iterable[FrozenSchema]) -> str:
    """The content of the file of ids."""
    entries = {
        str(one.id): {"subject": one.subject, "version": one.version, "sha256": _fingerprint(_text(one.schema))}
        for one in frozen
    }
    return _text({"version": VERSION} | entries)


def _text(schema: Any) -> str:
    return json.dumps(schema, indent=2) + "\n"


def _fingerprint(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()

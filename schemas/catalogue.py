"""The frozen schemas: every version of every subject ever published, and its id.

``frozen/ids.json`` maps an id to subject, version and fingerprint; ``frozen/<subject>/<version>.avsc`` holds the
schema. A subject is a topic's name. Ids are given once and never again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import fastavro
from avro.compatibility import ReaderWriterCompatibilityChecker, SchemaCompatibilityType
from avro.schema import parse

from schemas.avro import Schema, aggregate_schema, feed_schema
from schemas.feed import Feed

FROZEN = Path(__file__).parent / "frozen"


class SchemaProblem(ValueError):
    """A schema is missing, was changed after it was frozen, or cannot read what was published before."""


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
    """All frozen schemas, by id and by subject."""

    def __init__(self, schemas: Mapping[int, FrozenSchema]) -> None:
        self.by_id = dict(schemas)

    @classmethod
    def load(cls, folder: Path = FROZEN) -> Catalogue:
        """Read the frozen schemas.

        Raises
        ------
        SchemaProblem
            A file was changed after it was frozen, or is missing.
        """
        ids = folder / "ids.json"
        schemas: dict[int, FrozenSchema] = {}
        for key, entry in json.loads(ids.read_text() if ids.exists() else "{}").items():
            path = folder / entry["subject"] / f"{entry['version']}.avsc"
            if not path.exists():
                raise SchemaProblem(
                    f"{path.name} of {entry['subject']} is missing; restore it, frozen schemas are kept"
                )
            text = path.read_text()
            if _fingerprint(text) != entry["sha256"]:
                raise SchemaProblem(
                    f"{entry['subject']} version {entry['version']} was changed after it was frozen; restore the file "
                    "and freeze the change as a new version"
                )
            schemas[int(key)] = FrozenSchema(int(key), entry["subject"], entry["version"], json.loads(text))
        return cls(schemas)

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
            raise SchemaProblem(f"{subject} has no frozen schema; run: citystream schemas freeze")
        return versions[-1]


def declared(feeds: Mapping[str, Feed]) -> dict[str, Schema]:
    """The schema each subject should have now, from the declarations."""
    subjects: dict[str, Schema] = {}
    for feed in feeds.values():
        subjects[feed.name] = feed_schema(feed)
        subjects |= {aggregate.name: aggregate_schema(aggregate) for aggregate in feed.aggregates}
    return subjects


def incompatibilities(reader: Schema, writer: Schema) -> list[str]:
    """Why data of ``writer`` cannot be read with ``reader``, by field; empty if it can."""
    written = {field["name"]: field for field in writer["fields"]}
    reasons = []
    for field in reader["fields"]:
        name = field["name"]
        if name in written:
            mismatch = _mismatch(reader | {"fields": [field]}, writer | {"fields": [written[name]]})
            reasons += [f"{name}: {reason}" for reason in mismatch]
        elif "default" not in field:
            reasons.append(f"{name}: is new and has no default")
    return reasons or _mismatch(reader, writer)


def _mismatch(reader: Schema, writer: Schema) -> list[str]:
    result = ReaderWriterCompatibilityChecker().get_compatibility(parse(json.dumps(reader)), parse(json.dumps(writer)))
    return [] if result.compatibility is SchemaCompatibilityType.compatible else sorted(result.messages)


def _differences(schema: Schema, frozen: Schema) -> list[str]:
    """Names of the fields that are not alike."""
    declared, kept = ({field["name"]: field for field in one["fields"]} for one in (schema, frozen))
    return [name for name in declared | kept if declared.get(name) != kept.get(name)]


def check(catalogue: Catalogue, feeds: Mapping[str, Feed]) -> list[str]:
    """Problems between declarations and frozen schemas; empty if each declared schema is the latest frozen one."""
    problems = []
    for subject, schema in declared(feeds).items():
        versions = catalogue.versions(subject)
        if versions and versions[-1].schema == schema:
            continue
        reasons = [
            f"cannot read version {old.version}: {reason}"
            for old in versions
            for reason in incompatibilities(schema, old.schema)
        ]
        fields = f" ({', '.join(_differences(schema, versions[-1].schema)) or 'description'})" if versions else ""
        problems += [f"{subject}: {reason}" for reason in reasons] or [
            f"{subject}: not frozen as declared{fields}; run: citystream schemas freeze"
        ]
    return problems


def freeze(feeds: Mapping[str, Feed], folder: Path = FROZEN) -> list[FrozenSchema]:
    """Write what is declared and not yet frozen; returns the new versions.

    Raises
    ------
    SchemaProblem
        A new version could not read an old one (BACKWARD_TRANSITIVE); nothing is written.
    """
    catalogue = Catalogue.load(folder)
    problems = [p for p in check(catalogue, feeds) if "cannot read" in p]
    if problems:
        raise SchemaProblem("\n".join(problems))
    new = []
    for subject, schema in declared(feeds).items():
        versions = catalogue.versions(subject)
        if versions and versions[-1].schema == schema:
            continue
        frozen = FrozenSchema(max(catalogue.by_id, default=0) + 1, subject, len(versions) + 1, schema)
        catalogue.by_id[frozen.id] = frozen
        new.append(frozen)
        path = folder / subject / f"{frozen.version}.avsc"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_text(schema))
    ids = {
        str(s.id): {"subject": s.subject, "version": s.version, "sha256": _fingerprint(_text(s.schema))}
        for s in catalogue.by_id.values()
    }
    if new:
        (folder / "ids.json").write_text(json.dumps(ids, indent=2) + "\n")
    return new


def _text(schema: Any) -> str:
    return json.dumps(schema, indent=2) + "\n"


def _fingerprint(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()

"""A file of corrections: which fields of which quarantined records change, and what may not."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

from pydantic import ValidationError

from schemas.catalogue import Catalogue
from schemas.feed import Feed
from schemas.persisted import Newer, check_version
from schemas.record_codec import NotDecodable, decode, encode
from sinks.quarantine import Letter, Place

#: What a line says of a record; the cause is there for the people who read it.
WHERE = {"topic": str, "partition": int, "offset": int}
KNOWN = {*WHERE, "version", "cause", "record"}
#: Of a line; one of version 1 need not say it.
VERSION = 1


class CorrectionProblem(ValueError):
    """A line of a file of corrections cannot be taken; the message names line and field."""


@dataclass(frozen=True)
class Correction:
    """The fields of a record that change, and the line that says so."""

    line: int
    fields: Mapping[str, Any]


def exported(catalogue: Catalogue, feed: Feed, letter: Letter) -> dict[str, Any]:
    """A line about a quarantined record, to be corrected by a person: without its personal fields.

    Raises
    ------
    NotDecodable
        Its bytes cannot be read.
    """
    fields = original(catalogue, feed, letter)
    personal = {field.name for field in feed.fields if field.personal}
    return {
        "version": VERSION,
        "topic": letter.topic,
        "partition": letter.partition,
        "offset": letter.offset,
        "cause": letter.cause,
        "record": {name: value for name, value in fields.items() if name not in personal},
    }


def original(catalogue: Catalogue, feed: Feed, letter: Letter) -> dict[str, Any]:
    """The fields of a quarantined record that the feed declares, as JSON has them.

    Raises
    ------
    NotDecodable
        Its bytes cannot be read.
    """
    values = _decoded(catalogue, letter)
    return {field.name: _as_json(values[field.name]) for field in feed.fields if field.name in values}


def _decoded(catalogue: Catalogue, letter: Letter) -> dict[str, Any]:
    if letter.value is None:
        raise NotDecodable(letter.cause)
    return decode(catalogue, letter.value)


def _as_json(value: Any) -> Any:
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return {name: _as_json(half) for name, half in value.items()} if isinstance(value, dict) else value


def read_corrections(lines: Iterable[str], feeds: Mapping[str, Feed]) -> dict[Place, Correction]:
    """Read a file of corrections.

    Raises
    ------
    CorrectionProblem
        A line is none, or two are about one record.
    """
    found: dict[Place, Correction] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        place, fields = _parsed(number, line, feeds)
        if place in found:
            raise CorrectionProblem(f"line {number}: the record was corrected in line {found[place].line} already")
        found[place] = Correction(number, fields)
    return found


def _parsed(number: int, line: str, feeds: Mapping[str, Feed]) -> tuple[Place, Mapping[str, Any]]:
    try:
        said = json.loads(line)
    except ValueError as error:
        raise CorrectionProblem(f"line {number}: no JSON: {error}") from None
    if not isinstance(said, dict) or not isinstance(said.get("record"), dict):
        raise CorrectionProblem(f"line {number}: no JSON object with topic, partition, offset and record")
    try:
        check_version(said, VERSION)
    except Newer as newer:
        raise CorrectionProblem(f"line {number}: {newer}") from None
    except (ValueError, TypeError):
        raise CorrectionProblem(f"line {number}: version: is no number") from None
    for name in said:
        if name not in KNOWN:
            raise CorrectionProblem(f"line {number}: {name}: fields to correct belong into record")
    for name, kind in WHERE.items():
        if type(said.get(name)) is not kind:
            raise CorrectionProblem(f"line {number}: {name}: has to say which record is meant")
    if said["topic"] not in feeds:
        raise CorrectionProblem(f"line {number}: topic: {said['topic']} is none of the feeds {', '.join(feeds)}")
    known = {field.name for field in feeds[said["topic"]].fields}
    for name in said["record"]:
        if name not in known:
            raise CorrectionProblem(f"line {number}: {name}: is no field of {said['topic']}")
    return (said["topic"], said["partition"], said["offset"]), said["record"]


def corrected(catalogue: Catalogue, feed: Feed, letter: Letter, correction: Correction) -> tuple[bytes, bytes]:
    """Key and value of a quarantined record with its corrected fields; what the correction leaves out stays.

    Personal values in the log are pseudonyms, which a person cannot make: they stay or are emptied.

    Raises
    ------
    CorrectionProblem
        The record cannot be read, would be another event or tell of a person, or is not valid.
    """
    line = f"line {correction.line}"
    try:
        fields = original(catalogue, feed, letter)
    except NotDecodable as reason:
        raise CorrectionProblem(f"{line}: the record cannot be read ({reason}): publish it anew") from None
    for field in feed.fields:
        value = correction.fields.get(field.name, fields.get(field.name))
        changed = value != fields.get(field.name)
        if changed and field.name in (feed.key, "event_id"):
            raise CorrectionProblem(f"{line}: {field.name}: says which event it is and cannot be changed")
        if changed and field.personal and value is not None:
            raise CorrectionProblem(f"{line}: {field.name}: is personal: it may be emptied (null), but not changed")
    try:
        record = feed.record.model_validate_json(json.dumps({**fields, **correction.fields}))
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        path = ".".join(str(step) for step in first["loc"])
        raise CorrectionProblem(f"{line}: {path}: {first['msg']}") from None
    values = _decoded(catalogue, letter) | record.model_dump()
    return values[feed.key].encode(), encode(catalogue.latest(feed.name), values)

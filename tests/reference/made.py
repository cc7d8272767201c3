"""What records become in another feed, one after the other, in plain Python: slow and obviously right."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from functools import partial
from typing import Any
from uuid import UUID, uuid5

from schemas.feed import Feed
from tests.reference.partition import LOOK_UP, Logged, Values, evaluate
from tests.reference.rules import Tables, looked_up

#: Of all names that are made of other records.
NAMES = UUID("f2c1d0c5-8f3e-4f0e-9a53-3d9b7d0a6b11")


def made(target: Feed, source: Feed, log: Iterable[Logged], tables: Tables | None = None) -> dict[str, dict[str, Any]]:
    """The records by their event ids that these become, which are valid and no repeats; instants in ms."""
    found = [_made(target, source, logged, tables) for logged in log]
    return {one["event_id"]: one for one in found if one is not None}


def _made(target: Feed, source: Feed, logged: Logged, tables: Tables | None) -> dict[str, Any] | None:
    assert logged.values is not None
    event_ms = logged.values[source.event_time]
    look_up = partial(looked_up, tables, logged.arrived_ms, event_ms)
    values: Values = {**logged.values, LOOK_UP: look_up}
    for way in target.made_of:
        if way.of.name != source.name or (way.where is not None and evaluate(way.where, values) is not True):
            continue
        named = {name: evaluate(value, values) for name, value in way.given.items()}
        record = {
            **{field.name: field.default for field in target.fields},
            **named,
            target.key: _name(target.name, source.name, *(values[name] for name in way.key)),
            "event_id": _name(target.name, source.name, values[source.key], str(event_ms), values["event_id"]),
        }
        broken = any(record[field.name] is None and not field.nullable for field in target.fields)
        return None if broken else record
    return None


def _name(*words: str) -> str:
    return str(uuid5(NAMES, "\n".join(words)))


def plain(values: Values) -> dict[str, Any]:
    """A decoded record with its instants in ms."""
    return {name: round(one.timestamp() * 1000) if isinstance(one, datetime) else one for name, one in values.items()}

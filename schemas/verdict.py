"""Is a record valid? The same answer for one record (pydantic) and for a frame of them (Polars).

A verdict depends on the record, the schema version it names, its key and its arrival alone: never on another record,
nor on which version of the declaration the reader has.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import polars as pl
from pydantic import ValidationError

from schemas.feed import Feed, milliseconds
from schemas.fields import INT32
from schemas.model import UUID_PARTS, Field

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def instant_ms(instant: datetime) -> int:
    """Milliseconds since 1970-01-01 UTC."""
    delta = instant - _EPOCH
    return delta.days * 86_400_000 + delta.seconds * 1000 + delta.microseconds // 1000


def problem(feed: Feed, record: Mapping[str, Any], key: bytes | None, arrived_ms: int) -> str | None:
    """Why a decoded record is invalid, or None. ``arrived_ms`` is the broker's timestamp."""
    try:
        valid = feed.record.model_validate(_enums(feed, record))
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
    values = valid.model_dump()
    for name in (f.name for f in feed.fields if f.kind == "int" and values[f.name] is not None):
        if not INT32[0] <= values[name] <= INT32[1]:
            return f"{name}: does not fit 32 bits"
    if key != values[feed.key].encode():
        return f"{feed.key}: is not the record's key"
    event_ms = instant_ms(values[feed.event_time])
    if event_ms < instant_ms(feed.earliest):
        return f"{feed.event_time}: before {feed.earliest:%Y-%m-%d}"
    if event_ms > arrived_ms + milliseconds(feed.allowance):
        return f"{feed.event_time}: more than {feed.allowance} after arrival"
    for rule in feed.rules:
        earlier, later = values[rule.earlier], values[rule.later]
        if earlier is not None and later is not None and instant_ms(earlier) > instant_ms(later):
            return f"{rule.earlier}: after {rule.later}"
    return None


def _enums(feed: Feed, record: Mapping[str, Any]) -> dict[str, Any]:
    """Strict models want enum members, Avro gives their symbols."""
    types = {f.name: feed.record.model_fields[f.name].annotation for f in feed.fields if f.kind == "enum"}
    values = dict(record)
    for name, kind in types.items():
        if isinstance(values.get(name), str) and kind is not None:
            values[name] = next((member for member in kind if member.value == values[name]), values[name])
    return values


def rules(feed: Feed, fields: Iterable[Field] | None = None) -> list[tuple[str, pl.Expr]]:
    """Each rule's cause and the expression that is true where it holds, or null where the value is null.

    The frame has the columns of the codec for these fields, the feed's own unless others are given, with ``_key`` and
    ``_arrived`` (ms).
    """
    known = {field.name: field for field in (feed.fields if fields is None else fields)}
    checks = [check for field in known.values() for check in _field_rules(field)]
    event = pl.col(feed.event_time)
    checks += [
        (f"{feed.key}: is not the record's key", pl.col(feed.key).cast(pl.Binary) == pl.col("_key")),
        (f"{feed.event_time}: before {feed.earliest:%Y-%m-%d}", event >= instant_ms(feed.earliest)),
        (
            f"{feed.event_time}: more than {feed.allowance} after arrival",
            event <= pl.col("_arrived") + milliseconds(feed.allowance),
        ),
    ]
    checks += [
        (f"{r.earlier}: after {r.later}", pl.col(r.earlier) <= pl.col(r.later))
        for r in feed.rules
        if {r.earlier, r.later} <= known.keys()  # an instant that a version does not have is null
    ]
    return checks


def _field_rules(field: Field) -> list[tuple[str, pl.Expr]]:
    value = pl.col(field.name)
    if field.kind == "uuid":
        return [(f"{field.name}: not of the form {field.pattern}", value.struct.field(UUID_PARTS[0]).is_not_null())]
    if field.kind == "string":
        return _string_rules(field, value)
    if field.kind == "place":
        longitude, latitude = value.struct.field("longitude"), value.struct.field("latitude")
        return [
            (f"{field.name}.longitude: not between -180 and 180", longitude.is_between(-180, 180)),
            (f"{field.name}.latitude: not between -90 and 90", latitude.is_between(-90, 90)),
        ]
    checks = []
    if field.kind == "float":
        checks.append((f"{field.name}: not a finite number", value.is_finite()))
    if field.low is not None:
        checks.append((f"{field.name}: below {field.low:g}", value >= field.low))
    if field.high is not None:
        checks.append((f"{field.name}: above {field.high:g}", value <= field.high))
    return checks


def _string_rules(field: Field, value: pl.Expr) -> list[tuple[str, pl.Expr]]:
    checks = []
    if field.low is not None:
        checks.append((f"{field.name}: shorter than {field.low:g} characters", value.str.len_chars() >= field.low))
    if field.high is not None:
        checks.append((f"{field.name}: longer than {field.high:g} characters", value.str.len_chars() <= field.high))
    if field.pattern is not None:
        checks.append((f"{field.name}: not of the form {field.pattern}", value.str.contains(field.pattern)))
    return checks


class ColumnarVerdict:
    """The rules of a feed for records of these fields, its own unless others are given; compiled once."""

    def __init__(self, feed: Feed, fields: Iterable[Field] | None = None) -> None:
        self._rules = rules(feed, fields)
        self._holds = [holds.fill_null(True).alias(str(n)) for n, (_, holds) in enumerate(self._rules)]

    def problems(self, rows: pl.DataFrame) -> pl.Series | None:
        """The first rule each row breaks (string, null where valid), or None if every row is valid."""
        verdicts = rows.select(self._holds)
        if verdicts.select(pl.all_horizontal(pl.all().all())).item():
            return None
        cause: pl.Expr = pl.lit(None, pl.String)
        for n, (text, _) in reversed(list(enumerate(self._rules))):
            cause = pl.when(pl.col(str(n))).then(cause).otherwise(pl.lit(text))
        return verdicts.select(cause.alias("cause")).to_series()

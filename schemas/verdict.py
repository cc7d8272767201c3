"""Is a record valid? The same answer for one record (pydantic) and for a frame of them (Polars).

A verdict depends on the record, the schema version it names, its key and its arrival alone: never on another record,
nor on which version of the declaration the reader has.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
from pydantic import ValidationError

from schemas.feed import Aggregate, Feed, milliseconds
from schemas.fields import INSTANTS, INT32, PSEUDONYM
from schemas.measures import ORDERED_BY
from schemas.model import UUID_HALVES, Field

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_PSEUDONYM = re.compile(PSEUDONYM.removesuffix("$"))
#: Between the reasons of a cause.
AND = "; "
#: How far the clocks of brokers that stamp a record and the windows it is counted into may differ.
CLOCKS = timedelta(hours=1)

#: Causes, each with the expression that is true where all is well, or null where the value is null.
Rules = Sequence[tuple[str, pl.Expr]]


def instant_ms(instant: datetime) -> int:
    """Milliseconds since 1970-01-01 UTC."""
    delta = instant - _EPOCH
    return delta.days * 86_400_000 + delta.seconds * 1000 + delta.microseconds // 1000


def ahead_of_arrival(feed: Feed) -> str:
    """What is wrong with a record from a device whose clock is fast."""
    return f"{feed.event_time}: more than {feed.allowance} after arrival"


def problems(feed: Feed, record: Mapping[str, Any], key: bytes | None, arrived_ms: int) -> list[str]:
    """Everything that is wrong with a decoded record; nothing if it is valid. ``arrived_ms`` is the broker's timestamp.

    A field that is wrong by itself is held to no more rules.
    """
    found = []
    try:
        feed.record.model_validate(_enums(feed, record))
    except ValidationError as error:
        for one in error.errors(include_input=False, include_url=False):
            path = [str(part) for part in one["loc"]]
            found.append((path[0], f"{'.'.join(path)}: {one['msg']}"))
    for name, value in ((f.name, record[f.name]) for f in feed.fields if f.personal):
        if value is not None and not _PSEUDONYM.fullmatch(value):
            found.append((name, f"{name}: is no pseudonym"))
    return [*(reason for _, reason in found), *broken(feed, record, key, arrived_ms, {name for name, _ in found})]


def broken(
    feed: Feed, record: Mapping[str, Any], key: bytes | None, arrived_ms: int, wrong: Container[str] = ()
) -> Iterator[str]:
    """What of a record breaks the feed's own rules, but for fields that are ``wrong`` already.

    It holds personal values to no pattern, so it may be asked before they are replaced.
    """
    for name in (f.name for f in feed.fields if f.kind == "int" and f.name not in wrong):
        if record[name] is not None and not INT32[0] <= record[name] <= INT32[1]:
            yield f"{name}: does not fit 32 bits"
    if feed.key not in wrong and key != record[feed.key].encode():
        yield f"{feed.key}: is not the record's key"
    if feed.event_time not in wrong:
        event_ms = instant_ms(record[feed.event_time])
        if event_ms < instant_ms(feed.earliest):
            yield f"{feed.event_time}: before {feed.earliest:%Y-%m-%d}"
        if event_ms > arrived_ms + milliseconds(feed.allowance):
            yield ahead_of_arrival(feed)
    for rule in feed.rules:
        known = all(record.get(name) is not None for name in (rule.earlier, rule.later))
        if known and rule.earlier not in wrong and instant_ms(record[rule.earlier]) > instant_ms(record[rule.later]):
            yield f"{rule.earlier}: after {rule.later}"


def _enums(feed: Feed, record: Mapping[str, Any]) -> dict[str, Any]:
    """Strict models want enum members, Avro gives their symbols."""
    types = {f.name: feed.record.model_fields[f.name].annotation for f in feed.fields if f.kind == "enum"}
    values = dict(record)
    for name, kind in types.items():
        if isinstance(values.get(name), str) and kind is not None:
            values[name] = next((member for member in kind if member.value == values[name]), values[name])
    return values


def rules(feed: Feed, fields: Iterable[Field] | None = None) -> Rules:
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
        (ahead_of_arrival(feed), event <= pl.col("_arrived") + milliseconds(feed.allowance)),
    ]
    checks += [
        (f"{r.earlier}: after {r.later}", pl.col(r.earlier) <= pl.col(r.later))
        for r in feed.rules
        if {r.earlier, r.later} <= known.keys()  # an instant that a version does not have is null
    ]
    return checks


def part_rules(feed: Feed, aggregate: Aggregate) -> Rules:
    """The same for parts of windows: what no processor can have written, and a server or a view might fall over.

    Their topics are open to whom the feeds' are.
    """
    start, seen, window = pl.col("window_start"), pl.col("watermark"), milliseconds(aggregate.window)
    partitions = sum(topic.partitions for topic in feed.outgrown) + feed.partitions
    latest = pl.col("_arrived") + milliseconds(feed.allowance + CLOCKS)
    checks = [
        ("window_start: no start of a window", start.is_between(*INSTANTS) & (start % window == 0)),
        ("window_start: after arrival", start <= latest),
        ("source_partition: the feed has no such partition", pl.col("source_partition").is_between(0, partitions - 1)),
        ("since: no offset", pl.col("since") >= 0),
        ("version: no version", pl.col("version") >= 0),
        ("watermark: no time", seen.is_between(*INSTANTS)),
        ("watermark: after arrival", seen <= latest),
        ("events: none", (pl.col("events") > 0) | ((pl.col("events") == 0) & seen.is_not_null())),
    ]
    partials = [p for measure in aggregate.measures for p in measure.partials]
    checks += [
        (f"{p.name}: neither a value nor none", pl.col(p.name).list.len().is_in([0, len(ORDERED_BY) + 1]))
        for p in partials
        if p.merge in ("first", "last")
    ]
    for partial in (p for p in partials if p.merge == "histogram"):
        buckets, counts = (pl.col(f"{partial.name}_{half}") for half in ("buckets", "counts"))
        checks += [
            (f"{partial.name}: not a count for each bucket", buckets.list.len() == counts.list.len()),
            (f"{partial.name}: no such bucket", buckets.list.min() >= partial.buckets.first),
            (f"{partial.name}: no such bucket", buckets.list.max() <= partial.buckets.last),
            (f"{partial.name}: buckets out of order", buckets.list.diff(null_behavior="drop").list.min() > 0),
            (f"{partial.name}: an empty bucket", counts.list.min() > 0),
        ]
    return checks


def _field_rules(field: Field) -> Rules:
    value = pl.col(field.name)
    if field.kind == "uuid":
        return [(f"{field.name}: not of the form {field.pattern}", value.struct.field(UUID_HALVES[0]).is_not_null())]
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


def _string_rules(field: Field, value: pl.Expr) -> Rules:
    checks = []
    if field.low is not None:
        checks.append((f"{field.name}: shorter than {field.low:g} characters", value.str.len_chars() >= field.low))
    if field.high is not None:
        checks.append((f"{field.name}: longer than {field.high:g} characters", value.str.len_chars() <= field.high))
    if field.personal:
        checks.append((f"{field.name}: is no pseudonym", value.str.contains(PSEUDONYM)))
    elif field.pattern is not None:
        checks.append((f"{field.name}: not of the form {field.pattern}", value.str.contains(field.pattern)))
    return checks


class ColumnarVerdict:
    """Rules, compiled once."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._holds = [holds.fill_null(True).alias(str(n)) for n, (_, holds) in enumerate(self._rules)]
        self._always_holds = [holds.all().alias(str(n)) for n, (_, holds) in enumerate(self._rules)]

    def problems(self, rows: pl.DataFrame) -> pl.Series | None:
        """Every rule each row breaks, joined by ``AND`` (null where it is valid), or None if every row is valid."""
        if all(rows.select(self._always_holds).row(0)):
            return None
        verdicts = rows.select(self._holds)
        bad = verdicts.select(~pl.all_horizontal(pl.all())).to_series().arg_true()
        causes = [pl.when(~pl.col(str(n))).then(pl.lit(text)) for n, (text, _) in enumerate(self._rules)]
        found = verdicts[bad].select(pl.concat_str(causes, separator=AND, ignore_nulls=True)).to_series()
        return pl.repeat(None, rows.height, dtype=pl.String, eager=True).scatter(bad, found)

"""The words that fields are put together with, each with its docstring and an example that is worked out here."""

from __future__ import annotations

import inspect
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import takewhile
from typing import Annotated, Any
from uuid import UUID

import polars as pl
from pydantic import Field

import feeds
from schemas import expressions, feed, measures, rules
from schemas.alerts import Category, Severity
from schemas.expressions import Column, Expression, to_polars
from schemas.feed import Aggregate, DeclarationError, Feed, Latest, MadeOf, RollUp, Spans
from schemas.fields import Area, EventId, Instant, Record, Text, Unit
from schemas.reference import Reference
from schemas.rules import Condition, Due, Level, Memory, Rule
from tests.reference.areas import CoveredBy
from tests.reference.made import made
from tests.reference.partition import LOOK_UP, Logged
from tests.reference.results import results_of
from tests.reference.rules import Observation, Told, alerts, kept
from tests.reference.spans import Change, spans
from tests.reference.toy import DEPARTMENT

NUMBERS = (
    Column, Column.component, Expression.__add__, Expression.__sub__, Expression.__mul__, Expression.__truediv__,
    Expression.otherwise, expressions.least, expressions.greatest, expressions.Absolute, expressions.Scaled,
    expressions.When,
)  # fmt: skip
CONDITIONS = (
    Expression.__lt__, Expression.__le__, Expression.__gt__, Expression.__ge__, Expression.equals, Expression.is_in,
    Expression.__and__, Expression.__or__, Expression.__invert__, expressions.Present,
)  # fmt: skip
MEASURES = (
    measures.total, measures.count_where, measures.spread, measures.share, measures.ratio, measures.quantiles,
    measures.energy_mean, measures.first, measures.last,
)  # fmt: skip
WATCHED = (
    rules.Rule, rules.Level, rules.above, rules.below, rules.while_true, rules.Held, rules.Due, rules.previous,
    rules.running_total, rules.rate, rules.lookup, rules.covering,
)  # fmt: skip
SIGNS = {
    "__add__": "+", "__sub__": "-", "__mul__": "*", "__truediv__": "/", "__lt__": "<", "__le__": "<=", "__gt__": ">",
    "__ge__": ">=", "__and__": "&", "__or__": "|", "__invert__": "~",
}  # fmt: skip

#: What every example is worked out of.
RECORDS: list[dict[str, Any]] = [
    {"status": "busy", "level": 5, "load": 0.5, "open": True, "place": {"longitude": 120.1, "latitude": 30.3}},
    {"status": "calm", "level": 0, "load": None, "open": False, "place": None},
    {"status": "closed", "level": 3, "load": 0.25, "open": None, "place": {"longitude": 120.2, "latitude": 30.2}},
    {"status": "busy", "level": 7, "load": -1.0, "open": True, "place": {"longitude": 120.1, "latitude": 30.1}},
]

#: What every example of a rule is worked out of, by seconds after ``NOON`` (ms); it is found ``THROUGH`` them.
NOON, THROUGH = 1_714_564_800_000, 120
LAKE, TOWN = {"longitude": 120.1, "latitude": 30.2}, {"longitude": 120.4, "latitude": 30.2}
OBSERVED: dict[int, dict[str, Any]] = {
    0: {"level": 3, "status": "calm", "place": LAKE},
    10: {"level": 6, "status": "busy", "place": LAKE},
    20: {"level": 4, "status": "busy", "place": TOWN},
    30: {"level": 7, "status": "busy", "place": LAKE},
    40: {"level": 8, "status": "busy", "place": TOWN},
    50: {"level": None, "status": "closed", "place": LAKE},
    60: {"level": 2, "status": "closed", "place": None},
    100: {"level": 5, "status": "calm", "place": LAKE},
}


class Limit(Record):
    """How high a level may be."""

    status: Annotated[Text, Field(description="Status")]
    most: Annotated[int, Field(description="Level"), Unit("1")]


#: What examples of rules look up, and its rows.
LIMITS = Reference(name="limits", description="Limits", record=Limit, key=("status",), department=DEPARTMENT)
ROWS = [{"status": "busy", "most": 6}, {"status": "calm", "most": 4}]


class Zone(Record):
    """How high a level may be in an area."""

    zone: Annotated[Text, Field(description="Zone")]
    area: Annotated[Area, Field(description="Where it is")]
    most: Annotated[int, Field(description="Level"), Unit("1")]


#: What examples of rules look up by a place, and its row.
ZONES = Reference(name="zones", description="Zones", record=Zone, key=("zone",), department=DEPARTMENT)
SQUARE = [[120, 30], [120.2, 30], [120.2, 30.4], [120, 30.4], [120, 30]]
AREAS = [{"zone": "lake", "area": json.dumps({"type": "Polygon", "coordinates": [SQUARE]}), "most": 5}]


class Report(Record):
    """What a device says."""

    event_id: EventId
    device_id: Annotated[Text, Field(description="Device")]
    observed_at: Annotated[Instant, Field(description="When")]
    level: Annotated[int | None, Field(description="Level"), Unit("1")]
    status: Annotated[Text, Field(description="Status")]


class Note(Record):
    """What is noted of devices."""

    event_id: EventId
    note_id: Annotated[Text, Field(description="Note")]
    noted_at: Annotated[Instant, Field(description="When")]
    text: Annotated[Text, Field(description="Text")]
    over: Annotated[int | None, Field(description="How much more it is"), Unit("1")]


#: The feed of which an example makes records, and the one to which they belong.
OF_BOTH: Any = {
    "description": "Devices", "department": DEPARTMENT, "batch": 1, "disorder": timedelta(0), "lateness": timedelta(0),
}  # fmt: skip
DEVICE = Feed(
    name="device", record=Report, key="device_id", event_time="observed_at", rate=1.0, silence=timedelta(minutes=1),
    **OF_BOTH,
)  # fmt: skip
NOTES: Any = {"name": "note", "record": Note, "key": "note_id", "event_time": "noted_at", "rate": None, "silence": None}


def refused() -> str:
    """What is said of a declaration that makes no sense."""
    flow = feeds.load()["traffic_flow"]
    jams = measures.count_where("jams", Column("intensity") & Column("congested"), description="Jams")
    return _refused(lambda: replace(flow, aggregates=(replace(flow.aggregates[0], measures=(jams,)),)))


def refused_rule() -> str:
    """What is said of a rule that makes no sense."""
    site = feeds.load()["parking_site"]
    level = Level(severity=Severity.MINOR, when=rules.below(Column("free_spots"), 20, release=10))
    rule = Rule(name="few_spots", headline="Few spots left", category=Category.TRANSPORT, levels=(level,))
    return _refused(lambda: replace(site, alerts=(rule,)))


def _refused(declare: Callable[[], Any]) -> str:
    try:
        declare()
    except DeclarationError as reason:
        return f"```text\n{reason}\n```"
    raise AssertionError("it makes sense")


def records() -> str:
    """The records, as a table."""
    return _table(RECORDS[0], (record.values() for record in RECORDS))


def numbers() -> str:
    """Expressions that are numbers."""
    return "\n\n".join(_word(word, _of_each_record) for word in NUMBERS)


def conditions() -> str:
    """Expressions that are conditions."""
    return "\n\n".join(_word(word, _of_each_record) for word in CONDITIONS)


def of_windows() -> str:
    """What may be measured of the records of a window."""
    return "\n\n".join(_word(word, _of_all_records) for word in MEASURES)


def groups() -> str:
    """What the records of a window are grouped by."""
    return _word(Aggregate, _of_groups)


def observed() -> str:
    """What rules watch here, as a table."""
    rows = ([_clock(NOON + 1000 * second), *values.values()] for second, values in OBSERVED.items())
    return _table(["observed_at", *OBSERVED[0]], rows)


def looked_up() -> str:
    """What rules look up here, as a table."""
    return _table(ROWS[0], (row.values() for row in ROWS))


def areas() -> str:
    """What rules look up by a place here, as a table."""
    return _table(AREAS[0], (row.values() for row in AREAS))


def of_rules() -> str:
    """What a rule is made of."""
    return "\n\n".join(_word(word, _of_observations) for word in WATCHED)


def states() -> str:
    """What is kept of each entity."""
    return "\n\n".join([_word(Latest, _of_entities), _word(Spans, _of_states)])


def made_records() -> str:
    """What records become in another feed."""
    return _word(MadeOf, _of_reports)


def roll_ups() -> str:
    """What windows are merged to."""
    return _word(RollUp, _of_an_hour)


def _word(word: Callable[..., Any], work_out: Callable[[Any], str]) -> str:
    before, _, rest = (inspect.getdoc(word) or "").partition(">>> ")
    first, *lines = rest.split("\n")
    more = [line.removeprefix("... ") for line in takewhile(lambda line: line.startswith("... "), lines)]
    example, after = "\n".join([first, *more]), "\n".join(lines[len(more) :]).partition("\nRaises\n")[0]
    name = SIGNS.get(word.__name__, word.__name__)
    names = {**vars(expressions), **vars(measures), **vars(feed), **vars(rules)}
    names |= {"LIMITS": LIMITS, "ZONES": ZONES, "DEVICE": DEVICE}
    found = work_out(eval(example, names))  # noqa: S307 - this project's own docstring
    texts = [f"### `{name}`", _plain(before), f"```python\n{example}\n```", found, _plain(after)]
    return "\n\n".join(filter(None, texts))


def _plain(text: str) -> str:
    return text.strip().replace("``", "`")


def _of_each_record(expression: Expression) -> str:
    values = pl.DataFrame(RECORDS).select(to_polars(expression)).to_series().to_list()
    return "Of the records above: " + ", ".join(f"`{_shown(value)}`" for value in values)


def _of_all_records(measure: measures.Measure) -> str:
    found = results_of(measure, RECORDS)
    return "Of the records above: " + ", ".join(f"`{name}` is `{_shown(value)}`" for name, value in found.items())


def _of_groups(aggregate: Aggregate) -> str:
    found = Counter(tuple(record[name] for name in aggregate.by) for record in RECORDS)
    rows = [(*group, events) for group, events in found.items()]
    return f"Of the records above, if they are of one minute:\n\n{_table([*aggregate.by, 'events'], rows)}"


def _of_observations(word: Memory | Rule | Level | Condition | Due) -> str:
    own = {"device_id": "d-1", LOOK_UP: _look_up}
    rows = [
        Observation(at, (), {**values, "observed_at": at, **own})
        for at, values in ((NOON + 1000 * second, values) for second, values in OBSERVED.items())
    ]
    if isinstance(word, Memory):
        return "At the records above: " + ", ".join(f"`{_shown(value)}`" for value in kept(word, rows))
    level = Level(severity=Severity.MINOR, when=word) if isinstance(word, Condition | Due) else word
    if not isinstance(level, Rule):
        level = Rule(name="of", headline="It", category=Category.OTHER, levels=(level,))
    return _messages(level, alerts(level, ("device_id",), rows, NOON + 1000 * THROUGH))


def _look_up(_table: str, key: tuple[Any, ...] | CoveredBy, name: str) -> Any:
    if isinstance(key, CoveredBy):
        return next((row[name] for row in AREAS if key.is_covered(row)), None)
    return next((row[name] for row in ROWS if row["status"] == key[0]), None)


def _messages(rule: Rule, told: Iterable[Told]) -> str:
    names = [*rule.shows, "value", "limit"]
    lines = [
        [
            _clock(one.sent), one.kind, one.severity, _clock(one.onset),
            ", ".join(f"{name} {_shown(value)}" for name, value in zip(names, one.numbers, strict=False)),
        ]
        for one in told
    ]  # fmt: skip
    return f"Of the records above:\n\n{_table(['sent', 'msg_type', 'severity', 'onset', 'numbers'], lines)}"


def _clock(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%H:%M:%S")


def _of_an_hour(rollup: RollUp) -> str:
    level, rows = measures.total("level", Column("level"), unit="1", description="Level"), []
    for windows in (2, 3):
        (found,) = results_of(level, RECORDS * windows).values()
        capture = windows / 4
        rows.append((windows * len(RECORDS), found if capture >= rollup.capture else None, capture))
    table = _table(["events", "level", "capture"], rows)
    return (
        "Of an hour with the records above in two of its four windows of 15 min, and of one with them in three, where "
        f"`level` is their total:\n\n{table}"
    )


def _of_entities(latest: Latest) -> str:
    newest = {record[latest.by or "status"]: record for record in RECORDS}
    return f"Of the records above:\n\n{_table(RECORDS[0], (record.values() for record in newest.values()))}"


def _of_states(word: Spans) -> str:
    changes = [Change("d-1", NOON + 1000 * second, (), values[word.of]) for second, values in OBSERVED.items()]
    rows = [
        (
            _clock(one.first.time), one.first.state, one.before, _clock(one.began),
            None if one.ended is None else _clock(one.ended),
            None if one.ended is None else (one.ended - one.began) / 1000,
        )
        for one in spans(changes, NOON, NOON + 1000 * THROUGH)
    ]  # fmt: skip
    table = _table(["observed_at", word.of, "before", "began", "ended", "duration"], rows)
    return f"Of the records of one device that stand at the [rules](#rules):\n\n{table}"


def _of_reports(way: MadeOf) -> str:
    own = {"device_id": "d-1"}
    log = [
        Logged(n, None, {**values, **own, "event_id": str(UUID(int=n)), "observed_at": NOON + 1000 * second}, 0)
        for n, (second, values) in enumerate(OBSERVED.items())
    ]
    found = made(Feed(**NOTES, **OF_BOTH, made_of=(way,)), DEVICE, log).values()
    rows = [{**one, "noted_at": _clock(one["noted_at"])} for one in found]
    names = [name for name in Note.model_fields if name != "event_id"]
    table = _table(names, ([row[name] for name in names] for row in rows))
    return f"Of the records of one device that stand at the [rules](#rules):\n\n{table}"


def _table(names: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    head = [f"`{name}`" for name in names]
    lines = [head, ["---"] * len(head), *([*map(_shown, row)] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _shown(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case float():
            return f"{value:.6g}"
        case Mapping():
            return ", ".join(str(part) for part in value.values())
    return str(value)

"""What one partition of a feed comes to, one record after the other, in plain Python: slow and obviously right.

It knows the declarations of feeds and nothing else of the platform. Instants are ms since 1970, days are days since
1970, enums are strings and a place is a dictionary, as Avro has them on the wire.
"""

from __future__ import annotations

import math
import operator as operators
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID

from pydantic import ValidationError

from schemas.expressions import (
    Absolute,
    Binary,
    Carried,
    Column,
    Component,
    Constant,
    Expression,
    LookedUp,
    Not,
    Present,
    Scaled,
    When,
)
from schemas.feed import Aggregate, Feed
from schemas.measures import LEVELS, Partial
from schemas.model import Field
from tests.reference.areas import CoveredBy

Values = Mapping[str, Any]
#: Group keys and window start.
Key = tuple[Any, ...]

MILLISECOND = timedelta(milliseconds=1)
#: In the place of a column's name: looks up a table's field by keys, as was known of it for the record.
LOOK_UP = "look up"

#: Integers around the edges of buckets, which are less than 1 wide below 64, and the ends.
EDGES = sorted(
    {2**bits + part * max(2**bits // 64, 1) + step for bits in range(63) for part in range(64) for step in (-1, 0, 1)}
    | {-(2**63), -1, 2**63 - 1}
)


@dataclass(frozen=True)
class Logged:
    """A record in the log; ``values`` is None if its bytes are no record.

    Of a tick, ``tick_ms`` is the time it says, or ``delay_ms`` how long before its arrival that time is.
    """

    offset: int
    key: bytes | None
    values: Values | None
    arrived_ms: int
    tick_ms: int | None = field(default=None, kw_only=True)
    delay_ms: int | None = field(default=None, kw_only=True)

    @property
    def is_tick(self) -> bool:
        """Whether it is a tick."""
        return self.tick_ms is not None or self.delay_ms is not None


@dataclass
class Window:
    """One group in one window."""

    last: int = -1
    events: int = 0
    partials: dict[str, Any] = field(default_factory=dict)

    def snapshot(self) -> dict[str, Any]:
        """Its content, comparable."""
        copied = {n: dict(p) if isinstance(p, dict) else p for n, p in self.partials.items()}
        return {"events": self.events, **copied}


@dataclass
class Truth:
    """Everything that follows from the records of a partition, in offset order.

    ``history`` has the content of each window after each record counted in, by that record's offset.
    """

    valid: list[int] = field(default_factory=list)
    invalid: list[int] = field(default_factory=list)
    repeats: list[int] = field(default_factory=list)
    late: dict[str, list[int]] = field(default_factory=dict)
    windows: dict[str, dict[Key, Window]] = field(default_factory=dict)
    history: dict[str, dict[tuple[Key, int], dict[str, Any]]] = field(default_factory=dict)
    max_event_ms: int | None = None
    watermarks: dict[int, int | None] = field(default_factory=dict)
    final: dict[str, set[Key]] = field(default_factory=dict)

    def versions(self, aggregate: str) -> dict[Key, int]:
        """The highest version of each window once everything is written."""
        final = self.final[aggregate]
        return {key: 2 * window.last + (key in final) for key, window in self.windows[aggregate].items()}


def truth(feed: Feed, log: Iterable[Logged]) -> Truth:
    """Go through the log once."""
    result = Truth()
    for aggregate in feed.aggregates:
        result.late[aggregate.name], result.windows[aggregate.name] = [], {}
        result.history[aggregate.name] = {}
    identities: set[tuple[Any, ...]] = set()
    for logged in log:
        if logged.is_tick:
            result.max_event_ms = max(moved_by(feed, logged), result.max_event_ms or -(2**63))
            result.watermarks[logged.offset] = result.max_event_ms
            continue
        if logged.values is None or not is_valid(feed, logged.values, logged.key, logged.arrived_ms):
            result.invalid.append(logged.offset)
            result.watermarks[logged.offset] = result.max_event_ms
            continue
        result.valid.append(logged.offset)
        values = logged.values
        event_ms = values[feed.event_time]
        identity = (values[feed.key], event_ms, values["event_id"])
        is_repeat = identity in identities
        identities.add(identity)
        if is_repeat:
            result.repeats.append(logged.offset)
        for aggregate in feed.aggregates:
            start = window_start(aggregate, event_ms)
            if is_closed(feed, aggregate, start, result.max_event_ms):
                result.late[aggregate.name].append(logged.offset)
            elif not is_repeat:
                key = (*(values[name] for name in aggregate.by), start)
                window = result.windows[aggregate.name].setdefault(key, Window())
                count_in(feed, aggregate, window, values, logged.offset)
                result.history[aggregate.name][key, logged.offset] = window.snapshot()
        result.max_event_ms = event_ms if result.max_event_ms is None else max(result.max_event_ms, event_ms)
        result.watermarks[logged.offset] = result.max_event_ms
    for aggregate in feed.aggregates:
        result.final[aggregate.name] = {
            key for key in result.windows[aggregate.name] if is_closed(feed, aggregate, key[-1], result.max_event_ms)
        }
    return result


def window_start(aggregate: Aggregate, event_ms: int) -> int:
    """The tumbling window an event time lies in."""
    size = aggregate.window // MILLISECOND
    return event_ms // size * size


def is_closed(feed: Feed, aggregate: Aggregate, start: int, max_event_ms: int | None) -> bool:
    """Window end + lateness <= maximum of event time - out-of-orderness."""
    if max_event_ms is None:
        return False
    end = start + aggregate.window // MILLISECOND
    return end + feed.lateness // MILLISECOND <= max_event_ms - feed.disorder // MILLISECOND


def moved_by(feed: Feed, tick: Logged) -> int:
    """Where a tick moves the maximum of event time: as an event would, and no further than one that is valid."""
    said = tick.tick_ms if tick.delay_ms is None else tick.arrived_ms - tick.delay_ms
    assert said is not None
    return min(said, tick.arrived_ms + ahead_ms(feed))


def ahead_ms(feed: Feed) -> int:
    """How far an event time may lie after the record's arrival."""
    ahead = feed.disorder + feed.lateness if feed.ahead is None else feed.ahead
    return ahead // MILLISECOND


def count_in(feed: Feed, aggregate: Aggregate, window: Window, values: Values, offset: int) -> None:
    """Add one record to a window."""
    window.last = offset
    window.events += 1
    identity = UUID(values["event_id"]).int
    order = values[feed.event_time], (identity >> 64) - 2**63, identity % 2**64 - 2**63
    for measure in aggregate.measures:
        for partial in measure.partials:
            merge(partial, window.partials, evaluate(partial.value, values), order)


def merge(partial: Partial, partials: dict[str, Any], value: Any, order: tuple[int, ...] = ()) -> None:
    """Add one value to a partial; a sum of nothing is 0, a minimum of nothing is None.

    The first and the last value are held behind their order.
    """
    if partial.merge in ("first", "last"):
        found = [*filter(None, [partials.get(partial.name)]), *([[*order, value]] if value is not None else [])]
        partials[partial.name] = (min if partial.merge == "first" else max)(found, default=[])
        return
    if partial.merge == "histogram":
        counts = partials.setdefault(partial.name, {})
        if value is not None:
            number = value if partial.buckets is LEVELS else bucket(value)
            counts[number] = counts.get(number, 0) + 1
        return
    so_far = partials.setdefault(partial.name, 0 if partial.merge == "sum" else None)
    if value is None:
        return
    if partial.merge == "sum":
        partials[partial.name] = so_far + value
    else:
        best = min if partial.merge == "min" else max
        partials[partial.name] = value if so_far is None else best(so_far, value)


def bucket(value: int) -> int:
    """Which 64th part of a power of two, counted from that of 1, holds the double next to a value; -1 for <= 0."""
    mantissa, exponent = math.frexp(value)
    return 64 * (exponent - 1) + math.floor(64 * (2 * mantissa - 1)) if value > 0 else -1


def evaluate(expression: Expression, values: Values) -> Any:
    """An expression of a record: null in, null out; divided by zero, null."""
    match expression:
        case Column(name):
            return values[name]
        case Constant(value):
            return value
        case LookedUp(table, (Field(name=area, shape="area"),), (place,), field):
            return values[LOOK_UP](table, CoveredBy(area, values[place.name]), field.name)
        case LookedUp(table, _, keys, field):
            return values[LOOK_UP](table, tuple(values[key.name] for key in keys), field.name)
        case Carried(name):
            return values[name][-1] if values[name] else None
        case When(condition, then):
            return evaluate(then, values) if evaluate(condition, values) else None
        case Present(operand):
            return evaluate(operand, values) is not None
        case Scaled(operand, scale):
            number = evaluate(operand, values)
            scaled = None if number is None else float(number) * scale + 0.5
            return math.floor(scaled) if scaled is not None and abs(math.floor(scaled)) <= 2**52 else None
        case Component(name, part):
            return None if values[name] is None else values[name][part]
        case Absolute(operand):
            number = evaluate(operand, values)
            return None if number is None else abs(number)
        case Not(operand):
            holds = evaluate(operand, values)
            return None if holds is None else not holds
        case Binary("and" | "or" as junction, left, right):
            sides = {evaluate(left, values), evaluate(right, values)}
            decides = junction == "or"
            return decides if decides in sides else None if None in sides else not decides
        case Binary("otherwise", left, right):
            known = evaluate(left, values)
            return evaluate(right, values) if known is None else known
        case Binary(operator, left, right):
            return binary(operator, evaluate(left, values), evaluate(right, values))
    raise TypeError(expression)


def binary(operator: str, left: Any, right: Any) -> Any:
    """Two values joined; what is beyond all doubles is not compared, and a whole number as a double with a fraction."""
    if left is None or right is None:
        return None
    match operator:
        case "+":
            return left + right
        case "-":
            return left - right
        case "*":
            return left * right
        case "/":
            return None if right == 0 else left / right
    if isinstance(left, float) or isinstance(right, float):
        left, right = float(left), float(right)
        if not (math.isfinite(left) and math.isfinite(right)):
            return None
    return COMPARISONS[operator](left, right)


COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "<": operators.lt, "<=": operators.le, ">": operators.gt, ">=": operators.ge, "==": operators.eq,
    "min": min, "max": max,
}  # fmt: skip


def is_valid(feed: Feed, values: Values, key: bytes | None, arrived_ms: int) -> bool:
    """What the record's model says, then what the feed says."""
    return not problems(feed, values, key, arrived_ms)


def problems(feed: Feed, values: Values, key: bytes | None, arrived_ms: int) -> set[str]:
    """Names of the fields that are wrong; empty for a valid record."""
    logical: dict[str, Any] = dict(values)
    instants = {}
    wrong = set()
    for described in feed.fields:
        name, value = described.name, values[described.name]
        if value is None:
            continue
        try:
            if described.kind == "int" and not -(2**31) <= value < 2**31:
                wrong.add(name)
            elif described.kind == "instant":
                instants[name] = value
                logical[name] = datetime(1970, 1, 1, tzinfo=UTC) + value * MILLISECOND
            elif described.kind == "date":
                logical[name] = date(1970, 1, 1) + timedelta(days=value)
            elif described.kind == "enum":
                annotation: Any = feed.record.model_fields[name].annotation
                logical[name] = annotation(value)
        except (OverflowError, ValueError):
            wrong.add(name)
    try:
        feed.record.model_validate(logical)
    except ValidationError as error:
        wrong |= {str(one["loc"][0]) for one in error.errors()}
    for name in (f.name for f in feed.fields if f.personal and values[f.name] is not None):
        if len(values[name]) != 32 or set(values[name]) - set("0123456789abcdef"):
            wrong.add(name)
    event_ms = instants[feed.event_time]
    earliest = (feed.earliest - datetime(1970, 1, 1, tzinfo=UTC)) // MILLISECOND
    latest = arrived_ms + ahead_ms(feed)
    if key != values[feed.key].encode():
        wrong.add(feed.key)
    if not earliest <= event_ms <= latest:
        wrong.add(feed.event_time)
    return wrong | {
        rule.earlier
        for rule in feed.rules
        if rule.earlier in instants and rule.later in instants and instants[rule.earlier] > instants[rule.later]
    }

"""Expressions and partials as ClickHouse SQL: the second compilation of what processors compile to Polars."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from schemas.expressions import (
    LARGEST,
    Absolute,
    Binary,
    Carried,
    Column,
    Component,
    Constant,
    Energy,
    Expression,
    Not,
    Present,
    Quantile,
    Scaled,
    When,
    is_whole,
    may_be_beyond,
)
from schemas.feed import Aggregate, Feed
from schemas.measures import BEYOND, BUCKET_SHIFT, FIRST_BUCKET, LEVELS, NO_BUCKET, ORDERED_BY, Partial
from schemas.model import COMPONENTS, Kind
from schemas.sql import literal
from streams.watermark import closes_at

_COMPARISONS = {"==": "="}
#: Of lists, which are compared item by item; an empty one is null.
_ENDS = {"first": "minIf", "last": "maxIf"}
#: Halves of an event id in the order of its text: ClickHouse compares UUIDs by their second half.
_ID_HALVES = [
    f"bitXor(toInt64({half}), toInt64({-(2**63)}))"
    for half in ("bitShiftRight(toUInt128(event_id), 64)", f"bitAnd(toUInt128(event_id), {2**64 - 1})")
]


class ToSql:
    """Compiles expressions over one feed's raw table, or over partials of its aggregates."""

    def __init__(self, feed: Feed) -> None:
        self._event_ms = f"toUnixTimestamp64Milli({feed.event_time})"
        self._kinds: dict[str, Kind] = {field.name: field.kind for field in feed.fields}

    def expression(self, expression: Expression) -> str:
        """SQL of an expression; times are integer milliseconds."""
        match expression:
            case Column(name):
                return f"toUnixTimestamp64Milli({name})" if self._kinds.get(name) == "instant" else name
            case Component(name, part):
                return f"{name}_{part}"
            case Constant(value):
                return literal(value)
            case Binary():
                return self._binary(expression)
            case Not(operand):
                return f"(NOT {self.expression(operand)})"
            case Absolute(operand) if is_whole(operand, self._kinds):
                return f"toInt64(abs({self.expression(operand)}))"
            case Absolute(operand):
                return f"abs({self.expression(operand)})"
            case Present(Column(name)) if self._kinds.get(name) == "place":
                return f"({name}_{COMPONENTS['place'][0]} IS NOT NULL)"
            case When(condition, then):
                return f"if({self.expression(condition)}, {self.expression(then)}, NULL)"
            case Present(operand):
                return f"({self.expression(operand)} IS NOT NULL)"
            case Scaled(operand, scale):
                scaled = f"floor(toFloat64({self.expression(operand)}) * {scale} + 0.5)"
                return f"if(abs({scaled}) <= {LARGEST}, toInt64({scaled}), NULL)"
            case Quantile(histogram, q):
                return _quantile(histogram, q)
            case Energy(histogram, scale):
                return _energy(histogram, scale)
            case Carried(name):
                return f"if(empty({name}), NULL, {name}[{len(ORDERED_BY) + 1}])"
        raise TypeError(f"not an expression: {expression!r}")

    def _binary(self, expression: Binary) -> str:
        match expression:
            case Binary("/", left, Constant(int(number))) if number:
                return f"({self.expression(left)} / {number})"
            case Binary("/", left, right):
                return f"(toFloat64({self.expression(left)}) / nullIf({self.expression(right)}, 0))"
            case Binary("otherwise", left, right):
                sides = [is_whole(side, self._kinds) for side in (left, right)]
                texts = [self.expression(side) for side in (left, right)]
                if not all(sides):
                    texts = [f"toFloat64({text})" for text in texts]
                return f"coalesce({', '.join(texts)})"
            case Binary("min" | "max" as which, left, right):
                extreme = f"if(isNull(l) OR isNull(r), NULL, {'least' if which == 'min' else 'greatest'}(l, r))"
                return f"arrayMap((l, r) -> {extreme}, [{'], ['.join(self._compared(left, right))}])[1]"
            case Binary("<" | "<=" | ">" | ">=" | "==" as operator, left, right):
                return f"({f' {_COMPARISONS.get(operator, operator)} '.join(self._compared(left, right))})"
        return f"({self.expression(expression.left)} {expression.operator} {self.expression(expression.right)})"

    def _compared(self, *sides: Expression) -> Iterator[str]:
        """Sides of a comparison: both doubles if one may be a fraction, null where they are beyond all doubles."""
        whole = [is_whole(side, self._kinds) for side in sides]
        for side, is_integer in zip(sides, whole, strict=True):
            text = self.expression(side)
            if is_integer and not all(whole):
                text = f"toFloat64({text})"
            yield f"arrayMap(x -> if(isFinite(x), x, NULL), [{text}])[1]" if may_be_beyond(side) else text

    def partial(self, partial: Partial) -> str:
        """Aggregate function giving a partial from raw rows; a sum has 128 bits."""
        value = self.expression(partial.value)
        match partial.merge:
            case "sum":
                return f"sum(toInt128(ifNull({value}, 0)))"
            case "min" | "max":
                return f"{partial.merge}OrNull(toInt64({value}))"
            case "first" | "last" as end:
                carried = f"[{self._event_ms}, {', '.join(_ID_HALVES)}, assumeNotNull(toInt64({value}))]"
                return f"{_ENDS[end]}({carried}, isNotNull({value}))"
            case "histogram":
                known = f"assumeNotNull(toInt64({value}))"
                bucket = f"toInt32({known})" if partial.buckets is LEVELS else _bucket(known)
                return f"sumMapIf([{bucket}], [toInt64(1)], isNotNull({value}))"


def _bucket(value: str) -> str:
    number = f"bitShiftRight(reinterpretAsUInt64(toFloat64({value})), {BUCKET_SHIFT}) - {FIRST_BUCKET}"
    return f"if({value} <= 0, toInt32({NO_BUCKET}), toInt32({number}))"


def _quantile(histogram: str, q: float) -> str:
    ranks = f"arrayCumSum(tupleElement({histogram}, 2))"
    position = f"arrayFirstIndex(r -> r > floor({q} * ({ranks}[-1] - 1)), {ranks})"
    bucket = f"tupleElement({histogram}, 1)[{position}]"
    middle = f"bitShiftLeft(toUInt64({bucket} + {FIRST_BUCKET}), {BUCKET_SHIFT}) + {2 ** (BUCKET_SHIFT - 1)}"
    value = f"if({bucket} = {NO_BUCKET}, 0, reinterpretAsFloat64({middle}))"
    return f"if(empty(tupleElement({histogram}, 1)), NULL, {value})"


def _energy(histogram: str, scale: int) -> str:
    levels, counts = (f"tupleElement({histogram}, {n})" for n in (1, 2))
    powers = f"arraySum((level, n) -> n * pow(10, level / {10 * scale}), {levels}, {counts})"
    return f"if(empty({levels}), NULL, 10 * log10({powers} / arraySum({counts})))"


def entity_name(of: Sequence[str]) -> str:
    """What an entity is called by its fields, as ``schemas.alerts.entity_name`` says it."""
    if len(of) == 1:
        return of[0]
    fields = ", ".join(f"replaceAll({name}, ',', ',,')" for name in of)
    return f"arrayStringConcat([{fields}], ', ')"


def written(partial: Partial, value: str) -> str:
    """A partial as a part carries it."""
    return f"if(abs({value}) < {-BEYOND}, toInt64({value}), {BEYOND})" if partial.merge == "sum" else value


def read(partial: Partial) -> str:
    """A partial that a part carries; null is a sum that it could not hold."""
    return f"nullIf({partial.name}, {BEYOND})" if partial.merge == "sum" else partial.name


def merged(partial: Partial) -> str:
    """Aggregate function merging a partial's column, under its own name; a sum is null if one of its parts is."""
    match partial.merge:
        case "sum":
            return f"if(count({partial.name}) = count(), sum(toInt128({partial.name})), NULL)"
        case "min" | "max":
            return f"{partial.merge}({partial.name})"
        case "first" | "last" as end:
            return f"{_ENDS[end]}({partial.name}, notEmpty({partial.name}))"
        case "histogram":
            return f"sumMap({partial.name})"


def window_start_ms(feed: Feed, aggregate: Aggregate) -> str:
    """Start in ms of the window a raw row falls in."""
    event, size = f"toUnixTimestamp64Milli({feed.event_time})", aggregate.window.total_seconds() * 1000
    return f"({event} - positiveModulo({event}, {size:.0f}))"


def is_late(feed: Feed, aggregate: Aggregate) -> str:
    """The predicate of streams.watermark on a raw row: its window was closed before it."""
    return f"({window_start_ms(feed, aggregate)} + {closes_at(feed, aggregate)} <= seen_before)"


def behind_ms(feed: Feed) -> str:
    """How far event time had come beyond a raw row's before it, which says how late it can be for any window.

    The ends are cut off, so that the difference cannot wrap.
    """
    return f"(least(greatest(seen_before, 0), {2**62}) - toUnixTimestamp64Milli({feed.event_time}))"


def counted(feed: Feed, aggregate: Aggregate) -> tuple[str, ...]:
    """Number of events and each partial of raw rows that are grouped."""
    to_sql = ToSql(feed)
    partials = [partial for measure in aggregate.measures for partial in measure.partials]
    return "toInt64(count())", *(to_sql.partial(partial) for partial in partials)

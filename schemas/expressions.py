"""Expressions over a record's fields, written once and compiled to Polars (here) and to SQL (in sinks).

Arithmetic is IEEE double or 64-bit integer, a null operand gives null, and a division by zero gives null, in every
compilation. Times take part as integer milliseconds since 1970-01-01 UTC.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import polars as pl

LARGEST = 2**52

Operator = Literal["+", "-", "*", "/", ">=", "=="]


class Expression:
    """Base of the nodes below, with Python's operators."""

    def __add__(self, other: Operand) -> Binary:
        return Binary("+", self, as_expression(other))

    def __sub__(self, other: Operand) -> Binary:
        return Binary("-", self, as_expression(other))

    def __mul__(self, other: Operand) -> Binary:
        return Binary("*", self, as_expression(other))

    def __truediv__(self, other: Operand) -> Binary:
        return Binary("/", self, as_expression(other))

    def __ge__(self, other: Operand) -> Binary:
        return Binary(">=", self, as_expression(other))

    def equals(self, other: Operand) -> Binary:
        """True where both are equal."""
        return Binary("==", self, as_expression(other))


Use = Literal["number", "condition"]
Operand = Expression | int | float | str


@dataclass(frozen=True)
class Column(Expression):
    """The value of a field."""

    name: str


@dataclass(frozen=True)
class Constant(Expression):
    """A fixed value."""

    value: int | float | str


@dataclass(frozen=True)
class Binary(Expression):
    """Two operands joined by an operator."""

    operator: Operator
    left: Expression
    right: Expression


@dataclass(frozen=True)
class When(Expression):
    """``then`` where ``condition`` is true, else null."""

    condition: Expression
    then: Expression


@dataclass(frozen=True)
class Present(Expression):
    """True where ``operand`` is not null."""

    operand: Expression


@dataclass(frozen=True)
class Scaled(Expression):
    """``operand`` times ``scale``, rounded half up to an integer: floor(operand * scale + 0.5).

    Null where that is not between -``LARGEST`` and ``LARGEST``: a double holds no half above it.
    """

    operand: Expression
    scale: int


@dataclass(frozen=True)
class Quantile(Expression):
    """The value at rank floor(``q`` * (n - 1)) of a histogram, a column of buckets and counts; null of none.

    See ``schemas.measures.quantiles``. It is compiled to SQL alone.
    """

    histogram: str
    q: float


def as_expression(value: Operand) -> Expression:
    """Wrap a plain value."""
    return value if isinstance(value, Expression) else Constant(value)


def columns(expression: Expression) -> Iterator[str]:
    """Names of the fields an expression reads."""
    match expression:
        case Column(name) | Quantile(name, _):
            yield name
        case Binary(_, left, right) | When(left, right):
            yield from columns(left)
            yield from columns(right)
        case Present(operand) | Scaled(operand, _):
            yield from columns(operand)


def written(expression: Expression) -> str:
    """An expression as text, for people and for telling a changed one."""
    match expression:
        case Column(name):
            return name
        case Constant(str(text)):
            return _quoted(text)
        case Constant(value):
            return str(value)
        case Binary(operator, left, right):
            return f"({written(left)} {operator} {written(right)})"
        case When(condition, then):
            return f"({written(then)} if {written(condition)})"
        case Present(operand):
            return f"present({written(operand)})"
        case Scaled(operand, scale):
            return f"round({written(operand)} * {scale})"
        case Quantile(histogram, q):
            return f"quantile({q:g} of {histogram})"
    raise TypeError(f"not an expression: {expression!r}")


def _quoted(text: str) -> str:
    """A text in quotation marks, which are single ones unless there are some in it: so frozen definitions have it."""
    mark = '"' if "'" in text and '"' not in text else "'"
    escaped = text.replace("\\", "\\\\").replace(mark, f"\\{mark}")
    return f"{mark}{escaped}{mark}"


def misused(expression: Expression, kinds: Mapping[str, str], use: Use = "number") -> Iterator[str]:
    """Names of fields used as a number, a condition or a text that are none; ``kinds`` has every field's kind."""
    match expression:
        case Column(name):
            if kinds.get(name) not in (("int", "float", "instant") if use == "number" else ("bool",)):
                yield name
        case Binary("==", left, right) if any(_is_text(side) for side in (left, right)):
            for side in (left, right):
                yield from (name for name in columns(side) if kinds.get(name) not in ("string", "enum"))
        case Binary(_, left, right):
            yield from (*misused(left, kinds), *misused(right, kinds))
        case When(condition, then):
            yield from (*misused(condition, kinds, "condition"), *misused(then, kinds, use))
        case Scaled(operand, _):
            yield from misused(operand, kinds)


def is_whole(expression: Expression, kinds: Mapping[str, str]) -> bool:
    """Whether the value of a number is never a fraction; ``kinds`` has every field's kind."""
    match expression:
        case Column(name):
            return kinds.get(name) != "float"
        case Constant(value):
            return not isinstance(value, float)
        case Binary("/", _, _):
            return False
        case Binary(_, left, right):
            return is_whole(left, kinds) and is_whole(right, kinds)
        case When(_, then):
            return is_whole(then, kinds)
    return True


def _is_text(expression: Expression) -> bool:
    return isinstance(expression, Constant) and isinstance(expression.value, str)


def to_polars(expression: Expression) -> pl.Expr:
    """Compile to a Polars expression over a frame of decoded records."""
    match expression:
        case Column(name):
            return pl.col(name)
        case Constant(value):
            return pl.lit(value)
        case Binary("+", left, right):
            return to_polars(left) + to_polars(right)
        case Binary("-", left, right):
            return to_polars(left) - to_polars(right)
        case Binary("*", left, right):
            return to_polars(left) * to_polars(right)
        case Binary("/", left, right):
            divisor = to_polars(right)
            return pl.when(divisor != 0).then(to_polars(left).cast(pl.Float64) / divisor)
        case Binary(">=", left, right):
            return to_polars(left) >= to_polars(right)
        case Binary("==", left, right):
            return to_polars(left) == to_polars(right)
        case When(condition, then):
            return pl.when(to_polars(condition)).then(to_polars(then))
        case Present(operand):
            return to_polars(operand).is_not_null()
        case Scaled(operand, scale):
            scaled = (to_polars(operand).cast(pl.Float64) * scale + 0.5).floor()
            return pl.when(scaled.abs() <= LARGEST).then(scaled).cast(pl.Int64)
    raise TypeError(f"not an expression: {expression!r}")

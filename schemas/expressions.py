"""Expressions over a record's fields, written once and compiled to Polars (here) and to SQL (in sinks).

Arithmetic is IEEE double or 64-bit integer, a null operand gives null, and a division by zero gives null, in every
compilation. What arithmetic brings beyond all doubles is null where it is compared, and an integer is compared with a
fraction as a double. Null is a third value of a condition: ``&`` is false where one side is false, ``|`` true where one
is true, whatever the other; else null gives null. Times take part as integer milliseconds since 1970-01-01 UTC.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add, and_, eq, ge, gt, le, lt, mul, or_, sub
from typing import Literal

import polars as pl

from schemas.model import COMPONENTS, DeclarationError, Field, Kind

LARGEST = 2**52

Arithmetic = Literal["+", "-", "*", "/", "min", "max", "otherwise"]
Comparison = Literal["<", "<=", ">", ">=", "=="]
Junction = Literal["and", "or"]
#: What an expression is.
Type = Literal["number", "text", "condition"]
_TYPES: Mapping[Kind, Type] = {
    "int": "number", "float": "number", "instant": "number", "string": "text", "enum": "text", "bool": "condition"
}  # fmt: skip

#: Where something else stands for a comparison of texts.
SAID_OF_TEXTS = "texts are compared by .equals(...) and .is_in(..., ...)"


class Mistyped(DeclarationError):
    """An expression makes no sense over these fields; the message says which part of it, and why."""


class Expression:
    """Base of the nodes below, with Python's operators."""

    def __bool__(self) -> bool:
        raise Mistyped("a condition is joined by &, | and ~, not by and, or and not; 0 < x < 5 is (x > 0) & (x < 5)")

    def __add__(self, other: Operand) -> Binary:
        """The sum of two numbers.

        >>> Column("level") + 1
        """
        return Binary("+", self, as_expression(other))

    def __sub__(self, other: Operand) -> Binary:
        """The difference of two numbers; of two instants, the milliseconds between them.

        >>> Column("level") - 2.5
        """
        return Binary("-", self, as_expression(other))

    def __mul__(self, other: Operand) -> Binary:
        """The product of two numbers.

        >>> Column("level") * Column("load")
        """
        return Binary("*", self, as_expression(other))

    def __truediv__(self, other: Operand) -> Binary:
        """The quotient of two numbers, as a fraction; null where the divisor is zero.

        >>> Column("load") / Column("level")
        """
        return Binary("/", self, as_expression(other))

    def __radd__(self, other: Operand) -> Binary:
        return Binary("+", as_expression(other), self)

    def __rsub__(self, other: Operand) -> Binary:
        return Binary("-", as_expression(other), self)

    def __rmul__(self, other: Operand) -> Binary:
        return Binary("*", as_expression(other), self)

    def __rtruediv__(self, other: Operand) -> Binary:
        return Binary("/", as_expression(other), self)

    def __neg__(self) -> Binary:
        return Binary("-", Constant(0), self)

    def __lt__(self, other: Operand) -> Binary:
        """True where the first number is smaller.

        >>> Column("load") < 0.5
        """
        return Binary("<", self, as_expression(other))

    def __le__(self, other: Operand) -> Binary:
        """True where the first number is smaller or they are equal.

        >>> Column("load") <= 0.5
        """
        return Binary("<=", self, as_expression(other))

    def __gt__(self, other: Operand) -> Binary:
        """True where the first number is larger.

        >>> Column("load") > 0.5
        """
        return Binary(">", self, as_expression(other))

    def __ge__(self, other: Operand) -> Binary:
        """True where the first number is larger or they are equal.

        >>> Column("load") >= 0.5
        """
        return Binary(">=", self, as_expression(other))

    def __and__(self, other: Operand) -> Binary:
        """True where both conditions are; false where one is false, even if the other is null.

        >>> Column("open") & (Column("level") > 3)
        """
        return Binary("and", self, as_expression(other))

    def __or__(self, other: Operand) -> Binary:
        """True where one of two conditions is, even if the other is null; false where both are false.

        >>> Column("open") | (Column("level") > 3)
        """
        return Binary("or", self, as_expression(other))

    def __invert__(self) -> Not:
        """True where a condition is false.

        >>> ~Column("open")
        """
        return Not(self)

    def otherwise(self, other: Operand) -> Binary:
        """A number, or another one where it is null.

        >>> Column("load").otherwise(0)
        """
        return Binary("otherwise", self, as_expression(other))

    def equals(self, other: Operand) -> Binary:
        """True where two numbers or two texts are equal.

        >>> Column("status").equals("busy")
        """
        return Binary("==", self, as_expression(other))

    def is_in(self, first: Operand, *others: Operand) -> Expression:
        """True where a number or a text is equal to one of these.

        >>> Column("status").is_in("busy", "closed")
        """
        return reduce(Expression.__or__, map(self.equals, others), self.equals(first))


Operand = Expression | int | float | str


@dataclass(frozen=True)
class Column(Expression):
    """The value of a field.

    >>> Column("load")
    """

    name: str

    def component(self, part: str) -> Component:
        """The ``longitude`` or the ``latitude`` of a place, in degrees.

        >>> Column("place").component("latitude")
        """
        return Component(self.name, part)


@dataclass(frozen=True)
class Component(Expression):
    """A number that a field of several is made of; null where the field is."""

    name: str
    part: str


@dataclass(frozen=True)
class Constant(Expression):
    """A fixed value."""

    value: int | float | str


@dataclass(frozen=True)
class Binary(Expression):
    """Two operands joined by an operator; ``min`` and ``max`` are null where one of them is."""

    operator: Arithmetic | Comparison | Junction
    left: Expression
    right: Expression


@dataclass(frozen=True)
class Not(Expression):
    """True where ``operand`` is false."""

    operand: Expression


@dataclass(frozen=True)
class Absolute(Expression):
    """A number without its sign.

    >>> Absolute(Column("level") - 4)
    """

    operand: Expression


@dataclass(frozen=True)
class When(Expression):
    """``then`` where ``condition`` is true, else null.

    >>> When(Column("open"), Column("level"))
    """

    condition: Expression
    then: Expression


@dataclass(frozen=True)
class Present(Expression):
    """True where ``operand`` is not null.

    >>> Present(Column("load"))
    """

    operand: Expression


@dataclass(frozen=True)
class Scaled(Expression):
    """``operand`` times ``scale``, rounded half up to an integer: floor(operand * scale + 0.5).

    >>> Scaled(Column("load"), 10)

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


@dataclass(frozen=True)
class Energy(Expression):
    """The mean, by energy, of a histogram of levels in 1/``scale`` decibels; null of none.

    See ``schemas.measures.energy_mean``. It is compiled to SQL alone: powers differ in their last bits elsewhere.
    """

    histogram: str
    scale: int


@dataclass(frozen=True)
class Carried(Expression):
    """The value of a first or last, a list behind what it is ordered by; null of none. It is compiled to SQL alone."""

    name: str


@dataclass(frozen=True)
class LookedUp(Expression):
    """A field of the row of reference data that counts for a record; null where there is none. Rules and
    records that are made of others know it.

    ``keys`` are columns of the record, in the order of the table's ``key_fields``; of an area, a place that lies in it.
    """

    table: str
    key_fields: tuple[Field, ...]
    keys: tuple[Column, ...]
    field: Field


#: The operators whose results may be beyond all doubles.
ARITHMETIC = ("+", "-", "*", "/")


def may_be_beyond(expression: Expression) -> bool:
    """Whether a value may be infinite, or no number, of fields that are neither."""
    match expression:
        case Binary(operator, left, right):
            return operator in ARITHMETIC or may_be_beyond(left) or may_be_beyond(right)
        case When(_, operand) | Absolute(operand):
            return may_be_beyond(operand)
    return False


def as_expression(value: Operand) -> Expression:
    """Wrap a plain value.

    Raises
    ------
    Mistyped
        It is neither a finite number nor a text.
    """
    if isinstance(value, Expression):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float | str) or not _is_finite(value):
        raise Mistyped(
            f"{value!r} is no finite number, text or expression; {SAID_OF_TEXTS}; "
            "what a rule keeps is named in keep and read as Column(...)"
        )
    return Constant(value)


def _is_finite(value: float | str) -> bool:
    return isinstance(value, str) or math.isfinite(value)


def least(left: Operand, right: Operand) -> Expression:
    """The smaller of two numbers.

    >>> least(Column("level"), 4)
    """
    return Binary("min", as_expression(left), as_expression(right))


def greatest(left: Operand, right: Operand) -> Expression:
    """The larger of two numbers.

    >>> greatest(Column("level"), Column("load"))
    """
    return Binary("max", as_expression(left), as_expression(right))


def leaves(expression: Expression) -> Iterator[Column | Component | Quantile | Energy | Carried | LookedUp]:
    """What an expression reads."""
    match expression:
        case Column() | Component() | Quantile() | Energy() | Carried() | LookedUp():
            yield expression
        case Binary(_, left, right) | When(left, right):
            yield from leaves(left)
            yield from leaves(right)
        case Not(operand) | Absolute(operand) | Present(operand) | Scaled(operand, _):
            yield from leaves(operand)


def columns(expression: Expression) -> Iterator[str]:
    """Names of the fields an expression reads."""
    for leaf in leaves(expression):
        match leaf:
            case Quantile(name, _) | Energy(name, _):
                yield name
            case LookedUp(_, _, keys, _):
                yield from (key.name for key in keys)
            case Column(name) | Component(name, _) | Carried(name):
                yield name


def written(expression: Expression) -> str:
    """An expression as text, for people and for telling a changed one."""
    match expression:
        case Column() | Component() | LookedUp() | Constant():
            return _leaf_written(expression)
        case Binary("min" | "max" as which, left, right):
            return f"{which}({written(left)}, {written(right)})"
        case Binary(operator, left, right):
            return f"({written(left)} {operator} {written(right)})"
        case Not(operand):
            return f"(not {written(operand)})"
        case Absolute(operand):
            return f"abs({written(operand)})"
        case When(condition, then):
            return f"({written(then)} if {written(condition)})"
        case Present(operand):
            return f"present({written(operand)})"
        case Scaled(operand, scale):
            return f"round({written(operand)} * {scale})"
        case Quantile(histogram, q):
            return f"quantile({q:g} of {histogram})"
        case Energy(histogram, scale):
            return f"energy({histogram} / {scale})"
        case Carried(name):
            return f"value({name})"
    raise TypeError(f"not an expression: {expression!r}")


def _leaf_written(leaf: Column | Component | LookedUp | Constant) -> str:
    match leaf:
        case Column(name):
            return name
        case Component(name, part):
            return f"{name}.{part}"
        case LookedUp(table, _, keys, field):
            return f"{table}[{', '.join(map(written, keys))}].{field.name}"
        case Constant(str(text)):
            return _quoted(text)
        case Constant(value):
            return str(value)


def _quoted(text: str) -> str:
    """A text in quotation marks, which are single ones unless there are some in it: so frozen definitions have it."""
    mark = '"' if "'" in text and '"' not in text else "'"
    escaped = text.replace("\\", "\\\\").replace(mark, f"\\{mark}")
    return f"{mark}{escaped}{mark}"


def type_of(expression: Expression, fields: Mapping[str, Field]) -> Type:
    """What an expression over fields is; ``fields`` has each by its name.

    Raises
    ------
    Mistyped
        A part of it makes no sense.
    """
    match expression:
        case Column() | Component() | LookedUp() | Constant():
            return _type_of_leaf(expression, fields)
        case Binary("+" | "-" | "*" | "/" | "min" | "max" | "otherwise", left, right):
            _need("number", expression, fields, left, right)
            return "number"
        case Binary("<" | "<=" | ">" | ">=", left, right):
            _need("number", expression, fields, left, right)
            return "condition"
        case Binary("==", left, right):
            if (type_ := type_of(left, fields)) == "condition":
                raise Mistyped(f"{written(expression)} compares conditions: they are joined by & and |, turned by ~")
            _need(type_, expression, fields, right)
            _need_symbol(left, right, fields)
            _need_symbol(right, left, fields)
            return "condition"
        case Binary(_, left, right):
            _need("condition", expression, fields, left, right)
            return "condition"
        case Not(operand):
            _need("condition", expression, fields, operand)
            return "condition"
        case When(condition, then):
            _need("condition", expression, fields, condition)
            return type_of(then, fields)
        case Present(Column(name)):
            _known(name, fields)
            return "condition"
        case Present(operand):
            type_of(operand, fields)
            return "condition"
        case Absolute(operand) | Scaled(operand, _):
            _need("number", expression, fields, operand)
            return "number"
    raise Mistyped(f"{expression!r} is no expression; {SAID_OF_TEXTS}")


def _type_of_leaf(leaf: Column | Component | LookedUp | Constant, fields: Mapping[str, Field]) -> Type:
    match leaf:
        case Column(name):
            return _type_of_field(_known(name, fields))
        case LookedUp(_, key_fields, keys, field):
            for key, known in zip(keys, key_fields, strict=True):
                if known.shape == "area":
                    _need_component(_known(key.name, fields), "longitude")
                else:
                    _need(_type_of_field(known), leaf, fields, key)
            return _type_of_field(field)
        case Component(name, part):
            _need_component(_known(name, fields), part)
            return "number"
        case Constant(value):
            as_expression(value)
            return "text" if isinstance(value, str) else "number"


def _need_component(field: Field, part: str) -> None:
    if field.kind != "place" or part not in COMPONENTS["place"]:
        raise Mistyped(f"{field.name} is {field.kind}; a place has the components {' and '.join(COMPONENTS['place'])}")
    if field.decimals is not None:
        raise Mistyped(f"{field.name} is shown to {field.decimals} decimals; what is made of it would show it exactly")


def _known(name: str, fields: Mapping[str, Field]) -> Field:
    if name not in fields:
        raise Mistyped(f"{name} is no field of the record (there are: {', '.join(fields)})")
    return fields[name]


def _type_of_field(field: Field) -> Type:
    if field.kind not in _TYPES:
        raise Mistyped(f"{field.name} is {field.kind}, which is neither a number nor a text nor a condition")
    return _TYPES[field.kind]


def _need(wanted: Type, whole: Expression, fields: Mapping[str, Field], *parts: Expression) -> None:
    for part in parts:
        if (found := type_of(part, fields)) != wanted:
            raise Mistyped(f"{written(whole)} needs a {wanted}, and {written(part)} is a {found}")


def _need_symbol(left: Expression, right: Expression, fields: Mapping[str, Field]) -> None:
    """An enum is never equal to what is none of its symbols."""
    while isinstance(left, When):
        left = left.then
    match left, right:
        case Column(name), Constant(value) if fields[name].symbols and value not in fields[name].symbols:
            raise Mistyped(f"{name} is never {written(right)}: it is one of {', '.join(fields[name].symbols)}")


def is_whole(expression: Expression, kinds: Mapping[str, Kind]) -> bool:
    """Whether the value of a number is never a fraction; ``kinds`` has every field's kind."""
    match expression:
        case Column(name):
            return kinds.get(name) != "float"
        case Component():
            return False
        case Constant(value):
            return not isinstance(value, float)
        case LookedUp(_, _, _, field):
            return field.kind != "float"
        case Binary("/", _, _):
            return False
        case Binary(_, left, right):
            return is_whole(left, kinds) and is_whole(right, kinds)
        case When(_, operand) | Absolute(operand):
            return is_whole(operand, kinds)
    return True


def _quotient(left: pl.Expr, right: pl.Expr) -> pl.Expr:
    return pl.when(right != 0).then(left.cast(pl.Float64) / right)


def _extreme(which: Callable[..., pl.Expr]) -> Callable[[pl.Expr, pl.Expr], pl.Expr]:
    return lambda left, right: pl.when(left.is_not_null() & right.is_not_null()).then(which(left, right))


_IN_POLARS: Mapping[str, Callable[[pl.Expr, pl.Expr], pl.Expr]] = {
    "+": add, "-": sub, "*": mul, "/": _quotient,
    "min": _extreme(pl.min_horizontal), "max": _extreme(pl.max_horizontal),
    "<": lt, "<=": le, ">": gt, ">=": ge, "==": eq, "and": and_, "or": or_,
    "otherwise": pl.coalesce,
}  # fmt: skip


def to_polars(expression: Expression) -> pl.Expr:
    """Compile to a Polars expression over a frame of decoded records, with what was looked up as ``written``."""
    match expression:
        case Column(name):
            return pl.col(name)
        case Component(name, part):
            return pl.col(name).struct.field(part)
        case Constant(value):
            return pl.lit(value)
        case LookedUp():
            return pl.col(written(expression))
        case Binary(operator, left, right) if operator in ("and", "or", "otherwise", *ARITHMETIC):
            return _IN_POLARS[operator](to_polars(left), to_polars(right))
        case Binary(operator, left, right):
            return _IN_POLARS[operator](_compared(left), _compared(right))
        case Not(operand):
            return ~to_polars(operand)
        case Absolute(operand):
            return to_polars(operand).abs()
        case When(condition, then):
            return pl.when(to_polars(condition)).then(to_polars(then))
        case Present(operand):
            return to_polars(operand).is_not_null()
        case Scaled(operand, scale):
            scaled = (to_polars(operand).cast(pl.Float64) * scale + 0.5).floor()
            return pl.when(scaled.abs() <= LARGEST).then(scaled).cast(pl.Int64)
    raise TypeError(f"not an expression: {expression!r}")


def _compared(operand: Expression) -> pl.Expr:
    """An operand of a comparison, null where it is beyond all doubles."""
    compiled = to_polars(operand)
    return pl.when(compiled.is_finite()).then(compiled) if may_be_beyond(operand) else compiled

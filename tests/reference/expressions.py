"""Any expression over a record with a field of every kind that expressions take, and such records."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Annotated, Any

import polars as pl
from hypothesis import strategies as st
from pydantic import Field

from schemas.expressions import Absolute, Binary, Column, Constant, Expression, Present, When
from schemas.fields import EventId, Instant, Location, Record, Text
from tests.reference import toy


class Mixed(Record):
    """Two whole numbers, two that may be fractions, an instant, a text, an enum, a condition and a place."""

    event_id: EventId
    key: Annotated[Text, Field(description="Key")]
    at: Annotated[Instant, Field(description="Event time")]
    t: Annotated[Instant | None, Field(description="Instant or null")]
    m: Annotated[toy.Mood, Field(description="Enum")]
    a: Annotated[int, Field(description="Whole")]
    b: Annotated[int | None, Field(description="Whole or null")]
    x: Annotated[float, Field(description="Fraction")]
    y: Annotated[float | None, Field(description="Fraction or null")]
    s: Annotated[Text, Field(description="Text")]
    o: Annotated[bool | None, Field(description="Condition or null")]
    p: Location


FEED = replace(toy.FEED, name="mixed", record=Mixed, key="key", event_time="at", rules=(), aggregates=())
SCHEMA: dict[str, Any] = {
    "a": pl.Int64, "b": pl.Int64, "x": pl.Float64, "y": pl.Float64, "t": pl.Int64, "s": pl.String, "m": pl.String,
    "o": pl.Boolean,
    "p": pl.Struct({"longitude": pl.Float64, "latitude": pl.Float64}),
}  # fmt: skip

#: An integer that a double may not hold.
LARGE = Column("a") * (2**23 + 1)
FACTORS = [Constant(2), Constant(0.5), Constant(0)]

whole = st.one_of(st.integers(-50, 50), st.integers(-(2**31), 2**31 - 1))
edges = [0.0, -0.0, 0.5, -0.5, 0.005, 1.005, 0.1 + 0.2, 1e300, 5e-324, 2.0**53 + 2]
real = st.one_of(st.sampled_from(edges), st.floats(-1000, 1000))
rows = st.lists(
    st.fixed_dictionaries(
        {
            "a": whole,
            "b": st.none() | whole,
            "x": real,
            "y": st.none() | real,
            "t": st.none() | st.integers(toy.NOON, toy.NOON + 1000),
            "s": st.sampled_from(["on", "off", ""]),
            "m": st.sampled_from([*toy.Mood]).map(str),
            "o": st.none() | st.booleans(),
            "p": st.none() | st.fixed_dictionaries({"longitude": real, "latitude": real}),
        }
    ),
    min_size=1,
    max_size=8,
)


def conditions(number: st.SearchStrategy[Expression]) -> st.SearchStrategy[Expression]:
    """Expressions that are true, false or null."""
    simple: st.SearchStrategy[Expression] = st.one_of(
        st.builds(Binary, st.sampled_from(["<", "<=", ">", ">=", "=="]), number, number),
        st.builds(Present, number | st.sampled_from([Column("p"), Column("t"), Column("m")])),
        st.builds(Column("s").is_in, st.just("on"), st.sampled_from(["", "on"])),
        st.builds(Column("m").equals, st.sampled_from(["busy", "calm"])),
        st.just(Column("o")),
    )
    joined = st.builds(Binary, st.sampled_from(["and", "or"]), simple, simple.map(_turned) | simple)
    nested = st.builds(Binary, st.sampled_from(["and", "or"]), joined.map(_turned) | joined, joined)
    return st.one_of(simple, simple.map(_turned), joined, nested)


def _turned(condition: Expression) -> Expression:
    return ~condition


numbers: st.SearchStrategy[Expression] = st.recursive(
    st.sampled_from([*map(Column, "abxyt"), *map(Column("p").component, ("longitude", "latitude")), LARGE]),
    lambda inner: st.one_of(
        st.builds(Binary, st.sampled_from(["+", "-", "/", "min", "max", "otherwise"]), inner, inner),
        st.builds(Absolute, inner),
        st.builds(Binary, st.just("*"), inner, st.sampled_from([*FACTORS, Column("x")])),
        st.builds(Binary, st.sampled_from(["+", "-"]), inner, st.builds(Constant, st.integers(-3, 3))),
        st.builds(When, conditions(inner), inner),
    ),
    max_leaves=5,
)


def alike(found: Any, wanted: Any) -> bool:
    """Whether two values are the same, where what is no number is the same as itself."""
    return bool(found == wanted) or (_is_nan(found) and _is_nan(wanted))


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)

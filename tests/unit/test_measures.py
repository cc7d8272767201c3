"""Expressions mean in Polars what they say, and partials merge to the same bits however events are split."""

from __future__ import annotations

import math
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.expressions import (
    Binary,
    Column,
    Constant,
    Expression,
    Present,
    Scaled,
    When,
    columns,
    to_polars,
)
from schemas.measures import (
    NO_BUCKET,
    RELATIVE_ERROR,
    Measure,
    count_where,
    energy_mean,
    first,
    last,
    quantiles,
    ratio,
    share,
    spread,
    total,
)
from tests.reference import partition as reference
from tests.reference.expressions import SCHEMA, alike, conditions, numbers, real, rows
from tests.reference.results import results_of


def in_polars(expression: Expression, records: list[dict[str, Any]]) -> list[Any]:
    return pl.DataFrame(records, SCHEMA).select(to_polars(expression).alias("it")).to_series().to_list()


@settings(max_examples=150)
@given(numbers | conditions(numbers), rows)
def test_an_expression_means_in_polars_what_it_says(expression: Expression, records: list[dict[str, Any]]) -> None:
    expected = [reference.evaluate(expression, record) for record in records]
    for found, wanted in zip(in_polars(expression, records), expected, strict=True):
        assert alike(found, wanted)


@settings(max_examples=200)
@given(st.sampled_from(["a", "b", "x", "y"]), st.sampled_from([2, 10, 100, 1000]), rows)
def test_scaled_numbers_are_rounded_half_up(name: str, scale: int, records: list[dict[str, Any]]) -> None:
    expression = Scaled(Column(name), scale)
    found = in_polars(expression, records)
    assert found == [reference.evaluate(expression, record) for record in records]
    assert all(value is None or isinstance(value, int) for value in found)


@pytest.mark.parametrize("a", [2**52, 2**52 - 1, -(2**52), 2**31 + 1])
def test_an_integer_of_scale_one_is_itself_to_the_last_bit(a: int) -> None:
    assert in_polars(Scaled(Column("a"), 1), [{"a": a}]) == [a]


def test_a_float_of_scale_one_is_rounded_half_up() -> None:
    assert in_polars(Scaled(Column("x"), 1), [{"x": 2.5}, {"x": -2.7}]) == [3, -3]


@pytest.mark.parametrize("x", [1e300, -1e300, 1e17])
def test_no_valid_record_is_too_large_for_a_measure(x: float) -> None:
    """An error here ends the worker, which meets the same record again after its restart."""
    assert in_polars(Scaled(Column("x"), 1000), [{"x": x}]) == [None]


def test_a_division_by_zero_is_null() -> None:
    records: list[dict[str, Any]] = [{"a": 1, "b": 0, "x": 1.0, "y": 0.0}, {"a": 0, "b": 0, "x": 0.0, "y": -0.0}]
    assert in_polars(Column("a") / Column("b"), records) == [None, None]
    assert in_polars(Column("x") / Column("y"), records) == [None, None]


def test_operators_of_python_make_expressions() -> None:
    a = Column("a")
    assert a + 1 == Binary("+", a, Constant(1))
    assert a - 1 == Binary("-", a, Constant(1))
    assert a * 0.5 == Binary("*", a, Constant(0.5))
    assert a / 2 == Binary("/", a, Constant(2))
    assert (a >= 3) == Binary(">=", a, Constant(3))
    assert a.equals("x") == Binary("==", a, Constant("x"))
    assert sorted(columns(When(Present(a), Scaled(Column("b") / Column("x"), 10)))) == ["a", "b", "x"]


def test_what_is_no_expression_is_refused() -> None:
    with pytest.raises(TypeError, match="not an expression: 5"):
        to_polars(5)  # type: ignore[arg-type]


@settings(max_examples=150)
@given(st.integers(1, 2**63 - 1) | st.integers(1, 2**40) | st.integers(1, 1000), st.integers(1, 9))
def test_a_quantile_stands_for_its_value_within_the_relative_error(value: int, more: int) -> None:
    (found,) = results_of(quantiles("q", V, (0.5,), unit="1", description="x"), [{"a": value}]).values()
    assert found is not None
    assert abs(found - value) <= RELATIVE_ERROR * value
    assert reference.bucket(value) <= reference.bucket(value + more)


def test_the_lowest_bucket_stands_for_zero() -> None:
    assert reference.bucket(0) == reference.bucket(-7) == reference.bucket(-(2**63)) == NO_BUCKET
    assert results_of(quantiles("q", V, (0.5,), unit="1", description="x"), [{"a": -7}]) == {"q_p50": 0.0}


V, W = Column("a"), Column("b")


@pytest.mark.parametrize(
    ("measure", "partials", "results"),
    [
        (total("t", V, unit="1", description="x"), {"t_sum": "sum"}, ["t"]),
        (
            spread("s", V, unit="1", description="x", scale=10),
            {"s_low": "min", "s_high": "max", "s_sum": "sum", "s_count": "sum"},
            ["s_min", "s_max", "s_mean"],
        ),
        (share("p", V >= 1, description="x"), {"p_true": "sum", "p_known": "sum"}, ["p"]),
        (ratio("r", V, W, unit="1", description="x", scale=10), {"r_over": "sum", "r_under": "sum"}, ["r"]),
        (
            quantiles("q", V, (0.5, 0.99), unit="1", description="x"),
            {"q_histogram": "histogram"},
            ["q_p50", "q_p99"],
        ),
        (first("f", V, unit="1", description="x"), {"f_first": "first"}, ["f"]),
        (last("l", V, unit="1", description="x"), {"l_last": "last"}, ["l"]),
        (energy_mean("e", V, unit="dB", description="x"), {"e_histogram": "histogram"}, ["e"]),
    ],
    ids=["total", "spread", "share", "ratio", "quantiles", "first", "last", "energy mean"],
)
def test_the_columns_of_a_measure(measure: Measure, partials: dict[str, str], results: list[str]) -> None:
    assert {p.name: p.merge for p in measure.partials} == partials
    assert [r.name for r in measure.results] == results


def test_a_ratio_counts_the_records_where_both_are_known() -> None:
    over, under = ratio("r", Column("y"), Column("b"), unit="1", description="x", scale=10).partials
    records: list[dict[str, Any]] = [{"y": 1.5, "b": 2}, {"y": None, "b": 5}, {"y": 2.0, "b": None}]
    assert in_polars(over.value, records) == [15, None, None]
    assert in_polars(under.value, records) == [20, None, None]


def every_kind(value: Expression, other: Expression) -> list[Measure]:
    return [
        total("t", value, unit="1", description="x", scale=10),
        count_where("c", value >= other, description="x"),
        spread("s", value, unit="1", description="x", scale=10),
        share("p", value >= other, description="x"),
        ratio("r", value, other, unit="1", description="x", scale=10),
        first("f", value, unit="1", description="x", scale=10),
        last("l", value, unit="1", description="x", scale=10),
    ]


@settings(max_examples=100)
@given(st.lists(st.fixed_dictionaries({"x": st.none() | real, "y": st.none() | real}), max_size=8))
def test_partials_and_results_say_what_was_declared(records: list[dict[str, Any]]) -> None:
    for measure in every_kind(Column("x"), Column("y")):
        merged: dict[str, Any] = {}
        for partial in measure.partials:
            for n, value in enumerate([None, *(reference.evaluate(partial.value, record) for record in records)]):
                reference.merge(partial, merged, value, (n,))
        shown = {result.name: reference.evaluate(result.value, merged) for result in measure.results}
        assert shown == results_of(measure, records)


@given(st.lists(st.floats(-1000, 1000), min_size=1, max_size=20))
def test_an_energy_mean_is_that_of_the_levels_to_half_a_step_and_never_below_their_arithmetic_mean(
    levels: list[float],
) -> None:
    (found,) = results_of(
        energy_mean("e", Column("x"), unit="dB", description="x"), [{"x": x} for x in levels]
    ).values()
    loudest = max(levels)
    exact = loudest + 10 * math.log10(sum(10 ** ((level - loudest) / 10) for level in levels) / len(levels))
    assert found is not None
    assert abs(found - exact) <= 0.05 + 1e-9
    assert exact >= sum(levels) / len(levels) - 1e-9


def test_what_is_no_level_of_any_sound_does_not_count_in_an_energy_mean() -> None:
    measure = energy_mean("e", Column("x"), unit="dB", description="x")
    records: list[dict[str, Any]] = [{"x": 70.0}, {"x": None}, {"x": 1000.05}, {"x": 1e300}]
    assert results_of(measure, records) == {"e": 70.0}
    assert results_of(measure, records[1:]) == {"e": None}
    (partial,) = measure.partials
    assert in_polars(partial.value, records) == [700, None, None, None]


def test_the_results_of_quantiles_are_named_alike() -> None:
    measure = quantiles("q", V, (0.5, 0.99, 0.999), unit="1", description="x")
    assert [result.name for result in measure.results] == list(results_of(measure, []))


@given(st.floats(1, 1e6))
def test_a_quantile_of_steps_of_a_fraction_is_within_the_relative_error_and_half_a_step(value: float) -> None:
    measure = quantiles("x", Scaled(Column("x"), 1000), (0.5,), unit="1", divisor=1000, description="x")
    (found,) = results_of(measure, [{"x": value}]).values()
    assert found == pytest.approx(value, rel=RELATIVE_ERROR, abs=0.0005 * (1 + RELATIVE_ERROR))

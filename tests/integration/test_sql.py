"""Partials that ClickHouse computes from raw rows, as it does of late ones and for a new version of an aggregate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.alerts import entity_name
from schemas.expressions import Column, Expression, Scaled
from schemas.expressions import written as as_text
from schemas.feed import RollUp
from schemas.measures import BEYOND, energy_mean, quantiles
from sinks import sql
from sinks.dialect import Dialect
from sinks.sql import ToSql, merged, read, written
from sinks.views import span_end_ms, span_start
from tests.reference.city import span_of
from tests.reference.expressions import FEED as MIXED
from tests.reference.expressions import alike, conditions, numbers, rows
from tests.reference.partition import EDGES, bucket, evaluate
from tests.reference.results import results_of
from tests.reference.toy import FEED, NOON, instant

pytestmark = pytest.mark.integration

#: Columns as the raw table of a feed has them; a place is two.
STRUCTURE = [
    ("n", "UInt32"), ("a", "Int32"), ("b", "Nullable(Int32)"), ("x", "Float64"), ("y", "Nullable(Float64)"),
    ("t", "Nullable(DateTime64(3, 'UTC'))"), ("s", "String"), ("m", "LowCardinality(String)"), ("o", "Nullable(Bool)"),
    ("p_longitude", "Nullable(Float64)"), ("p_latitude", "Nullable(Float64)"),
]  # fmt: skip
SUM = next(m for aggregate in FEED.aggregates for m in aggregate.measures if m.partials[0].name == "level_sum")
MEASURE = next(m for aggregate in FEED.aggregates for m in aggregate.measures if m.results[0].name == "wait_p50")


def test_quantiles_of_any_integer_are_those_of_the_reference(connect: Callable[[str], Any]) -> None:
    """Of the integers around every edge of a bucket, of the ends, and of nothing known."""
    (partial,) = MEASURE.partials
    columns = ", ".join(ToSql(FEED).expression(result.value) for result in MEASURE.results)
    rows = [{"wait": wait} for wait in (*EDGES, None)]
    found = connect("operator").execute(
        f"SELECT wait, {partial.name}, {columns} FROM (SELECT wait, {ToSql(FEED).partial(partial)} AS {partial.name} "
        f"FROM waits GROUP BY wait) ORDER BY wait",
        external_tables=[{"name": "waits", "structure": [("wait", "Nullable(Int64)")], "data": rows}],
    )
    expected = [(wait, ([bucket(wait)], [1]), *results_of(MEASURE, [{"wait": wait}]).values()) for wait in EDGES]
    wrong = [
        (one, other)
        for one, other in zip(found, [*expected, (None, ([], []), None, None)], strict=True)
        if one != other
    ]
    assert not wrong, wrong[:5]


def test_quantiles_of_steps_of_a_fraction_are_those_of_the_reference(connect: Callable[[str], Any]) -> None:
    measure = quantiles("load", Scaled(Column("load"), 1000), (0.5, 0.9), unit="1", divisor=1000, description="Load")
    (partial,) = measure.partials
    loads = [12.934, 0.0004, 0.0005, 0.0, -0.0, -3.5, 1e-300, 99.9995, 2.0**43, None]
    (found,) = connect("operator").execute(
        f"SELECT {', '.join(ToSql(FEED).expression(result.value) for result in measure.results)} FROM "
        f"(SELECT {ToSql(FEED).partial(partial)} AS {partial.name} FROM loads)",
        external_tables=[
            {"name": "loads", "structure": [("load", "Nullable(Float64)")], "data": [{"load": load} for load in loads]}
        ],
    )
    assert found == tuple(results_of(measure, [{"load": load} for load in loads]).values())


@pytest.mark.parametrize(
    "levels",
    [[-1000, 1000], [1000] * 3, [-1000] * 3, [0], [], [60, 90], [float(n) / 3 for n in range(-3100, 3100)]],
    ids=lambda levels: str(levels)[:30],
)
def test_energy_means_are_those_of_the_reference(connect: Callable[[str], Any], levels: list[float]) -> None:
    """Of steps from one end to the other, and of what is beyond them, which is null."""
    measure = energy_mean("noise", Column("noise"), unit="dB", description="Noise")
    ((partial,), (result,)) = measure.partials, measure.results
    rows: list[dict[str, Any]] = [{"noise": level} for level in (*levels, None, 1000.05, -1e300)]
    ((found, buckets),) = connect("operator").execute(
        f"SELECT {ToSql(FEED).expression(result.value)}, tupleElement({partial.name}, 1) FROM "
        f"(SELECT {ToSql(FEED).partial(partial)} AS {partial.name} FROM noises)",
        external_tables=[{"name": "noises", "structure": [("noise", "Nullable(Float64)")], "data": [*rows]}],
    )
    assert {"noise": found} == results_of(measure, rows)
    assert buckets == sorted({step for row in rows if (step := evaluate(partial.value, row)) is not None})


@pytest.mark.parametrize("sums", [[2**63 - 1, -(2**63) + 1], [7, 2**63 - 1, 2**63 - 1], [5, BEYOND], []], ids=str)
def test_sums_of_parts_and_of_late_rows_are_exact_and_null_if_a_part_could_not_hold_its_own(
    connect: Callable[[str], Any], sums: list[int]
) -> None:
    """What came late is added to them: 5,000 values of 2^52, which 64 bits do not hold."""
    (partial,) = SUM.partials
    rows = f"(SELECT {2**52} AS level FROM numbers(5000))"
    late = f"SELECT {ToSql(FEED).partial(partial)} AS {partial.name} FROM {rows}"
    parts = f"SELECT {read(partial)} AS {partial.name} FROM parts"
    ((found, whole),) = connect("operator").execute(
        f"SELECT {ToSql(FEED).expression(SUM.results[0].value)}, toString({partial.name}) FROM "
        f"(SELECT {merged(partial)} AS {partial.name} FROM ({parts} UNION ALL {late}))",
        external_tables=[
            {"name": "parts", "structure": [(partial.name, "Int64")], "data": [{partial.name: n} for n in sums]}
        ],
    )
    exact = None if BEYOND in sums else sum(sums) + 5000 * 2**52
    assert whole == (None if exact is None else str(exact))
    assert found == (None if exact is None else exact)


@pytest.mark.parametrize("total", [2**63 - 1, -(2**63) + 1, 2**63, -(2**63), 2**70, 0])
def test_a_rebuilt_part_holds_the_sum_the_stream_would_have_written(connect: Callable[[str], Any], total: int) -> None:
    (partial,) = SUM.partials
    ((found, kind),) = connect("operator").execute(
        f"SELECT {written(partial, 'total')} AS written, toTypeName(written) FROM (SELECT toInt128('{total}') AS total)"
    )
    assert (found, kind) == (total if abs(total) < 2**63 else BEYOND, "Int64")


@pytest.mark.parametrize("to", ["hour", "day"])
@pytest.mark.parametrize(
    "zone", ["Asia/Shanghai", "Europe/Berlin", "America/New_York", "Asia/Kathmandu", "Australia/Adelaide"]
)
def test_hours_and_days_are_those_of_the_city_also_where_its_clocks_are_changed(
    connect: Callable[[str], Any], zone: str, to: Literal["hour", "day"]
) -> None:
    """At every quarter of an hour of a year."""
    rollup = RollUp(name="toy_1", to=to)
    quarters = range(NOON, NOON + 366 * 86_400_000, 900_000)
    found = connect("operator").execute(
        f"SELECT toUnixTimestamp64Milli(span_start), {span_end_ms(rollup)} FROM (SELECT number, "
        f"{span_start(rollup, Dialect(zone))} AS span_start FROM (SELECT number, "
        f"fromUnixTimestamp64Milli({NOON} + 900000 * toInt64(number), 'UTC') AS window_start "
        f"FROM numbers({len(quarters)}))) ORDER BY number"
    )
    expected = [span_of(rollup, at, ZoneInfo(zone)) for at in quarters]
    wrong = [one for one in zip(quarters, found, expected, strict=True) if one[1] != one[2]]
    assert not wrong, wrong[:5]


def test_an_expression_means_in_sql_what_it_says(connect: Callable[[str], Any]) -> None:
    client = connect("operator")

    @settings(max_examples=60, deadline=None)
    @given(st.lists(numbers | conditions(numbers), min_size=1, max_size=20), rows)
    def check(expressions: list[Expression], records: list[dict[str, Any]]) -> None:
        columns = ", ".join(f"({ToSql(MIXED).expression(one)}) AS it_{n}" for n, one in enumerate(expressions))
        found = client.execute(
            f"SELECT {columns} FROM records ORDER BY n",
            external_tables=[{"name": "records", "structure": STRUCTURE, "data": as_rows(records)}],
        )
        for row, record in zip(found, records, strict=True):
            for value, expression in zip(row, expressions, strict=True):
                assert alike(value, evaluate(expression, record)), (as_text(expression), record)

    check()


def test_an_entity_is_called_as_its_alerts_call_it(connect: Callable[[str], Any]) -> None:
    names = ("a", "a, b", "b", ",", ", ", ",,", "")
    rows = [{"x": x, "y": y} for x in names for y in names]
    found = connect("operator").execute(
        f"SELECT x, y, {sql.entity_name(['x'])}, {sql.entity_name(['x', 'y'])} FROM named",
        external_tables=[{"name": "named", "structure": [("x", "String"), ("y", "String")], "data": rows}],
    )
    assert sorted(found) == sorted((x, y, entity_name([x]), entity_name([x, y])) for x in names for y in names)


def as_rows(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Records, numbered, under the names of ``STRUCTURE``."""
    nowhere = {"longitude": None, "latitude": None}
    places = [{f"p_{name}": value for name, value in (one["p"] or nowhere).items()} for one in records]
    times = [{"t": None if one["t"] is None else instant(one["t"])} for one in records]
    return [{**one, **places[n], **times[n], "n": n} for n, one in enumerate(records)]

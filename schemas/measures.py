"""Measures of an aggregate: exact, mergeable partial results and what an analyst sees of them.

A partial is a 64-bit integer merged by sum, min or max, or a histogram (bucket -> count) merged by adding counts, so
any split of the same events merges to the same bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from schemas.expressions import Expression, Present, Scaled, When, as_expression

RELATIVE_ERROR = 0.01
GAMMA = (1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR)

Merge = Literal["sum", "min", "max", "histogram"]


@dataclass(frozen=True)
class Partial:
    """A mergeable column: ``value`` is an integer expression, null where a record does not count."""

    name: str
    merge: Merge
    value: Expression


@dataclass(frozen=True)
class Result:
    """A column an analyst sees: ``sql`` over the merged partials."""

    name: str
    sql: str
    unit: str
    description: str


@dataclass(frozen=True)
class Measure:
    """Partials with the results computed from them."""

    partials: tuple[Partial, ...]
    results: tuple[Result, ...]


def total(name: str, value: Expression, *, unit: str, description: str, scale: int = 1) -> Measure:
    """Sum of ``value`` in steps of 1/``scale``."""
    result = f"{name}_sum" if scale == 1 else f"{name}_sum / {scale}"
    return Measure(
        (Partial(f"{name}_sum", "sum", Scaled(value, scale)),),
        (Result(name, result, unit, description),),
    )


def count_where(name: str, condition: Expression, *, description: str) -> Measure:
    """Number of records for which ``condition`` is true."""
    return total(name, When(condition, as_expression(1)), unit="1", description=description)


def spread(name: str, value: Expression, *, unit: str, description: str, scale: int) -> Measure:
    """Minimum, maximum and mean of ``value`` in steps of 1/``scale``: columns ``<name>_min``, ``_max``, ``_mean``."""
    scaled = Scaled(value, scale)
    return Measure(
        (
            Partial(f"{name}_low", "min", scaled),
            Partial(f"{name}_high", "max", scaled),
            Partial(f"{name}_sum", "sum", scaled),
            Partial(f"{name}_count", "sum", When(Present(scaled), as_expression(1))),
        ),
        (
            Result(f"{name}_min", f"{name}_low / {scale}", unit, f"Minimum of {description}"),
            Result(f"{name}_max", f"{name}_high / {scale}", unit, f"Maximum of {description}"),
            Result(f"{name}_mean", f"{name}_sum / nullIf({name}_count, 0) / {scale}", unit, f"Mean of {description}"),
        ),
    )


def share(name: str, condition: Expression, *, description: str) -> Measure:
    """Records for which ``condition`` is true over those for which it is known."""
    return Measure(
        (
            Partial(f"{name}_true", "sum", When(condition, as_expression(1))),
            Partial(f"{name}_known", "sum", When(Present(condition), as_expression(1))),
        ),
        (Result(name, f"{name}_true / nullIf({name}_known, 0)", "1", description),),
    )


def ratio(name: str, over: Expression, under: Expression, *, unit: str, description: str, scale: int) -> Measure:
    """Sum of ``over`` divided by the sum of ``under``, over the records where both are known.

    A mean of ``v`` weighted by ``w`` is ``ratio(over=v * w, under=w)``.
    """
    return Measure(
        (
            Partial(f"{name}_over", "sum", When(Present(under), Scaled(over, scale))),
            Partial(f"{name}_under", "sum", When(Present(over), Scaled(under, scale))),
        ),
        (Result(name, f"{name}_over / nullIf({name}_under, 0)", unit, description),),
    )


def quantiles(
    name: str, value: Expression, at: tuple[float, ...], *, unit: str, description: str, divisor: int = 1
) -> Measure:
    """Quantiles of a positive integer ``value`` within a relative error of 1%: columns ``<name>_p50``, ...

    DDSketch (Masson, Rim, Lee: VLDB 2019): value v > 0 falls in bucket ceil(log(v) / log(gamma)), gamma = 1.01/0.99,
    and bucket b stands for 2 * gamma^b / (gamma + 1); the quantile q is the bucket of rank floor(q * (n - 1)).
    Values of zero or less share bucket -1 and stand for zero. ``divisor`` turns the value's unit into ``unit``.
    """
    histogram = f"{name}_histogram"
    return Measure(
        (Partial(histogram, "histogram", value),),
        tuple(
            Result(
                f"{name}_p{q * 100:g}",
                _quantile_sql(histogram, q, divisor),
                unit,
                f"Quantile {q:g} of {description}, relative error at most {RELATIVE_ERROR:g}",
            )
            for q in at
        ),
    )


def bucket_bounds() -> list[int]:
    """Ascending upper bounds: bucket b holds the integers v with bounds[b-1] < v <= bounds[b].

    Integer bounds make the bucket of an integer the same everywhere; a logarithm is not the same bits everywhere.
    """
    bounds = []
    exponent = 0
    while True:
        bound = math.floor(GAMMA**exponent)
        bounds.append(bound)
        if bound > 2**40:
            return bounds
        exponent += 1


def bucket_value(bucket: int) -> float:
    """The value a bucket stands for."""
    return 0.0 if bucket < 0 else 2 * GAMMA**bucket / (GAMMA + 1)


def _quantile_sql(histogram: str, q: float, divisor: int) -> str:
    ranks = f"arrayCumSum(tupleElement({histogram}, 2))"
    position = f"arrayFirstIndex(r -> r > floor({q} * ({ranks}[-1] - 1)), {ranks})"
    bucket = f"tupleElement({histogram}, 1)[{position}]"
    value = f"if({bucket} < 0, 0, 2 * pow({GAMMA!r}, {bucket}) / ({GAMMA!r} + 1))"
    return f"if(empty(tupleElement({histogram}, 1)), NULL, {value} / {divisor})"

"""What an analyst sees of a measure, from what was declared and the events of a window alone: no partials, no SQL.

A value is rounded to its scale before it is added, so sums are of integers; they become doubles when they are divided.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from schemas.expressions import Expression, Scaled
from schemas.measures import End, EnergyMean, Measure, Quantiles, Ratio, Share, Spread, Total
from tests.reference.partition import Values, bucket, evaluate


def results_of(
    measure: Measure, events: Sequence[Values], when: Callable[[Values], Any] | None = None
) -> dict[str, float | None]:
    """Each result under its column's name; None where no event has what it is made of.

    ``when`` is what the events go by, as they are given unless it says so.

    Raises
    ------
    TypeError
        A measure of a kind that is not known here.
    """
    match measure:
        case Total(name=name, value=value, scale=scale):
            return {name: _divided(sum(_known(Scaled(value, scale), events)), scale)}
        case Spread(name=name, value=value, scale=scale):
            steps = _known(Scaled(value, scale), events)
            low, high, mean = min(steps, default=None), max(steps, default=None), _divided(sum(steps), len(steps))
            found = {"min": low, "max": high, "mean": mean}
            return {f"{name}_{which}": _divided(number, scale) for which, number in found.items()}
        case Share(name=name, condition=condition):
            known = _known(condition, events)
            return {name: _divided(known.count(True), len(known))}
        case Ratio(name=name, over=over, under=under, scale=scale):
            both = [e for e in events if evaluate(over, e) is not None and evaluate(under, e) is not None]
            dividend, divisor = (sum(_known(Scaled(value, scale), both)) for value in (over, under))
            return {name: _divided(dividend, divisor)}
        case Quantiles(name=name, value=value, at=at, divisor=divisor):
            buckets = sorted(bucket(number) for number in _known(value, events))
            return {f"{name}_p{100 * q:g}": _divided(_quantile(buckets, q), divisor) for q in at}
        case End(which=which, name=name, value=value, scale=scale):
            steps = [evaluate(Scaled(value, scale), event) for event in events]
            known = [(when(events[n]) if when else n, step) for n, step in enumerate(steps) if step is not None]
            _, chosen = (min if which == "first" else max)(known, default=(None, None))
            return {name: _divided(chosen, scale)}
        case EnergyMean(name=name, value=value):
            steps = [step for step in _known(Scaled(value, 10), events) if -10_000 <= step <= 10_000]
            energies = [10.0 ** (step / 100) for step in steps]
            return {name: Nearly(10 * math.log10(sum(energies) / len(energies))) if energies else None}
    raise TypeError(measure)


class Nearly(float):
    """A number that ClickHouse has to a billionth: its powers and logarithms differ from Python's in their last bits.

    Of 10^(b / 100) for whole b from -10,000 to 10,000 that is so of 141, and of the logarithms of these of 48: 1 ulp.
    """

    def __eq__(self, other: object) -> bool:
        return isinstance(other, float) and math.isclose(self, other, rel_tol=0, abs_tol=1e-9)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = None  # type: ignore[assignment]


def _known(value: Expression, events: Sequence[Values]) -> list[Any]:
    """The value of each event that has one."""
    return [found for event in events if (found := evaluate(value, event)) is not None]


def _divided(over: float | None, under: int) -> float | None:
    return None if over is None or under == 0 else float(over) / under


def _quantile(buckets: Sequence[int], q: float) -> float | None:
    """The value for which the bucket of rank floor(q * (n - 1)) stands; ``buckets`` ascend, one of each event."""
    if not buckets:
        return None
    found = buckets[math.floor(q * (len(buckets) - 1))]
    return 0.0 if found < 0 else math.ldexp(1 + (found % 64 + 0.5) / 64, found // 64)

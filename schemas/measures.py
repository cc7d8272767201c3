"""Measures of an aggregate: exact, mergeable partial results and what an analyst sees of them.

A partial is an integer merged by sum, min or max, the one at the first or the last event, or a histogram (bucket ->
count) merged by adding counts, so any split of the same events merges to the same bits. What is added has 128 bits,
which no log can fill; what a partition contributes to a window is written as 64, or as ``BEYOND``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

from schemas.expressions import (
    Absolute,
    Carried,
    Column,
    Energy,
    Expression,
    Present,
    Quantile,
    Scaled,
    When,
    as_expression,
    written,
)

# The bucket of a value is the front of its double's bits, exponent and some of 52, counted from the bucket of 1.0.
_BUCKET_BITS = 6
BUCKET_SHIFT = 52 - _BUCKET_BITS
FIRST_BUCKET = 1023 << _BUCKET_BITS
#: The bucket of zero and less, and that of 2**63, next to which the largest integer is.
NO_BUCKET = -1
LAST_BUCKET = 63 << _BUCKET_BITS
RELATIVE_ERROR = 0.5 / (1 << _BUCKET_BITS)

#: Stands in a part for a sum that 64 bits do not hold: what rests on it is not known.
BEYOND = -(2**63)

Merge = Literal["sum", "min", "max", "first", "last", "histogram"]

#: What stands before the value of a first or last: event time (ms) and the halves of the event id, less 2**63, so that
#: they go in the order of its text.
ORDERED_BY = ("event_ms", "id_high", "id_low")
#: Steps in a decibel, and the loudest level in steps, of either sign: beyond all sounds, and its power is a double.
DECIBEL, LOUDEST = 10, 10_000


@dataclass(frozen=True)
class Buckets:
    """What the buckets of a histogram are, in words, and their numbers."""

    words: str
    first: int
    last: int


#: As ``quantiles`` says, and each integer a bucket of its own.
RELATIVE = Buckets(f"{1 << _BUCKET_BITS}ths of powers of two", NO_BUCKET, LAST_BUCKET)
LEVELS = Buckets("steps", -LOUDEST, LOUDEST)


@dataclass(frozen=True)
class Partial:
    """A mergeable column: ``value`` is an integer expression, null where a record does not count.

    The first and the last one are told by what ``ORDERED_BY`` says, then by the value: it is the same of any records.
    ``buckets`` are those of a histogram.
    """

    name: str
    merge: Merge
    value: Expression
    buckets: Buckets = RELATIVE

    @property
    def definition(self) -> str:
        """What the column holds, in words; parts of another definition cannot be merged with it."""
        how = f"histogram by {self.buckets.words}" if self.merge == "histogram" else self.merge
        return f"{how} of {written(self.value)}"


@dataclass(frozen=True)
class Result:
    """A column an analyst sees: an expression over the merged partials, which are columns by their names."""

    name: str
    value: Expression
    unit: str
    description: str


class Measure(ABC):
    """What was declared of a measure; the partials, and the results computed from them, follow from that alone."""

    @property
    @abstractmethod
    def partials(self) -> tuple[Partial, ...]:
        """The mergeable columns."""

    @property
    @abstractmethod
    def results(self) -> tuple[Result, ...]:
        """The columns an analyst sees."""


@dataclass(frozen=True)
class Total(Measure):
    """What ``total`` declares."""

    name: str
    value: Expression
    scale: int
    unit: str
    description: str

    @property
    def partials(self) -> tuple[Partial, ...]:
        return (Partial(f"{self.name}_sum", "sum", Scaled(self.value, self.scale)),)

    @property
    def results(self) -> tuple[Result, ...]:
        total = Column(f"{self.name}_sum")
        return (Result(self.name, total if self.scale == 1 else total / self.scale, self.unit, self.description),)


@dataclass(frozen=True)
class Spread(Measure):
    """What ``spread`` declares."""

    name: str
    value: Expression
    scale: int
    unit: str
    description: str

    @property
    def partials(self) -> tuple[Partial, ...]:
        scaled = Scaled(self.value, self.scale)
        return (
            Partial(f"{self.name}_low", "min", scaled),
            Partial(f"{self.name}_high", "max", scaled),
            Partial(f"{self.name}_sum", "sum", scaled),
            Partial(f"{self.name}_count", "sum", When(Present(scaled), as_expression(1))),
        )

    @property
    def results(self) -> tuple[Result, ...]:
        low, high, added, count = (Column(f"{self.name}_{part}") for part in ("low", "high", "sum", "count"))
        name, unit, scale = self.name, self.unit, self.scale
        return (
            Result(f"{name}_min", low / scale, unit, f"Minimum of {self.description}"),
            Result(f"{name}_max", high / scale, unit, f"Maximum of {self.description}"),
            Result(f"{name}_mean", added / count / scale, unit, f"Mean of {self.description}"),
        )


@dataclass(frozen=True)
class Share(Measure):
    """What ``share`` declares."""

    name: str
    condition: Expression
    description: str

    @property
    def partials(self) -> tuple[Partial, ...]:
        return (
            Partial(f"{self.name}_true", "sum", When(self.condition, as_expression(1))),
            Partial(f"{self.name}_known", "sum", When(Present(self.condition), as_expression(1))),
        )

    @property
    def results(self) -> tuple[Result, ...]:
        return (Result(self.name, Column(f"{self.name}_true") / Column(f"{self.name}_known"), "1", self.description),)


@dataclass(frozen=True)
class Ratio(Measure):
    """What ``ratio`` declares."""

    name: str
    over: Expression
    under: Expression
    scale: int
    unit: str
    description: str

    @property
    def partials(self) -> tuple[Partial, ...]:
        return (
            Partial(f"{self.name}_over", "sum", When(Present(self.under), Scaled(self.over, self.scale))),
            Partial(f"{self.name}_under", "sum", When(Present(self.over), Scaled(self.under, self.scale))),
        )

    @property
    def results(self) -> tuple[Result, ...]:
        over, under = Column(f"{self.name}_over"), Column(f"{self.name}_under")
        return (Result(self.name, over / under, self.unit, self.description),)


@dataclass(frozen=True)
class Quantiles(Measure):
    """What ``quantiles`` declares."""

    name: str
    value: Expression
    at: tuple[float, ...]
    divisor: int
    unit: str
    description: str

    @property
    def partials(self) -> tuple[Partial, ...]:
        return (Partial(f"{self.name}_histogram", "histogram", self.value),)

    @property
    def results(self) -> tuple[Result, ...]:
        return tuple(
            Result(
                f"{self.name}_p{q * 100:g}",
                Quantile(f"{self.name}_histogram", q) / self.divisor,
                self.unit,
                f"Quantile {q:g} of {self.description}, relative error at most {RELATIVE_ERROR:.1%}",
            )
            for q in self.at
        )


@dataclass(frozen=True)
class EnergyMean(Measure):
    """What ``energy_mean`` declares."""

    name: str
    value: Expression
    unit: str
    description: str

    @property
    def partials(self) -> tuple[Partial, ...]:
        steps = Scaled(self.value, DECIBEL)
        heard = When(Absolute(steps) <= LOUDEST, steps)
        return (Partial(f"{self.name}_histogram", "histogram", heard, LEVELS),)

    @property
    def results(self) -> tuple[Result, ...]:
        mean = Energy(f"{self.name}_histogram", DECIBEL)
        return (Result(self.name, mean, self.unit, f"Energy mean of {self.description}"),)


@dataclass(frozen=True)
class End(Measure):
    """What ``first`` and ``last`` declare."""

    which: Literal["first", "last"]
    name: str
    value: Expression
    scale: int
    unit: str
    description: str

    @property
    def partials(self) -> tuple[Partial, ...]:
        return (Partial(f"{self.name}_{self.which}", self.which, Scaled(self.value, self.scale)),)

    @property
    def results(self) -> tuple[Result, ...]:
        value = Carried(f"{self.name}_{self.which}")
        return (Result(self.name, value / self.scale, self.unit, f"{self.which.title()} of {self.description}"),)


def total(name: str, value: Expression, *, unit: str, description: str, scale: int = 1) -> Measure:
    """Sum of ``value`` in steps of 1/``scale``.

    >>> total("load", Column("load"), unit="1", scale=10, description="Load")
    """
    return Total(name, value, scale, unit, description)


def count_where(name: str, condition: Expression, *, description: str) -> Measure:
    """Number of records for which ``condition`` is true.

    >>> count_where("busy", Column("status").equals("busy"), description="Busy ones")
    """
    return total(name, When(condition, as_expression(1)), unit="1", description=description)


def spread(name: str, value: Expression, *, unit: str, description: str, scale: int) -> Measure:
    """Minimum, maximum and mean of ``value`` in steps of 1/``scale``: columns ``<name>_min``, ``_max``, ``_mean``.

    >>> spread("level", Column("level"), unit="1", scale=1, description="Level")
    """
    return Spread(name, value, scale, unit, description)


def share(name: str, condition: Expression, *, description: str) -> Measure:
    """Records for which ``condition`` is true over those for which it is known.

    >>> share("open", Column("open"), description="Share of open ones")
    """
    return Share(name, condition, description)


def ratio(name: str, over: Expression, under: Expression, *, unit: str, description: str, scale: int) -> Measure:
    """Sum of ``over`` divided by the sum of ``under``, over the records where both are known.

    >>> ratio("load", Column("load") * Column("level"), Column("level"), unit="1", scale=10, description="Load")

    A mean of ``v`` weighted by ``w`` is ``ratio(over=v * w, under=w)``.
    """
    return Ratio(name, over, under, scale, unit, description)


def quantiles(
    name: str, value: Expression, at: tuple[float, ...], *, unit: str, description: str, divisor: int = 1
) -> Measure:
    """Quantiles of a positive integer ``value`` within 0.8%: columns ``<name>_p50``, ...

    >>> quantiles("level", Column("level"), (0.5, 0.9), unit="1", description="Level")

    Of a fraction say how fine: ``Scaled(value, 1000)`` and ``divisor=1000``, for values that are large beside 0.001.

    DDSketch (Masson, Rim, Lee: VLDB 2019) with logarithms that are linear between powers of two: 64 equal buckets for
    each power, of which each stands for its middle, so the relative error is at most 1/128. The bucket is read off the
    bits of the double nearest to the value, which are the same everywhere, as a logarithm is not. The quantile q is the
    bucket of rank floor(q * (n - 1)). Values of zero or less share bucket -1 and stand for zero. ``divisor`` turns the
    value's unit into ``unit``.
    """
    return Quantiles(name, value, at, divisor, unit, description)


def energy_mean(name: str, value: Expression, *, unit: str, description: str) -> Measure:
    """Mean of levels in decibels by the energy they stand for: 10 log10 of the mean of 10^(level / 10).

    >>> energy_mean("noise", Column("level"), unit="dB", description="Noise")

    As ISO 1996-1 averages sound, where an arithmetic mean says too little. Levels are counted in steps of 0.1 dB, so
    the result is within 0.05 dB, and it is the same in whichever order they came. One of more than 1,000 dB is null.
    """
    return EnergyMean(name, value, unit, description)


def first(name: str, value: Expression, *, unit: str, description: str, scale: int = 1) -> Measure:
    """The ``value``, in steps of 1/``scale``, at the first event of the window that has one.

    >>> first("load", Column("load"), unit="1", scale=100, description="Load")

    Events go by event time, and those of one millisecond by the text of their event ids.
    """
    return End("first", name, value, scale, unit, description)


def last(name: str, value: Expression, *, unit: str, description: str, scale: int = 1) -> Measure:
    """The ``value``, in steps of 1/``scale``, at the last event of the window that has one, in the order of ``first``.

    >>> last("load", Column("load"), unit="1", scale=100, description="Load")
    """
    return End("last", name, value, scale, unit, description)

"""Many rows to few, once for all aggregates of a feed: each then groups what is left.

Rows that agree in every group key, in the smallest window and in which aggregates they are too late for go the same
way through every aggregate, so they can be merged first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import polars as pl

from schemas.expressions import Expression, to_polars
from schemas.feed import Aggregate, Feed, milliseconds
from schemas.measures import Merge, Partial
from streams.watermark import SEEN_BEFORE, closes_at, window_start

MOMENT = "_moment"


@dataclass(frozen=True)
class Combined:
    """``parts``: group keys, ``_moment`` (ms), ``_first``, ``_seen``, ``_last``, ``events``, the partials' columns, and
    ``late(aggregate)`` for each aggregate. ``rows`` are those they were made of."""

    rows: pl.DataFrame
    parts: pl.DataFrame


def merge(kind: Merge, value: pl.Expr) -> pl.Expr:
    """Merge a group's values."""
    match kind:
        case "sum":
            return value.sum()
        case "min":
            return value.min()
        case "max":
            return value.max()
        case "histogram":
            raise TypeError("a histogram is merged by bucket")


def late(aggregate: Aggregate) -> str:
    """Name of the column that says whether a row is too late for its window of an aggregate."""
    return f"_late_{aggregate.name}"


class Combine:
    """The combination of one feed's rows."""

    def __init__(self, feed: Feed) -> None:
        self._columns: dict[tuple[Merge, Expression], str] = {}
        for aggregate in feed.aggregates:
            for partial in (p for measure in aggregate.measures for p in measure.partials if p.merge != "histogram"):
                self._columns.setdefault((partial.merge, partial.value), f"_{len(self._columns)}")
        step = math.gcd(*(milliseconds(aggregate.window) for aggregate in feed.aggregates))
        event = pl.col(feed.event_time)
        self._late = [late(aggregate) for aggregate in feed.aggregates]
        self._added = [
            (event - event % step).alias(MOMENT) if step else event.alias(MOMENT),
            *(
                (window_start(aggregate, event) + closes_at(feed, aggregate) <= pl.col(SEEN_BEFORE)).alias(
                    late(aggregate)
                )
                for aggregate in feed.aggregates
            ),
            *(to_polars(value).cast(pl.Int64).alias(name) for (_, value), name in self._columns.items()),
        ]
        self._keys = [*dict.fromkeys(name for aggregate in feed.aggregates for name in aggregate.by), MOMENT]
        self._merged = [
            pl.col("_offset").min().alias("_first"),
            pl.col(SEEN_BEFORE).min().alias("_seen"),
            pl.col("_offset").max().alias("_last"),
            pl.len().cast(pl.Int64).alias("events"),
            *(merge(kind, pl.col(name)) for (kind, _), name in self._columns.items()),
        ]

    def column(self, partial: Partial) -> str:
        """The combined column of a partial that is no histogram."""
        return self._columns[partial.merge, partial.value]

    def __call__(self, rows: pl.DataFrame) -> Combined:
        """Combine rows: valid, without repeats, with ``_offset`` and ``_seen_before``."""
        rows = rows.with_columns(self._added)
        on_time = [name for name in self._late if not rows[name].any()]
        keys = [*self._keys, *(name for name in self._late if name not in on_time)]
        parts = rows.group_by(keys).agg(self._merged).with_columns(pl.lit(False).alias(name) for name in on_time)
        return Combined(rows, parts)

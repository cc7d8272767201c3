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
from streams.watermark import SEEN_BEFORE, Moment, closes_at, window_start

MOMENT = "_moment"


@dataclass(frozen=True)
class Combined:
    """``parts``: group keys, ``_moment`` (ms), ``_first``, ``_seen``, ``_last``, ``events``, the partials' columns, and
    ``late(aggregate)`` for each aggregate. ``rows`` are those they were made of, with these columns if there are
    histograms."""

    rows: pl.DataFrame
    parts: pl.DataFrame


def merge(kind: Merge, value: pl.Expr) -> pl.Expr:
    """Merge a group's values; a sum has 128 bits."""
    match kind:
        case "sum":
            return value.cast(pl.Int128).sum()
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
        self._feed = feed
        self._late = {late(aggregate): aggregate for aggregate in feed.aggregates}
        self._histograms = any(p.merge == "histogram" for a in feed.aggregates for m in a.measures for p in m.partials)
        self._added = [
            (event - event % step).alias(MOMENT) if step else event.alias(MOMENT),
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
        earliest, newest = rows[self._feed.event_time].min(), rows[SEEN_BEFORE].max()
        assert isinstance(earliest, int)
        assert isinstance(newest, int)
        event, seen = pl.col(self._feed.event_time), pl.col(SEEN_BEFORE)
        doubtful = {name: a for name, a in self._late.items() if self._closes(a, earliest) <= newest}
        on_time = [pl.lit(False).alias(name) for name in self._late if name not in doubtful]
        flags = [(self._closes(a, event) <= seen).alias(name) for name, a in doubtful.items()]
        if self._histograms:
            rows = rows.with_columns(*self._added, *flags, *on_time)
            added = rows.lazy()
        else:
            added = rows.lazy().with_columns(*self._added, *flags)
        parts = added.group_by([*self._keys, *doubtful]).agg(self._merged).with_columns(on_time).collect()
        return Combined(rows, parts)

    def _closes(self, aggregate: Aggregate, event_ms: Moment) -> Moment:
        """The maximum of event time that closes an event's window."""
        return window_start(aggregate, event_ms) + closes_at(self._feed, aggregate)

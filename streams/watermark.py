"""The one predicate that decides late, close and final.

A window is closed for a record, and for good, once ``window end + lateness <= running maximum of event time (over the
valid records before it) - disorder``. It depends on the log alone, not on how the log was cut into batches.
"""

from __future__ import annotations

from typing import TypeVar

import polars as pl

from schemas.feed import Aggregate, Feed, milliseconds
from streams.positions import NO_EVENT_TIME

#: A time, or a column of times, in ms since 1970-01-01 UTC.
Moment = TypeVar("Moment", int, pl.Expr)

SEEN_BEFORE = "_seen_before"
#: In the place of the maximum before a row that its generation does not count: late for every window.
ASIDE = 2**63 - 1


def advance(
    feed: Feed, rows: pl.DataFrame, max_event_ms: int, counts: pl.Expr | None = None
) -> tuple[pl.DataFrame, int]:
    """Add to each row the running maximum of event time before it (ms, ``_seen_before``); return the new maximum.

    Rows that ``counts`` is false for do not move the maximum and get ``ASIDE``.
    """
    if rows.is_empty():
        return rows.with_columns(pl.lit(max_event_ms, pl.Int64).alias(SEEN_BEFORE)), max_event_ms
    event = pl.col(feed.event_time)
    if counts is not None:
        event = pl.when(counts).then(event).otherwise(pl.lit(NO_EVENT_TIME, pl.Int64))
    seen = pl.max_horizontal(event.cum_max().shift(1).fill_null(max_event_ms), pl.lit(max_event_ms, pl.Int64))
    if counts is not None:
        seen = pl.when(counts).then(seen).otherwise(pl.lit(ASIDE, pl.Int64))
    newest = rows.select(event.max()).item()
    assert isinstance(newest, int)
    return rows.with_columns(seen.alias(SEEN_BEFORE)), max(max_event_ms, newest)


def window_start(aggregate: Aggregate, event_ms: Moment) -> Moment:
    """Start of the tumbling window an event time falls in, aligned to 1970-01-01 UTC."""
    size = milliseconds(aggregate.window)
    return event_ms - event_ms % size


def closes_at(feed: Feed, aggregate: Aggregate) -> int:
    """How far, in ms, the maximum of event time has to be past a window's start for the window to be closed."""
    return milliseconds(aggregate.window + feed.lateness + feed.disorder)

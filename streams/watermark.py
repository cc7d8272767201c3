"""The one predicate that decides late, close and final.

A window is closed for a record, and for good, once ``window end + lateness <= running maximum of event time (over the
valid records before it) - disorder``. A tick moves this maximum as a record of its time would. It depends on the log
alone, not on how the log was cut into batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import polars as pl

from schemas.feed import Aggregate, Feed, milliseconds
from streams.positions import NO_EVENT_TIME

#: A time, or a column of times, in ms since 1970-01-01 UTC.
Moment = TypeVar("Moment", int, pl.Expr)

SEEN_BEFORE = "_seen_before"
#: In the place of the maximum before a row that its generation does not count: late for every window.
ASIDE = 2**63 - 1


def advance(
    feed: Feed,
    rows: pl.DataFrame,
    max_event_ms: int,
    counts: pl.Expr | None = None,
    ticks: Sequence[tuple[int, int]] = (),
) -> tuple[pl.DataFrame, int]:
    """Add to each row the running maximum of event time before it (ms, ``_seen_before``); return the new maximum.

    Rows that ``counts`` is false for do not move the maximum and get ``ASIDE``. ``ticks`` are offsets, ascending, and
    times (ms).
    """
    events = rows[feed.event_time].to_numpy()
    counted = None if counts is None else rows.select(counts).to_series().to_numpy()
    seen, newest = running_maximum(
        events if counted is None else np.where(counted, events, NO_EVENT_TIME), max_event_ms
    )
    if ticks:
        told = np.maximum.accumulate([max_event_ms, *(ms for _, ms in ticks)])
        ticks_before = np.searchsorted([offset for offset, _ in ticks], rows["_offset"].to_numpy())
        seen, newest = np.maximum(seen, told[ticks_before]), max(newest, int(told[-1]))
    if counted is not None:
        seen = np.where(counted, seen, ASIDE)
    return rows.hstack([pl.Series(SEEN_BEFORE, seen, dtype=pl.Int64)]), newest


def running_maximum(event_ms: npt.NDArray[np.int64], before_ms: int) -> tuple[npt.NDArray[np.int64], int]:
    """The maximum of event time before each of some records that follow each other, and behind them."""
    seen = np.maximum.accumulate(np.concatenate(([before_ms], event_ms)))
    return seen[:-1], int(seen[-1])


def window_start(aggregate: Aggregate, event_ms: Moment) -> Moment:
    """Start of the tumbling window an event time falls in, aligned to 1970-01-01 UTC."""
    size = milliseconds(aggregate.window)
    return event_ms - event_ms % size


def final_at(feed: Feed, event_ms: int) -> int:
    """The maximum of event time (ms) at which every window of an event is final."""
    return max((window_start(one, event_ms) + closes_at(feed, one) for one in feed.aggregates), default=event_ms)


def closes_at(feed: Feed, aggregate: Aggregate) -> int:
    """How far, in ms, the maximum of event time has to be past a window's start for the window to be closed."""
    return milliseconds(aggregate.window + feed.lateness + feed.disorder)

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

Instants = npt.NDArray[np.int64]
#: A time, or a column of times, in ms since 1970-01-01 UTC.
Moment = TypeVar("Moment", int, pl.Expr, Instants)

#: In the place of the maximum before a row that its topic does not count: late for every window.
ASIDE = 2**63 - 1


def advance(
    offsets: Instants,
    event_ms: Instants,
    counts: npt.NDArray[np.bool_] | None,
    max_event_ms: int,
    ticks: Sequence[tuple[int, int]] = (),
) -> tuple[Instants, int]:
    """The running maximum of event time before each of some rows that follow each other, and behind them (ms).

    Rows that ``counts`` is false for do not move the maximum and get ``ASIDE``. ``ticks`` are offsets, ascending, and
    times (ms).
    """
    counted = event_ms if counts is None else np.where(counts, event_ms, NO_EVENT_TIME)
    reached = np.maximum.accumulate(np.concatenate(([max_event_ms], counted)))
    seen, newest = reached[:-1], int(reached[-1])
    if ticks:
        told = np.maximum.accumulate([max_event_ms, *(ms for _, ms in ticks)])
        ticks_before = np.searchsorted([offset for offset, _ in ticks], offsets)
        seen, newest = np.maximum(seen, told[ticks_before]), max(newest, int(told[-1]))
    return seen if counts is None else np.where(counts, seen, ASIDE), newest


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

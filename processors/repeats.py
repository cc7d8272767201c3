"""Repeats of an event within the open windows: same key, event time and event id."""

from __future__ import annotations

import polars as pl

from schemas.feed import Feed, milliseconds
from schemas.model import UUID_PARTS
from streams.positions import NO_EVENT_TIME

#: How often, in the time that they are kept for, identities are forgotten.
FORGETTING = 8


class Repeats:
    """Identities seen in windows that may still be open."""

    def __init__(self, feed: Feed) -> None:
        self._event_time = feed.event_time
        self._identity = [feed.key, feed.event_time, *UUID_PARTS]
        longest = max((a.window for a in feed.aggregates), default=None)
        self._keep_for = None if longest is None else milliseconds(longest + feed.lateness + feed.disorder)
        self._forget_at = NO_EVENT_TIME
        halves = dict.fromkeys(UUID_PARTS, pl.UInt64)
        self._seen = pl.DataFrame(
            schema={feed.key: pl.String, feed.event_time: pl.Int64, **halves, "_offset": pl.Int64}
        )

    def drop(self, rows: pl.DataFrame, max_event_ms: int) -> pl.DataFrame:
        """The rows not seen before, in their order; what ``max_event_ms`` closes for good is forgotten by and by.

        The end of an event id, which is random, finds the rows that may be repeats; only those are compared by their
        identity.
        """
        if self._keep_for is None or rows.is_empty():
            return rows
        new = rows.select(*self._identity[:2], *(pl.col("event_id").struct.field(p) for p in UUID_PARTS), "_offset")
        earliest, latest = rows[self._event_time].min(), rows[self._event_time].max()
        near = self._seen.filter(pl.col(self._event_time).is_between(earliest, latest))
        suspect = new["low"].is_duplicated() | new["low"].is_in(near["low"].implode())
        if suspect.any():
            doubtful = new.filter(suspect)
            fresh = doubtful.filter(pl.struct(self._identity).is_first_distinct()).join(
                near, on=self._identity, how="anti"
            )
            kept = ~suspect | new["_offset"].is_in(fresh["_offset"].implode())
            rows, new = rows.filter(kept), new.filter(kept)
        self._seen = pl.concat([self._seen, new])
        if max_event_ms >= self._forget_at:
            self._seen = self._seen.filter(pl.col(self._event_time) + self._keep_for > max_event_ms)
            self._forget_at = max_event_ms + self._keep_for // FORGETTING
        return rows

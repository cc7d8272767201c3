"""Repeats of an event within the open windows: same key, event time and event id."""

from __future__ import annotations

import polars as pl

from schemas.feed import Feed, milliseconds


class Repeats:
    """Identities seen in windows that may still be open.

    Hashes of event ids find the rows that may be repeats; only those are compared by their identity, so the answer is
    exact.
    """

    def __init__(self, feed: Feed) -> None:
        self._event_time = feed.event_time
        self._identity = [feed.key, feed.event_time, "event_id"]
        longest = max((a.window for a in feed.aggregates), default=None)
        self._keep_for = None if longest is None else milliseconds(longest + feed.lateness + feed.disorder)
        self._seen = pl.DataFrame(
            schema={"_hash": pl.UInt64, feed.key: pl.String, feed.event_time: pl.Int64, "event_id": pl.String}
        )

    def drop(self, rows: pl.DataFrame, max_event_ms: int) -> pl.DataFrame:
        """The rows not seen before, in their order; what ``max_event_ms`` closes for good is forgotten."""
        if self._keep_for is None or rows.is_empty():
            return rows
        rows = rows.with_columns(_hash=pl.col("event_id").hash())
        earliest, latest = rows[self._event_time].min(), rows[self._event_time].max()
        near = self._seen.filter(pl.col(self._event_time).is_between(earliest, latest))
        suspect = rows["_hash"].is_duplicated() | rows["_hash"].is_in(near["_hash"].implode())
        if suspect.any():
            doubtful = rows.filter(suspect)
            fresh = doubtful.filter(pl.struct(self._identity).is_first_distinct()).join(
                near, on=self._identity, how="anti"
            )
            rows = rows.filter(~suspect | rows["_offset"].is_in(fresh["_offset"].implode()))
        live = pl.col(self._event_time) + self._keep_for > max_event_ms
        self._seen = pl.concat([self._seen, rows.select(self._seen.columns)]).filter(live)
        return rows.drop("_hash")

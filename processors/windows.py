"""Open windows of one aggregate in one partition: mergeable parts, versions, closing."""

from __future__ import annotations

import numpy as np
import polars as pl

from processors.combine import MOMENT, Combine, Combined, late, merge
from schemas.expressions import to_polars
from schemas.feed import Aggregate, Feed
from schemas.measures import BEYOND, BUCKET_SHIFT, FIRST_BUCKET, NO_BUCKET, Partial
from streams.positions import Stop
from streams.watermark import closes_at, window_start

_WHOLE = ("window_start", "_first", "_seen", "_last", "_changed", "events")


class TooManyGroups(Stop):
    """More groups are open than a feed declares, and they take memory."""


class Windows:
    """State of one aggregate: a pure function of the records added, whatever the cut between calls of ``add``."""

    def __init__(self, feed: Feed, aggregate: Aggregate, combine: Combine) -> None:
        self.aggregate = aggregate
        self._late = late(aggregate)
        self._closes_at = closes_at(feed, aggregate)
        self._most = feed.open_groups
        self._keys = [*aggregate.by, "window_start"]
        partials = [p for measure in aggregate.measures for p in measure.partials]
        self._scalars = [(p, combine.column(p)) for p in partials if p.merge != "histogram"]
        self._histograms = [p for p in partials if p.merge == "histogram"]
        self._sums = [p.name for p in partials if p.merge == "sum"]
        columns = {
            **dict.fromkeys(aggregate.by, pl.String),
            **dict.fromkeys(_WHOLE, pl.Int64),
            "_changed": pl.Boolean,
            **{p.name: pl.Int128 if p.merge == "sum" else pl.Int64 for p, _ in self._scalars},
        }
        self._open = pl.DataFrame(schema=columns)
        buckets = {**dict.fromkeys(aggregate.by, pl.String), **dict.fromkeys(("window_start", "_bucket"), pl.Int64)}
        self._counts = {p.name: pl.DataFrame(schema={**buckets, "_count": pl.Int64}) for p in self._histograms}

    def add(self, combined: Combined) -> None:
        """Count rows in.

        Those too late for their window are left out here; ClickHouse counts them from the raw rows.
        """
        if combined.parts[self._late].all():
            return
        start = window_start(self.aggregate, pl.col(MOMENT)).alias("window_start")
        own = {partial.name: pl.col(column).alias(partial.name) for partial, column in self._scalars}
        own |= {"window_start": start, "_changed": pl.lit(True).alias("_changed")}
        added = (
            combined.parts.lazy()
            .filter(~pl.col(self._late))
            .select(own.get(name, pl.col(name)) for name in self._open.columns)
        )
        self._open = (
            pl.concat([self._open.lazy(), added])
            .group_by(self._keys)
            .agg(
                pl.col("_first", "_seen").min(),
                pl.col("_last").max(),
                pl.col("_changed").any(),
                pl.col("events").sum(),
                *(merge(partial.merge, pl.col(partial.name)) for partial, _ in self._scalars),
            )
            .select(self._open.columns)
            .collect()
        )
        if self._histograms:
            rows = combined.rows.lazy().filter(~pl.col(self._late)).with_columns(start).collect()
            for partial in self._histograms:
                self._count(partial, rows)

    def _count(self, partial: Partial, rows: pl.DataFrame) -> None:
        value = to_polars(partial.value).cast(pl.Int64)
        values = rows.lazy().select(*self._keys, _value=value).drop_nulls("_value").collect()
        raw = values["_value"].to_numpy()
        bits = raw.astype(np.float64).view(np.int64)
        buckets = np.where(raw <= 0, NO_BUCKET, (bits >> BUCKET_SHIFT) - FIRST_BUCKET)
        counts = self._counts[partial.name]
        bucket, one = pl.lit(pl.Series(buckets, dtype=pl.Int64)), pl.lit(1, pl.Int64)
        added = values.lazy().select(*self._keys, _bucket=bucket, _count=one).select(counts.columns)
        self._counts[partial.name] = (
            pl.concat([counts.lazy(), added]).group_by([*self._keys, "_bucket"]).agg(pl.col("_count").sum()).collect()
        )

    def close(self, max_event_ms: int) -> None:
        """Forget the windows that are closed, unseen: they were written before the position read again from."""
        self._drop(pl.col("window_start") + self._closes_at <= max_event_ms)

    def take(self, max_event_ms: int) -> pl.DataFrame:
        """The parts that changed since the last call or are final now; final ones are forgotten.

        Returns
        -------
        Group keys, ``window_start`` (ms), ``version`` (2 x last offset counted in, + 1 if final), ``events`` and the
        partials; a sum that 64 bits do not hold is ``BEYOND``, a histogram is two lists, ``<name>_buckets`` ascending
        and ``<name>_counts``.
        """
        closed = pl.col("window_start") + self._closes_at <= max_event_ms
        taken = self._open.filter(pl.col("_changed") | closed)
        for partial in self._histograms:
            lists = (
                self._counts[partial.name]
                .join(taken.select(self._keys), on=self._keys, how="semi")
                .sort("_bucket")
                .group_by(self._keys)
                .agg(
                    pl.col("_bucket").alias(f"{partial.name}_buckets"), pl.col("_count").alias(f"{partial.name}_counts")
                )
            )
            empty = pl.lit([], pl.List(pl.Int64))
            taken = taken.join(lists, on=self._keys, how="left", maintain_order="left").with_columns(
                pl.col(f"{partial.name}_{half}").fill_null(empty) for half in ("buckets", "counts")
            )
        sums = [pl.col(name) for name in self._sums]
        taken = taken.with_columns(
            *(pl.when(abs(one) <= -(BEYOND + 1)).then(one).otherwise(BEYOND).cast(pl.Int64) for one in sums),
            version=2 * pl.col("_last") + closed.cast(pl.Int64),
        )
        self._drop(closed)
        self._open = self._open.with_columns(_changed=pl.lit(False))
        return taken.drop("_first", "_seen", "_last", "_changed")

    def no_events(self, parts: pl.DataFrame) -> pl.DataFrame:
        """A part that counts nothing, in the columns of other ``parts``."""
        lists = [pl.col(name).fill_null(pl.lit([], dtype)) for name, dtype in parts.schema.items() if dtype == pl.List]
        numbers = ["window_start", "version", "events", *self._sums]
        return parts.clear(1).with_columns(
            pl.col(self.aggregate.by).fill_null(""), pl.col(numbers).fill_null(0), *lists
        )

    def check(self, max_event_ms: int) -> None:
        """Hold the number of groups that stay open to what the feed declares.

        Raises
        ------
        TooManyGroups
            There are more. They are of the log, so this depends on nothing else, and nothing of them was committed.
        """
        if self._open.height > self._most:
            still_open = self._open.filter(pl.col("window_start") + self._closes_at > max_event_ms).height
            if still_open > self._most:
                raise TooManyGroups(
                    f"{self.aggregate.name}: {still_open:,} groups by {', '.join(self.aggregate.by)} are open in one "
                    f"partition, more than the {self._most:,} that the feed declares as open_groups. Mend the "
                    "publisher if they are none; else declare more, for which the processor needs memory, and start "
                    "it again: nothing is lost"
                )

    def _drop(self, closed: pl.Expr) -> None:
        self._open = self._open.filter(~closed)
        self._counts = {name: counts.filter(~closed) for name, counts in self._counts.items()}

    def oldest(self) -> tuple[int, int] | None:
        """Smallest first offset of an open window and the maximum of event time before it, or None."""
        if self._open.is_empty():
            return None
        first = self._open.sort("_first").row(0, named=True)
        return first["_first"], first["_seen"]

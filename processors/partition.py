"""One partition of one feed: from decoded rows to window parts and positions, as a function of the log."""

from __future__ import annotations

from dataclasses import dataclass, replace

import polars as pl

from processors.badshare import BadShare
from processors.combine import Combine
from processors.repeats import Repeats
from processors.windows import Windows
from schemas.feed import Feed
from streams.deadletters import DeadLetter
from streams.decode import Decoder, Tick
from streams.generations import holding
from streams.positions import LogGap, Position, Stop
from streams.runs import Run
from streams.unknown import GivenUp, newest
from streams.watermark import advance


@dataclass(frozen=True)
class Output:
    """What a flush writes: parts of each aggregate's windows, dead letters, and the position they lead to.

    The last row of each frame carries ``watermark``, the running maximum of event time; it has to be sent last. Where
    time passed and no window changed that is a part without events.
    """

    parts: dict[str, pl.DataFrame]
    dead: list[DeadLetter]
    position: Position


class Partition:
    """State of a partition since its rewind offset.

    Until the processed offset is reached again nothing is written, and what closed before it is forgotten: such
    windows were written whole, and may be rebuilt here from their middle. Records before ``start.since`` only move the
    maximum of event time and are known as repeats: an earlier life of the partition counted them. They are counted into
    windows of which nothing is written; these only say how far back the next rewind has to reach, for repeats to be
    known after a restart as before it. ``number`` is the partition's among those of all topics the feed had.
    """

    def __init__(self, feed: Feed, number: int, decoder: Decoder, start: Position, *, accept_bad: bool = False) -> None:
        if not decoder.knows(start.newest_schema):
            raise Stop(
                f"{feed.name}/{number} was processed with schema ids up to {start.newest_schema}, and those here end "
                f"at {decoder.newest_schema}; bring the newest files of schemas/frozen, then start it again"
            )
        self.start = start
        self._bad = BadShare(feed, number, start, accept=accept_bad)
        self._number = number
        self._counts = holding(feed, number).counts
        self._decoder = decoder
        self._feed = feed
        self._next = start.rewind
        self._written = start.processed
        self._max_event_ms = start.max_event_ms
        self._told_ms = start.max_processed_ms
        self._combine = Combine(feed)
        self._windows = [Windows(feed, aggregate, self._combine) for aggregate in feed.aggregates]
        self._earlier = [Windows(feed, aggregate, self._combine) for aggregate in feed.aggregates]
        self._repeats = Repeats(feed)
        self._dead: list[DeadLetter] = []
        self._unknown = dict(start.unknown)
        #: Bytes of dead letters that wait for the next flush.
        self.unwritten = 0

    def process(self, run: Run) -> int:
        """Take a run in; returns how many records were new.

        Raises
        ------
        NotYet
            A schema is waited for; nothing of the run was taken.
        LogGap
            The run does not follow the one before.
        TooManyBad
            A block of offsets holds a larger share of bad records than the feed allows.
        TooManyGroups
            More groups are open than the feed declares.
        """
        if run.start > self._next:
            raise LogGap(f"{run.topic}/{run.partition}: offsets {self._next} to {run.start - 1} were not delivered")
        if run.next <= self._next:
            return 0
        decoded = self._decoder.read(run, self._next, GivenUp(self._unknown, run.next - 1, self.start.newest_schema))
        rows, dead, ticks = decoded.rows, decoded.dead, decoded.ticks
        self._bad.add(dead, self._next)
        if self._next < self._written < run.next:
            before = pl.col("_offset") < self._written
            self._add(rows.filter(before), [tick for tick in ticks if tick[0] < self._written])
            self._catch_up()
            rows, dead = rows.filter(~before), [d for d in dead if d.last_offset >= self._written]
            ticks = [tick for tick in ticks if tick[0] >= self._written]
        self._add(rows, ticks)
        if run.next == self._written:
            self._catch_up()
        elif run.next > self._written:
            self._dead += dead
            self.unwritten += sum(letter.memory for letter in dead)
        new = run.next - max(self._next, self._written)
        self._next = run.next
        return max(0, new)

    def _add(self, rows: pl.DataFrame, ticks: list[Tick]) -> None:
        rows, self._max_event_ms = advance(self._feed, rows, self._max_event_ms, self._counts, ticks)
        rows = self._repeats.drop(rows, self._max_event_ms)
        if self._next < self.start.since:
            here = pl.col("_offset") >= self.start.since
            self._count(self._earlier, rows.filter(~here))
            rows = rows.filter(here)
        self._count(self._windows, rows)

    def _count(self, into: list[Windows], rows: pl.DataFrame) -> None:
        if into and rows.height:
            combined = self._combine(rows)
            for windows in into:
                windows.add(combined)
                windows.check(self._max_event_ms)

    def _catch_up(self) -> None:
        for windows in (*self._windows, *self._earlier):
            windows.close(self._max_event_ms)

    def flush(self) -> Output | None:
        """What changed since the last flush, or None if nothing did."""
        if self._next <= self._written:
            return None
        parts = {windows.aggregate.name: self._parts(windows) for windows in self._windows}
        self._told_ms = self._max_event_ms
        dead, self._dead, self.unwritten = self._dead, [], 0
        self._written = self._next
        return Output(parts, dead, self._position())

    def _parts(self, windows: Windows) -> pl.DataFrame:
        parts = windows.take(self._max_event_ms)
        if parts.is_empty() and self._max_event_ms > self._told_ms:
            parts = windows.no_events(parts)
        last = pl.int_range(pl.len()) == pl.len() - 1
        return parts.with_columns(
            source_partition=pl.lit(self._number, pl.Int64),
            since=pl.lit(self.start.since, pl.Int64),
            watermark=pl.when(last).then(pl.lit(self._max_event_ms, pl.Int64)),
        )

    def _position(self) -> Position:
        """Committed once the flush is acknowledged."""
        for windows in self._earlier:
            windows.close(self._max_event_ms)
        oldest = [o for windows in (*self._windows, *self._earlier) if (o := windows.oldest()) is not None]
        rewind, seen = min(oldest, default=(self._next, self._max_event_ms))
        bad = self._bad.before(rewind)
        return replace(
            self.start,
            processed=self._next,
            rewind=rewind,
            max_event_ms=seen,
            max_processed_ms=self._max_event_ms,
            bad=bad,
            unknown=newest(self._unknown),
            newest_schema=self._decoder.newest_schema,
        )

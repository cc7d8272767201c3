"""One partition of one feed: from decoded rows to window parts and positions, as a function of the log."""

from __future__ import annotations

from dataclasses import dataclass, replace

import polars as pl

from processors.combine import Combine
from processors.repeats import Repeats
from processors.windows import Windows
from schemas.feed import Feed
from streams.deadletters import DeadLetter
from streams.decode import Decoder
from streams.positions import LogGap, Position, Stop
from streams.transport import Run
from streams.watermark import advance


class TooManyBad(Stop):
    """More records are bad than a feed allows: its publisher or a schema is broken, not single records."""


#: Offsets over which the share of bad records is taken, in blocks that begin at multiples of it.
BAD_BLOCK = 10_000


@dataclass(frozen=True)
class Output:
    """What a flush writes: parts of each aggregate's windows, dead letters, and the position they lead to.

    The last row of each frame carries ``watermark``, the running maximum of event time; it has to be sent last.
    """

    parts: dict[str, pl.DataFrame]
    dead: list[DeadLetter]
    position: Position


class Partition:
    """State of a partition since its rewind offset.

    Until the processed offset is reached again nothing is written, and what closed before it is forgotten: such
    windows were written whole, and may be rebuilt here from their middle. Records before ``start.since`` only move the
    maximum of event time and are known as repeats: an earlier life of the partition counted them.
    """

    def __init__(self, feed: Feed, number: int, decoder: Decoder, start: Position, *, accept_bad: bool = False) -> None:
        self.start = start
        self._accept_bad = accept_bad
        #: Ranges of bad offsets, from the block of the rewind offset on.
        self._bad = [(start.rewind - start.bad, start.rewind)]
        self._number = number
        self._decoder = decoder
        self._feed = feed
        self._next = start.rewind
        self._written = start.processed
        self._max_event_ms = start.max_event_ms
        self._combine = Combine(feed)
        self._windows = [Windows(feed, aggregate, self._combine) for aggregate in feed.aggregates]
        self._repeats = Repeats(feed)
        self._dead: list[DeadLetter] = []

    def process(self, run: Run) -> int:
        """Take a run in; returns how many records were new.

        Raises
        ------
        LogGap
            The run does not follow the one before.
        TooManyBad
            A block of offsets holds a larger share of bad records than the feed allows.
        """
        if run.start > self._next:
            raise LogGap(f"{run.topic}/{run.partition}: offsets {self._next} to {run.start - 1} were not delivered")
        if run.next <= self._next:
            return 0
        decoded = self._decoder.read(run, self._next)
        rows, dead = decoded.rows, decoded.dead
        self._check_share(dead, run.next)
        if self._next < self._written < run.next:
            before = pl.col("_offset") < self._written
            self._add(rows.filter(before))
            self._catch_up()
            rows, dead = rows.filter(~before), [d for d in dead if d.last_offset >= self._written]
        self._add(rows)
        if run.next == self._written:
            self._catch_up()
        elif run.next > self._written:
            self._dead += dead
        new = run.next - max(self._next, self._written)
        self._next = run.next
        return max(0, new)

    def _add(self, rows: pl.DataFrame) -> None:
        rows, self._max_event_ms = advance(self._feed, rows, self._max_event_ms)
        rows = self._repeats.drop(rows, self._max_event_ms)
        if self._next < self.start.since:
            rows = rows.filter(pl.col("_offset") >= self.start.since)
        if self._windows and rows.height:
            combined = self._combine(rows)
            for windows in self._windows:
                windows.add(combined)

    def _check_share(self, dead: list[DeadLetter], until: int) -> None:
        self._bad += [(max(letter.offset, self._next), letter.last_offset + 1) for letter in dead]
        for block in range(self._next // BAD_BLOCK, until // BAD_BLOCK):
            share = self._bad_between(block * BAD_BLOCK, (block + 1) * BAD_BLOCK) / BAD_BLOCK
            if share > self._feed.bad_ratio and not self._accept_bad:
                raise TooManyBad(
                    f"{self._feed.name}/{self._number}: {share:.0%} of the records from offset {block * BAD_BLOCK} on "
                    f"are bad ({dead[0].cause if dead else 'see the dead letters'}). "
                    "Mend the publisher, or go on with: citystream process --accept-bad"
                )

    def _bad_between(self, start: int, end: int) -> int:
        return sum(max(0, min(end, last) - max(start, first)) for first, last in self._bad)

    def _catch_up(self) -> None:
        for windows in self._windows:
            windows.close(self._max_event_ms)

    def flush(self) -> Output | None:
        """What changed since the last flush, or None if nothing did."""
        if self._next <= self._written:
            return None
        parts = {windows.aggregate.name: self._parts(windows) for windows in self._windows}
        dead, self._dead = self._dead, []
        self._written = self._next
        return Output(parts, dead, self._position())

    def _parts(self, windows: Windows) -> pl.DataFrame:
        parts = windows.take(self._max_event_ms)
        last = pl.int_range(pl.len()) == pl.len() - 1
        return parts.with_columns(
            source_partition=pl.lit(self._number, pl.Int64),
            since=pl.lit(self.start.since, pl.Int64),
            watermark=pl.when(last).then(pl.lit(self._max_event_ms, pl.Int64)),
        )

    def _position(self) -> Position:
        """Committed once the flush is acknowledged."""
        oldest = [o for windows in self._windows if (o := windows.oldest()) is not None]
        rewind, seen = min(oldest, default=(self._next, self._max_event_ms))
        block = rewind // BAD_BLOCK * BAD_BLOCK
        self._bad = [(first, last) for first, last in self._bad if last > block]
        bad = self._bad_between(block, rewind)
        newest = self._max_event_ms
        return replace(
            self.start, processed=self._next, rewind=rewind, max_event_ms=seen, max_processed_ms=newest, bad=bad
        )

"""One partition of one feed: from events to window parts and positions, as a function of the log."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import NamedTuple

import numpy as np

from processors.badshare import BadShare
from processors.events import COUNTS, OFFSET, EventColumns, Events
from processors.repeats import Repeats
from processors.tables import Texts
from processors.windows import Windows, no_events
from schemas.feed import Aggregate, Feed
from schemas.writing import Columns
from streams.deadletters import DeadLetter
from streams.decode import Decoder, Tick, Wanted, places
from streams.ending import Stop
from streams.generations import holding
from streams.positions import LogGap, Position
from streams.runs import Run
from streams.unknown import GivenUp, newest
from streams.watermark import Instants, advance

#: How often a window is written anew while it is open, and the bounds of the time between.
SEEN_CHANGES, SHORTEST, LONGEST = 60, timedelta(seconds=1), timedelta(seconds=5)
#: Texts that are held before it is looked which of them are in use.
FEW_TEXTS = 4096


@dataclass(frozen=True)
class Output:
    """What a flush writes: parts of each aggregate's windows, dead letters, and the position they lead to.

    The last row of each aggregate's parts carries ``watermark``, the running maximum of event time; it has to be sent
    last. Where time passed and no window changed that is a part without events. An aggregate that is not there was not
    due; then the position is the one before.
    """

    parts: dict[str, Columns]
    dead: list[DeadLetter]
    position: Position


class Read(NamedTuple):
    """What was read of a run."""

    events: Events
    dead: Sequence[DeadLetter]
    ticks: Sequence[Tick]


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
        counts = holding(feed, number).counts
        self._all_count = counts is None
        self.columns = EventColumns(feed, counts)
        self.decoder = decoder
        self._next = start.rewind
        self._written = start.processed
        self._max_event_ms = start.max_event_ms
        self._windows = [Windows(feed, aggregate, self.columns) for aggregate in feed.aggregates]
        self._told_ms = {aggregate.name: start.max_processed_ms for aggregate in feed.aggregates}
        self._shown_at = {aggregate.name: -math.inf for aggregate in feed.aggregates}
        self._whole_at = -math.inf
        #: The offset up to which was taken at the last flush, and the position up to which everything is written.
        self._looked, self._reached = start.processed, start
        self._earlier = [Windows(feed, aggregate, self.columns) for aggregate in feed.aggregates]
        self._repeats = Repeats(feed, self.columns)
        self._texts = Texts()
        self._many_texts = FEW_TEXTS
        self._dead: list[DeadLetter] = []
        self._unknown = dict(start.unknown)
        #: Bytes of dead letters that wait for the next flush.
        self.unwritten = 0

    def wants(self, run: Run) -> Wanted:
        """What of a run has to be read before it is taken."""
        return Wanted(run, self._next, GivenUp(self._unknown, run.next - 1, self.start.newest_schema))

    def take(self, run: Run, read: Read) -> int:
        """Take a run in; returns how many records were new.

        Raises
        ------
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
        self._bad.add(read.dead, self._next)
        events, dead, ticks = self.columns.numbered(read.events, self._texts), read.dead, read.ticks
        if self._next < self._written < run.next:
            border = int(np.searchsorted(events.cells[:, OFFSET], self._written))
            self._add(events.where(slice(border)), [tick for tick in ticks if tick[0] < self._written])
            self._catch_up()
            events, dead = events.where(slice(border, None)), [d for d in dead if d.last_offset >= self._written]
            ticks = [tick for tick in ticks if tick[0] >= self._written]
        self._add(events, ticks)
        if run.next == self._written:
            self._catch_up()
        elif run.next > self._written:
            self._dead += dead
            self.unwritten += sum(letter.memory for letter in dead)
        new = run.next - max(self._next, self._written)
        self._next = run.next
        return max(0, new)

    def _add(self, events: Events, ticks: Sequence[Tick]) -> None:
        offsets = events.cells[:, OFFSET]
        counts = None if self._all_count else events.cells[:, COUNTS] > 0
        seen, self._max_event_ms = advance(offsets, events.event_ms, counts, self._max_event_ms, ticks)
        fresh = self._repeats.fresh(events, self._max_event_ms)
        events, seen = events.where(fresh), seen[fresh]
        if self._next < self.start.since:
            border = int(np.searchsorted(events.cells[:, OFFSET], self.start.since))
            self._count(self._earlier, events.where(slice(border)), seen[:border])
            events, seen = events.where(slice(border, None)), seen[border:]
        self._count(self._windows, events, seen)

    def _count(self, into: list[Windows], events: Events, seen: Instants) -> None:
        if len(events):
            for windows in into:
                windows.add(events, seen)
                windows.check(self._max_event_ms)

    def _catch_up(self) -> None:
        for windows in (*self._windows, *self._earlier):
            windows.close(self._max_event_ms)

    def flush(self, now: float | None = None) -> Output | None:
        """What changed since the last flush, or None if nothing did.

        With a clock's ``now`` (s), an aggregate is left for later that was written a moment ago: it is due as often as
        anybody can see it change, when a window is final, and when nothing came since the last flush. After a while all
        are due together: only then the position moves.
        """
        if not self.owes:
            return None
        quiet, self._looked = self._looked == self._next, self._next
        whole = quiet or now is None or _has_passed(LONGEST, self._whole_at, now)
        due = [one for one in self._windows if whole or now is None or self._is_due(one, now)]
        parts = {windows.aggregate.name: self._parts(windows) for windows in due}
        if now is not None:
            self._shown_at |= dict.fromkeys(parts, now)
            self._whole_at = now if len(due) == len(self._windows) else self._whole_at
        dead, self._dead, self.unwritten = self._dead, [], 0
        if len(due) == len(self._windows):
            self._written, self._reached = self._next, self._position()
            self._forget_texts()
        return Output(parts, dead, self._reached)

    @property
    def owes(self) -> bool:
        """Whether there is something of which not all was written."""
        return self._next > self._written

    def _is_due(self, windows: Windows, now: float) -> bool:
        aggregate = windows.aggregate
        shown = _has_passed(shown_every(aggregate), self._shown_at[aggregate.name], now)
        return shown or windows.any_closed(self._max_event_ms)

    def _parts(self, windows: Windows) -> Columns:
        parts = windows.take(self._max_event_ms, self._texts)
        name = windows.aggregate.name
        if not parts.height and self._max_event_ms > self._told_ms[name]:
            parts = no_events(parts)
        self._told_ms[name] = self._max_event_ms
        last = np.arange(parts.height) == parts.height - 1
        every = {"source_partition": self._number, "since": self.start.since, "watermark": self._max_event_ms}
        cells = {name: np.full(parts.height, value) for name, value in every.items()}
        return replace(parts, cells={**parts.cells, **cells}, known={**parts.known, "watermark": last})

    def _forget_texts(self) -> None:
        """Forget the texts that nothing holds any more, when there are twice as many as were held the last time."""
        if len(self._texts) < self._many_texts:
            return
        holders: list[Windows | Repeats] = [*self._windows, *self._earlier, self._repeats]
        self._texts, renumbered = self._texts.only(np.unique(np.concatenate([one.texts for one in holders])))
        for one in holders:
            one.renumber(renumbered)
        self._many_texts = max(FEW_TEXTS, 2 * len(self._texts))

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
            newest_schema=self.decoder.newest_schema,
        )


def read(wanted: Sequence[tuple[Partition, Run]]) -> list[Read]:
    """Read runs of partitions of one topic; together they cost little more than one.

    Raises
    ------
    NotYet
        A schema is waited for; nothing was read.
    """
    one, _ = wanted[0]
    rows, found = one.decoder.read_together([partition.wants(run) for partition, run in wanted])
    events = one.columns.of(rows)
    return [Read(events.where(part), d.dead, d.ticks) for d, part in zip(found, places(found), strict=True)]


def _has_passed(time: timedelta, since: float, now: float) -> bool:
    """Whether so much time has passed; flushes come about a second apart, and none is put off for a moment."""
    return now - since + SHORTEST.total_seconds() / 2 >= time.total_seconds()


def shown_every(aggregate: Aggregate) -> timedelta:
    """How often anybody can see its windows change: a sixtieth of their length, within bounds."""
    return min(LONGEST, max(SHORTEST, aggregate.window / SEEN_CHANGES))

"""One partition of one feed: from events to window parts and positions, as a function of the log."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta

import numpy as np

from processors.badshare import BadShare
from processors.events import COUNTS, OFFSET, EventColumns, Events
from processors.gathering import group_of
from processors.making import Made
from processors.repeats import Repeats
from processors.tables import FEW_TEXTS, Texts
from processors.watching import SNAPSHOT_EVERY, Watching
from processors.windows import Windows, no_events, some
from schemas.alerts import Message, Status
from schemas.feed import Aggregate, Feed, milliseconds
from streams.deadletters import DeadLetter
from streams.decode import Tick
from streams.feed_topics import topic_of
from streams.gathered import GatheredTopic, gathered_topics
from streams.missing_schemas import newest
from streams.positions import NO_EVENT_TIME, LogGap, Position
from streams.watermark import Instants, advance
from streams.wire.column_writer import Columns

#: How often a window is written anew while it is open, and the bounds of the time between.
SEEN_CHANGES, SHORTEST, LONGEST = 60, timedelta(seconds=1), timedelta(seconds=5)


@dataclass(frozen=True)
class Output:
    """What a flush writes: parts of each aggregate's windows, dead letters, alerts, and the position they lead to.

    The last row of each aggregate's parts carries ``watermark``, the running maximum of event time; it has to be sent
    last. Where time passed and no window changed that is a part without events. An aggregate that is not there was not
    due; then the position is the one before. A ``snapshot`` of the rules belongs to the position; it is written when
    all else is acknowledged.
    """

    parts: dict[str, Columns]
    dead: list[DeadLetter]
    position: Position
    alerts: list[Message]
    snapshot: bytes | None = None
    #: Parts that are final, by the topic on which groups come together and the partition there.
    gathered: dict[tuple[str, int], Columns] = field(default_factory=dict)
    #: Records that its own became in other feeds.
    made: list[Made] = field(default_factory=list)


@dataclass(frozen=True)
class Rows:
    """What the stage before makes of the offsets from ``start`` up to ``next``: events, dead letters, ticks, and what
    events become in other feeds.

    ``given_up`` are the schema ids given up so far, and ``newest_schema`` is the newest that was known, as a position
    says them.
    """

    start: int
    next: int
    events: Events
    dead: Sequence[DeadLetter]
    ticks: Sequence[Tick]
    given_up: Mapping[int, int]
    newest_schema: int
    made: Sequence[Made] = ()


class Partition:
    """State of a partition since its rewind offset: what the rows of its log come to.

    Until the processed offset is reached again nothing is written, and what closed before it is forgotten: such
    windows were written whole, and may be rebuilt here from their middle. Records before ``start.since`` only move the
    maximum of event time and are known as repeats: an earlier life of the partition counted them. They are counted into
    windows of which nothing is written; these only say how far back the next rewind has to reach, for repeats to be
    known after a restart as before it. ``number`` is the partition's among those of all topics the feed had.

    The rules go on from what ``recall`` gives, the snapshot that the position names.
    """

    def __init__(
        self,
        feed: Feed,
        number: int,
        start: Position,
        *,
        accept_bad: bool = False,
        status: Status = Status.EXERCISE,
        recall: Callable[[], bytes | None] = lambda: None,
    ) -> None:
        self.start = start
        self._bad = BadShare(feed, number, start, accept=accept_bad)
        self._where = f"{feed.name}/{number}"
        self._number = number
        self._all_count = topic_of(feed, number).counts is None
        self._columns = EventColumns(feed)
        #: The offset that is taken next, and the schema ids that were given up before it.
        self.next, self.given_up = start.rewind, start.given_up
        self._newest_schema = start.newest_schema
        self._written = start.processed
        self._max_event_ms = start.max_event_ms
        self._windows = [Windows(feed, aggregate, self._columns) for aggregate in feed.aggregates]
        self._told_ms = {aggregate.name: start.max_processed_ms for aggregate in feed.aggregates}
        self._shown_at = {aggregate.name: -math.inf for aggregate in feed.aggregates}
        self._whole_at = -math.inf
        #: The offset up to which was taken at the last flush, and the position up to which everything is written.
        self._looked, self._reached = start.processed, start
        self._earlier = [Windows(feed, aggregate, self._columns) for aggregate in feed.aggregates]
        self._repeats = Repeats(feed, self._columns)
        self._gathered = {one.aggregate.name: one for one in gathered_topics(feed).values()}
        #: Up to which end of windows they were gathered.
        self._gathered_to = {
            one: self._final_end(start.max_processed_ms, topic) for one, topic in self._gathered.items()
        }
        self._watching = Watching(feed, self._columns, {one.aggregate.name: one for one in self._windows}, status)
        self._recall: Callable[[], bytes | None] | None = recall if self._watching else None
        #: What has to be read again for the last snapshot, and when that was.
        self._snapshot_needs, self._snapshot_at = (start.rewind, start.max_event_ms), -math.inf
        self._texts = Texts()
        self._many_texts = FEW_TEXTS
        self._dead: list[DeadLetter] = []
        self._made: list[Made] = []
        #: Bytes of dead letters, and of records for other feeds, that wait for the next flush.
        self.unwritten = 0

    def take(self, rows: Rows) -> None:
        """Take rows in.

        Raises
        ------
        LogGap
            They do not follow those before.
        TooManyBad
            A block of offsets holds a larger share of bad records than the feed allows.
        TooManyGroups
            More groups are open than the feed declares.
        """
        if self._recall is not None:
            self._watching.recall(self._recall(), self.start.max_processed_ms, self._texts)
            self._recall = None
        if rows.start > self.next:
            raise LogGap(f"{self._where}: offsets {self.next} to {rows.start - 1} were not delivered")
        if rows.next <= self.next:
            return
        self._bad.add(rows.dead, rows.ticks, self.next)
        events, dead, ticks = self._columns.numbered(rows.events, self._texts), rows.dead, rows.ticks
        if self.next < self._written < rows.next:
            border = int(np.searchsorted(events.cells[:, OFFSET], self._written))
            self._add(events.where(slice(border)), [tick for tick in ticks if tick[0] < self._written])
            self._catch_up()
            events, dead = events.where(slice(border, None)), [d for d in dead if d.last_offset >= self._written]
            ticks = [tick for tick in ticks if tick[0] >= self._written]
        self._add(events, ticks, rows.made)
        if rows.next == self._written:
            self._catch_up()
        elif rows.next > self._written:
            self._dead += dead
            self.unwritten += sum(letter.memory for letter in dead)
        self.next, self.given_up, self._newest_schema = rows.next, rows.given_up, rows.newest_schema

    def _add(self, events: Events, ticks: Sequence[Tick], made: Sequence[Made] = ()) -> None:
        offsets = events.cells[:, OFFSET]
        counts = None if self._all_count else events.cells[:, COUNTS] > 0
        seen, self._max_event_ms = advance(offsets, events.event_ms, counts, self._max_event_ms, ticks)
        fresh = self._repeats.fresh(events, self._max_event_ms)
        events, seen = events.where(fresh), seen[fresh]
        if made:
            self._keep(made, {*events.cells[:, OFFSET].tolist()})
        self._watching.add(events, seen)
        if self.next < self.start.since:
            border = int(np.searchsorted(events.cells[:, OFFSET], self.start.since))
            self._count(self._earlier, events.where(slice(border)), seen[:border])
            events, seen = events.where(slice(border, None)), seen[border:]
        self._count(self._windows, events, seen)

    def _keep(self, made: Sequence[Made], fresh: Container[int]) -> None:
        """Keep for the next flush what was not written, of events that are no repeats."""
        kept = [one for one in made if one.offset >= self._written and one.offset in fresh]
        self._made += kept
        self.unwritten += sum(len(one.key) + len(one.value) for one in kept)

    def _count(self, into: list[Windows], events: Events, seen: Instants) -> None:
        if len(events):
            for windows in into:
                windows.add(events, seen)
                windows.check(self._max_event_ms)

    def _catch_up(self) -> None:
        for windows in self._windows:
            self._watching.close(windows, self._max_event_ms)
        for windows in (*self._windows, *self._earlier):
            windows.close(self._max_event_ms)
        self._watching.advance(self._max_event_ms, self._texts)

    def flush(self, now: float | None = None) -> Output | None:
        """What changed since the last flush, or None if nothing did.

        With a clock's ``now`` (s), an aggregate is left for later that was written a moment ago: it is due as often as
        anybody can see it change, when a window is final, and when nothing came since the last flush. After a while all
        are due together: only then the position moves.
        """
        if not self.owes:
            return None
        quiet, self._looked = self._looked == self.next, self.next
        whole = quiet or now is None or _has_passed(LONGEST, self._whole_at, now)
        due = [one for one in self._windows if whole or now is None or self._is_due(one, now)]
        for windows in due:
            self._watching.close(windows, self._max_event_ms)
        parts = {windows.aggregate.name: self._parts(windows) for windows in due}
        alerts = self._watching.advance(self._max_event_ms, self._texts)
        gathered = {place: one for name, made in parts.items() for place, one in self._for_groups(name, made)}
        if now is not None:
            self._shown_at |= dict.fromkeys(parts, now)
            self._whole_at = now if len(due) == len(self._windows) else self._whole_at
        dead, made, self._dead, self._made, self.unwritten = self._dead, self._made, [], [], 0
        snapshot = None
        if len(due) == len(self._windows):
            snapshot = self._snapshot(now)
            self._written, self._reached = self.next, self._position()
            self._forget_texts()
        return Output(parts, dead, self._reached, alerts, snapshot, gathered, made)

    def _for_groups(self, name: str, parts: Columns) -> Iterator[tuple[tuple[str, int], Columns]]:
        """Of an aggregate's parts those that are final now, for each partition in which groups come together.

        The last part of each says how far event time has come, whatever is in the others.
        """
        topic = self._gathered.get(name)
        if topic is None or (end := self._final_end(self._max_event_ms, topic)) == self._gathered_to[name]:
            return
        self._gathered_to[name] = end
        final = np.flatnonzero(parts.cells["version"] % 2)
        into = np.array([topic.partition_of(group_of(parts, topic, row)) for row in final.tolist()], np.int64)
        for partition in range(topic.partitions):
            own = some(parts, final[into == partition])
            own = own if own.height else no_events(own)
            yield (topic.name, partition), self._told(own)

    @staticmethod
    def _final_end(max_event_ms: int, topic: GatheredTopic) -> int:
        """The end of the last window that is final at a maximum of event time (ms)."""
        if max_event_ms == NO_EVENT_TIME:
            return NO_EVENT_TIME
        passed = max_event_ms - milliseconds(topic.feed.lateness + topic.feed.disorder)
        return passed - passed % milliseconds(topic.aggregate.window)

    def _snapshot(self, now: float | None) -> bytes | None:
        """What the rules hold, now and then: until the next one, what this one needs is read again after a restart."""
        if not self._watching or (now is not None and not _has_passed(SNAPSHOT_EVERY, self._snapshot_at, now)):
            return None
        self._snapshot_at = -math.inf if now is None else now
        self._snapshot_needs = self._oldest()
        return self._watching.snapshot(self.next, self._texts)

    def _oldest(self) -> tuple[int, int]:
        """The offset from which the open windows and what waits can be built, and the maximum of event time before."""
        held: list[Windows | Watching] = [*self._windows, *self._earlier, self._watching]
        return min((o for one in held if (o := one.oldest()) is not None), default=(self.next, self._max_event_ms))

    @property
    def owes(self) -> bool:
        """Whether there is something of which not all was written."""
        return self.next > self._written

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
        return self._told(parts)

    def _told(self, parts: Columns) -> Columns:
        """Parts that say whose they are, the last one how far event time has come."""
        last = np.arange(parts.height) == parts.height - 1
        every = {"source_partition": self._number, "since": self.start.since, "watermark": self._max_event_ms}
        cells = {name: np.full(parts.height, value) for name, value in every.items()}
        return replace(parts, cells={**parts.cells, **cells}, known={**parts.known, "watermark": last})

    def _forget_texts(self) -> None:
        """Forget the texts that nothing holds any more, when there are twice as many as were held the last time."""
        if len(self._texts) < self._many_texts:
            return
        holders: list[Windows | Repeats | Watching] = [*self._windows, *self._earlier, self._repeats, self._watching]
        self._texts, renumbered = self._texts.only(np.unique(np.concatenate([one.texts for one in holders])))
        for one in holders:
            one.renumber(renumbered)
        self._many_texts = max(FEW_TEXTS, 2 * len(self._texts))

    def _position(self) -> Position:
        """Committed once the flush is acknowledged."""
        for windows in self._earlier:
            windows.close(self._max_event_ms)
        oldest = self._oldest()
        rewind, seen = min(oldest, self._snapshot_needs) if self._watching else oldest
        bad, ticks = self._bad.before(rewind)
        return replace(
            self.start,
            processed=self.next,
            rewind=rewind,
            max_event_ms=seen,
            max_processed_ms=self._max_event_ms,
            bad=bad,
            ticks=ticks,
            given_up=newest(self.given_up),
            newest_schema=self._newest_schema,
        )


def _has_passed(time: timedelta, since: float, now: float) -> bool:
    """Whether so much time has passed; flushes come about a second apart, and none is put off for a moment."""
    return now - since + SHORTEST.total_seconds() / 2 >= time.total_seconds()


def shown_every(aggregate: Aggregate) -> timedelta:
    """How often anybody can see its windows change: a sixtieth of their length, within bounds."""
    return min(LONGEST, max(SHORTEST, aggregate.window / SEEN_CHANGES))

"""Rules on windows whose groups lie in several partitions: final parts come together, and are merged when all have."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl

from processors.messages import message
from processors.observations import Observations
from processors.rules import Watch
from processors.tables import FEW_TEXTS, NO_TEXT, Texts
from processors.watching import SNAPSHOT_EVERY, Unpacked, ended_by, packed, unpacked, windows_as_series
from processors.windows import looked_up_for
from schemas.alerts import Message, Status
from schemas.catalogue import Catalogue
from schemas.expressions import Column, Expression
from schemas.feed import Aggregate, Feed, milliseconds
from schemas.measures import BEYOND, Partial
from schemas.model import TEXTS
from schemas.verdict import part_rules
from streams.decode import Decoder, Wanted
from streams.feed_topics import feed_topics
from streams.gathered import GatheredTopic
from streams.positions import NO_EVENT_TIME, LogGap, Position
from streams.wire.column_writer import Columns
from streams.wire.fetched_batches import Run

#: Start of a window (ms), and its group.
Key = tuple[Any, ...]
#: What one partition adds to a window, or one life of it: events, then the partials.
Part = list[int | None]


@dataclass(frozen=True)
class FinalParts:
    """What was read of a run: the offsets from ``start`` up to ``next``, and its rows."""

    start: int
    next: int
    rows: pl.DataFrame


@dataclass(frozen=True)
class Flushed:
    """What a flush writes."""

    position: Position
    alerts: list[Message]
    snapshot: bytes | None


class FinalPartReader:
    """Reads runs of a topic on which groups come together; what is no part of a window is left out."""

    def __init__(self, topic: GatheredTopic, catalogue: Catalogue) -> None:
        aggregate = topic.aggregate
        self._decoder = Decoder(catalogue, aggregate.topic, topic=topic.name, rules=part_rules(topic.feed, aggregate))

    def read(self, waiting: Sequence[tuple[Gathering, Run]]) -> list[FinalParts]:
        """Read runs, in the order of their partitions."""
        _, found = self._decoder.read_together([Wanted(run, at.next) for at, run in waiting])
        return [FinalParts(run.start, run.next, one.rows) for (_, run), one in zip(waiting, found, strict=True)]


class MergedWindows:
    """Final windows of an aggregate, merged of their parts, as rules observe them."""

    def __init__(self, feed: Feed, aggregate: Aggregate) -> None:
        partials = [partial for measure in aggregate.measures for partial in measure.partials]
        #: Those that rules can read.
        self.partials = [one for one in partials if one.merge in ("sum", "min", "max")]
        self._by, self._window = aggregate.by, milliseconds(aggregate.window)
        self._texts = [name for name in aggregate.by if feed.field(name).kind in TEXTS]
        self._numbers = [name for name in aggregate.by if name not in self._texts]
        #: What rules look up for them, which no windows do whose groups come together.
        self.looked_up = looked_up_for(aggregate)
        named = ["window_start", "events", *(one.name for one in self.partials)]
        values: list[Expression] = [*map(Column, named), *self.looked_up, *map(Column, self._numbers)]
        self.series = windows_as_series(feed, aggregate, self._texts, values)

    def merged(self, parts: Sequence[Part]) -> list[float | None]:
        """Events and partials of all parts of a window."""
        return [
            sum(part[0] or 0 for part in parts),
            *(merged(one, [part[1 + n] for part in parts]) for n, one in enumerate(self.partials)),
        ]

    def observations(self, windows: Sequence[Sequence[Any]], texts: Texts) -> Observations:
        """Windows at their ends; each is its start (ms), its group, events, the partials and what is looked up."""
        width = 1 + len(self._by)
        groups = [dict(zip(self._by, one[1:width], strict=True)) for one in windows]
        found = np.full((len(windows), len(self._texts)), NO_TEXT, np.int64)
        for column, name in enumerate(self._texts):
            known = [n for n, group in enumerate(groups) if group[name] is not None]
            found[known, column] = texts.number_all([groups[n][name] for n in known])
        values = [
            [one[0], *one[width:], *(group[name] for name in self._numbers)]
            for one, group in zip(windows, groups, strict=True)
        ]
        shape = len(windows), 2 + len(self.partials) + len(self.looked_up) + len(self._numbers)
        numbers = np.array(values, np.float64).reshape(shape)  # None becomes NaN
        ends = np.array([one[0] + self._window for one in windows], np.int64)
        return Observations(ends, found, numbers)


def come_to_by_all(feed: Feed, come_to: Mapping[int, int]) -> int:
    """The maximum of event time that every partition has come to which may add to a window.

    An outgrown topic speaks for itself until it is settled; from then on the next one does.
    """
    *outgrown, present = feed_topics(feed).values()
    seen = min(come_to.get(number, NO_EVENT_TIME) for number in range(present.first, present.end))
    for topic in reversed(outgrown):
        own = min(come_to.get(number, NO_EVENT_TIME) for number in range(topic.first, topic.end))
        assert topic.beyond is not None
        seen = own if own < topic.beyond else max(topic.beyond, seen)
    return seen


class Gathering:
    """State of a partition in which groups come together: final parts by window, and the rules on them.

    A window is taken when every partition of the feed has passed its end: then all its parts are here. Everything is
    in the snapshot, so a restarted worker reads on from it; until the processed offset nothing is said.
    """

    def __init__(
        self, topic: GatheredTopic, start: Position, status: Status, recall: Callable[[], bytes | None]
    ) -> None:
        self.start, self.next = start, start.rewind
        self._topic, self._status = topic, status
        self._windows = MergedWindows(topic.feed, topic.aggregate)
        self._watches = [Watch(rule, self._windows.series) for rule in topic.aggregate.alerts]
        self._recall: Callable[[], bytes | None] | None = recall
        self._texts, self._many_texts = Texts(), FEW_TEXTS
        self._parts: dict[Key, dict[tuple[int, int], Part]] = {}
        self._come_to: dict[int, int] = {}
        self._through = NO_EVENT_TIME
        self._written, self._rewind, self._snapshot_at = start.processed, start.rewind, -math.inf
        #: Nothing of it waits for a flush but what is said in one.
        self.unwritten = 0

    def take(self, found: FinalParts) -> None:
        """Take rows in.

        Raises
        ------
        LogGap
            They do not follow those before.
        """
        if self._recall is not None:
            self._begin(self._recall())
            self._recall = None
        if found.start > self.next:
            raise LogGap(f"{self._topic.name}: offsets {self.next} to {found.start - 1} were not delivered")
        if found.next <= self.next:
            return
        rows = found.rows.filter(pl.col("_offset") >= self.next)
        if self.next < self._written <= found.next:
            self._add(rows.filter(pl.col("_offset") < self._written))
            self._advance()
            rows = rows.filter(pl.col("_offset") >= self._written)
        self._add(rows)
        self.next = found.next

    def _begin(self, snapshot: bytes | None) -> None:
        found = Unpacked({}, {}) if snapshot is None else unpacked(snapshot)
        for start, *group, parts in found.more.get("parts", ()):
            held = self._parts.setdefault((start, *group), {})
            held.update({(source, since): part for source, since, part in parts})
        self._come_to = dict(found.more.get("come_to", ()))
        self._through = found.more.get("through", NO_EVENT_TIME)
        for watch in self._watches:
            if not found.recall(watch, self._texts):
                watch.through = self._through
        self.next = max(self.next, found.more.get("processed", 0))

    def _add(self, rows: pl.DataFrame) -> None:
        columns = ["window_start", "source_partition", "since", "watermark", "events", *self._topic.aggregate.by]
        columns += [one.name for one in self._windows.partials]
        window, by = milliseconds(self._topic.aggregate.window), len(self._topic.aggregate.by)
        for start, source, since, watermark, events, *more in rows.select(columns).iter_rows():
            if events and start + window > self._through:
                key = (start, *more[:by])
                self._parts.setdefault(key, {})[source, since] = [events, *more[by:]]
            if watermark is not None:
                self._come_to[source] = max(watermark, self._come_to.get(source, NO_EVENT_TIME))

    def _seen(self) -> int:
        return come_to_by_all(self._topic.feed, self._come_to)

    def _advance(self) -> list[Message]:
        seen, feed = self._seen(), self._topic.feed
        if seen == NO_EVENT_TIME:
            return []
        self._through = max(self._through, ended_by(feed, seen))
        window = milliseconds(self._topic.aggregate.window)
        final = sorted(
            (key for key in self._parts if key[0] + window <= self._through), key=lambda key: (key[0], str(key[1:]))
        )
        rows = self._windows.observations(
            [(*key, *self._windows.merged([*self._parts.pop(key).values()])) for key in final], self._texts
        )
        return [
            message(watch.compiled.rule, watch.compiled.series, said, self._status)
            for watch in self._watches
            for said in watch.advance(rows, self._through, self._texts)
        ]

    def flush(self, now: float | None = None) -> Flushed | None:
        """What there is to say since the last flush, or None if nothing came."""
        if not self.owes:
            return None
        alerts, snapshot = self._advance(), None
        if now is None or now - self._snapshot_at >= SNAPSHOT_EVERY.total_seconds():
            self._snapshot_at = -math.inf if now is None else now
            self._rewind, snapshot = self.next, self._snapshot()
        self._written = self.next
        position = replace(self.start, processed=self.next, rewind=self._rewind)
        return Flushed(position, alerts, snapshot)

    def _snapshot(self) -> bytes:
        if len(self._texts) >= self._many_texts:
            used = np.unique(np.concatenate([watch.texts for watch in self._watches]))
            self._texts, renumbered = self._texts.only(used)
            for watch in self._watches:
                watch.renumber(renumbered)
            self._many_texts = max(FEW_TEXTS, 2 * len(self._texts))
        held = [
            [*key, [[source, since, part] for (source, since), part in parts.items()]]
            for key, parts in self._parts.items()
        ]
        more = {"processed": self.next, "parts": held, "come_to": [*self._come_to.items()], "through": self._through}
        return packed(self._watches, self._texts, more)

    @property
    def owes(self) -> bool:
        """Whether something came since the last flush."""
        return self.next > self._written


def merged(partial: Partial, values: Sequence[int | None]) -> float | None:
    """What parts of a window come to; null where one is not known that would count."""
    if partial.merge == "sum":
        known = [0 if value is None else value for value in values]
        return None if BEYOND in known else float(sum(known))
    found = [value for value in values if value is not None]
    extreme: Mapping[str, Callable[[Sequence[int]], int]] = {"min": min, "max": max}
    return float(extreme[partial.merge](found)) if found else None


def group_of(parts: Columns, topic: GatheredTopic, row: int) -> list[str | int | None]:
    """The group of a part."""
    found: list[str | int | None] = []
    for name in topic.aggregate.by:
        known, cell = parts.known.get(name), int(parts.cells[name][row])
        if known is not None and not known[row]:
            found.append(None)
        elif topic.feed.field(name).kind in TEXTS:
            start, size = cell >> 32, cell & 0xFFFF_FFFF
            found.append(parts.letters[start : start + size].tobytes().decode())
        else:
            found.append(cell)
    return found

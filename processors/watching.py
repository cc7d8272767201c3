"""All rules on one partition of a feed: records wait until the watermark has passed them, windows until they are final.

What a rule has taken of its series is all up to an event time. So a snapshot needs no more than that time and what the
rule holds: after a restart records are read again from the rewind offset, and those up to that time are left out.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np

from processors.events import OFFSET, EventColumns, Events
from processors.messages import message
from processors.observations import Numbers, Observations, together
from processors.rules import Series, Watch
from processors.tables import NO_TEXT, Flags, Integers, Texts
from processors.windows import Windows
from schemas.alerts import Message, Status
from schemas.expressions import Expression
from schemas.feed import Aggregate, Feed, milliseconds
from schemas.persisted import Newer, check_version
from streams.positions import NO_EVENT_TIME
from streams.snapshots import NoSnapshot

#: Of what a snapshot holds, and how often at most one is written.
VERSION, SNAPSHOT_EVERY = 1, timedelta(seconds=30)
#: Event times lie far above it, and spans taken off it do not overflow.
_LONG_AGO = NO_EVENT_TIME // 2


@dataclass(frozen=True)
class Waiting:
    """Records that the watermark has not passed: offsets, event times, the maximum of event time before each."""

    offsets: Integers
    seen: Integers
    rows: Observations

    def __len__(self) -> int:
        return len(self.offsets)

    def where(self, wanted: Flags) -> Waiting:
        """Some of them."""
        return Waiting(self.offsets[wanted], self.seen[wanted], self.rows.where(wanted))


class Watching:
    """The rules of a feed in one partition.

    ``recall`` it before anything else. ``status`` says of its alerts whether they are meant.
    """

    def __init__(self, feed: Feed, columns: EventColumns, windows: Mapping[str, Windows], status: Status) -> None:
        self._feed = feed
        self._status = status
        self._texts = columns.texts
        records = records_as_series(feed, columns)
        self._each = [Watch(rule, records) for rule in feed.alerts]
        self._final = {
            one.name: [Watch(rule, series) for rule in one.alerts]
            for one in feed.aggregates
            if one.alerts and not feed.gathers(one)
            for series in [_of_own_windows(feed, windows[one.name])]
        }
        self._watches = [*self._each, *(watch for watches in self._final.values() for watch in watches)]
        self._waiting: list[Waiting] = []
        self._closed: dict[str, list[Observations]] = {name: [] for name in self._final}

    def __bool__(self) -> bool:
        return bool(self._watches)

    def add(self, events: Events, seen: Integers) -> None:
        """Let numbered events wait; ``seen`` is the maximum of event time before each (ms).

        Those that come when the watermark has passed them are left out.
        """
        if not self._each:
            return
        taken = min(watch.through for watch in self._each)
        rows = Observations(events.event_ms, events.keys[:, : self._texts], events.values)
        in_time = come_in_time(self._feed, events.event_ms, seen)
        found = Waiting(events.cells[:, OFFSET], seen, rows).where(in_time & (events.event_ms > taken))
        if len(found):
            self._waiting.append(found)

    def close(self, windows: Windows, max_event_ms: int) -> None:
        """Let windows be observed that are final now; called before they are forgotten."""
        name = windows.aggregate.name
        if name in self._final:
            self._closed[name].append(windows.finals(max_event_ms))

    def advance(self, max_event_ms: int, texts: Texts) -> list[Message]:
        """Take everything up to the maximum of event time (ms); gives what there is to say."""
        if max_event_ms == NO_EVENT_TIME:
            return []
        return [*self._of_records(max_event_ms, texts), *self._of_windows(max_event_ms, texts)]

    def _of_records(self, max_event_ms: int, texts: Texts) -> Iterator[Message]:
        if not self._each:
            return
        through = passed_by(self._feed, max_event_ms)
        waiting = _joined(self._waiting)
        passed = waiting.rows.times <= through if waiting else np.zeros(0, np.bool_)
        self._waiting = [] if waiting is None or passed.all() else [waiting.where(~passed)]
        due = None if waiting is None else _in_order(waiting.where(passed))
        for watch in self._each:
            rows = watch.compiled.series.no_rows if due is None else due
            yield from self._messages(watch, rows, through, texts)

    def _of_windows(self, max_event_ms: int, texts: Texts) -> Iterator[Message]:
        through = ended_by(self._feed, max_event_ms)
        for name, watches in self._final.items():
            closed, self._closed[name] = self._closed[name], []
            for watch in watches:
                rows = [watch.compiled.series.no_rows, *closed]
                yield from self._messages(watch, _sorted(rows), through, texts)

    def _messages(self, watch: Watch, rows: Observations, through: int, texts: Texts) -> Iterator[Message]:
        for said in watch.advance(rows, through, texts):
            yield message(watch.compiled.rule, watch.compiled.series, said, self._status)

    def oldest(self) -> tuple[int, int] | None:
        """Smallest offset of what waits and the maximum of event time before it, or None."""
        first = [(int(one.offsets[n]), int(one.seen[n])) for one in self._waiting if (n := one.offsets.argmin()) >= 0]
        return min(first, default=None)

    @property
    def texts(self) -> Integers:
        """Numbers of the texts of what is held."""
        waiting = [one.rows.texts.reshape(-1) for one in self._waiting]
        found = np.concatenate([np.zeros(0, np.int64), *waiting, *(watch.texts for watch in self._watches)])
        known: Integers = found[found != NO_TEXT]
        return known

    def renumber(self, texts: Integers) -> None:
        """Go by other numbers of texts, which stand at the old ones."""
        for watch in self._watches:
            watch.renumber(texts)
        self._waiting = [
            Waiting(one.offsets, one.seen, Observations(one.rows.times, texts[one.rows.texts], one.rows.values))
            for one in self._waiting
        ]

    def snapshot(self, processed: int, texts: Texts) -> bytes:
        """What the rules hold when everything before an offset was taken."""
        return packed(self._watches, texts, {"processed": processed})

    def recall(self, snapshot: bytes | None, max_event_ms: int, texts: Texts) -> None:
        """Go on from a snapshot; rules it does not know begin at the maximum of event time (ms).

        Raises
        ------
        NoSnapshot
            It was written by a newer release, or is none.
        """
        found = Unpacked({}, {}) if snapshot is None else unpacked(snapshot)
        for watch in self._watches:
            if not found.recall(watch, texts) and max_event_ms != NO_EVENT_TIME:
                passed = passed_by if watch in self._each else ended_by
                watch.through = passed(self._feed, max_event_ms)


def packed(watches: Sequence[Watch], texts: Texts, more: Mapping[str, Any]) -> bytes:
    """What rules hold, and something more as plain data."""
    saved = [watch.saved(texts) for watch in watches]
    heads = [{**said, "shapes": [table.shape for table in tables]} for said, tables in saved]
    body = [table.astype(_stored(table)).tobytes() for _, tables in saved for table in tables]
    return zlib.compress(json.dumps({"version": VERSION, **more, "rules": heads}).encode() + b"\n" + b"".join(body))


@dataclass(frozen=True)
class Unpacked:
    """What was packed: plain data, and what rules held by their fingerprints."""

    more: Mapping[str, Any]
    rules: Mapping[str, tuple[Mapping[str, Any], Any]]

    def recall(self, watch: Watch, texts: Texts) -> bool:
        """Let a rule hold what it held, if it was packed."""
        if watch.fingerprint not in self.rules:
            return False
        watch.recall(*self.rules[watch.fingerprint], texts)
        return True


def unpacked(snapshot: bytes) -> Unpacked:
    """Read a snapshot.

    Raises
    ------
    NoSnapshot
        It was written by a newer release, or is none.
    """
    try:
        text, _, body = zlib.decompress(snapshot).partition(b"\n")
        head = json.loads(text)
        check_version(head, VERSION)
        found: dict[str, tuple[Mapping[str, Any], Any]] = {}
        at = 0
        for said in head["rules"]:
            tables = []
            for shape, kind in zip(said["shapes"], ("<i8", "<i8", "<f8"), strict=True):
                count = shape[0] * shape[1]
                tables.append(np.frombuffer(body, kind, count, at).reshape(shape))
                at += 8 * count
            found[said["fingerprint"]] = said, tables
    except Newer as newer:
        raise NoSnapshot(f"the snapshot of a feed's rules {newer}") from None
    except (ValueError, KeyError, TypeError, zlib.error) as error:
        raise NoSnapshot(f"what should be a snapshot of a feed's rules is none ({error})") from None
    return Unpacked(head, found)


def _stored(table: Integers | Numbers) -> str:
    return "<f8" if table.dtype == np.float64 else "<i8"


def _joined(waiting: list[Waiting]) -> Waiting | None:
    if len(waiting) < 2:
        return waiting[0] if waiting else None
    rows = [one.rows for one in waiting]
    return Waiting(
        np.concatenate([one.offsets for one in waiting]),
        np.concatenate([one.seen for one in waiting]),
        together(rows),
    )


def _in_order(waiting: Waiting) -> Observations:
    return waiting.rows.where(np.lexsort((waiting.offsets, waiting.rows.times)))


def _sorted(rows: list[Observations]) -> Observations:
    found = together(rows)
    return found.where(np.argsort(found.times, kind="stable"))


def come_in_time(feed: Feed, event_ms: Integers, seen: Integers) -> Flags:
    """Which records come before the watermark has passed them; ``seen`` is the maximum of event time before each."""
    found: Flags = event_ms >= np.maximum(seen, _LONG_AGO) - milliseconds(feed.disorder)
    return found


def passed_by(feed: Feed, max_event_ms: int) -> int:
    """Up to when all records have come; one may still come that is as old as the disorder allows."""
    return max_event_ms - milliseconds(feed.disorder) - 1


def ended_by(feed: Feed, max_event_ms: int) -> int:
    """Up to which end all windows are final."""
    return max_event_ms - milliseconds(feed.disorder + feed.lateness)


def records_as_series(feed: Feed, columns: EventColumns) -> Series:
    """Records as rules observe them."""
    return Series(
        feed=feed,
        view=feed.name,
        time=feed.event_time,
        span_ms=0,
        entity=(feed.key,),
        texts={name: n for name, n in columns.keys.items() if n < columns.texts},
        values=columns.fields,
        stands_for={},
        place=feed.place,
        definition=feed.definition_of_series(),
    )


def _of_own_windows(feed: Feed, windows: Windows) -> Series:
    return windows_as_series(feed, windows.aggregate, windows.final_texts, windows.final_columns)


def windows_as_series(feed: Feed, aggregate: Aggregate, texts: Sequence[str], values: Sequence[Expression]) -> Series:
    """Final windows of an aggregate as rules observe them, with these columns of texts and of values."""
    results: dict[str, Expression] = {
        result.name: result.value for measure in aggregate.measures for result in measure.results
    }
    return Series(
        feed=feed,
        view=aggregate.name,
        time="window_start",
        span_ms=milliseconds(aggregate.window),
        entity=aggregate.by,
        texts={name: n for n, name in enumerate(texts)},
        values={value: n for n, value in enumerate(values)},
        stands_for=results,
        place=None,
        definition={"aggregate": aggregate.topic, **feed.definition_of(aggregate)},
    )

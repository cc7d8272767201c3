"""The alerts that rules have to raise, one observation after the other, in plain Python: slow and obviously right."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from schemas.alerts import Category
from schemas.expressions import Expression
from schemas.feed import Aggregate, Feed
from schemas.rules import Due, Held, Level, Memory, Previous, Rate, Rule, Running
from tests.reference.areas import CoveredBy
from tests.reference.partition import (
    LOOK_UP,
    MILLISECOND,
    Key,
    Logged,
    Truth,
    Values,
    Window,
    evaluate,
    is_closed,
    merge,
)


@dataclass(frozen=True)
class Observation:
    """A row of a series: its event time (ms), where it stands among those of one time, and its columns."""

    time: int
    order: tuple[Any, ...]
    values: Values


@dataclass(frozen=True, order=True)
class Told:
    """What has to be said about an alert, times in ms; ``numbers`` are in the order of what the rule shows."""

    rule: str
    entity: tuple[str, ...]
    sent: int
    kind: str
    severity: str
    onset: int
    numbers: tuple[float | None, ...]


@dataclass
class _Level:
    level: Level
    holds: bool = False
    since: int = 0
    hits: list[int] = field(default_factory=list)
    due: int | None = None

    def see(self, now: int, values: Values) -> None:
        """Take one observation."""
        when = self.level.when
        if isinstance(when, Due):
            if when.done is None or evaluate(when.done, values) is True:
                self.holds, self.due = False, None
            if when.start is None or evaluate(when.start, values) is True:
                at = evaluate(when.at, values)
                self.due = None if at is None else max(now, int(at // 1))
            return
        held = self.level.clear if self.holds else self.level.held
        result = evaluate(when.ends if self.holds else when.begins, values)
        if result is False and held.within is None:
            self.hits, self.due = [], None
        if result is True:
            self.hits.append(now)
            if held.within is None and held.lasting:
                self.due = self.hits[0] + held.lasting // MILLISECOND
            self.turn(now, held)

    def turn(self, now: int, held: Held) -> None:
        """Begin or cease to hold, if enough has come."""
        if len(self.hits) < held.times:
            return
        first = self.hits[0] if held.within is None else self.hits[-held.times]
        if held.within is not None and now - first > held.within // MILLISECOND:
            return
        if now - first >= held.lasting // MILLISECOND:
            self.holds, self.since, self.hits, self.due = not self.holds, first, [], None

    def fall_due(self, now: int) -> None:
        """Let what is due at a time happen."""
        if self.due is None or self.due > now:
            return
        self.due = None
        if not isinstance(self.level.when, Due):
            self.turn(now, self.level.clear if self.holds else self.level.held)
        elif not self.holds:
            self.holds, self.since = True, now


class _Entity:
    def __init__(self, rule: Rule, whose: tuple[str, ...]) -> None:
        self.rule, self.whose = rule, whose
        self.levels = [_Level(level) for level in rule.levels]
        self.memory: dict[str, Any] = {}
        self.observed: int | None = None
        self.numbers: dict[str, float | None] = {}
        self.severity: int | None = None
        self.onset, self.ended = 0, -(2**62)

    def see(self, now: int, values: Values) -> None:
        """Take one observation."""
        forgotten = self.observed is not None and now - self.observed >= self.rule.remembers // MILLISECOND
        if forgotten and self.severity is None and all(one.due is None for one in self.levels):
            self.__init__(self.rule, self.whose)  # type: ignore[misc]
        known = dict(values)
        for name, memory in self.rule.keep.items():
            known[name] = self.remember(name, memory, now, known)
        for level in self.levels:
            level.see(now, known)
        self.numbers = {name: evaluate(value, known) for name, value in self.rule.shows.items()}
        for n, one in enumerate(self.rule.levels):
            if not isinstance(one.when, Due) and one.when.value is not None and one.when.limit is not None:
                self.numbers[f"{n} value"] = evaluate(one.when.value, known)
                self.numbers[f"{n} limit"] = evaluate(one.when.limit, known)
        self.observed = now

    def remember(self, name: str, memory: Memory, now: int, values: Values) -> Any:
        """What is known of before, and what will be."""
        value = evaluate(memory.value, values)
        match memory:
            case Previous():
                before = self.memory.get(name)
                self.memory[name] = before if value is None else value
                return before
            case Running(reset=reset):
                if reset is not None and evaluate(reset, values) is True:
                    self.memory[name] = 0.0
                self.memory[name] = self.memory.get(name, 0.0) + (0.0 if value is None else float(value))
                return self.memory[name]
            case Rate(per=per):
                before, at = self.memory.get(name, (None, 0))
                if value is None:
                    return None
                self.memory[name] = float(value), now
                if before is None or now <= at:
                    return None
                return (float(value) - before) / (now - at) * (per // MILLISECOND)

    def speak(self, now: int) -> Told | None:
        """How a moment left the alert, if it changed."""
        holding = [n for n, level in enumerate(self.levels) if level.holds]
        top = max(holding, default=None)
        if top == self.severity:
            return None
        kind = "Alert" if self.severity is None else "Cancel" if top is None else "Update"
        if kind == "Alert":
            self.onset = max(min(self.levels[n].since for n in holding), self.ended)
        level = self.severity if top is None else top
        assert level is not None
        own = [self.numbers.get(f"{level} {name}") for name in ("value", "limit") if f"{level} {name}" in self.numbers]
        shown = [*(self.numbers.get(name) for name in self.rule.shows), *own]
        numbers = tuple(None if number is None else float(number) for number in shown)
        self.severity = top
        if kind == "Cancel":
            self.ended = now
        severity = self.rule.levels[level].severity.value
        return Told(self.rule.name, self.whose, now, kind, severity, self.onset, numbers)

    def next(self, times: Sequence[int]) -> int | None:
        """When the next thing happens."""
        return min([*times[:1], *(one.due for one in self.levels if one.due is not None)], default=None)


def kept(memory: Memory, observations: Iterable[Observation]) -> list[Any]:
    """What is known of before at each observation of one entity."""
    entity = _Entity(Rule(name="", headline="", category=Category.OTHER, levels=()), ())
    return [entity.remember("kept", memory, one.time, one.values) for one in observations]


def alerts(rule: Rule, of: Sequence[str], observations: Iterable[Observation], through: int) -> list[Told]:
    """All there is to say when event time has passed ``through`` (ms)."""
    by_entity: dict[tuple[str, ...], list[Observation]] = {}
    for one in observations:
        by_entity.setdefault(tuple(one.values[name] for name in of), []).append(one)
    found = []
    for whose, rows in by_entity.items():
        entity = _Entity(rule, whose)
        left = sorted((row for row in rows if row.time <= through), key=lambda row: (row.time, row.order))
        while (now := entity.next([row.time for row in left[:1]])) is not None and now <= through:
            while left and left[0].time == now:
                entity.see(now, left.pop(0).values)
            for level in entity.levels:
                level.fall_due(now)
            if (told := entity.speak(now)) is not None:
                found.append(told)
    return sorted(found)


#: Table, key, arrival and event time of a record (ms) -> the row that counts for it.
Tables = Callable[[str, tuple[Any, ...], int, int], Mapping[str, Any] | None]


def alerts_of(feed: Feed, log: Sequence[Logged], truth: Truth, tables: Tables | None = None) -> list[Told]:
    """All that the rules of a feed have to say of a partition's log."""
    if truth.max_event_ms is None:
        return []
    passed = truth.max_event_ms - feed.disorder // MILLISECOND
    found = []
    for rule in feed.alerts:
        found += alerts(rule, rule.of or (feed.key,), _records(feed, log, truth, tables), passed - 1)
    for aggregate in feed.aggregates:
        if feed.key in aggregate.by:
            found += _of_windows(feed, aggregate, truth.windows[aggregate.name], truth.max_event_ms, log, tables)
    return sorted(found)


def alerts_of_groups(feed: Feed, partitions: Sequence[Truth]) -> list[Told]:
    """All that rules have to say of windows that lie in several partitions, all of a feed."""
    come_to = [one.max_event_ms for one in partitions if one.max_event_ms is not None]
    if len(come_to) < max(1, len(partitions)):
        return []
    seen, found = min(come_to), []
    for aggregate in (one for one in feed.aggregates if feed.key not in one.by):
        windows: dict[Key, Window] = {}
        for one in partitions:
            for key, window in one.windows[aggregate.name].items():
                _add(aggregate, windows.setdefault(key, Window()), window)
        found += _of_windows(feed, aggregate, windows, seen)
    return sorted(found)


def _add(aggregate: Aggregate, to: Window, window: Window) -> None:
    to.events += window.events
    for one in (one for measure in aggregate.measures for one in measure.partials):
        if one.merge != "histogram":
            merge(one, to.partials, window.partials[one.name])


def _of_windows(
    feed: Feed,
    aggregate: Aggregate,
    windows: Mapping[Key, Window],
    seen: int,
    log: Sequence[Logged] = (),
    tables: Tables | None = None,
) -> list[Told]:
    by_offset = {one.offset: one for one in log}
    results = {result.name: result.value for measure in aggregate.measures for result in measure.results}
    rows = []
    for key, window in windows.items():
        if is_closed(feed, aggregate, key[-1], seen):
            own = dict(zip((*aggregate.by, "window_start"), key, strict=True))
            values = {**own, "events": window.events, **_evaluated(results, window.partials)}
            if (last := by_offset.get(window.last)) is not None and last.values is not None:
                look_up = partial(looked_up, tables, last.arrived_ms, last.values[feed.event_time])
                values = {**last.values, **values, LOOK_UP: look_up}
            rows.append(Observation(key[-1] + aggregate.window // MILLISECOND, (), values))
    passed = seen - (feed.disorder + feed.lateness) // MILLISECOND
    return [told for rule in aggregate.alerts for told in alerts(rule, rule.of or aggregate.by, rows, passed)]


def _evaluated(results: Mapping[str, Expression], partials: Mapping[str, Any]) -> dict[str, Any]:
    plain = {name: value for name, value in partials.items() if not isinstance(value, dict)}
    found = {}
    for name, value in results.items():
        try:
            found[name] = evaluate(value, plain)
        except (KeyError, TypeError):  # of a histogram
            continue
    return found


def _records(feed: Feed, log: Sequence[Logged], truth: Truth, tables: Tables | None) -> list[Observation]:
    """The records that rules observe: valid, no repeats, and no older than what the watermark has passed."""
    rows, counted = [], set(truth.valid) - set(truth.repeats)
    for logged in log:
        if logged.offset in counted:
            assert logged.values is not None
            event_ms = logged.values[feed.event_time]
            before = truth.watermarks.get(logged.offset - 1)
            if before is None or event_ms >= before - feed.disorder // MILLISECOND:
                look_up = partial(looked_up, tables, logged.arrived_ms, event_ms)
                rows.append(Observation(event_ms, (logged.offset,), {**logged.values, LOOK_UP: look_up}))
    return rows


def looked_up(tables: Tables | None, arrived: int, event: int, table: str, key: tuple[Any, ...], name: str) -> Any:
    """A field of the row that counts for a record that arrived and happened then (ms)."""
    assert tables is not None
    row = tables(table, key, arrived, event)
    return None if row is None else row[name]


#: A version of a row: the broker's time, key, beginning and end of validity (ms, or None), and its values or None.
Version = tuple[int, tuple[Any, ...], int | None, int | None, Mapping[str, Any] | None]


def known_of(
    versions: Sequence[Version], grace: int, key: tuple[Any, ...] | CoveredBy, arrived: int, event: int
) -> Any:
    """The row that counts for a record: of those known at its arrival that hold at its event time the last to begin.

    Of those that cover a place and begin at one time, the one whose key comes first.
    """
    if not isinstance(key, CoveredBy):
        return max(_holding(versions, grace, key, arrived, event), key=lambda one: one[0], default=(0, None))[1]
    begins, found = -math.inf, None
    for own in sorted({own for _, own, *_ in versions}):
        for since, values in _holding(versions, grace, own, arrived, event):
            if since > begins and key.is_covered(values):
                begins, found = since, values
    return found


def _holding(
    versions: Sequence[Version], grace: int, key: tuple[Any, ...], arrived: int, event: int
) -> list[tuple[int, Mapping[str, Any]]]:
    """The rows of a key that hold, and when they begin."""
    newest: dict[int | None, tuple[int | None, Mapping[str, Any] | None]] = {}
    stamp = -(2**62)
    for at, own, begins, ends, values in versions:
        stamp = max(stamp, at)
        if own == key and stamp <= arrived - grace:
            newest[begins] = ends, values
    return [
        (-(2**62) if begins is None else begins, values)
        for begins, (ends, values) in newest.items()
        if values is not None and (begins is None or begins <= event) and (ends is None or event < ends)
    ]

"""Open windows of one aggregate in one partition: mergeable parts, versions, closing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import accumulate
from typing import Any

import numpy as np
from numba import njit

from processors.events import EVENT_MS, HIGH, LOW, NO_NUMBER, OFFSET, EventColumns, Events
from processors.observations import Observations
from processors.tables import NO_TEXT, Flags, Integers, Table, Texts, longer
from schemas.expressions import Column, Expression, LookedUp
from schemas.feed import Aggregate, Feed, milliseconds
from schemas.measures import BEYOND, BUCKET_SHIFT, FIRST_BUCKET, LEVELS, NO_BUCKET, ORDERED_BY, Buckets
from streams.ending import Stop
from streams.watermark import closes_at, window_start
from streams.wire.column_writer import Columns, spans

#: Cells of a group's state: offset of its first event and the maximum of event time before that, offset of the last
#: one, whether it changed since it was taken, how many events it has. Behind them are the cells of each partial.
_FIRST, _SEEN, _LAST, _CHANGED, _EVENTS, _PARTIALS = range(6)
#: How a partial is merged. A sum has 128 bits, the lower ones in its first cell; of the others the second cell says
#: whether there is a value. Those of the first or last event have more cells, of what it is ordered by.
_SUM, _MIN, _MAX, _EARLIEST, _LATEST = range(5)
_MERGES = {"sum": _SUM, "min": _MIN, "max": _MAX, "first": _EARLIEST, "last": _LATEST}
_ENDS = ("first", "last")
#: Turns the half of an event id so that it goes in the order of its text.
_SIGN = -(2**63)


class TooManyGroups(Stop):
    """More groups are open than a feed declares, and they take memory."""


class Windows:
    """State of one aggregate: a pure function of the records added, whatever the cut between calls of ``add``."""

    def __init__(self, feed: Feed, aggregate: Aggregate, columns: EventColumns) -> None:
        self.aggregate = aggregate
        self._closes_at = closes_at(feed, aggregate)
        self._most = feed.open_groups
        self._by = [columns.keys[name] for name in aggregate.by]
        #: Columns of texts, and of numbers, among those of the groups, whose first one is the window's start.
        self._texts = {name: n for n, name in enumerate(aggregate.by, 1) if columns.keys[name] < columns.texts}
        self._numbers = {name: n for n, name in enumerate(aggregate.by, 1) if name not in self._texts}
        self._nullable = {field.name for field in feed.grouped_by(aggregate) if field.nullable}
        partials = [p for measure in aggregate.measures for p in measure.partials]
        scalars = [p for p in partials if p.merge != "histogram"]
        widths = [2 + len(ORDERED_BY) * (p.merge in _ENDS) for p in scalars]
        begins = [_PARTIALS, *(_PARTIALS + end for end in accumulate(widths))]
        self._cells = {p.name: (p.merge, begin) for p, begin in zip(scalars, begins, strict=False)}
        steps = [(_MERGES[p.merge], self._cells[p.name][1], columns.value(p)) for p in scalars]
        self._program = np.array(steps, np.int64).reshape(-1, 3)
        self._groups = Table(1 + len(self._by))
        self._state = np.zeros((0, begins[-1]), np.int64)
        self._histograms = {p.name: Histograms(columns.value(p), p.buckets) for p in partials if p.merge == "histogram"}
        #: What rules look up for the last record of each group, and the columns of it among the values of events.
        self._looked_up = looked_up_for(aggregate)
        self._read = [columns.fields[leaf] for leaf in self._looked_up]
        self._found = np.zeros((0, len(self._read)))

    def add(self, events: Events, seen: Integers) -> None:
        """Count numbered events in; ``seen`` is the maximum of event time before each (ms).

        Those too late for their window are left out here; ClickHouse counts them from the raw rows.
        """
        start = window_start(self.aggregate, events.event_ms)
        on_time = start + self._closes_at > seen
        if not on_time.all():
            events, seen, start = events.where(on_time), seen[on_time], start[on_time]
        groups, _ = self._groups.number(np.column_stack((start, events.keys[:, self._by])))
        if len(self._groups) > len(self._state):
            self._state = longer(self._state, 2 * len(self._groups))
            self._found = longer(self._found, len(self._state))
        if self._read:
            self._found[groups] = events.values[:, self._read]  # of several in one group the last is left behind
        merge_events(groups, self._state, events.cells, seen, self._program)
        for histograms in self._histograms.values():
            histograms.add(groups, events)

    def check(self, max_event_ms: int) -> None:
        """Hold the number of groups that stay open to what the feed declares.

        Raises
        ------
        TooManyGroups
            There are more. They are of the log, so this depends on nothing else, and nothing of them was committed.
        """
        if len(self._groups) <= self._most:
            return
        still_open = int((~self._closed(max_event_ms)).sum())
        if still_open > self._most:
            raise TooManyGroups(
                f"{self.aggregate.name}: {still_open:,} groups by {', '.join(self.aggregate.by)} are open in one "
                f"partition, more than the {self._most:,} that the feed declares as open_groups. Mend the "
                "publisher if they are none; else declare more, for which the processor needs memory, and start "
                "it again: nothing is lost"
            )

    def close(self, max_event_ms: int) -> None:
        """Forget the windows that are closed, unseen: they were written before the position read again from."""
        self._forget(self._closed(max_event_ms))

    def _forget(self, closed: Flags) -> None:
        if not closed.any():
            return
        kept = ~closed
        self._state, self._found = self._state[: len(kept)][kept], self._found[: len(kept)][kept]
        self._groups.replace(self._groups.rows[kept])
        renumbered = np.where(kept, np.cumsum(kept) - 1, -1)
        for histograms in self._histograms.values():
            histograms.renumber(renumbered)

    def take(self, max_event_ms: int, texts: Texts) -> Columns:
        """The parts that changed since the last call or are final now; final ones are forgotten.

        Returns
        -------
        Group keys, ``window_start`` (ms), ``version`` (2 x last offset counted in, + 1 if final), ``events`` and the
        partials; a sum that 64 bits do not hold is ``BEYOND``, a histogram is two lists, ``<name>_buckets`` ascending
        and ``<name>_counts``, a first or last is a list of ``ORDERED_BY`` and the value, or empty.
        """
        closed = self._closed(max_event_ms)
        state = self._state[: len(closed)]
        taken = np.flatnonzero(closed | (state[:, _CHANGED] > 0))
        parts = self._parts(self._groups.rows[taken], state[taken], closed[taken], texts)
        lists = {name: self._end(state[taken], cell) for name, (merge, cell) in self._cells.items() if merge in _ENDS}
        for name, histograms in self._histograms.items():
            sizes, buckets, counts = histograms.of(taken, len(closed))
            lists |= {f"{name}_buckets": (sizes, buckets), f"{name}_counts": (sizes, counts)}
        parts = _with_lists(parts, lists)
        state[:, _CHANGED] = 0
        self._forget(closed)
        return parts

    @property
    def final_columns(self) -> list[Expression]:
        """The numbers of a final window, by their columns in ``finals``."""
        return [*map(Column, ("window_start", "events", *self._cells, *self._numbers)), *self._looked_up]

    @property
    def final_texts(self) -> list[str]:
        """The texts of a final window, by their columns in ``finals``."""
        return [*self._texts]

    def finals(self, max_event_ms: int) -> Observations:
        """The windows that are final now as observations, at their ends (ms)."""
        closed = np.flatnonzero(self._closed(max_event_ms))
        groups, state = self._groups.rows[closed], self._state[closed]
        values = [groups[:, 0].astype(np.float64), state[:, _EVENTS].astype(np.float64)]
        for merge, cell in self._cells.values():
            known = state[:, cell + 1] == state[:, cell] >> 63 if merge == "sum" else state[:, cell + 1] > 0
            values.append(np.where(known, state[:, cell], np.nan))
        values += [np.where(groups[:, at] == NO_NUMBER, np.nan, groups[:, at]) for at in self._numbers.values()]
        ends = groups[:, 0] + milliseconds(self.aggregate.window)
        return Observations(ends, groups[:, [*self._texts.values()]], np.column_stack((*values, self._found[closed])))

    def any_closed(self, max_event_ms: int) -> bool:
        """Whether a window is final that was not when it was taken last."""
        return bool(self._closed(max_event_ms).any())

    def _closed(self, max_event_ms: int) -> Flags:
        closed: Flags = self._groups.rows[:, 0] + self._closes_at <= max_event_ms
        return closed

    def _parts(self, groups: Integers, state: Integers, closed: Flags, texts: Texts) -> Columns:
        cells = {name: texts.spans[groups[:, n]] for name, n in self._texts.items()}
        cells |= {name: groups[:, n] for name, n in self._numbers.items()}
        cells["window_start"] = groups[:, 0]
        cells["version"] = 2 * state[:, _LAST] + closed
        cells["events"] = state[:, _EVENTS]
        known = {n: groups[:, at] != NO_TEXT for n, at in self._texts.items() if n in self._nullable}
        known |= {n: groups[:, at] != NO_NUMBER for n, at in self._numbers.items() if n in self._nullable}
        for name, (merge, cell) in self._cells.items():
            value, more = state[:, cell], state[:, cell + 1]
            if merge == "sum":
                cells[name] = np.where(more == value >> 63, value, BEYOND)
            elif merge not in _ENDS:
                cells[name], known[name] = value, more > 0
        return Columns(len(groups), cells, known, texts.letters)

    @staticmethod
    def _end(state: Integers, cell: int) -> tuple[Integers, Integers]:
        """How long the list of each group is, and all of them one after the other."""
        known = state[:, cell + 1] > 0
        order = range(cell + 2, cell + 2 + len(ORDERED_BY))
        return known * (len(ORDERED_BY) + 1), state[known][:, [*order, cell]].reshape(-1)

    def oldest(self) -> tuple[int, int] | None:
        """Smallest first offset of an open window and the maximum of event time before it, or None."""
        if not len(self._groups):
            return None
        state = self._state[: len(self._groups)]
        first = state[state[:, _FIRST].argmin()]
        return int(first[_FIRST]), int(first[_SEEN])

    @property
    def texts(self) -> Integers:
        """Numbers of the texts of what is held."""
        numbers: Integers = self._groups.rows[:, [*self._texts.values()]]
        known: Integers = numbers[numbers != NO_TEXT]
        return known

    def renumber(self, texts: Integers) -> None:
        """Go by other numbers of texts, which stand at the old ones."""
        rows = self._groups.rows.copy()
        columns = [*self._texts.values()]
        rows[:, columns] = texts[rows[:, columns]]
        self._groups.replace(rows)


def looked_up_for(aggregate: Aggregate) -> list[LookedUp]:
    """What rules look up for its windows."""
    return [*dict.fromkeys(leaf for rule in aggregate.alerts for leaf in rule.looked_up)]


class Histograms:
    """How many values each bucket of each group has."""

    def __init__(self, column: int, buckets: Buckets) -> None:
        """``column`` of the events has the value."""
        self._column, self._are_steps = column, buckets is LEVELS
        self._buckets = Table(2)
        self._counts = np.zeros(0, np.int64)

    def add(self, groups: Integers, events: Events) -> None:
        """Count events in, each into the group of a number."""
        known = events.cells[:, self._column + 1] > 0
        bucket = events.cells[known, self._column]
        if not self._are_steps:
            bits = bucket.astype(np.float64).view(np.int64)
            bucket = np.where(bucket <= 0, NO_BUCKET, (bits >> BUCKET_SHIFT) - FIRST_BUCKET)
        numbers, _ = self._buckets.number(np.column_stack((groups[known], bucket)))
        if len(self._buckets) > len(self._counts):
            self._counts = longer(self._counts, 2 * len(self._buckets))
        np.add.at(self._counts, numbers, 1)

    def renumber(self, groups: Integers) -> None:
        """Go by other numbers of groups, which stand at the old ones; -1 is for one that is forgotten."""
        rows = np.column_stack((groups[self._buckets.rows[:, 0]], self._buckets.rows[:, 1]))
        kept = rows[:, 0] >= 0
        self._counts = self._counts[: len(kept)][kept]
        self._buckets.replace(rows[kept])

    def of(self, taken: Integers, groups: int) -> tuple[Integers, Integers, Integers]:
        """Of these of all ``groups``: how many buckets each has, and one after the other the buckets and counts."""
        place = np.full(groups, -1, np.int64)
        place[taken] = np.arange(len(taken))
        place, bucket = place[self._buckets.rows[:, 0]], self._buckets.rows[:, 1]
        wanted = np.flatnonzero(place >= 0)
        order = wanted[np.lexsort((bucket[wanted], place[wanted]))]
        return np.bincount(place[order], minlength=len(taken)), bucket[order], self._counts[order]


def some(parts: Columns, rows: Integers) -> Columns:
    """Some of the parts."""
    cells = {name: column[rows] for name, column in parts.cells.items()}
    return replace(parts, height=len(rows), cells=cells, known={name: one[rows] for name, one in parts.known.items()})


def no_events(parts: Columns) -> Columns:
    """A part that counts nothing, in the columns of other parts."""
    cells = {name: np.zeros(1, np.int64) for name in parts.cells}
    return replace(parts, height=1, cells=cells, known={name: np.zeros(1, np.bool_) for name in parts.known})


def _with_lists(parts: Columns, lists: Mapping[str, tuple[Integers, Integers]]) -> Columns:
    """Parts with lists, by name: how long that of each part is, and their items one after the other."""
    cells, items, begin = dict(parts.cells), [parts.items], len(parts.items)
    for name, (sizes, of) in lists.items():
        cells[name] = spans(sizes, begin)
        items.append(of)
        begin += len(of)
    return replace(parts, cells=cells, items=np.concatenate(items))


@njit(nogil=True, cache=True)
def merge_events(groups: Any, state: Any, cells: Any, seen: Any, program: Any) -> None:
    """Merge each event into its group's row of ``state``.

    A step of the program is (how, first cell of the partial, column of its value), where the next column says whether
    it is known.
    """
    for row in range(len(groups)):
        group = groups[row]
        if state[group, _EVENTS] == 0:
            state[group, _FIRST] = cells[row, OFFSET]
            state[group, _SEEN] = seen[row]
        state[group, _LAST] = cells[row, OFFSET]
        state[group, _CHANGED] = 1
        state[group, _EVENTS] += 1
        for step in range(len(program)):
            how, cell, column = program[step, 0], program[step, 1], program[step, 2]
            if cells[row, column + 1] == 0:
                continue
            value = cells[row, column]
            before = state[group, cell]
            if how == _SUM:
                after = np.uint64(before) + np.uint64(value)
                state[group, cell] = np.int64(after)
                state[group, cell + 1] += (value >> 63) + (1 if after < np.uint64(before) else 0)
            elif how >= _EARLIEST:
                high, low = cells[row, HIGH] ^ _SIGN, cells[row, LOW] ^ _SIGN
                this = (cells[row, EVENT_MS], high, low, value)
                held = (state[group, cell + 2], state[group, cell + 3], state[group, cell + 4], before)
                if state[group, cell + 1] == 0 or (this < held if how == _EARLIEST else this > held):
                    state[group, cell + 2], state[group, cell + 3], state[group, cell + 4] = this[0], this[1], this[2]
                    state[group, cell], state[group, cell + 1] = value, 1
            elif state[group, cell + 1] == 0 or (value < before if how == _MIN else value > before):
                state[group, cell] = value
                state[group, cell + 1] = 1

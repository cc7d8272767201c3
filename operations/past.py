"""A rule over what is stored of the past: everything its entities did, in the order in which a worker takes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import polars as pl
from clickhouse_driver import Client

from operations.rules import DeclaredRule
from processors.events import EventColumns, column_of
from processors.gathering import MergedWindows, come_to_by_all
from processors.observations import Observations, together
from processors.reading import LookUps
from processors.rules import Series
from processors.tables import Integers, Texts
from processors.watching import come_in_time, ended_by, passed_by, records_as_series
from schemas.expressions import columns
from schemas.feed import Aggregate
from schemas.reference import Reference
from schemas.rules import Rule, read_by
from sinks import past
from sinks.past import Stretch
from streams.history import History


@dataclass(frozen=True)
class Taken:
    """What a rule takes at once in a partition: ``rows`` in their order, which are all up to an event time (ms)."""

    partition: int
    rows: Observations
    through: int


@dataclass(frozen=True)
class Past:
    """What a rule watches, as far as it is stored and the processor has come.

    ``texts`` number the texts of everything that was taken. ``passed`` is up to when everything has come (ms), by
    partition. ``oldest`` asks for the beginning of all that is stored (ms), and ``blocks`` for the observations of a
    stretch by their time, several at once, and the partition of each.
    """

    series: Series
    texts: Texts
    passed: Mapping[int, int]
    oldest: Callable[[], int]
    blocks: Callable[[Stretch], Iterator[tuple[Integers, Observations]]]

    def taken(self, stretch: Stretch) -> Iterator[Taken]:
        """What there is to take of a stretch; the last of each partition goes up to its end, or as far as it came."""
        rest: tuple[Integers, Observations] = np.zeros(0, np.int64), self.series.no_rows
        for block in self.blocks(stretch):
            partitions, rows = np.concatenate([rest[0], block[0]]), together([rest[1], block[1]])
            through = int(rows.times[-1]) - 1  # more of the last time may come
            later = rows.times > through
            rest = partitions[later], rows.where(later)
            yield from self._by_partition(partitions, rows, through)
        yield from self._by_partition(*rest, stretch.end)

    def _by_partition(self, partitions: Integers, rows: Observations, through: int) -> Iterator[Taken]:
        for number, passed in self.passed.items():
            come = min(through, passed)
            yield Taken(number, rows.where((partitions == number) & (rows.times <= come)), come)


def past_of(client: Client, found: DeclaredRule, references: Mapping[str, Reference]) -> Past:
    """What a rule watches, of ClickHouse as the user ``operator``; ``references`` are the tables it may look up."""
    if found.aggregate is None:
        return _of_records(client, found, references)
    return _of_windows(client, found, found.aggregate, references)


def _of_records(client: Client, found: DeclaredRule, references: Mapping[str, Reference]) -> Past:
    feed, rule, texts = replace(found.feed, alerts=(found.rule,), aggregates=()), found.rule, Texts()
    read, places = EventColumns(feed), () if feed.place is None else (feed.place,)
    names = {feed.key, *rule.of, *places, *(name for leaf in read_by(rule) for name in columns(leaf))}
    look_ups = LookUps(read.looked_up, feed.event_time)
    known = _known(client, rule, references)

    def blocks(stretch: Stretch) -> Iterator[tuple[Integers, Observations]]:
        for frame in past.records(client, feed, names, stretch):
            rows = look_ups.beside(frame, lambda table, _: known[table])
            events = read.numbered(read.of(rows), texts)
            in_time = come_in_time(feed, events.event_ms, frame["_seen"].to_numpy())
            observed = Observations(events.event_ms, events.keys[:, : read.texts], events.values)
            if in_time.any():
                yield frame["_partition"].to_numpy()[in_time], observed.where(in_time)

    come_to = past.come_to(client, feed, found.feed.aggregates)
    passed = {number: passed_by(feed, seen) for number, seen in come_to.items()}
    return Past(records_as_series(feed, read), texts, passed, partial(past.oldest, client, feed, None), blocks)


def _known(client: Client, rule: Rule, references: Mapping[str, Reference]) -> dict[str, History]:
    """The tables that a rule looks something up in."""
    return {table: History(references[table], past.versions(client, references[table])) for table in rule.tables}


def _of_windows(client: Client, found: DeclaredRule, aggregate: Aggregate, references: Mapping[str, Reference]) -> Past:
    feed, texts = found.feed, Texts()
    windows = MergedWindows(feed, replace(aggregate, alerts=(found.rule,)))
    names = {column_of(leaf): leaf for leaf in windows.looked_up}
    look_ups, known = LookUps(names, feed.event_time), _known(client, found.rule, references)

    def final(stretch: Stretch) -> Iterator[Sequence[tuple[Any, ...]]]:
        """Final windows, and what is looked up for each."""
        if not names:
            yield from past.final_windows(client, feed, aggregate, windows.partials, stretch)
            return
        keys = {key.name for leaf in windows.looked_up for key in leaf.keys}
        both = past.final_windows_and_last_records(client, feed, aggregate, windows.partials, keys, stretch)
        for rows, records in both:
            beside = look_ups.beside(records, lambda table, _: known[table])
            values = beside.select(pl.col(name).cast(pl.Float64) for name in names).rows()
            yield [(*row, *more) for row, more in zip(rows, values, strict=True)]

    def blocks(stretch: Stretch) -> Iterator[tuple[Integers, Observations]]:
        for rows in final(stretch):
            yield np.array([row[0] for row in rows]), windows.observations([row[1:] for row in rows], texts)

    come_to = past.come_to(client, feed, [aggregate])
    if feed.key not in aggregate.by:
        come_to = {0: come_to_by_all(feed, come_to)}
    passed = {number: ended_by(feed, seen) for number, seen in come_to.items()}
    return Past(windows.series, texts, passed, partial(past.oldest, client, feed, aggregate), blocks)

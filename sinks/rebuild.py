"""The windows of another definition, made of the raw rows: what the stream would have written of them by now.

The same declaration is compiled to Polars for the stream and to SQL here, and raw rows know by themselves whether they
came late. So a part made here is, bit for bit and version for version, the one a stream would have written that had
always gone by the new definition, and the stream goes on behind it as after a restart.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from clickhouse_driver import Client

from schemas.feed import Aggregate, Feed
from schemas.sql import literal
from sinks.dialect import Dialect
from sinks.sql import counted, is_late, window_start_ms, written
from sinks.tables import aggregate_table
from streams.positions import NO_EVENT_TIME, Position
from streams.watermark import closes_at

#: Rows that one statement groups, as far as whole days of event time allow it.
ROWS_AT_ONCE = 10_000_000
#: Bytes that grouping takes before it goes on from disk.
GROUPING_BYTES = 2_000_000_000
DAY_MS = 86_400_000
#: For IN, as null is a group.
NULL_IS_EQUAL = {"transform_null_in": 1}

#: By partition, the offsets from which on its lives count.
Lives = Mapping[int, Collection[int]]


@dataclass(frozen=True)
class Span:
    """Whole days of event time, from one instant (ms) up to another, and how many rows they have."""

    start: int
    end: int
    rows: int


class Rebuild:
    """Builds windows up to where each partition was processed, by its number in ``positions``."""

    def __init__(self, client: Client, feed: Feed, positions: Mapping[int, Position], dialect: Dialect) -> None:
        self._client = client
        self._feed = feed
        self._dialect = dialect
        #: Windows divide a day, so none lies in two.
        self._day = f"toInt64(floor(toUnixTimestamp64Milli({feed.event_time}) / {DAY_MS}))"
        self._positions = {n: p for n, p in positions.items() if p.max_processed_ms > NO_EVENT_TIME}
        self._processed = self._by_partition({n: p.processed for n, p in self._positions.items()})
        self._newest = self._by_partition({n: p.max_processed_ms for n, p in self._positions.items()})
        self._lives = {n: (0, p.since) for n, p in self._positions.items()}

    def spans(self, where: str = "1") -> list[Span]:
        """The rows there are, or those that a condition (SQL) is true for, in spans that are built one by one."""
        found: list[Span] = []
        for day, rows in self._client.execute(
            f"SELECT {self._day} AS day, count() FROM raw.{self._feed.name} WHERE source_offset < {self._processed} "
            f"AND {where} GROUP BY day ORDER BY day"
        ):
            start, end = day * DAY_MS, (day + 1) * DAY_MS
            if found and found[-1].rows + rows <= ROWS_AT_ONCE:
                found[-1] = Span(found[-1].start, end, found[-1].rows + rows)
            else:
                found.append(Span(start, end, rows))
        return found

    def begin(self, aggregate: Aggregate) -> None:
        """Make the table of an aggregate anew: what is in it was left half-built."""
        self._client.execute(f"DROP TABLE IF EXISTS raw.{aggregate.topic}{self._dialect.everywhere} SYNC")
        self._client.execute(aggregate_table(self._feed, aggregate, self._dialect))

    def build(self, aggregate: Aggregate, span: Span) -> None:
        """Build the parts of one span."""
        final = f"({self._closed(aggregate)} <= {self._newest})"
        self._insert(aggregate, f"2 * max(source_offset) + {final}", self._lives, self._within(span))

    def touched(self, aggregate: Aggregate, rows: str) -> tuple[int, int, int]:
        """How many windows some rows (SQL) count in, how many of those are open, and when the last closes.

        When is in ms of event time.
        """
        window, closed = f"({self._part(aggregate, {})})", self._closed(aggregate)
        ((windows, still_open, closes),) = self._client.execute(
            f"SELECT uniqExact({window}), uniqExactIf({window}, {closed} > {self._newest}), max({closed}) "
            f"FROM raw.{self._feed.name} FINAL WHERE {self._counted(aggregate)} AND {rows}"
        )
        return windows, still_open, closes

    def build_without(self, aggregate: Aggregate, span: Span, rows: str) -> None:
        """Build the final parts that some rows (SQL) count in anew, of the rows that stay.

        They win over whatever the stream wrote or will write of them again: the offset a final part last counted is
        never the last one processed, as another record closed it. One that nothing stays of has no events.
        """
        lives = dict(
            self._client.execute(
                f"SELECT source_partition, groupUniqArray(since) FROM raw.{aggregate.topic} GROUP BY source_partition"
            )
        )
        part, version = self._part(aggregate, lives), f"2 * {self._processed} - 1"
        there = f"{self._counted(aggregate)} AND {self._within(span)}"
        parts = f"SELECT {part} FROM raw.{self._feed.name} FINAL WHERE {there} AND"
        self._insert(aggregate, version, lives, f"{self._within(span)} AND NOT {rows} AND ({part}) IN ({parts} {rows})")
        self._client.execute(
            f"INSERT INTO raw.{aggregate.topic} ({self._columns(aggregate)}, version) "
            f"SELECT DISTINCT {self._written(aggregate, lives)}, {version} FROM raw.{self._feed.name} FINAL "
            f"WHERE {there} AND {rows} AND ({part}) NOT IN ({parts} NOT {rows})",
            settings=NULL_IS_EQUAL,
        )

    def _insert(self, aggregate: Aggregate, version: str, lives: Lives, where: str) -> None:
        partials = [p for measure in aggregate.measures for p in measure.partials]
        names = ["events", *(p.name for p in partials)]
        events, *values = counted(self._feed, aggregate)
        parts = [events, *(written(p, value) for p, value in zip(partials, values, strict=True))]
        self._client.execute(
            f"INSERT INTO raw.{aggregate.topic} "
            f"({self._columns(aggregate)}, version, {', '.join(names)}) "
            f"SELECT {self._written(aggregate, lives)}, {version}, {', '.join(parts)} "
            f"FROM raw.{self._feed.name} FINAL WHERE {self._counted(aggregate)} AND {where} "
            f"GROUP BY {self._part(aggregate, lives)}",
            settings={"max_bytes_before_external_group_by": GROUPING_BYTES, **NULL_IS_EQUAL},
        )

    @staticmethod
    def _columns(aggregate: Aggregate) -> str:
        return f"{', '.join(aggregate.by)}, window_start, source_partition, since"

    def _part(self, aggregate: Aggregate, lives: Lives) -> str:
        """Which part of which window a raw row counts in, given the lives of each partition."""
        return f"{', '.join(aggregate.by)}, {window_start_ms(self._feed, aggregate)}, source_partition, {_life(lives)}"

    def _written(self, aggregate: Aggregate, lives: Lives) -> str:
        """The same as its columns have it."""
        start = f"fromUnixTimestamp64Milli({window_start_ms(self._feed, aggregate)}, {literal(self._dialect.timezone)})"
        return f"{', '.join(aggregate.by)}, {start}, source_partition, {_life(lives)}"

    def _counted(self, aggregate: Aggregate) -> str:
        return f"source_offset < {self._processed} AND NOT {is_late(self._feed, aggregate)}"

    def _closed(self, aggregate: Aggregate) -> str:
        return f"{window_start_ms(self._feed, aggregate)} + {closes_at(self._feed, aggregate)}"

    def _within(self, span: Span) -> str:
        return (
            f"{self._feed.event_time} >= fromUnixTimestamp64Milli({span.start}) "
            f"AND {self._feed.event_time} < fromUnixTimestamp64Milli({span.end})"
        )

    def finish(self, aggregate: Aggregate) -> None:
        """Say how far the parts go, which decides what is final."""
        rows = [(aggregate.topic, number, p.max_processed_ms) for number, p in self._positions.items()]
        if rows:
            self._client.execute("INSERT INTO raw.progress (aggregate, source_partition, watermark) VALUES", rows)

    def oldest(self, log_starts: Mapping[int, int]) -> dict[int, tuple[int, int]]:
        """By partition, the first offset counted into a window that is open, and the maximum of event time before it.

        Of a partition that was frozen, what an earlier life counted is only needed to know repeats, so it may be gone.
        """
        reaches = {n: min(log_starts[n], position.since) for n, position in self._positions.items()}
        still_open = [
            f"{self._closed(a)} > {self._newest} AND NOT {is_late(self._feed, a)}" for a in self._feed.aggregates
        ]
        found = self._client.execute(
            "SELECT source_partition, min(source_offset), argMin(seen_before, source_offset) "
            f"FROM raw.{self._feed.name} WHERE source_offset < {self._processed} "
            f"AND source_offset >= {self._by_partition(reaches)} AND ({' OR '.join(still_open) or '0'}) "
            "GROUP BY source_partition"
        )
        return {number: (first, seen) for number, first, seen in found}

    @staticmethod
    def _by_partition(values: Mapping[int, int]) -> str:
        """SQL of the value of a row's partition, 0 where there is none."""
        listed = ", ".join(str(values.get(number, 0)) for number in range(max(values, default=0) + 1))
        return f"[{listed}][source_partition + 1]"


def _life(lives: Lives) -> str:
    """SQL of the life of its partition that counts a raw row: the last that began before it."""
    listed = ", ".join(str([0, *lives.get(number, ())]) for number in range(max(lives, default=0) + 1))
    return f"arrayMax(life -> if(life <= source_offset, life, 0), [{listed}][source_partition + 1])"


def is_behind(client: Client, shown: str, other: str) -> bool:
    """Whether the windows of one version of an aggregate are less far than those of the one that is shown."""
    ((partitions,),) = client.execute(
        "SELECT count() FROM (SELECT maxIf(p.watermark, aggregate = %(shown)s) AS seen, "
        "maxIf(p.watermark, aggregate = %(other)s) AS built FROM raw.progress AS p "
        "WHERE aggregate IN (%(shown)s, %(other)s) GROUP BY source_partition HAVING seen > built)",
        {"shown": shown, "other": other},
    )
    return bool(partitions)

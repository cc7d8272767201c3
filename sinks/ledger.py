"""The accounting: every offset of a topic is stored, a repeat, quarantined, of the log itself or lost to retention.

Received, quarantined and control are sets of offsets kept by ClickHouse itself as rows arrive, so a replay counts
nothing twice and nothing is believed that a worker says about itself. The views of ``sinks/accounts.py`` draw the sum
over what arrived; what did not arrive is held against the offsets of the brokers here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clickhouse_driver import Client

from schemas.feed import Feed
from sinks.accounts import blocks, holes
from streams.generations import numbered
from streams.lag import PartitionLag

#: Topic and partition.
Place = tuple[str, int]


@dataclass(frozen=True)
class Stretch:
    """The offsets from ``first`` to ``last`` of a partition."""

    topic: str
    partition: int
    first: int
    last: int

    def __len__(self) -> int:
        return self.last - self.first + 1

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}: offsets {self.first:,} to {self.last:,}"


@dataclass(frozen=True)
class Arrived:
    """The highest offset of each partition that arrived, and the stretches below it that did not."""

    highest: Mapping[Place, int]
    holes: Mapping[Place, Sequence[tuple[int, int]]]


@dataclass(frozen=True)
class Absent:
    """The offsets of a partition that did not arrive, and the number of those that arrived from beyond its end.

    ``lost`` were deleted by retention. ``on_its_way`` no worker has committed yet. ``missing`` are the others.
    """

    lost: Sequence[Stretch]
    missing: Sequence[Stretch]
    on_its_way: Sequence[Stretch]
    beyond: int

    @property
    def first(self) -> int | None:
        """The first offset that did not arrive, if there is one."""
        return min((s.first for s in (*self.lost, *self.missing, *self.on_its_way)), default=None)


@dataclass(frozen=True)
class Account:
    """One feed. ``published`` counts offsets, ``late`` is a part of ``stored``, ``redriven`` one of ``quarantined``.

    ``control`` are offsets of the log itself: markers of transactions, aborted records, records compaction removed.
    ``disputed`` are offsets that two workers judged differently; they count once, as stored. ``conflicts`` are event
    ids that came with different keys or event times of late (see ``sinks.views``). Both are no part of the sum.
    """

    topic: str
    published: int
    stored: int
    duplicate: int
    quarantined: int
    redriven: int
    control: int
    on_its_way: int
    lost: int
    missing: int
    beyond: int
    late: int
    disputed: int
    conflicts: int

    @property
    def wrong(self) -> bool:
        """Offsets were lost, nobody can account for them, or more arrived than the log has."""
        return bool(self.lost or self.missing or self.beyond)

    @property
    def balances(self) -> bool:
        """Every offset is accounted for, none was lost and none is on its way."""
        return not self.wrong and self.on_its_way == 0


@dataclass(frozen=True)
class Books:
    """What ClickHouse has, whatever the brokers say; of each topic a row of sums, and numbers of other things."""

    arrived: Arrived
    sums: Mapping[str, Mapping[str, int]]
    conflicts: Mapping[str, int]
    redriven: Mapping[str, int]


def arrived(client: Client, settled: Mapping[Place, int] | None = None) -> Arrived:
    """What arrived; ``settled`` are offsets of partitions below which nothing has to be looked at again."""
    settled = settled or {}
    source = blocks(settled)
    highest = client.execute(f"SELECT topic, source_partition, max(highest) FROM {source} GROUP BY ALL")
    found: dict[Place, list[tuple[int, int]]] = {}
    for topic, partition, first, last in client.execute(holes(source)):
        if last >= (since := settled.get((topic, partition), 0)):
            found.setdefault((topic, partition), []).append((max(first, since), last))
    return Arrived({(topic, partition): offset for topic, partition, offset in highest}, found)


def absent(seen: Arrived, log: PartitionLag) -> Absent:
    """What did not arrive of a partition; everything below ``log.committed`` should have."""
    place = log.topic, log.partition
    end = seen.highest.get(place, -1) + 1
    gone = [*seen.holes.get(place, ()), (end, max(end, log.end) - 1)]
    expected = min(log.end, max(log.log_start, log.committed))
    return Absent(
        lost=_within(place, gone, 0, log.log_start),
        missing=_within(place, gone, log.log_start, expected),
        on_its_way=_within(place, gone, expected, log.end),
        beyond=max(0, end - log.end),
    )


def _within(place: Place, stretches: Iterable[tuple[int, int]], start: int, end: int) -> list[Stretch]:
    cut = ((max(first, start), min(last, end - 1)) for first, last in stretches)
    return [Stretch(*place, first, last) for first, last in cut if first <= last]


def accounts(client: Client, feeds: Mapping[str, Feed], log: Sequence[PartitionLag]) -> list[Account]:
    """The account of each feed's topic, given what the brokers said of its partitions before."""
    return balance(read(client, feeds), feeds, log)


def read(client: Client, feeds: Iterable[str]) -> Books:
    """Read the accounts of ClickHouse."""
    sums = client.execute(
        "SELECT topic, sum(stored) AS stored, sum(duplicate) AS duplicate, sum(quarantined) AS quarantined, "
        "sum(control) AS control, sum(late) AS late, sum(disputed) AS disputed FROM raw.accounts GROUP BY topic",
        with_column_types=True,
    )
    conflicts = {name: client.execute(f"SELECT uniqExact(event_id) FROM city.{name}_conflicts")[0][0] for name in feeds}
    redriven = client.execute("SELECT topic, count() FROM raw.redriven FINAL GROUP BY topic")
    return Books(arrived(client), dict(_by_topic(*sums)), conflicts, dict(redriven))


def _by_topic(rows: list[tuple[Any, ...]], columns: list[tuple[str, str]]) -> Iterator[tuple[str, dict[str, int]]]:
    for topic, *values in rows:
        yield topic, dict(zip((name for name, _ in columns[1:]), values, strict=True))


def balance(books: Books, feeds: Iterable[str], log: Sequence[PartitionLag]) -> list[Account]:
    """Hold what ClickHouse has against what the brokers say of all topics of each feed."""
    return [_account(books, feed, [p for p in numbered(log) if p.topic == feed]) for feed in feeds]


def _account(books: Books, topic: str, log: Sequence[PartitionLag]) -> Account:
    nothing = dict.fromkeys(("stored", "duplicate", "quarantined", "control", "late", "disputed"), 0)
    gone = [absent(books.arrived, p) for p in log]
    return Account(
        topic=topic,
        published=sum(p.end for p in log),
        on_its_way=sum(len(s) for one in gone for s in one.on_its_way),
        lost=sum(len(s) for one in gone for s in one.lost),
        missing=sum(len(s) for one in gone for s in one.missing),
        beyond=sum(one.beyond for one in gone),
        conflicts=books.conflicts[topic],
        redriven=books.redriven.get(topic, 0),
        **books.sums.get(topic, nothing),
    )

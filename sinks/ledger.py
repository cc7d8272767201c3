"""The accounting: every offset is stored, a repeat, withdrawn, quarantined, of the log itself or lost to retention.

Received, quarantined and control are sets of offsets kept by ClickHouse itself as rows arrive, so a replay counts
nothing twice and nothing is believed that a worker says about itself. The views of ``sinks/ledger_views.py`` draw the
sum over what arrived; what did not arrive is held against the offsets of the brokers here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from clickhouse_driver import Client

from schemas.feed import Feed
from sinks.ledger_views import blocks, holes
from streams.lag import PartitionLag, by_feed_partition

#: Topic and partition.
Place = tuple[str, int]
#: All offsets there can be.
EVERYWHERE = range(2**63)
#: Offsets that lie no further apart are looked at with all between them, which keeps the query short.
NEAR = 10_000_000


@dataclass(frozen=True)
class Stretch:
    """The offsets from ``first`` to ``last`` of a partition."""

    topic: str
    partition: int
    first: int
    last: int

    @property
    def place(self) -> Place:
        """Whose offsets they are."""
        return self.topic, self.partition

    def __len__(self) -> int:
        return self.last - self.first + 1

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}: offsets {self.first:,} to {self.last:,}"


@dataclass(frozen=True)
class Arrived:
    """The highest offset of each partition that arrived, and the stretches below it that did not.

    Of a partition in ``looked`` only these ranges of offsets were looked at, the last of them without an end, because
    all others were known to be there.
    """

    highest: Mapping[Place, int]
    holes: Mapping[Place, Sequence[tuple[int, int]]]
    looked: Mapping[Place, Sequence[range]] = field(default_factory=dict)


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
    def stretches(self) -> list[Stretch]:
        """All that did not arrive, in order."""
        return [*self.lost, *self.missing, *self.on_its_way]


@dataclass(frozen=True)
class Account:
    """One feed. ``published`` counts offsets, ``late`` is a part of ``stored``, ``redriven`` one of ``quarantined``.

    ``control`` are offsets without an event: ticks, markers of transactions, aborted and compacted records.
    ``disputed`` are offsets that two workers judged differently; they count once, as stored. ``conflicts`` are event
    ids that came with different keys or event times of late (see ``sinks.views``). Both are no part of the sum.
    """

    feed: str
    published: int
    stored: int
    duplicate: int
    withdrawn: int
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


def arrived(client: Client, looked: Mapping[Place, Sequence[range]] | None = None) -> Arrived:
    """What arrived, of all partitions or in these ranges of offsets; what is not in them is known to have arrived.

    Records go on arriving between its two questions: what comes behind a hole counts for ``highest``, too.
    """
    looked = looked or {}
    source = blocks(looked)
    rows = client.execute(f"SELECT topic, source_partition, max(highest) FROM {source} GROUP BY ALL")
    highest = {(topic, partition): offset for topic, partition, offset in rows}
    found: dict[Place, list[tuple[int, int]]] = {}
    for topic, partition, first, last in client.execute(holes(source)):
        found.setdefault((topic, partition), []).append((first, last))
        highest[topic, partition] = max(highest.get((topic, partition), 0), last + 1)
    return Arrived(highest, found, looked)


def absent(seen: Arrived, log: PartitionLag) -> Absent:
    """What did not arrive of a partition; everything below ``log.committed`` should have."""
    place = log.topic, log.partition
    looked = seen.looked.get(place, [EVERYWHERE])
    end = seen.highest.get(place, -1) + 1
    stretches = [Stretch(*place, *one) for one in (*seen.holes.get(place, ()), (end, max(end, log.end) - 1))]
    gone = [one for part in looked for one in cut(stretches, part.start, part.stop)]
    expected = min(log.end, max(log.log_start, log.committed))
    return Absent(
        lost=cut(gone, 0, log.log_start),
        missing=cut(gone, log.log_start, expected),
        on_its_way=cut(gone, expected, log.end),
        beyond=max(0, end - log.end, looked[-1].start - log.end),
    )


def cut(stretches: Iterable[Stretch], start: int, stop: int) -> list[Stretch]:
    """The parts of these stretches from an offset on and before another."""
    return [
        replace(one, first=max(one.first, start), last=min(one.last, stop - 1))
        for one in stretches
        if max(one.first, start) <= min(one.last, stop - 1)
    ]


def unsettled(found: Absent, end: int) -> list[range]:
    """The ranges of offsets to look at the next time: what did not arrive, and all from the end of the log on."""
    parts: list[range] = []
    for part in [*(range(one.first, one.last + 1) for one in found.stretches), range(end, EVERYWHERE.stop)]:
        if parts and part.start <= parts[-1].stop + NEAR:
            parts[-1] = range(parts[-1].start, part.stop)
        else:
            parts.append(part)
    return parts


def accounts(client: Client, feeds: Mapping[str, Feed], log: Sequence[PartitionLag]) -> list[Account]:
    """The account of each feed's topic, given what the brokers said of its partitions before."""
    return balance(read(client, feeds), feeds, log)


def read(client: Client, feeds: Iterable[str]) -> Books:
    """Read the accounts of ClickHouse."""
    sums = client.execute(
        "SELECT topic, sum(stored) AS stored, sum(duplicate) AS duplicate, sum(withdrawn) AS withdrawn, "
        "sum(quarantined) AS quarantined, sum(control) AS control, sum(late) AS late, sum(disputed) AS disputed "
        "FROM raw.accounts GROUP BY topic",
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
    return [_account(books, feed, [p for p in by_feed_partition(log) if p.topic == feed]) for feed in feeds]


def _account(books: Books, feed: str, log: Sequence[PartitionLag]) -> Account:
    nothing = dict.fromkeys(("stored", "duplicate", "withdrawn", "quarantined", "control", "late", "disputed"), 0)
    gone = [absent(books.arrived, p) for p in log]
    return Account(
        feed=feed,
        published=sum(p.end for p in log),
        on_its_way=sum(len(s) for one in gone for s in one.on_its_way),
        lost=sum(len(s) for one in gone for s in one.lost),
        missing=sum(len(s) for one in gone for s in one.missing),
        beyond=sum(one.beyond for one in gone),
        conflicts=books.conflicts[feed],
        redriven=books.redriven.get(feed, 0),
        **books.sums.get(feed, nothing),
    )

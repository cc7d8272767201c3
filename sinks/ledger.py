"""The accounting: every offset of a topic is stored, a repeat, quarantined, of the log itself or lost to retention.

Received, quarantined and control are sets of offsets kept by ClickHouse itself as rows arrive, so a replay counts
nothing twice and nothing is believed that a worker says about itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from clickhouse_driver import Client

from schemas.feed import Feed
from streams.lag import PartitionLag


@dataclass(frozen=True)
class Account:
    """One topic. ``published`` counts offsets, ``late`` is a part of ``stored``.

    ``control`` are offsets of the log itself: markers of transactions, aborted records, records compaction removed.
    ``conflicts`` are event ids that came with different keys or event times of late (see ``sinks.views``); each of
    these events counts, so they are no part of the sum.
    """

    topic: str
    published: int
    stored: int
    duplicate: int
    quarantined: int
    control: int
    lost: int
    late: int
    conflicts: int

    @property
    def missing(self) -> int:
        """Offsets nobody can account for (yet)."""
        return self.published - self.stored - self.duplicate - self.quarantined - self.control - self.lost

    @property
    def balances(self) -> bool:
        """Every offset is accounted for, and none was lost."""
        return self.missing == 0 and self.lost == 0


def accounts(client: Client, feeds: Mapping[str, Feed], log: Sequence[PartitionLag]) -> list[Account]:
    """The account of each feed's topic against the offsets the brokers report."""
    return [_account(client, feed, [p for p in log if p.topic == name]) for name, feed in feeds.items()]


def _account(client: Client, feed: Feed, log: Sequence[PartitionLag]) -> Account:
    sets = client.execute(
        "SELECT kind, sum(n) FROM (SELECT source_partition, toString(kind) AS kind, groupBitmapMerge(offsets) AS n "
        "FROM raw.ledger WHERE topic = %(topic)s GROUP BY source_partition, kind, block) GROUP BY kind",
        {"topic": feed.name},
    )
    counted = {str(kind): int(n) for kind, n in sets}
    ((stored, late),) = client.execute(f"SELECT count(), sum(late) FROM raw.{feed.name} FINAL")
    ((conflicts,),) = client.execute(f"SELECT uniqExact(event_id) FROM city.{feed.name}_conflicts")
    lost = sum(p.log_start - _seen_below(client, feed.name, p) for p in log if p.log_start > 0)
    return Account(
        topic=feed.name,
        published=sum(p.end for p in log),
        stored=stored,
        duplicate=counted.get("received", 0) - stored,
        quarantined=counted.get("quarantined", 0),
        control=counted.get("control", 0),
        lost=lost,
        late=late,
        conflicts=conflicts,
    )


def _seen_below(client: Client, topic: str, partition: PartitionLag) -> int:
    """How many of the offsets before the log's start arrived."""
    ((n,),) = client.execute(
        "SELECT bitmapCardinality(bitmapSubsetInRange(groupBitmapMergeState(offsets), toUInt64(0), "
        "toUInt64(%(start)s))) FROM raw.ledger WHERE topic = %(topic)s AND source_partition = %(partition)s",
        {"topic": topic, "partition": partition.partition, "start": partition.log_start},
    )
    return int(n)

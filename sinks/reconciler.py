"""The continuous check: is everything stored that has to be, and nothing lost?

A record that did not arrive is on its way as long as somebody may still write it: until the sink has committed past it,
and, as it may be a dead letter, until the worker that judges it has, too, and the sink has stored all dead letters
sent up to then. From then on it is missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from clickhouse_driver import Client

from schemas.feed import Feed
from sinks import GROUP
from sinks.ledger import EVERYWHERE, Account, Place, Stretch, absent, arrived, balance, cut, read, unsettled
from streams import deadletters
from streams.feed_topics import feed_topics
from streams.lag import LagMeter, PartitionLag, by_feed_partition

#: Of so many looks one is at everything: ClickHouse may lose what it had.
WHOLE_EVERY = 60


@dataclass(frozen=True)
class Check:
    """What one look found, over all partitions. Numbers count offsets.

    ``known`` was lost before the first of several looks (see ``after``), ``lost`` since then.
    """

    published: int
    on_its_way: int
    lost: Sequence[Stretch]
    missing: Sequence[Stretch]
    #: Partitions of which more arrived than their log has, with the number of offsets.
    beyond: Mapping[Place, int]
    known: Sequence[Stretch] = ()

    @property
    def wrong(self) -> bool:
        """Whether offsets were lost, nobody can account for them, or more arrived than a log has."""
        return bool(self.lost or self.missing or self.beyond)

    def after(self, first: Check) -> Check:
        """The same, with what was lost at the first look as known.

        The start of a log only rises and what arrived stays, so what was lost later lies behind all that was lost then.
        """
        ends = {one.place: one.last + 1 for one in first.lost}
        known = [part for one in self.lost for part in cut([one], 0, ends.get(one.place, 0))]
        lost = [part for one in self.lost for part in cut([one], ends.get(one.place, 0), one.last + 1)]
        return replace(self, known=known, lost=lost)

    def __str__(self) -> str:
        found = [f"{self.published:,} published"]
        if self.on_its_way:
            found.append(f"{self.on_its_way:,} on their way")
        if lost := sum(map(len, (*self.known, *self.lost))):
            known = f" ({sum(map(len, self.known)):,} of them known)" if self.known else ""
            found.append(f"{lost:,} LOST to retention{known}")
        if self.missing:
            found.append(f"{sum(map(len, self.missing)):,} MISSING")
        if self.beyond:
            found.append(f"{sum(self.beyond.values()):,} stored BEYOND the end of the log")
        return ", ".join(found if len(found) > 1 else [*found, "all accounted for"])

    def places(self) -> list[str]:
        """Where something is wrong that was not known, a line each."""
        return [
            *(f"lost to retention: {stretch}" for stretch in self.lost),
            *(f"missing: {stretch}" for stretch in self.missing),
            *(f"beyond the end: {topic}/{number} by {count:,}" for (topic, number), count in self.beyond.items()),
        ]


@dataclass
class Expected:
    """Up to which offset everything of a partition has to be stored, worked out from commits alone.

    What was committed is only expected once the dead letters sent up to then are stored, so what is asked for at one
    look may be certain at a later one.
    """

    certain: Mapping[Place, int] = field(default_factory=dict)
    _asked: Mapping[Place, int] = field(default_factory=dict)
    _letters: int = 0

    def look(self, committed: Mapping[Place, int], letters_end: int, letters_stored: int) -> None:
        """Take in what both workers committed, the end of the dead letters after it, and how many are stored."""
        if letters_stored >= self._letters:
            self.certain, self._asked, self._letters = self._asked, committed, letters_end
        if letters_stored >= letters_end:
            self.certain = committed


class Reconciler:
    """Holds the ledger against the brokers' offsets; ``judge`` is the group of the worker that writes dead letters.

    It asks in an order in which nothing can look missing that is not: commits before the ledger, ends of logs after it.
    """

    def __init__(self, client: Client, meter: LagMeter, feeds: Mapping[str, Feed], judge: str) -> None:
        self._client = client
        self._meter = meter
        self._feeds = list(feeds)
        self._topics = list(feed_topics(*feeds.values()))
        self._judge = judge
        self._expected = Expected()
        self._unsettled: dict[Place, Sequence[range]] = {}
        self._looks = 0

    def accounts(self) -> list[Account]:
        """The whole account of each feed; it counts all rows there are."""
        before = self._look()
        books = read(self._client, self._feeds)
        return balance(books, self._feeds, self._with_ends(before))

    def check(self) -> Check:
        """What did not arrive.

        Most times it looks only where not all was there the time before; not so after one that failed, for the server
        may have lost what it had.
        """
        unsettled_then, self._unsettled = self._unsettled, {}
        if self._looks % WHOLE_EVERY == 0:
            unsettled_then = {}
        before = self._look()
        seen = arrived(self._client, {_place(p): unsettled_then.get(_place(p), [EVERYWHERE]) for p in before})
        found = {_place(p): (p, absent(seen, p)) for p in self._with_ends(before)}
        self._unsettled = {place: unsettled(one, p.end) for place, (p, one) in found.items()}
        self._looks += 1
        gone = [one for _, one in found.values()]
        return Check(
            published=sum(p.end for p, _ in found.values()),
            on_its_way=sum(len(s) for one in gone for s in one.on_its_way),
            lost=[s for one in gone for s in one.lost],
            missing=[s for one in gone for s in one.missing],
            beyond={place: one.beyond for place, (_, one) in found.items() if one.beyond},
        )

    def _look(self) -> list[PartitionLag]:
        """Each partition, as committed the offset below which everything has to be stored."""
        judged = {_place(p): p.committed for p in self._measure(self._judge, self._topics)}
        letters = self._measure(GROUP, [deadletters.TOPIC])
        log = self._measure(GROUP, self._topics)
        committed = {_place(p): min(p.committed, judged.get(_place(p), 0)) for p in log}
        self._expected.look(committed, sum(p.end for p in letters), sum(p.committed for p in letters))
        return [replace(p, committed=self._expected.certain.get(_place(p), 0)) for p in log]

    def _with_ends(self, before: Sequence[PartitionLag]) -> list[PartitionLag]:
        """The same partitions, as far as their logs reach now."""
        ends = {_place(p): p.end for p in self._measure(GROUP, self._topics)}
        return [replace(p, end=ends.get(_place(p), p.end)) for p in before]

    def _measure(self, group: str, topics: Sequence[str]) -> list[PartitionLag]:
        return by_feed_partition(self._meter.measure(group, topics, waiting=False))


def _place(one: PartitionLag) -> Place:
    return one.topic, one.partition

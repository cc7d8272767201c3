"""Generations: the topics a feed had and has, one after the other, when it outgrew the partitions of the one before.

A topic keeps its number of partitions, because a key moves when it changes. A feed that needs more goes on on a next
topic, with its name and the number of its first partition: ``traffic_flow``, then ``traffic_flow.from4``. ClickHouse
numbers partitions through all topics of a feed, so rows and parts of all generations live side by side in its tables.

Each event is counted into the stream's windows by one generation at most. An outgrown topic counts what arrived before
its publishers were stopped, the next one what happened later than anything that could have arrived by then. What
comes by a topic that does not count it is late for every window: the views count it, from the raw rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

import polars as pl

from schemas.before import Definition
from schemas.feed import MOST_PARTITIONS, Feed, milliseconds
from schemas.verdict import instant_ms
from streams.lag import Observation, PartitionLag

_LATER = re.compile(r"([a-z0-9_]+)\.from([1-9][0-9]{0,4})")


@dataclass(frozen=True)
class Generation:
    """One topic of a feed.

    ``first`` is the number of its first partition. It counts events that happened at ``after`` or later and arrived
    before ``until``, both in ms; None is no bound.
    """

    feed: Feed
    first: int
    partitions: int
    after: int | None
    until: int | None

    @property
    def topic(self) -> str:
        """The topic's name."""
        return f"{self.feed.name}.from{self.first}" if self.first else self.feed.name

    @property
    def end(self) -> int:
        """The number behind its last partition."""
        return self.first + self.partitions

    @property
    def beyond(self) -> int | None:
        """The event time (ms) that nothing it counts reaches: verdicts allow one to be so far after its arrival."""
        return None if self.until is None else self.until + milliseconds(self.feed.allowance)

    @property
    def records(self) -> Definition:
        """Fingerprint of what decides which of its records are valid, and which of them it counts."""
        later = [] if self.after is None else [self.partitions, self.after]
        ended = [] if self.until is None else [self.until]
        return Definition("/".join(map(str, [self.feed.records, *later, *ended])), self.feed)

    @property
    def definition(self) -> Definition:
        """Fingerprints of everything that what comes of it depends on, as those of a feed."""
        return Definition(".".join([self.records, *self.feed.fingerprints]), self.feed)

    @property
    def counts(self) -> pl.Expr | None:
        """Whether it counts a valid row, which has ``_arrived`` (ms); None if it counts all."""
        bounds = []
        if self.after is not None:
            bounds.append(pl.col(self.feed.event_time) >= self.after)
        if self.until is not None:
            bounds.append(pl.col("_arrived") < self.until)
        return pl.all_horizontal(bounds) if bounds else None


def generations(feed: Feed) -> list[Generation]:
    """The topics of a feed, oldest first; publishers write to the last."""
    found: list[Generation] = []
    first, after = 0, None
    for topic in feed.outgrown:
        found.append(Generation(feed, first, topic.partitions, after, instant_ms(topic.until)))
        first, after = found[-1].end, found[-1].beyond
    return [*found, Generation(feed, first, feed.partitions, after, None)]


def sources(feeds: Iterable[Feed]) -> dict[str, Generation]:
    """Every topic of these feeds."""
    return {generation.topic: generation for feed in feeds for generation in generations(feed)}


def source_definitions(feeds: Iterable[Feed]) -> dict[str, str]:
    """The definition by which each of these topics is counted."""
    return {topic: generation.definition for topic, generation in sources(feeds).items()}


def holding(feed: Feed, number: int) -> Generation:
    """The generation that a partition's number belongs to."""
    return next(generation for generation in generations(feed) if number < generation.end)


def source(topic: str, partition: int) -> tuple[str, int]:
    """The feed and the number that a partition of a topic has in ClickHouse; what is no feed's stands for itself."""
    later = _LATER.fullmatch(topic)
    if later is None or int(later[2]) + partition >= MOST_PARTITIONS:
        return topic, partition
    return later[1], int(later[2]) + partition


def by_feed(seen: Observation) -> Observation:
    """The same, with all topics of a feed as one."""
    unknown = [replace(one, topic=source(one.topic, 0)[0]) for one in seen.unknown]
    return Observation(numbered(seen.partitions), unknown)


def numbered(log: Iterable[PartitionLag]) -> list[PartitionLag]:
    """The same under feeds and numbers."""
    return [replace(p, topic=name, partition=number) for p in log for name, number in [source(p.topic, p.partition)]]

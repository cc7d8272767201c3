"""The topics a feed had and has, one after the other, when it outgrew the partitions of the one before.

A topic keeps its number of partitions, because a key moves when it changes. A feed that needs more goes on on a next
topic, with its name and the number of its first partition: ``traffic_flow``, then ``traffic_flow.from4``. ClickHouse
numbers partitions through all topics of a feed, so rows and parts of all of them live side by side in its tables.

Each event is counted into the stream's windows by one topic at most. An outgrown topic counts what arrived before
its publishers were stopped, the next one what happened later than anything that could have arrived by then. What
comes by a topic that does not count it is late for every window: the views count it, from the raw rows.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

import polars as pl

from schemas.before import Definition
from schemas.feed import MOST_PARTITIONS, Feed, milliseconds
from schemas.verdict import instant_ms

_LATER = re.compile(r"([a-z0-9_]+)\.from([1-9][0-9]{0,4})")


@dataclass(frozen=True)
class FeedTopic:
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
    def name(self) -> str:
        """Its name."""
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
    def record_definition(self) -> Definition:
        """Fingerprint of what decides which of its records are valid, and which of them it counts."""
        later = [] if self.after is None else [self.partitions, self.after]
        ended = [] if self.until is None else [self.until]
        return Definition("/".join(map(str, [self.feed.record_definition, *later, *ended])), self.feed)

    @property
    def definition(self) -> Definition:
        """Fingerprints of everything that what comes of it depends on, as those of a feed."""
        return Definition(".".join([self.record_definition, *self.feed.fingerprints]), self.feed)

    @property
    def counts(self) -> pl.Expr | None:
        """Whether it counts a valid row, which has ``_arrived`` (ms); None if it counts all."""
        bounds = []
        if self.after is not None:
            bounds.append(pl.col(self.feed.event_time) >= self.after)
        if self.until is not None:
            bounds.append(pl.col("_arrived") < self.until)
        return pl.all_horizontal(bounds) if bounds else None


class FeedPartition(NamedTuple):
    """A partition by its feed, and its number among those of all topics the feed had: as ClickHouse has it."""

    feed: str
    number: int

    @classmethod
    def of(cls, topic: str, partition: int) -> FeedPartition:
        """That of a topic's partition; what is no feed's stands for itself."""
        later = _LATER.fullmatch(topic)
        if later is None or int(later[2]) + partition >= MOST_PARTITIONS:
            return cls(topic, partition)
        return cls(later[1], int(later[2]) + partition)


def feed_topics(*feeds: Feed) -> dict[str, FeedTopic]:
    """The topics of these feeds by name, those of a feed from the oldest one on; publishers write to its last."""
    found: dict[str, FeedTopic] = {}
    for feed in feeds:
        first, after = 0, None
        for outgrown in feed.outgrown:
            topic = FeedTopic(feed, first, outgrown.partitions, after, instant_ms(outgrown.until))
            found[topic.name] = topic
            first, after = topic.end, topic.beyond
        last = FeedTopic(feed, first, feed.partitions, after, None)
        found[last.name] = last
    return found


def feed_definitions(*feeds: Feed) -> dict[str, str]:
    """The definition by which each of these topics is counted."""
    return {name: topic.definition for name, topic in feed_topics(*feeds).items()}


def record_definitions(*feeds: Feed) -> dict[str, str]:
    """The definition by which the records of each of these topics are judged."""
    return {name: topic.record_definition for name, topic in feed_topics(*feeds).items()}


def topic_of(feed: Feed, number: int) -> FeedTopic:
    """The topic that the partition of a number is in."""
    return next(topic for topic in feed_topics(feed).values() if number < topic.end)

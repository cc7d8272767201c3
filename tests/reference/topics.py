"""The topics of a feed, one after the other, from its declaration alone.

``feed``, then ``feed.from4`` once it has outgrown 4 partitions. Partitions are numbered through all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from schemas.feed import Feed
from tests.reference.partition import MILLISECOND, ahead_ms


@dataclass(frozen=True)
class Topic:
    """A topic with the numbers of its partitions, and what it counts.

    That is what happened at ``after_ms`` or later and arrived before ``until_ms``; None is no bound.
    """

    name: str
    numbers: range
    after_ms: int | None
    until_ms: int | None

    def counts(self, event_ms: int, arrived_ms: int) -> bool:
        """Whether it counts an event that came by it."""
        happened_before = self.after_ms is not None and event_ms < self.after_ms
        arrived_after = self.until_ms is not None and arrived_ms >= self.until_ms
        return not (happened_before or arrived_after)


def topics(feed: Feed) -> Iterator[Topic]:
    """All topics, the oldest first.

    What comes by an outgrown topic before its end can be dated as far ahead as the feed allows. The next topic leaves
    everything of that age to it.
    """
    first, after_ms = 0, None
    for old in feed.outgrown:
        until_ms = (old.until - datetime(1970, 1, 1, tzinfo=UTC)) // MILLISECOND
        yield Topic(_name(feed, first), range(first, first + old.partitions), after_ms, until_ms)
        first, after_ms = first + old.partitions, until_ms + ahead_ms(feed)
    yield Topic(_name(feed, first), range(first, first + feed.partitions), after_ms, None)


def _name(feed: Feed, first: int) -> str:
    return f"{feed.name}.from{first}" if first else feed.name

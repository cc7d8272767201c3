"""Topics on which the final windows of a group come together that lie in several partitions of a feed.

Rules on such windows need all parts of one in one place. So each partition sends the parts that are final to the
partition of their group, and to all of them how far its event time has come.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from schemas.feed import Aggregate, Feed
from streams.feed_topics import feed_definitions


@dataclass(frozen=True)
class GatheredTopic:
    """The topic of one aggregate's groups."""

    feed: Feed
    aggregate: Aggregate

    @property
    def name(self) -> str:
        """Its name."""
        return f"{self.aggregate.topic}.groups"

    @property
    def partitions(self) -> int:
        """How many there are: as many as the feed began with."""
        return [*(topic.partitions for topic in self.feed.outgrown), self.feed.partitions][0]

    @property
    def definition(self) -> str:
        """What the windows on it depend on."""
        return f"{self.feed.record_definition}.{self.feed.fingerprint(self.aggregate)}"

    def partition_of(self, group: Sequence[str | int | None]) -> int:
        """Where the windows of a group come together: a function of the group alone, for ever."""
        return zlib.crc32("\n".join(map(str, group)).encode()) % self.partitions


def gathered_topics(*feeds: Feed) -> dict[str, GatheredTopic]:
    """Those that the rules of these feeds need, by name."""
    topics = [GatheredTopic(feed, one) for feed in feeds for one in feed.aggregates if feed.gathers(one)]
    return {topic.name: topic for topic in topics}


def processed_definitions(*feeds: Feed) -> dict[str, str]:
    """The definition by which a processor works on each topic that it reads."""
    gathered = {name: topic.definition for name, topic in gathered_topics(*feeds).items()}
    return {**feed_definitions(*feeds), **gathered}

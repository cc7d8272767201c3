"""What a sink reads."""

from __future__ import annotations

from collections.abc import Iterable

from schemas.feed import Feed
from streams import deadletters
from streams.feed_topics import record_definitions


def definitions(feeds: Iterable[Feed]) -> dict[str, str]:
    """The topics a sink reads for these feeds, each with the fingerprint of how its records become rows."""
    found = {deadletters.TOPIC: "1"}
    for feed in feeds:
        found |= record_definitions(feed)
        found |= {aggregate.topic: feed.fingerprint(aggregate) for aggregate in feed.aggregates}
    return found

"""What the rows of each topic depend on: a sink goes on from a position of the same definition only."""

from __future__ import annotations

from collections.abc import Iterable

from schemas.feed import Feed
from streams import deadletters
from streams.generations import generations


def definitions(feeds: Iterable[Feed]) -> dict[str, str]:
    """The topics a sink reads for these feeds, each with the fingerprint of how its records become rows."""
    found = {deadletters.TOPIC: "1"}
    for feed in feeds:
        found |= {generation.topic: generation.records for generation in generations(feed)}
        found |= {aggregate.topic: feed.fingerprint(aggregate) for aggregate in feed.aggregates}
    return found

"""Records made of a declaration alone are valid, in order, and the same each time."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import islice

import pytest

import feeds
from schemas.feed import Feed
from schemas.pseudonyms import replaced
from schemas.verdict import instant_ms, problems
from simulation import plausible, simulator
from simulation.world import World
from tests.reference import toy

START = datetime(2026, 1, 5, tzinfo=UTC)
FEEDS = [*feeds.load().values(), toy.FEED]


@pytest.mark.parametrize("feed", FEEDS, ids=lambda feed: feed.name)
def test_any_feed_can_be_simulated_from_its_declaration(feed: Feed) -> None:
    made = list(islice(plausible.records(feed, World(START, 1)), 300))
    assert made == list(islice(plausible.records(feed, World(START, 1)), 300))
    times = [getattr(record, feed.event_time) for record in made]
    assert times == sorted(times)
    assert times[0] >= START
    for record, at in zip(made, times, strict=True):
        value = replaced(feed, b"k" * 32, record.model_dump())
        assert problems(feed, value, str(value[feed.key]).encode(), instant_ms(at)) == []


def test_a_domain_with_simulators_of_its_own_is_simulated_by_them() -> None:
    own = [feed.name for feed in FEEDS if getattr(simulator(feed), "func", None) is not plausible.records]
    assert own == [name for name, feed in feeds.load().items() if feed.is_source]

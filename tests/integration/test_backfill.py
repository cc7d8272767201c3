"""A topic read again from its beginning, into an empty ClickHouse, gives the tables that live processing gave."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from citystream.settings import PROJECT
from tests.city import START, City, Snapshot, own_city

pytestmark = pytest.mark.integration

SPAN = timedelta(minutes=8)


def of_published(city: City, found: Snapshot) -> Snapshot:
    """Without what workers write as records of feeds: they write it again, and it is stored where it then lies."""
    written = [feed for feed in city.installation.feeds.values() if feed.by_workers]
    names = {name for feed in written for name in (feed.name, *(aggregate.topic for aggregate in feed.aggregates))}
    return {
        name: [row for row in rows if str(getattr(row[0], "feed", row[0])) not in names]
        for name, rows in found.items()
        if name.removeprefix("raw.") not in names
    }


def test_backfill_equals_live(tmp_path: Path) -> None:
    """All simulator faults; what each flush wrote of a window differs, and what is left of it does not."""
    with own_city(tmp_path, PROJECT) as city:
        for number in range(3):
            for name, feed in city.installation.feeds.items():
                if not feed.by_workers:
                    city.publish([name], START + number * SPAN, number, 3_000)
            city.drain()
        live, live_parts = (of_published(city, found) for found in (city.snapshot(), city.parts()))
        again, again_parts = (of_published(city, found) for found in (city.undisturbed(), city.parts()))

    assert all(live.values())
    assert all(live_parts.values())
    for name, rows in (again | again_parts).items():
        assert (live | live_parts)[name] == rows, f"{name} differs"

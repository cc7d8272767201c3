"""A topic read again from its beginning, into an empty ClickHouse, gives the tables that live processing gave."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from citystream.settings import PROJECT
from tests.city import START, own_city

pytestmark = pytest.mark.integration

SPAN = timedelta(minutes=8)


def test_backfill_equals_live(tmp_path: Path) -> None:
    """All simulator faults; what each flush wrote of a window differs, and what is left of it does not."""
    with own_city(tmp_path, PROJECT) as city:
        for number in range(3):
            for name in city.feeds:
                city.publish([name], START + number * SPAN, number, 3_000)
            city.drain()
        live, live_parts = city.snapshot(), city.parts()
        again, again_parts = city.undisturbed(), city.parts()

    assert all(live.values())
    assert all(live_parts.values())
    for name, rows in (again | again_parts).items():
        assert (live | live_parts)[name] == rows, f"{name} differs"

"""New fields in ClickHouse: the table gets their columns, and whichever sink stored a row, its values are there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock, MagicMock
from zoneinfo import ZoneInfo

import pytest
from faust.types import TP

from citystream.installation import Installation
from citystream.settings import Settings
from schemas.feed import Feed
from sinks.clickhouse import Refused, Writer
from sinks.lanes import FeedLane
from sinks.migrate import migrate
from sinks.worker import Sink
from streams.batchworker import Held
from streams.generations import generations
from streams.positions import Position
from tests.reference.batches import batch, run
from tests.reference.newer import BOTH, NEW, NEWER, newer
from tests.reference.toy import FEED, NOON, event_id, instant, value

pytestmark = pytest.mark.integration

ZONE = "Asia/Shanghai"
#: Today, or the rows would be too old to be kept.
ARRIVED_MS = time.time_ns() // 1_000_000
COLUMNS = [name for name in NEW if name != "home"] + ["home_longitude", "home_latitude"]
FULL: dict[str, Any] = {
    "size": 9, "speed": 0.1 + 0.2, "tag": "it's\"湖", "seen_at": instant(NOON + 1), "made": date(2024, 2, 29),
    "lit": True, "home": {"longitude": 120.1, "latitude": -30.2}, "doors": 0, "colour": "", "temper": "angry",
    "heated": False,
}  # fmt: skip
VALUES = (
    9, 0.1 + 0.2, "it's\"湖", FULL["seen_at"].astimezone(ZoneInfo(ZONE)), date(2024, 2, 29), True, 0, "", "angry",
    False, 120.1, -30.2,
)  # fmt: skip
DEFAULTS = (None, None, None, None, None, None, 4, "it's red", "unknown", True, None, None)


@pytest.fixture
def city(settings: Settings, connect: Callable[[str], Any]) -> Iterator[Installation]:
    """A ClickHouse with the tables of the older declaration."""
    found = Installation(settings)
    declare(found, FEED)
    yield found
    owner = connect("owner")
    for table in ("city.toy", "city.toy_conflicts", "raw.toy_ledger", "raw.toy"):
        owner.execute(f"DROP TABLE {table} SYNC")


def declare(city: Installation, feed: Feed) -> None:
    """What ``citystream init`` does with a declaration."""
    migrate(city.server("owner"), [replace(feed, aggregates=())], ZONE, print)


def store(city: Installation, feed: Feed, base: int, *values: bytes) -> None:
    """Let a sink with this declaration store records from an offset on, one run each, in one block."""
    tp = TP("toy", 0)
    start = Position(base, base, 0, "", "")
    consumer = SimpleNamespace(resumed={tp: start}, flushed={}, assignment=lambda: {tp})
    app: Any = MagicMock(batch_consumer=consumer, unchanged=AsyncMock())
    sink = Sink(
        app, [FeedLane(generations(replace(feed, aggregates=()))[0], BOTH, ZONE)], Writer(city.server("sink"), print)
    )
    held = Held(start, sink.begin(tp, start))
    for offset, content in enumerate(values, base):
        sink.take(held.state, run(batch([(b"d-1", content, [])], offset, arrived_ms=ARRIVED_MS)))
    asyncio.run(sink.flush({tp: held}))


def test_whichever_sink_stored_a_row_its_values_are_there(city: Installation, connect: Callable[[str], Any]) -> None:
    def of(number: int) -> dict[str, str]:
        return {"event_id": event_id(number)}

    store(city, FEED, 0, value(**of(0)), newer(**of(1)), newer(**of(2), **FULL))
    declare(city, NEWER)
    store(city, FEED, 3, newer(**of(3), **FULL), value(**of(4)), newer(**of(5)))
    store(city, NEWER, 6, value(**of(6)), newer(**of(7)), newer(**of(8), **FULL))

    store(city, FEED, 9, value(**of(9)), newer(**of(10), **FULL))

    reader = connect("operator")
    asked = f"SELECT {', '.join(COLUMNS)} FROM city.toy ORDER BY event_id"
    plain = DEFAULTS
    expected = [plain, plain, VALUES, VALUES, plain, plain, plain, plain, VALUES, plain, VALUES]
    assert reader.execute(asked) == expected
    connect("owner").execute("OPTIMIZE TABLE raw.toy FINAL")
    assert reader.execute(asked) == expected


def test_a_table_grows_into_what_it_would_be_made_as(city: Installation, connect: Callable[[str], Any]) -> None:
    owner = connect("owner")

    def table() -> Any:
        return owner.execute(
            "SELECT name, type, default_kind, default_expression, comment FROM system.columns "
            "WHERE database = 'raw' AND table = 'toy' ORDER BY position"
        )

    before = table()
    declare(city, NEWER)
    grown = table()
    declare(city, NEWER)
    assert table() == grown
    for name in ("raw.toy_ledger", "raw.toy"):
        owner.execute(f"DROP TABLE {name} SYNC")
    declare(city, NEWER)
    assert table() == grown
    assert len(grown) == len(before) + len(COLUMNS)


def test_a_sink_whose_table_lacks_a_column_says_what_to_run(city: Installation) -> None:
    with pytest.raises(
        Refused, match=r"^ClickHouse refuses rows for raw\.toy, .* column .*size.*; run: citystream init"
    ):
        store(city, NEWER, 0, newer(**FULL))

"""New fields in ClickHouse: the table gets their columns, and whichever sink stored a row, its values are there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import date
from typing import Annotated, Any
from zoneinfo import ZoneInfo

import pytest
from clickhouse_driver.errors import ServerException
from pydantic import Field

from citystream.installation import Installation
from citystream.settings import Settings
from schemas.avro import feed_schema
from schemas.catalogue import Catalogue, FrozenSchema
from schemas.feed import Feed, Latest
from schemas.fields import Coarse, Location, Personal, Text
from schemas.pseudonyms import pseudonym
from schemas.record_codec import encode
from sinks.dialect import Dialect
from sinks.migrate import migrate
from sinks.quarantine import Quarantine, reader_of
from sinks.topic_rows import FeedReader
from sinks.views import masked_view
from sinks.worker import Sink
from sinks.writer import Refused, Writer
from streams.assignment import TopicPartition
from streams.feed_topics import topic_of
from streams.positions import Position
from tests.reference.batches import batch, run
from tests.reference.newer import BOTH, NEW, NEWER, newer
from tests.reference.toy import FEED, NOON, Toy, event_id, instant, record, value
from tests.transport import Here, begun

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


class Unknown(Toy):
    """A toy whose level may be unknown."""

    level: Annotated[int | None, Field(ge=-1000, le=100_000, description="Level")]  # type: ignore[assignment]


class Whose(Toy):
    """A toy of somebody, who lives where it is."""

    owner: Annotated[Text, Field(description="Whose it is"), Personal()]
    place: Annotated[Location, Coarse(decimals=2)]


UNKNOWN, WHOSE = replace(FEED, record=Unknown), replace(FEED, record=Whose, latest=Latest())
UNKNOWN_SCHEMA, WHOSE_SCHEMA = (
    FrozenSchema(max(BOTH.by_id) + number, "toy", 2 + number, feed_schema(feed))
    for number, feed in enumerate((UNKNOWN, WHOSE), 1)
)
ALL = Catalogue({**BOTH.by_id, **{frozen.id: frozen for frozen in (UNKNOWN_SCHEMA, WHOSE_SCHEMA)}})


@pytest.fixture
def city(settings: Settings, connect: Callable[[str], Any]) -> Iterator[Installation]:
    """A ClickHouse with the tables of the older declaration."""
    found = Installation(settings)
    declare(found, FEED)
    yield found
    owner = connect("owner")
    for table in ("city.toy", "city.toy_now", "city.toy_at", "city.toy_conflicts", "raw.toy_ledger", "raw.toy"):
        owner.execute(f"DROP TABLE IF EXISTS {table} SYNC")


def declare(city: Installation, feed: Feed) -> None:
    """What ``citystream init`` does with a declaration."""
    migrate(city.server("owner"), [replace(feed, aggregates=())], [], [], Dialect(ZONE), print)


def store(city: Installation, feed: Feed, base: int, *values: bytes) -> None:
    """Let a sink with this declaration store records from an offset on, one run each, in one block."""
    reader = FeedReader(topic_of(replace(feed, aggregates=()), 0), ALL, ZONE)
    sink = Sink(Here(), [reader], Writer(city.server("sink"), print))
    one = begun(sink, TopicPartition("toy", 0), Position(base, base, 0, "", ""))
    for offset, content in enumerate(values, base):
        came = run(batch([(b"d-1", content, [])], offset, arrived_ms=ARRIVED_MS))
        sink._read_and_take([(one.state, came)])
    asyncio.run(sink.flush([one]))


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


def test_null_is_stored_where_a_field_may_be_null_from_now_on_and_refused_before_the_table_can(
    city: Installation, connect: Callable[[str], Any]
) -> None:
    def unknown(number: int, level: int | None) -> bytes:
        return encode(UNKNOWN_SCHEMA, record(event_id=event_id(number), level=level))

    store(city, FEED, 0, value(event_id=event_id(0), level=4))
    with pytest.raises(Refused, match=r"^ClickHouse refuses rows for raw\.toy, .*; run: citystream init"):
        store(city, UNKNOWN, 1, unknown(1, None))
    declare(city, UNKNOWN)
    store(city, UNKNOWN, 1, unknown(1, None), unknown(2, 5), value(event_id=event_id(3), level=6))
    asked = "SELECT level FROM city.toy ORDER BY event_id"
    assert connect("analyst").execute(asked) == [(4,), (None,), (5,), (6,)]
    connect("owner").execute("OPTIMIZE TABLE raw.toy FINAL")
    declare(city, UNKNOWN)
    assert connect("analyst").execute(asked) == [(4,), (None,), (5,), (6,)]


def test_analysts_see_a_place_beside_a_person_as_coarse_as_declared(
    city: Installation, connect: Callable[[str], Any]
) -> None:
    declare(city, WHOSE)
    exact = {"longitude": 120.128866, "latitude": 30.246282}
    whose = record(place=exact) | {"owner": pseudonym(b"k", "Li Wei")}
    store(city, WHOSE, 0, encode(WHOSE_SCHEMA, whose))
    asked = "SELECT place_longitude, place_latitude FROM {}"
    for view in ("city.toy", "city.toy_now", "city.toy_at(t=now())"):
        for user in ("analyst", "operator"):
            assert connect(user).execute(asked.format(view)) == [(120.13, 30.25)]
        assert connect("analyst").execute(f"SELECT count() FROM {view} WHERE place_longitude = 120.128866") == [(0,)]
    assert connect("operator").execute(asked.format("raw.toy")) == [tuple(exact.values())]


def test_bytes_that_may_name_a_person_are_masked_for_all_but_the_owner(
    city: Installation, connect: Callable[[str], Any]
) -> None:
    declare(city, WHOSE)
    named, bytes_ = b"Wensan Road 17".hex(), "SELECT topic, key, value FROM {} ORDER BY topic"
    columns = "topic, source_partition, source_offset, last_offset, stage, cause, key, value, published_at, arrived_at"
    connect("owner").execute("TRUNCATE TABLE raw.quarantine")
    for topic in ("dead_letters", "gone", "open", "toy"):
        connect("sink").execute(
            f"INSERT INTO raw.quarantine ({columns}) VALUES",
            [(topic, 0, 0, 0, "VALIDATE", "owner: is no pseudonym", named, named, instant(NOON), instant(NOON))],
        )
    masked = [(topic, None, None) for topic in ("dead_letters", "gone", "open", "toy")]
    open_feed = replace(FEED, name="open", aggregates=())
    connect("owner").execute(masked_view([WHOSE, open_feed], Dialect(ZONE)))
    shown = [*masked[:2], ("open", named, named), masked[3]]
    assert connect("operator").execute(bytes_.format("raw.quarantine_masked")) == shown
    assert connect("owner").execute(bytes_.format("raw.quarantine")) == [(t, named, named) for t, *_ in masked]
    for user in ("operator", "sink", "analyst"):
        for asked in (
            bytes_.format("raw.quarantine"),
            "SELECT * FROM raw.quarantine",
            "SELECT count() FROM raw.quarantine WHERE value LIKE '57%'",
        ):
            with pytest.raises(ServerException, match="Not enough privileges"):
                connect(user).execute(asked)
    assert connect("operator").execute("SELECT count() FROM raw.quarantine FINAL") == [(4,)]

    for user, found in (("operator", None), ("owner", b"Wensan Road 17")):
        with closing(Quarantine(city.server(user))) as letters:
            assert [one.value for one in letters.letters("toy", 0, [0])] == [found]
    assert [reader_of([feed]) for feed in (WHOSE, open_feed)] == ["owner", "operator"]
    connect("owner").execute("TRUNCATE TABLE raw.quarantine")

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Any
from zoneinfo import ZoneInfo

import pytest

import feeds
from citystream.settings import Settings
from schemas.catalogue import Catalogue, FrozenSchema
from schemas.feed import Aggregate, Feed
from schemas.fields import Record
from schemas.record_codec import encode
from simulation import simulator
from simulation.incidents import USUAL
from simulation.world import World

pytestmark = pytest.mark.integration

CATALOGUE = Catalogue.load()


@pytest.mark.parametrize("feed", feeds.load().values(), ids=lambda feed: feed.name)
def test_clickhouse_reads_our_records(settings: Settings, connect: Callable[[str], Any], feed: Feed) -> None:
    records = simulated(feed, 200)
    frozen = CATALOGUE.latest(feed.name)
    read = Reader(settings, connect("owner"))
    rows, columns = read([encode(frozen, record) for record in records])
    assert columns == [field.name for field in feed.fields]
    there = [n for n, record in enumerate(records) if record.place is not None]
    assert [rows[n] for n in there] == [values(records[n]) for n in there]


@pytest.mark.parametrize("feed", feeds.load().values(), ids=lambda feed: feed.name)
def test_clickhouse_reads_a_place_that_is_null(settings: Settings, connect: Callable[[str], Any], feed: Feed) -> None:
    """As nulls into a tuple that can hold them; by itself it takes the default, which is a place in the ocean."""
    there, nowhere = simulated(feed, 2)
    nowhere = nowhere.model_copy(update={"place": None})
    read = Reader(settings, connect("owner"))
    bodies = [encode(CATALOGUE.latest(feed.name), record) for record in (there, nowhere)]
    known = (there.place.longitude, there.place.latitude)
    nullable = "place Tuple(longitude Nullable(Float64), latitude Nullable(Float64))"
    assert read(bodies, structure=nullable)[0] == [(known,), ((None, None),)]
    as_a_whole = "place Nullable(Tuple(longitude Float64, latitude Float64))"
    assert read(bodies, "place IS NULL", as_a_whole, enable_nullable_tuple_type=1)[0] == [(0,), (1,)]
    assert read(bodies, "place")[0] == [(known,), ((0.0, 0.0),)]


@pytest.mark.parametrize(
    "aggregate", [a for feed in feeds.load().values() for a in feed.aggregates], ids=lambda aggregate: aggregate.name
)
def test_clickhouse_reads_parts_of_windows(
    settings: Settings, connect: Callable[[str], Any], aggregate: Aggregate
) -> None:
    frozen = CATALOGUE.latest(aggregate.topic)
    parts = [part(frozen, watermark=None), part(frozen, watermark=2**62)]
    rows, columns = Reader(settings, connect("owner"))([encode(frozen, one) for one in parts])
    assert columns == list(parts[0])
    assert rows == [tuple(STARTS if name == "window_start" else v for name, v in one.items()) for one in parts]


#: The driver shows instants of columns without a zone in the server's, the city's.
ZONE = ZoneInfo(Settings.model_fields["timezone"].default)
STARTS = datetime(2026, 1, 5, 8, 15)  # noqa: DTZ001


def part(frozen: FrozenSchema, watermark: int | None) -> dict[str, Any]:
    """A part with a value of its own in each column; what may be null is, where the watermark is."""
    found: dict[str, Any] = {}
    for number, field in enumerate(frozen.schema["fields"]):
        match field["type"]:
            case "string":
                found[field["name"]] = f"key-{number}"
            case ["null", "string"]:
                found[field["name"]] = None if watermark is None else f"key-{number}"
            case {"type": "array"}:
                found[field["name"]] = [-1, number]
            case {"logicalType": _}:
                found[field["name"]] = int(STARTS.replace(tzinfo=ZONE).timestamp() * 1000)
            case ["null", _]:
                found[field["name"]] = None if watermark is None else watermark + number
            case _:
                found[field["name"]] = number
    return found


@dataclass(frozen=True)
class Reader:
    """ClickHouse reading records through the registry."""

    settings: Settings
    client: Any

    def __call__(
        self, bodies: Iterable[bytes], select: str = "*", structure: str = "", **settings: Any
    ) -> tuple[list[tuple[Any, ...]], list[str]]:
        """Rows and the names of their columns; with ``structure`` into these columns, else into those it infers."""
        escaped = "".join(f"\\x{byte:02x}" for body in bodies for byte in body)
        declared = f"'{structure}', " if structure else ""
        rows, columns = self.client.execute(
            f"SELECT {select} FROM format(AvroConfluent, {declared}'{escaped}')",
            with_column_types=True,
            settings={
                "format_avro_schema_registry_url": f"http://127.0.0.1:{self.settings.registry_port}",
                **settings,
            },
        )
        return rows, [name for name, _ in columns]


def simulated(feed: Feed, count: int) -> list[Any]:
    """Records of a feed."""
    return list(itertools.islice(simulator(feed)(World(datetime(2026, 1, 5, tzinfo=UTC), 1, USUAL)), count))


def values(record: Record) -> tuple[Any, ...]:
    """A record as the driver gives its row."""
    return tuple(plain(value) for value in record.model_dump().values())


def plain(value: Any) -> Any:
    match value:
        case Enum():
            return value.value
        case datetime():
            return value.astimezone(ZONE).replace(tzinfo=None)
        case dict():
            return tuple(value.values())
        case _:
            return value

import itertools
from collections.abc import Callable
from datetime import UTC, datetime
from enum import Enum
from random import Random
from typing import Any

import pytest

import feeds
from citystream.settings import Settings
from schemas.catalogue import Catalogue
from schemas.feed import Feed
from schemas.fields import Record
from schemas.rowcodec import encode

pytestmark = pytest.mark.integration

CATALOGUE = Catalogue.load()


@pytest.mark.parametrize("feed", feeds.load().values(), ids=lambda feed: feed.name)
def test_clickhouse_reads_our_records(settings: Settings, connect: Callable[[str], Any], feed: Feed) -> None:
    records = list(itertools.islice(feed.simulate(datetime(2026, 1, 5, tzinfo=UTC), Random(1)), 200))
    frozen = CATALOGUE.latest(feed.name)
    escaped = "".join(f"\\x{byte:02x}" for record in records for byte in encode(frozen, record))
    rows, columns = connect("owner").execute(
        f"SELECT * FROM format(AvroConfluent, '{escaped}')",
        with_column_types=True,
        settings={
            "format_avro_schema_registry_url": f"http://127.0.0.1:{settings.registry_port}",
            "session_timezone": "UTC",
        },
    )
    assert [name for name, _ in columns] == [field.name for field in feed.fields]
    assert rows == [values(record) for record in records]


def values(record: Record) -> tuple[Any, ...]:
    """A record as the driver gives its row."""
    return tuple(plain(value) for value in record.model_dump().values())


def plain(value: Any) -> Any:
    match value:
        case Enum():
            return value.value
        case datetime():
            return value.astimezone(UTC).replace(tzinfo=None)
        case dict():
            return tuple(value.values())
        case _:
            return value

"""What the sink's writer sends is what ClickHouse has, whatever the texts are."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import polars as pl
import pytest

from citystream.installation import Installation
from citystream.settings import Settings
from sinks.clickhouse import MOST_WORDS, Writer
from sinks.tables import FIRST, TableColumn
from streams.watermark import ASIDE

pytestmark = pytest.mark.integration

ODD = ["a'b", "\\", "\\'", "a\0b", "\n", "湖", "", "\x7f\x01", "--", "/*", "{x:Int}", "%(a)s", "%", "\\x41", "?", "']"]
COLUMNS = [
    TableColumn("text", "String", ""),
    TableColumn("remark", "Nullable(String)", ""),
    TableColumn("number", "Int64", ""),
]


@pytest.fixture
def table(connect: Callable[[str], Any]) -> Any:
    owner = connect("owner")
    owner.execute("CREATE DATABASE IF NOT EXISTS raw")
    owner.execute(
        "CREATE OR REPLACE TABLE raw.texts (text String, remark Nullable(String), number Int64) ENGINE = Memory"
    )
    yield owner
    owner.execute("DROP TABLE raw.texts")


def several(words: list[str], size: int) -> tuple[list[str], list[str | None]]:
    random = Random(1)
    return [random.choice(words) for _ in range(size)], [random.choice([None, *words]) for _ in range(size)]


@pytest.mark.parametrize(
    "words",
    [
        ODD,
        [f"{odd}{n}" for odd in ODD for n in range(MOST_WORDS // len(ODD))],
        [f"w{n}" for n in range(MOST_WORDS * 2)],
    ],
    ids=["few", "as many as fit", "too many"],
)
def test_any_texts_arrive_as_they_are(settings: Settings, table: Any, words: list[str]) -> None:
    texts, remarks = several(words, 4 * len(words))
    rows = pl.DataFrame({"text": texts, "remark": remarks, "number": range(len(texts))})
    Writer(Installation(settings).server("owner"), print).insert("raw.texts", COLUMNS, rows)
    assert table.execute("SELECT text, remark FROM raw.texts ORDER BY number") == list(zip(texts, remarks, strict=True))


def test_of_the_occurrences_of_an_event_the_one_its_topic_counts_stays(connect: Callable[[str], Any]) -> None:
    """Then that of the oldest topic, then the first one: the order in which a feed's table prefers them."""
    places = [(5, 0, 7), (-1, 0, 8), (5, 4, 2), (5, 65535, 2**47 - 1), (ASIDE, 0, 1), (ASIDE, 0, 3), (ASIDE, 4, 0)]
    columns = "'seen_before Int64, source_partition UInt16, source_offset UInt64'"
    rows = ", ".join(map(str, Random(1).sample(places, len(places))))
    assert connect("operator").execute(f"SELECT * FROM values({columns}, {rows}) ORDER BY {FIRST} DESC") == places

"""What the sink's writer sends is what ClickHouse has, whatever the values are."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from random import Random
from typing import Any
from uuid import UUID

import polars as pl
import pytest

from citystream.installation import Installation
from citystream.settings import Settings
from sinks.tables import FIRST, TableColumn
from sinks.writer import Refused, Writer
from streams.watermark import ASIDE
from streams.wire.arrow import FEW_ROWS

pytestmark = pytest.mark.integration

ODD = ["a'b", "\\", "\\'", "a\0b", "\n", "湖", "", "\x7f\x01", "--", "/*", "{x:Int}", "%(a)s", "%", "\\x41", "?", "']"]
#: Bytes about which a length takes another byte, in texts of one byte a letter and of three.
BORDERS = [letter * (size // len(letter.encode())) for letter in "a湖" for size in (2**7 - 2, 2**7, 2**14 - 1, 2**14)]
HOUR = timedelta(hours=1)
#: Type of a column, what the sink's rows have of it, and what the table has then.
KINDS: list[tuple[str, list[list[Any]], list[Any]]] = [
    ("Bool", [[True, False, True]], [True, False, True]),
    ("Nullable(Bool)", [[None, False, True]], [None, False, True]),
    ("Int32", [[-(2**31), 0, 2**31 - 1]], [-(2**31), 0, 2**31 - 1]),
    ("Nullable(Int64)", [[None, -(2**63), 2**63 - 1]], [None, -(2**63), 2**63 - 1]),
    ("UInt16", [[0, 1, 65535]], [0, 1, 65535]),
    ("UInt64", [[0, 1, 2**63 - 1]], [0, 1, 2**63 - 1]),
    ("Float64", [[0.1, 5e-324, float("inf")]], [0.1, 5e-324, float("inf")]),
    ("Nullable(Float64)", [[None, 0.1, -1.5]], [None, 0.1, -1.5]),
    ("Date32", [[-25567, 0, 20000]], [date(1900, 1, 1), date(1970, 1, 1), date(2024, 10, 4)]),
    ("Nullable(Date32)", [[0, None, None]], [date(1970, 1, 1), None, None]),
    (
        "DateTime64(3, 'Asia/Shanghai')",
        [[0, 1, -3_600_000]],
        [datetime.fromtimestamp(0, UTC), datetime.fromtimestamp(0.001, UTC), datetime.fromtimestamp(0, UTC) - HOUR],
    ),
    ("Nullable(DateTime64(3, 'UTC'))", [[None, 0, None]], [None, datetime.fromtimestamp(0, UTC), None]),
    ("UUID", [[0, 1, 2**64 - 1], [1, 0, 2**63]], [UUID(int=1), UUID(int=2**64), UUID(int=(2**64 - 1 << 64) + 2**63)]),
    ("Array(Int32)", [[[], [1, 2], [-1]]], [[], [1, 2], [-1]]),
    (
        "Tuple(Array(Int32), Array(Int64))",
        [[[1], [], [2, 3]], [[2**40], [], [4, 5]]],
        [([1], [2**40]), ([], []), ([2, 3], [4, 5])],
    ),
    ("String", [["a\0b", "湖", ""]], ["a\0b", "湖", ""]),
    ("Nullable(String)", [[None, "", "x" * 300]], [None, "", "x" * 300]),
]


@pytest.fixture
def owner(connect: Callable[[str], Any]) -> Any:
    client = connect("owner")
    client.execute("CREATE DATABASE IF NOT EXISTS raw")
    yield client
    client.execute("DROP TABLE IF EXISTS raw.inserted")


@pytest.fixture
def insert(settings: Settings) -> Callable[[list[TableColumn], pl.DataFrame], None]:
    writer = Writer(Installation(settings).server("owner"), pytest.fail)
    return lambda columns, rows: writer.insert("raw.inserted", columns, rows)


@pytest.mark.parametrize("times", [1, FEW_ROWS], ids=["few", "many"])
def test_a_value_of_any_kind_arrives_as_it_is(owner: Any, insert: Any, times: int) -> None:
    columns, series, expected = [], [pl.Series("number", range(3 * times))], []
    for at, (kind, parts, there) in enumerate(KINDS):
        names = tuple(f"c{at}_{part}" for part in range(len(parts)))
        columns.append(TableColumn(f"c{at}", kind, "", names))
        dtype = pl.UInt64 if kind == "UUID" else None
        series += [pl.Series(name, values * times, dtype) for name, values in zip(names, parts, strict=True)]
        expected.append(there * times)
    columns.append(TableColumn("number", "Int64", ""))
    declared = ", ".join(f"{column.name} {column.type}" for column in columns)
    owner.execute(f"CREATE OR REPLACE TABLE raw.inserted ({declared}) ENGINE = Memory")
    insert(columns, pl.DataFrame(series))
    found = owner.execute("SELECT * EXCEPT number FROM raw.inserted ORDER BY number", columnar=True)
    assert [list(column) for column in found] == expected


@pytest.mark.parametrize("words", [ODD, BORDERS], ids=["odd", "of any length"])
@pytest.mark.parametrize("size", [40, 4 * FEW_ROWS])
def test_any_texts_arrive_as_they_are(owner: Any, insert: Any, words: list[str], size: int) -> None:
    random = Random(1)
    texts = [random.choice(words) for _ in range(size)]
    remarks = [random.choice([None, *words]) for _ in range(size)]
    columns = [
        TableColumn("text", "String", ""),
        TableColumn("remark", "Nullable(String)", ""),
        TableColumn("number", "Int64", ""),
    ]
    owner.execute(
        "CREATE OR REPLACE TABLE raw.inserted (text String, remark Nullable(String), number Int64) ENGINE = Memory"
    )
    insert(columns, pl.DataFrame({"text": texts, "remark": remarks, "number": range(size)}))
    found = owner.execute("SELECT text, remark FROM raw.inserted ORDER BY number")
    assert found == list(zip(texts, remarks, strict=True))


def test_a_null_is_refused_by_a_table_made_before_the_field_could_be_null(owner: Any, insert: Any) -> None:
    owner.execute("CREATE OR REPLACE TABLE raw.inserted (number Int64) ENGINE = Memory")
    columns = [TableColumn("number", "Nullable(Int64)", "")]
    insert(columns, pl.DataFrame({"number": [1, 2]}))
    with pytest.raises(Refused, match="citystream init"):
        insert(columns, pl.DataFrame({"number": [3, None]}))
    assert owner.execute("SELECT * FROM raw.inserted") == [(1,), (2,)]


def test_an_insert_is_one_part_however_many_rows_it_has(owner: Any, insert: Any) -> None:
    owner.execute("CREATE OR REPLACE TABLE raw.inserted (number Int64) ENGINE = MergeTree ORDER BY number")
    insert([TableColumn("number", "Int64", "")], pl.DataFrame({"number": range(2_000_000)}))
    assert owner.execute("SELECT count(), uniq(_part) FROM raw.inserted") == [(2_000_000, 1)]


def test_of_the_occurrences_of_an_event_the_one_its_topic_counts_stays(connect: Callable[[str], Any]) -> None:
    """Then that of the oldest topic, then the first one: the order in which a feed's table prefers them."""
    places = [(5, 0, 7), (-1, 0, 8), (5, 4, 2), (5, 65535, 2**47 - 1), (ASIDE, 0, 1), (ASIDE, 0, 3), (ASIDE, 4, 0)]
    columns = "'seen_before Int64, source_partition UInt16, source_offset UInt64'"
    rows = ", ".join(map(str, Random(1).sample(places, len(places))))
    assert connect("operator").execute(f"SELECT * FROM values({columns}, {rows}) ORDER BY {FIRST} DESC") == places

"""The statements that make tables and views, as a reviewer reads them, and how older tables become such."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from difflib import unified_diff
from pathlib import Path
from typing import Any

import pytest

from schemas.feed import Aggregate, RollUp
from sinks.before import OTHER, note_shown, partition
from sinks.catalogue import catalogue_views
from sinks.dialect import Dialect
from sinks.ledger_views import ledger_views
from sinks.migrate import statements
from sinks.shown import hide, show, shown
from sinks.tables import PARTS_PARTITION, aggregate_table, shared_tables
from sinks.views import aggregate_view, masked_view
from tests.reference.limits import REFERENCE
from tests.reference.toy import FEED, renamed

pytestmark = pytest.mark.integration

Connect = Callable[[str], Any]

DDL = Path(__file__).parents[1] / "ddl"
DIALECTS = {"one": Dialect("Asia/Shanghai"), "copies": Dialect("Asia/Shanghai", "city")}
#: In no other test.
AGGREGATE = replace(FEED.aggregates[0], name="toy_partitioned")


def ddl(dialect: Dialect) -> list[str]:
    """All statements for a small feed."""
    return [
        *shared_tables(dialect),
        *statements(FEED, dialect),
        *(aggregate_view(FEED, aggregate, dialect) for aggregate in FEED.aggregates),
        masked_view([FEED], dialect),
        *ledger_views([FEED], dialect),
        *catalogue_views([FEED], [REFERENCE], dialect),
    ]


def test_what_makes_tables_is_what_a_reviewer_has_read(connect: Connect, tmp_path: Path) -> None:
    """ClickHouse parses and indents them; those for several servers can do no more here."""
    client = connect("owner")

    def indented(dialect: Dialect) -> str:
        found = [client.execute("SELECT formatQuery(%(text)s)", {"text": text})[0][0] for text in ddl(dialect)]
        return "".join(f"{text};\n\n" for text in found)

    one, copies = map(indented, DIALECTS.values())
    different = unified_diff(one.splitlines(), copies.splitlines(), "one", "copies", lineterm="", n=0)
    made = {"one.sql": one, "copies.diff": "\n".join(different) + "\n"}
    for name, text in made.items():
        (tmp_path / name).write_text(text)
    assert made == {name: (DDL / name).read_text() for name in made}, f"if this is meant: cp {tmp_path}/* {DDL}"


def test_every_statement_for_several_servers_is_for_each_and_every_table_has_copies() -> None:
    for one, copies in zip(*(ddl(dialect) for dialect in DIALECTS.values()), strict=True):
        if one.startswith("CREATE"):
            assert " ON CLUSTER 'city'" in copies
        assert copies.count("ReplicatedReplacingMergeTree") == one.count("ReplacingMergeTree")
        assert copies.count("ReplicatedAggregatingMergeTree") == one.count("AggregatingMergeTree")


def _old(aggregate: Aggregate) -> str:
    """As releases made it that had no partitions."""
    made = aggregate_table(FEED, aggregate, DIALECTS["one"])
    begin, end = made.index(" PARTITION BY"), made.index(" COMMENT 'Toys by")
    return made[:begin] + made[end:]


@pytest.mark.parametrize("killed", ["before", "copying", "exchanged"])
def test_parts_of_a_release_without_partitions_get_into_them(connect: Connect, killed: str) -> None:
    owner = connect("owner")
    table, other = f"raw.{AGGREGATE.topic}", f"raw.{AGGREGATE.topic}{OTHER}"
    columns = "device_id, window_start, source_partition, since, version, events"
    parts = [(f"d{year}", f"{year}-12-31 23:59:56", 0, 0, 2, 1) for year in (2001, 2024)]
    owner.execute("CREATE DATABASE IF NOT EXISTS raw")
    try:
        owner.execute(_old(AGGREGATE))
        for _ in range(2):
            owner.execute(f"INSERT INTO {table} ({columns}) SELECT {_rows(parts)}")
        if killed != "before":
            owner.execute(aggregate_table(FEED, AGGREGATE, DIALECTS["one"], OTHER))
        if killed == "exchanged":
            owner.execute(f"EXCHANGE TABLES {table} AND {other}")
        for _ in range(2):
            partition(owner.execute, FEED, AGGREGATE, DIALECTS["one"])
        asked = f"SELECT device_id, toString(window_start), events FROM {table} FINAL ORDER BY device_id"
        assert owner.execute(asked) == [(device, f"{at}.000", events) for device, at, _, _, _, events in parts]
        found = owner.execute(
            "SELECT name, partition_key FROM system.tables WHERE startsWith(name, %(name)s)", {"name": AGGREGATE.topic}
        )
        assert found == [(AGGREGATE.topic, PARTS_PARTITION)]
    finally:
        for one in (table, other):
            owner.execute(f"DROP TABLE IF EXISTS {one} SYNC")


def _rows(parts: list[tuple[Any, ...]]) -> str:
    """SQL that selects them."""
    return ", ".join(f"part.{n}" for n in range(1, 7)) + f" FROM (SELECT arrayJoin({parts}) AS part)"


class Killed(Exception):
    """Between two statements."""


def test_a_row_says_what_a_view_shows(connect: Connect) -> None:
    """Whether a release before made the view or this one, killed between view and row; the last version counts, be it
    the lower."""
    owner = connect("owner")
    aggregates = [replace(one, name=one.name.replace("toy", "toy_shown")) for one in FEED.aggregates[:2]]
    feed, (first, other) = replace(FEED, name="toy_shown", aggregates=tuple(aggregates)), aggregates
    later = replace(first, version=2)
    dialect = DIALECTS["one"]
    for database in ("raw", "city"):
        owner.execute(f"CREATE DATABASE IF NOT EXISTS {database}")
    for statement in [*shared_tables(dialect), *statements(feed, dialect), aggregate_table(feed, later, dialect)]:
        owner.execute(statement)

    owner.execute(aggregate_view(feed, later, dialect))
    assert shown(owner.execute, feed) == {}
    note_shown(owner.execute, feed)
    assert shown(owner.execute, feed) == {later.name: later.topic}
    show(owner.execute, feed, other, dialect)
    for moment in ("CREATE", "INSERT"):

        def killed(statement: str, *parameters: Any, moment: str = moment) -> Any:
            if statement.startswith(moment):
                raise Killed
            return owner.execute(statement, *parameters)

        with pytest.raises(Killed):
            show(killed, feed, first, dialect)
        note_shown(owner.execute, feed)
        assert shown(owner.execute, feed)[first.name] == later.topic, "so it is shown once more"
    for one in (first, later, first):
        show(owner.execute, feed, one, dialect)
        assert shown(owner.execute, feed) == {first.name: one.topic, other.name: other.topic}
        assert re.search(rf"\braw\.{one.topic}\b", owner.execute(f"SHOW CREATE TABLE city.{first.name}")[0][0])
    hide(owner.execute, feed, first.name, dialect)
    assert shown(owner.execute, feed) == {other.name: other.topic}
    assert owner.execute(f"EXISTS city.{first.name}") == [(0,)]


def test_a_roll_up_that_is_declared_no_longer_is_shown_no_longer(connect: Connect) -> None:
    """Also where the aggregate gets another version, or goes."""
    owner, dialect = connect("owner"), DIALECTS["one"]
    feed = replace(renamed(FEED, "toy_rolled"), aggregates=renamed(FEED, "toy_rolled").aggregates[:1])
    rollups = tuple(RollUp(name=f"toy_rolled_{name}", to="hour") for name in ("1h", "hours"))
    first = replace(feed.aggregates[0], rollups=rollups)
    later = replace(first, version=2, rollups=rollups[:1])
    for database in ("raw", "city"):
        owner.execute(f"CREATE DATABASE IF NOT EXISTS {database}")
    for statement in [*shared_tables(dialect), *statements(feed, dialect), aggregate_table(feed, later, dialect)]:
        owner.execute(statement)

    def there() -> list[str]:
        return [name for (name,) in owner.execute("SHOW TABLES FROM city LIKE 'toy_rolled_%'") if "conf" not in name]

    for one, expected in ((first, first.views), (later, later.views), (first, first.views)):
        show(owner.execute, feed, one, dialect)
        assert there() == sorted(expected)
    hide(owner.execute, feed, first.name, dialect)
    assert there() == []

"""What each ClickHouse user of deploy/clickhouse/users.xml can do, and what it cannot."""

from collections.abc import Callable
from typing import Any

import pytest
from clickhouse_driver import Client, errors

from citystream.settings import Settings
from sinks.tables import shared_tables

pytestmark = pytest.mark.integration

Connect = Callable[[str], Any]

DENIED, READONLY, OUT_OF_BOUNDS, TOO_MANY_ROWS, WRONG_PASSWORD = 497, 164, 452, 396, 516
AS_OWNER = "DEFINER = CURRENT_USER SQL SECURITY DEFINER"
CHANGES = (
    "INSERT INTO raw.access_test VALUES (9, 9)",
    "CREATE TABLE raw.other (a Int32) ENGINE = MergeTree ORDER BY a",
    "CREATE VIEW city.other AS SELECT 1",
    "ALTER TABLE raw.access_test DELETE WHERE 1",
    "ALTER TABLE raw.access_test ADD COLUMN b Int32",
    "TRUNCATE TABLE raw.access_test",
    "DROP TABLE raw.access_test",
    "DROP DATABASE raw",
)
OUTSIDE = (
    "SELECT * FROM file('/etc/hostname', 'LineAsString')",
    "SELECT * FROM remote('127.0.0.1', 'raw', 'access_test')",
    "SELECT * FROM executable('id', 'TSV', 'a String')",
    "SELECT * FROM system.users",
    "SYSTEM SHUTDOWN",
    "CREATE USER intruder",
    "GRANT SELECT ON raw.* TO analyst",
)


@pytest.fixture(autouse=True)
def tables(connect: Connect) -> None:
    owner = connect("owner")
    for statement in (
        "CREATE DATABASE IF NOT EXISTS raw",
        "CREATE DATABASE IF NOT EXISTS city",
        "DROP TABLE IF EXISTS raw.access_test",
        "CREATE TABLE raw.access_test (a Int32, v UInt64) ENGINE = ReplacingMergeTree(v) ORDER BY a",
        "INSERT INTO raw.access_test VALUES (1, 1), (2, 1)",
        f"CREATE OR REPLACE VIEW city.access_test {AS_OWNER} AS SELECT a FROM raw.access_test FINAL",
        f"CREATE OR REPLACE VIEW city.access_test_nested {AS_OWNER} AS SELECT sum(a) AS total FROM city.access_test",
        "CREATE OR REPLACE VIEW city.access_test_invoker AS SELECT a FROM raw.access_test FINAL",
    ):
        owner.execute(statement)


def code_of(client: Any, statement: str, **settings: object) -> int:
    """The error code of a statement; 0 when it went through."""
    try:
        client.execute(statement, settings=settings)
    except errors.ServerException as error:
        return int(error.code)
    return 0


@pytest.mark.parametrize("user", ["owner", "sink", "operator", "analyst"])
def test_all_read_the_views(connect: Connect, user: str) -> None:
    client = connect(user)
    assert client.execute("SELECT a FROM city.access_test ORDER BY a") == [(1,), (2,)]
    assert client.execute("SELECT total FROM city.access_test_nested") == [(3,)]


@pytest.mark.parametrize("user", ["owner", "sink", "operator"])
def test_inner_users_read_the_raw_tables(connect: Connect, user: str) -> None:
    assert connect(user).execute("SELECT a FROM raw.access_test ORDER BY a") == [(1,), (2,)]


def test_sink_inserts_and_changes_nothing_else(connect: Connect) -> None:
    sink = connect("sink")
    assert code_of(sink, CHANGES[0]) == 0
    assert {code_of(sink, statement) for statement in CHANGES[1:]} == {DENIED}


def test_operator_notes_what_was_redriven_and_changes_nothing_of_it(connect: Connect) -> None:
    for statement in shared_tables("UTC"):
        if " raw.redriven " in statement:
            connect("owner").execute(statement)
    operator = connect("operator")
    note = "INSERT INTO raw.redriven (topic, source_partition, source_offset, to_partition, to_offset, corrected)"
    operator.execute(f"{note} VALUES", [("access_test", 0, 1, 0, 9, False)])
    asked = "SELECT to_offset FROM raw.redriven FINAL WHERE topic = 'access_test'"
    assert operator.execute(asked) == [(9,)]
    for change in ("ALTER TABLE raw.redriven DELETE WHERE 1", "TRUNCATE TABLE raw.redriven", "DROP TABLE raw.redriven"):
        assert code_of(operator, change) == DENIED
    for user in ("analyst", "default"):
        assert code_of(connect(user), asked) == DENIED


@pytest.mark.parametrize("user", ["operator", "analyst", "default"])
def test_readers_change_nothing(connect: Connect, user: str) -> None:
    client = connect(user)
    assert {code_of(client, statement) for statement in CHANGES} <= {DENIED, READONLY}


@pytest.mark.parametrize("user", ["sink", "operator", "analyst", "default"])
def test_nobody_gets_outside(connect: Connect, user: str) -> None:
    client = connect(user)
    assert {code_of(client, statement) for statement in OUTSIDE} <= {DENIED, READONLY}


@pytest.mark.parametrize("user", ["analyst", "default"])
def test_raw_is_out_of_sight(connect: Connect, user: str) -> None:
    client = connect(user)
    for statement in (
        "SELECT * FROM raw.access_test",
        "SELECT * FROM view(SELECT * FROM raw.access_test)",
        "SELECT * FROM city.access_test_invoker",
        "DESCRIBE raw.access_test",
        "SHOW CREATE TABLE raw.access_test",
        "SELECT * FROM system.parts",
        "SELECT * FROM system.processes",
    ):
        assert code_of(client, statement) == DENIED, statement
    assert client.execute("SELECT count() FROM system.tables WHERE database = 'raw'") == [(0,)]
    assert client.execute("SELECT count() FROM system.columns WHERE database = 'raw'") == [(0,)]


def test_operator_sees_the_servers_state(connect: Connect) -> None:
    operator = connect("operator")
    for table in ("parts", "processes", "merges", "metrics", "errors", "disks"):
        assert code_of(operator, f"SELECT * FROM system.{table} LIMIT 1") == 0, table


def test_default_reads_no_data(connect: Connect) -> None:
    assert code_of(connect("default"), "SELECT * FROM city.access_test") == DENIED


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("max_execution_time", 0),
        ("max_execution_time", 61),
        ("max_memory_usage", 0),
        ("max_memory_usage", 2_000_000_001),
        ("max_memory_usage_for_user", 0),
        ("max_result_rows", 0),
        ("max_result_rows", 1_000_001),
        ("result_overflow_mode", "break"),
        ("timeout_overflow_mode", "break"),
        ("readonly", 0),
    ],
)
def test_analyst_cannot_raise_a_limit(connect: Connect, setting: str, value: object) -> None:
    assert code_of(connect("analyst"), "SELECT 1", **{setting: value}) in {READONLY, OUT_OF_BOUNDS}


def test_analyst_may_lower_a_limit(connect: Connect) -> None:
    assert code_of(connect("analyst"), "SELECT 1", max_execution_time=5, max_threads=1) == 0


def test_a_result_over_the_limit_is_refused_not_cut(connect: Connect) -> None:
    assert code_of(connect("analyst"), "SELECT number FROM numbers(1000001)") == TOO_MANY_ROWS


@pytest.mark.parametrize("user", ["owner", "sink", "operator", "analyst"])
@pytest.mark.parametrize("password", ["", "wrong"])
def test_a_password_is_needed(settings: Settings, connect: Connect, user: str, password: str) -> None:
    client = Client("127.0.0.1", port=settings.clickhouse_port, user=user, password=password)
    assert code_of(client, "SELECT 1") == WRONG_PASSWORD
    client.disconnect()

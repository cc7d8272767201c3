"""What each ClickHouse user of deploy/clickhouse/users.xml can do, and what it cannot."""

import http.client
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

import pytest
from clickhouse_driver import Client, errors

from citystream.secrets import Secrets, load_secrets, make_secrets
from citystream.settings import Settings
from citystream.stack import clickhouse
from citystream.stack.process import Process
from sinks.dialect import Dialect
from sinks.tables import shared_tables
from sinks.views import FIXED
from tests.conftest import settings_in

pytestmark = pytest.mark.integration

Connect = Callable[[str], Any]

DENIED, READONLY, OUT_OF_BOUNDS, TOO_MANY_ROWS, WRONG_PASSWORD = 497, 164, 452, 396, 516
TOO_MANY_SESSIONS = 700
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
    for statement in shared_tables(Dialect("UTC")):
        if " raw.redriven " in statement:
            connect("owner").execute(statement)
    operator = connect("operator")
    note = "INSERT INTO raw.redriven (topic, source_partition, source_offset, to_partition, to_offset, corrected)"
    operator.execute(f"{note} VALUES", [("access_test", 0, 1, 0, 9, False)])
    asked = "SELECT to_offset FROM raw.redriven FINAL WHERE topic = 'access_test'"
    assert operator.execute(asked) == [(9,)]
    for change in ("ALTER TABLE raw.redriven DELETE WHERE 1", "TRUNCATE TABLE raw.redriven", "DROP TABLE raw.redriven"):
        assert code_of(operator, change) == DENIED
    assert code_of(connect("analyst"), asked) == DENIED


@pytest.mark.parametrize("user", ["operator", "analyst"])
def test_readers_change_nothing(connect: Connect, user: str) -> None:
    client = connect(user)
    assert {code_of(client, statement) for statement in CHANGES} <= {DENIED, READONLY}


@pytest.mark.parametrize("user", ["sink", "operator", "analyst"])
def test_nobody_gets_outside(connect: Connect, user: str) -> None:
    client = connect(user)
    assert {code_of(client, statement) for statement in OUTSIDE} <= {DENIED, READONLY}


def test_raw_is_out_of_sight(connect: Connect) -> None:
    client = connect("analyst")
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


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("max_execution_time", 0),
        ("max_execution_time", 601),
        ("max_memory_usage", 0),
        ("max_memory_usage", 2_000_000_001),
        ("max_memory_usage_for_user", 0),
        ("max_temporary_data_on_disk_size_for_user", 0),
        ("max_threads", 3),
        ("priority", 1),
        ("max_result_rows", 0),
        ("max_result_rows", 1_000_001),
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


#: What an analyst may change, within bounds: limits of its own, and how a value is written.
CHANGEABLE = {
    "max_execution_time", "max_memory_usage", "max_result_rows", "result_overflow_mode", "max_threads",
    "max_block_size", "log_comment", "date_time_output_format", "output_format_json_quote_64bit_integers",
    "output_format_json_quote_decimals", "output_format_json_quote_denormals", "output_format_arrow_string_as_string",
    "enable_http_compression", "http_zlib_compression_level", "network_compression_method",
    "send_progress_in_http_headers",
}  # fmt: skip


def other(kind: str, value: str) -> str:
    """Another value of a setting."""
    if kind == "Bool":
        return str(1 - int(value))
    return "7" if value != "7" and not kind.endswith(("String", "Mode", "Map")) else "x"


def test_an_analyst_changes_no_setting_but_the_listed(connect: Connect, settings: Settings, secrets: Secrets) -> None:
    analyst = connect("analyst")
    assert {name for (name,) in analyst.execute("SELECT name FROM system.settings WHERE NOT readonly")} == CHANGEABLE
    connection = http.client.HTTPConnection("127.0.0.1", settings.clickhouse_http_port, timeout=30)
    login = {"X-ClickHouse-User": "analyst", "X-ClickHouse-Key": secrets.password("analyst")}

    def ask(query: str, **changed: str) -> tuple[int, str]:
        connection.request("POST", "/?" + urlencode(changed), query.encode(), login)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()

    every = [line.split("\t") for line in ask("SELECT name, type, value FROM system.settings")[1].splitlines()]
    assert len(every) > 1000
    changed = {name for name, kind, value in every if ask("SELECT 1", **{name: other(kind, value)})[0] == HTTPStatus.OK}
    connection.close()
    assert changed <= CHANGEABLE


@pytest.fixture
def numbers(connect: Connect) -> Iterator[str]:
    """A query of the numbers of two views, with a place for settings of each view's subquery."""
    owner = connect("owner")
    columns = "k UInt32, g UInt32, x Nullable(Int64), v UInt64"
    groups = (
        "SELECT g, count() AS n, sum(x) / count(x) AS mean, groupUniqArray(v) AS versions FROM (SELECT * FROM "
        "raw.settings_test FINAL WHERE k < 40 UNION ALL SELECT * FROM raw.settings_test FINAL WHERE k >= 40) GROUP BY g"
    )
    for statement in (
        f"CREATE OR REPLACE TABLE raw.settings_test ({columns}) ENGINE = ReplacingMergeTree(v) PARTITION BY v "
        "ORDER BY k",
        "INSERT INTO raw.settings_test SELECT number, number % 7, number, 1 FROM numbers(100)",
        "INSERT INTO raw.settings_test SELECT number, number % 7, if(number % 3 = 0, NULL, -number), 2 "
        "FROM numbers(50)",
        f"CREATE OR REPLACE VIEW city.settings_rows {AS_OWNER} AS SELECT * FROM raw.settings_test FINAL {FIXED}",
        f"CREATE OR REPLACE VIEW city.settings_groups {AS_OWNER} AS {groups} {FIXED}",
    ):
        owner.execute(statement)
    yield (
        "SELECT toString((SELECT (count(), sum(x), countIf(x IS NULL)) FROM (SELECT * FROM city.settings_rows {0}))), "
        "toString(groupArray((g, n, mean))) FROM (SELECT * FROM (SELECT * FROM city.settings_groups {0}) ORDER BY g)"
    )
    for what in ("VIEW city.settings_rows", "VIEW city.settings_groups", "TABLE raw.settings_test"):
        owner.execute(f"DROP {what}")


def test_no_setting_changes_what_a_view_shows(connect: Connect, numbers: str) -> None:
    """A subquery may carry any setting, whoever asks, as ClickHouse looks at those of the whole query alone."""
    operator = connect("operator")
    right = operator.execute(numbers.format(""))
    every = operator.execute("SELECT name, type, value FROM system.settings WHERE type = 'Bool'")
    assert len(every) > 800
    tried = [f"{name} = {other(kind, value)}" for name, kind, value in every]
    tried += [f"max_rows_to_{kind} = 1, {kind}_overflow_mode = 'break'" for kind in ("group_by", "sort", "read")]
    tried += ["max_rows_to_group_by = 1, group_by_overflow_mode = 'any', max_block_size = 1"]
    tried += [f"max_rows_in_{kind} = 1, {kind}_overflow_mode = 'break'" for kind in ("join", "set", "distinct")]
    tried += ["compatibility = '21.1'", "session_timezone = 'UTC'", "final = 1"]
    tried += ["additional_table_filters = {'raw.settings_test': 'k < 10'}"]
    wrong = []
    for setting in tried:
        try:
            if operator.execute(numbers.format(f"SETTINGS {setting}")) != right:
                wrong.append(setting)
        except errors.ServerException:
            continue
    assert not wrong


@pytest.mark.parametrize(
    "setting",
    [
        {"max_execution_time": 600}, {"max_execution_time": 1}, {"max_memory_usage": 100_000_000},
        {"max_result_rows": 100, "result_overflow_mode": "break"}, {"max_result_rows": 10}, {"max_threads": 1},
        {"max_block_size": 1}, {"max_block_size": 1_000_000}, {"log_comment": "a board"},
        {"network_compression_method": "ZSTD"}, {"date_time_output_format": "unix_timestamp"},
        {"output_format_json_quote_64bit_integers": 1}, {"output_format_json_quote_decimals": 1},
        {"output_format_json_quote_denormals": 1}, {"output_format_arrow_string_as_string": 0},
        {"enable_http_compression": 0}, {"http_zlib_compression_level": 9}, {"send_progress_in_http_headers": 1},
    ],
    ids=str,
)  # fmt: skip
def test_what_an_analyst_may_change_changes_no_number(
    connect: Connect, numbers: str, setting: dict[str, object]
) -> None:
    right = connect("operator").execute(numbers.format(""))
    assert connect("analyst").execute(numbers.format(""), settings=setting) == right


def test_what_an_analyst_puts_on_the_disk_is_bounded(connect: Connect) -> None:
    limits = [f"getSetting('max_temporary_data_on_disk_size_for_{whom}')" for whom in ("query", "user")]
    assert connect("analyst").execute(f"SELECT {', '.join(limits)}") == [(2_000_000_000, 4_000_000_000)]


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    """The operator on a server of its own that differs in one bound: of what all put on the disk together."""
    config = tmp_path / "config.xml"
    config.write_text(clickhouse.CONFIG.read_text().replace(">4000000000<", ">1000000<"))
    monkeypatch.setattr(clickhouse, "CONFIG", config)
    settings = settings_in(tmp_path)
    make_secrets(settings)
    secrets, server = load_secrets(settings), Process(clickhouse.NAME, tmp_path)
    clickhouse.prepare(settings)
    server.start(clickhouse.launch(settings, secrets))
    server.wait_until(lambda: clickhouse.ready(settings))
    client = Client("127.0.0.1", settings.clickhouse_port, user="operator", password=secrets.password("operator"))
    yield client
    client.disconnect()
    server.stop()


def test_what_a_sort_puts_on_the_disk_is_bounded(small: Client) -> None:
    """By the bound of the server, and no other: it does not look at those of its user and of itself."""
    spill = {
        "max_bytes_before_external_sort": 100_000,
        "max_bytes_ratio_before_external_sort": 0,
        "min_external_sort_block_bytes": 0,
    }
    sort = "SELECT ignore(number) FROM numbers(1000000) ORDER BY sipHash64(number) LIMIT 1 OFFSET 900000"
    with pytest.raises(errors.ServerException, match=r"Limit for temporary files size exceeded .* / 1000000 bytes"):
        small.execute(sort, settings=spill)


class Query(NamedTuple):
    """A query that runs, as ``system.processes`` has it."""

    query_id: str
    rows: int
    seconds: float
    threads: str


def rows_per_second(before: list[Query], after: list[Query]) -> float:
    """What the same queries read between two looks at them."""
    assert [query.query_id for query in before] == [query.query_id for query in after]
    return sum((new.rows - old.rows) / (new.seconds - old.seconds) for old, new in zip(before, after, strict=True))


@pytest.fixture
def heavy(settings: Settings, secrets: Secrets, connect: Connect) -> Iterator[Callable[[], list[Query]]]:
    """Eight queries of the analyst that end with the test, in the order of their ids."""
    query = "SELECT count() FROM numbers(10000000000000) WHERE NOT ignore(sipHash128(number))"
    login = {"X-ClickHouse-User": "analyst", "X-ClickHouse-Key": secrets.password("analyst")}
    operator = connect("operator")

    def running() -> list[Query]:
        rows = operator.execute(
            "SELECT query_id, read_rows, elapsed, Settings['max_threads'] FROM system.processes "
            "WHERE user = 'analyst' ORDER BY query_id"
        )
        return [Query(*row) for row in rows]

    with ExitStack() as opened:
        for _ in range(8):
            connection = http.client.HTTPConnection("127.0.0.1", settings.clickhouse_http_port, timeout=60)
            opened.callback(connection.close)
            connection.request("POST", "/", query.encode(), login)
        while len(running()) < 8:
            pass
        yield running
    while running():
        pass


def test_the_sinks_work_goes_before_eight_heavy_queries(connect: Connect, heavy: Callable[[], list[Query]]) -> None:
    """They pause while the sink works, whatever time that takes, and go on when it does not."""
    sink, begun = connect("sink"), heavy()
    assert {query.threads for query in begun} == {"2"}
    before = heavy()
    while any(new.rows - old.rows < 2_000_000 for old, new in zip(begun, before, strict=True)):
        before = heavy()
    sink.execute("SELECT sleepEachRow(0.1) FROM numbers(50) SETTINGS max_block_size = 1")
    after = heavy()
    assert rows_per_second(before, after) < rows_per_second(begun, before) / 3
    sink.execute("INSERT INTO raw.access_test VALUES", [(number, 2) for number in range(100_000)])
    assert [query.query_id for query in heavy()] == [query.query_id for query in begun]
    assert sink.execute("SELECT count() FROM raw.access_test FINAL") == [(100_000,)]


def test_no_number_of_idle_connections_keeps_the_sink_out(settings: Settings, connect: Connect) -> None:
    """More sessions of an analyst than it may have, and more connections that never say who they are than there is
    room for.
    """
    sink = connect("sink")
    sink.execute("INSERT INTO raw.access_test VALUES", [(3, 1)])
    codes = [code_of(connect("analyst"), "SELECT 1") for _ in range(110)]
    assert codes == 100 * [0] + 10 * [TOO_MANY_SESSIONS]
    sink.execute("INSERT INTO raw.access_test VALUES", [(4, 1)])
    assert code_of(connect("sink"), "INSERT INTO raw.access_test VALUES (5, 1)") == 0
    with ExitStack() as opened:
        for port in (settings.clickhouse_port, settings.clickhouse_http_port):
            for _ in range(300):
                opened.enter_context(socket.create_connection(("127.0.0.1", port)))
        sink.execute("INSERT INTO raw.access_test VALUES", [(6, 1)])
    assert sink.execute("SELECT count() FROM raw.access_test FINAL") == [(6,)]

"""Ways to what a user may not see, each tried as the analyst, the operator, a department and nobody.

A new way is a line of `PATHS`. Whoever finds one that is open adds it here first.
"""

from __future__ import annotations

import http.client
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from clickhouse_driver import Client
from clickhouse_driver.clientinfo import ClientInfo
from clickhouse_driver.errors import ServerException

from citystream.secrets import FILE, Secrets
from citystream.settings import Settings
from citystream.stack.stack import Stack

pytestmark = pytest.mark.integration

SECRET = "what nobody may read"

#: A user and its password: a department has no user here, and nobody has no password.
STRANGERS = (("department", "guessed"), ("default", ""), ("owner", ""), ("analyst", ""), ("", ""))


@dataclass(frozen=True)
class Doors:
    """The server as somebody with a network sees it, and where things are that are none of their business."""

    settings: Settings
    secrets: Secrets
    places: dict[str, str]

    def ask(self, user: str, password: str, query: str, **more: Any) -> tuple[int, str, dict[str, str]]:
        """Status, text and headers of an answer; ``more`` are parameters, in braces what `places` says."""
        query, more = query.format_map(self.places), {k: str(v).format_map(self.places) for k, v in more.items()}
        connection = http.client.HTTPConnection("127.0.0.1", self.settings.clickhouse_http_port, timeout=30)
        asked = "/?" + urlencode({"user": user, "password": password} | more)
        connection.request("POST", asked, query.encode(), {"Origin": "https://elsewhere.example"})
        answer = connection.getresponse()
        text = answer.read().decode(errors="replace")
        connection.close()
        return answer.status, text, dict(answer.getheaders())


@pytest.fixture(scope="module")
def doors(stack: Stack, secrets: Secrets, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    settings, folder = stack.settings, tmp_path_factory.mktemp("doors")
    (folder / "secret").write_text(SECRET)
    (folder / "secret.proto").write_text(SECRET)
    owner = Client("127.0.0.1", settings.clickhouse_port, user="owner", password=secrets.password("owner"))
    for statement in (
        "CREATE DATABASE IF NOT EXISTS raw",
        "CREATE DATABASE IF NOT EXISTS city",
        "CREATE OR REPLACE TABLE raw.doors (a Int32, s String) ENGINE = MergeTree ORDER BY a",
        f"INSERT INTO raw.doors VALUES (1, '{SECRET}')",
        "CREATE OR REPLACE VIEW city.doors DEFINER = CURRENT_USER SQL SECURITY DEFINER AS SELECT a FROM raw.doors",
        "CREATE OR REPLACE VIEW city.doors_invoker AS SELECT a, s FROM raw.doors",
    ):
        owner.execute(statement)
    ((uuid,),) = owner.execute("SELECT uuid FROM system.tables WHERE database = 'raw' AND name = 'doors'")
    data = settings.data_of("clickhouse")
    (part,) = (data / "data" / "raw" / "doors").resolve().glob("all_*")
    places = {
        "file": str(folder / "secret"),
        "new": str(folder / "new"),
        "secrets": str(settings.home / FILE),
        "users": str(data / "config" / "users.xml"),
        "part": str(part / "data.bin"),
        "uuid": str(uuid),
        "http": f"127.0.0.1:{settings.clickhouse_http_port}",
        "tcp": f"127.0.0.1:{settings.clickhouse_port}",
    }
    yield Doors(settings, secrets, places)
    for kind, name in (("VIEW", "city.doors"), ("VIEW", "city.doors_invoker"), ("TABLE", "raw.doors")):
        owner.execute(f"DROP {kind} {name}")
    owner.disconnect()


FILTERS = "additional_table_filters = {{'raw.doors': 'throwIf(1, (SELECT any(s) FROM raw.doors))'}}"

#: Files, URLs, other servers and the server itself: for nobody of them.
OUTSIDE: list[tuple[str, dict[str, str]]] = [
    # file() of one value
    ("SELECT file('{file}')", {}),
    ("SELECT file('{file}', 'instead')", {}),
    ("SELECT file('{file}', NULL)", {}),
    ("SELECT file('{secrets}')", {}),
    ("SELECT file('{users}')", {}),
    ("SELECT file('{part}')", {}),
    ("SELECT file('/proc/self/environ')", {}),
    ("SELECT file('/etc/passwd')", {"add_http_cors_header": "1"}),
    ("SELECT `file`('{file}')", {}),
    ("SELECT file('../../../../../../../../{file}')", {}),
    ("SELECT * APPLY(file) FROM (SELECT '{file}')", {}),
    ("SELECT arrayMap(file, ['{file}'])", {}),
    ("SELECT arrayMap(path -> file(path), ['{file}'])", {}),
    ("WITH (path -> file(path)) AS read SELECT read('{file}')", {}),
    ("SELECT * FROM view(SELECT file('{file}'))", {}),
    ("SELECT a FROM city.doors WHERE throwIf(1, file('{file}'))", {}),
    ("SELECT file('{file}')", {"enable_analyzer": "0"}),
    ("SELECT * FROM (SELECT file('{file}') SETTINGS readonly = 0)", {}),
    ("SELECT 1", {"additional_result_filter": "throwIf(1, file('{file}'))"}),
    # table functions and engines
    ("SELECT * FROM file('{file}', 'LineAsString')", {}),
    ("DESCRIBE TABLE file('{file}')", {}),
    ("SELECT * FROM fileCluster('default', '{file}', 'LineAsString')", {}),
    ("SELECT * FROM filesystem('/etc')", {}),
    ("SELECT * FROM `{file}`", {}),
    ("SELECT * FROM default.`{file}`", {}),
    ("SELECT * FROM icebergLocal('{file}')", {}),
    ("SELECT * FROM deltaLakeLocal('{file}')", {}),
    ("SELECT * FROM sqlite('{file}', 't')", {}),
    ("SELECT * FROM executable('id', 'TSV', 'a String')", {}),
    ("SELECT catboostEvaluate('{file}', 1)", {}),
    ("SELECT * FROM url('http://{http}/ping', 'LineAsString')", {}),
    ("SELECT * FROM url('file://{file}', 'LineAsString')", {}),
    ("SELECT * FROM s3('http://{http}/ping', 'LineAsString')", {}),
    ("SELECT * FROM remote('{tcp}', 'raw', 'doors')", {}),
    ("SELECT * FROM cluster('default', 'raw', 'doors')", {}),
    ("SELECT * FROM mysql('{tcp}', 'd', 't', 'u', 'p')", {}),
    ("SELECT * FROM postgresql('{tcp}', 'd', 't', 'u', 'p')", {}),
    ("SELECT * FROM jdbc('x', 'd', 't')", {}),
    ("INSERT INTO FUNCTION file('{new}', 'CSV', 'a Int32') SELECT 1", {}),
    ("INSERT INTO FUNCTION url('http://{http}/', 'CSV', 'a Int32') SELECT 1", {}),
    ("SELECT 1 INTO OUTFILE '{new}'", {}),
    ("CREATE TABLE city.doors_file (a String) ENGINE = File(CSV, '{file}')", {}),
    ("CREATE TEMPORARY TABLE doors_file (a String) ENGINE = File(CSV, '{file}')", {}),
    ("ATTACH TABLE city.doors_file FROM '/etc' (a String) ENGINE = File(CSV)", {}),
    ("CREATE DATABASE doors ENGINE = Filesystem('/etc')", {}),
    ("BACKUP TABLE raw.doors TO File('{new}')", {}),
    ("CREATE FUNCTION doors AS a -> a", {}),
    ("DROP FUNCTION file", {}),
    ("CREATE NAMED COLLECTION doors AS url = 'http://{http}/'", {}),
    # settings and formats
    ("SELECT 1 FORMAT Template", {"format_template_resultset": "{file}", "format_template_row": "{file}"}),
    ("SELECT 1 AS a FORMAT Protobuf", {"format_schema": "{file}:M"}),
    ("SELECT 1 AS a FORMAT CapnProto", {"format_schema": "{file}:M"}),
    ("SELECT 1 AS a FORMAT Protobuf SETTINGS format_schema = '{file}:M'", {}),
    ("SELECT 1 AS a FORMAT Protobuf", {"output_format_schema": "{new}"}),
    ("SELECT 1", {"input_format_record_errors_file_path": "{new}"}),
    ("SELECT 1", {"format_avro_schema_registry_url": "http://{http}/"}),
    ("SELECT 1", {"add_http_cors_header": "1"}),
    ("SELECT 1", {"http_response_headers": "{{'Access-Control-Allow-Origin':'*'}}"}),
    ("SELECT 1", {"profile": "owner"}),
    ("SELECT 1 SETTINGS profile = 'owner'", {}),
    ("SELECT 1", {"profile": "default", "max_sessions_for_user": "0"}),
    # the server
    ("SYSTEM STOP LISTEN TCP", {}),
    ("SYSTEM SHUTDOWN", {}),
    ("SYSTEM RELOAD CONFIG", {}),
    ("SYSTEM FLUSH LOGS", {}),
    ("EXECUTE AS owner SELECT 1", {}),
    ("CREATE USER intruder", {}),
    ("GRANT SELECT ON raw.* TO analyst", {}),
    ("SHOW CREATE USER owner", {}),
    ("SHOW ACCESS", {}),
    ("SELECT * FROM system.users", {}),
    ("SELECT * FROM system.named_collections", {}),
    ("SELECT * FROM system.settings_profiles", {}),
    ("SELECT * FROM system.grants", {}),
    ("SELECT * FROM system.stack_trace", {}),
    (f"SELECT * FROM city.doors SETTINGS {FILTERS}", {}),
    ("SELECT a FROM city.doors", {"additional_table_filters": "{{'raw.doors': 'throwIf(1, s)'}}"}),
]

#: What is for the operator and not for the analyst: raw tables, and what others ask.
INSIDE: list[tuple[str, dict[str, str]]] = [
    ("SELECT * FROM raw.doors", {}),
    ("SELECT s FROM merge('raw', 'doors')", {}),
    ("SELECT * FROM view(SELECT s FROM raw.doors)", {}),
    ("SELECT * FROM city.doors_invoker", {}),
    ("SELECT a FROM city.doors WHERE a IN (SELECT a FROM raw.doors)", {}),
    ("SELECT a FROM city.doors LIMIT (SELECT count() FROM raw.doors)", {}),
    ("DESCRIBE raw.doors", {}),
    ("SHOW CREATE TABLE raw.doors", {}),
    ("EXISTS TABLE raw.doors", {}),
    ("SELECT hasColumnInTable('raw', 'doors', 's')", {}),
    ("SELECT * FROM system.processes", {}),
    ("SHOW PROCESSLIST", {}),
    ("KILL QUERY WHERE 1", {}),
    ("SELECT * FROM system.parts", {}),
    ("SELECT * FROM system.errors", {}),
    ("SELECT 1", {"readonly": "0"}),
    ("SELECT 1", {"profile": "sink"}),
    ("SELECT 1", {"profile": "operator"}),
    ("SELECT 1", {"profile": "default", "max_execution_time": "0"}),
    ("SELECT 1", {"send_logs_level": "trace"}),
    ("SELECT 1 SETTINGS max_threads = 64", {}),
]

#: What the operator could ask and must not see either: the internals of the tables' files.
NEITHER: list[tuple[str, dict[str, str]]] = [
    ("SELECT * FROM mergeTreeIndex('raw', 'doors')", {}),
    ("SELECT * FROM mergeTreeAnalyzeIndexesUUID('{uuid}')", {}),
    ("SELECT * FROM loop(raw.doors)", {}),
]

PATHS = [*OUTSIDE, *INSIDE, *NEITHER]


def closed(doors: Doors, user: str, password: str, path: tuple[str, dict[str, str]]) -> str:
    """The text of the refusal."""
    status, text, headers = doors.ask(user, password, path[0], **path[1])
    assert status >= http.client.BAD_REQUEST, text
    assert SECRET not in text
    assert "root:" not in text
    assert all(doors.secrets.password(name) not in text for name in ("owner", "sink", "operator"))
    assert "Access-Control-Allow-Origin" not in headers
    assert not Path(doors.places["new"]).exists()
    return text


def name_of(path: tuple[str, dict[str, str]]) -> str:
    return " ".join([path[0], *(f"{name}={value}" for name, value in path[1].items())])[:90]


def test_there_are_at_least_forty() -> None:
    assert len(PATHS) > 90
    assert len({name_of(path) for path in PATHS}) > 90


@pytest.mark.parametrize("path", PATHS, ids=name_of)
def test_closed_to_the_analyst(doors: Doors, path: tuple[str, dict[str, str]]) -> None:
    closed(doors, "analyst", doors.secrets.password("analyst"), path)


@pytest.mark.parametrize("path", OUTSIDE, ids=name_of)
@pytest.mark.parametrize("user", ["operator", "sink"])
def test_closed_to_operator_and_sink(doors: Doors, user: str, path: tuple[str, dict[str, str]]) -> None:
    closed(doors, user, doors.secrets.password(user), path)


@pytest.mark.parametrize("user", STRANGERS, ids=lambda user: f"{user[0] or 'nobody'}")
def test_closed_to_who_has_no_password(doors: Doors, user: tuple[str, str]) -> None:
    for path in PATHS:
        text = closed(doors, *user, path)
        assert "AUTHENTICATION_FAILED" in text or "USER_SESSION_LIMIT_EXCEEDED" in text, text


@pytest.mark.parametrize("user", STRANGERS, ids=lambda user: f"{user[0] or 'nobody'}")
def test_closed_on_the_native_port_too(doors: Doors, user: tuple[str, str]) -> None:
    client = Client("127.0.0.1", doors.settings.clickhouse_port, user=user[0], password=user[1])
    with pytest.raises(ServerException) as refused:
        client.execute("SELECT 1")
    assert refused.value.code in (101, 516, 700)
    client.disconnect()


@pytest.mark.parametrize("page", ["/play", "/dashboard", "/webterminal", "/binary", "/metrics", "/jemalloc", "/schema"])
def test_no_page_is_served(doors: Doors, page: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", doors.settings.clickhouse_http_port, timeout=30)
    for method in ("GET", "OPTIONS"):
        connection.request(method, page, headers={"Origin": "https://elsewhere.example"})
        answer = connection.getresponse()
        answer.read()
        assert answer.status in (http.client.NOT_FOUND, http.client.NOT_IMPLEMENTED), answer.status
        assert answer.getheader("Access-Control-Allow-Origin") is None
    connection.close()


@pytest.mark.parametrize("path", ["/", "/ping"])
def test_no_other_origin_is_answered(doors: Doors, path: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", doors.settings.clickhouse_http_port, timeout=30)
    for method in ("GET", "OPTIONS"):
        connection.request(method, f"{path}?add_http_cors_header=1", headers={"Origin": "https://elsewhere.example"})
        answer = connection.getresponse()
        answer.read()
        assert answer.getheader("Access-Control-Allow-Origin") is None
    connection.close()


def test_a_query_that_says_it_is_another_servers_has_its_settings_cut(
    doors: Doors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ClientInfo.QueryKind, "INITIAL_QUERY", ClientInfo.QueryKind.SECONDARY_QUERY)
    monkeypatch.setattr(ClientInfo, "initial_user", "owner")
    client = Client(
        "127.0.0.1", doors.settings.clickhouse_port, user="analyst", password=doors.secrets.password("analyst")
    )
    asked = "SELECT getSetting('max_threads'), getSetting('readonly'), getSetting('priority')"
    assert client.execute(asked, settings={"max_threads": 64, "readonly": 0, "priority": 1}) == [(2, 1, 4)]
    with pytest.raises(ServerException, match="Not enough privileges"):
        client.execute("SELECT * FROM raw.doors")
    client.disconnect()


def test_nothing_secret_is_in_the_command_the_log_or_the_environment(doors: Doors, stack: Stack) -> None:
    (pid,) = (one.pid for one in stack.status() if one.name == "clickhouse")
    log = doors.settings.home / "log"
    seen = [Path(f"/proc/{pid}/{name}").read_bytes() for name in ("cmdline", "environ")]
    seen += [file.read_bytes() for file in log.iterdir()]
    for user in ("owner", "sink", "operator", "analyst"):
        assert not any(doors.secrets.password(user).encode() in text for text in seen)
    assert not any(doors.secrets.pseudonym_key.get_secret_value().encode() in text for text in seen)


def test_files_are_for_the_one_who_runs_it(doors: Doors) -> None:
    home = doors.settings.home
    folders = [home, home / "log", home / "run", home / "data" / "clickhouse", home / "data" / "clickhouse" / "config"]
    assert {folder.stat().st_mode & 0o077 for folder in folders} == {0}
    files = [home / FILE, home / "log" / "clickhouse-server.log", home / "log" / "clickhouse.log"]
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}


def test_what_tells_of_tables_tells_an_analyst_of_the_views_alone(connect: Callable[[str], Any], doors: Doors) -> None:
    analyst = connect("analyst")
    for schema in ("information_schema", "INFORMATION_SCHEMA"):
        for table in ("tables", "columns"):
            found = analyst.execute(
                f"SELECT DISTINCT table_schema FROM {schema}.{table} WHERE table_name LIKE 'doors%'"
            )
            assert found == [("city",)]
    assert analyst.execute("SELECT schema_name FROM information_schema.schemata WHERE schema_name = 'raw'") == []
    for table in ("tables", "columns", "databases"):
        name = "name" if table == "databases" else "database"
        assert analyst.execute(f"SELECT count() FROM system.{table} WHERE {name} = 'raw'") == [(0,)]

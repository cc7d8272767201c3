"""Other people's clients: what they send by default is answered, and what they get is whole or an error."""

from __future__ import annotations

import http.client
from collections.abc import Callable
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any
from urllib.parse import urlencode
from zoneinfo import ZoneInfo

import pytest

from citystream.secrets import Secrets
from citystream.settings import PROJECT, Settings

pytestmark = pytest.mark.integration

Connect = Callable[[str], Any]

#: By the client's name in docs/analyst.md, the settings it sends with every query.
CLIENTS: dict[str, dict[str, object]] = {
    "DBeaver, Metabase (JDBC, `setMaxRows`)": {"max_result_rows": 200, "result_overflow_mode": "break"},
    "JDBC, `setQueryTimeout(300)`": {"max_execution_time": 300},
    "Grafana (clickhouse-go, 60 s)": {"max_execution_time": 65},
    "a board that names itself": {"log_comment": "a board", "max_block_size": 65_409},
}
TOO_MANY = "SELECT number FROM numbers(1000001)"


def ask(settings: Settings, secrets: Secrets, query: str, **parameters: object) -> tuple[int, str]:
    """Status and text of an answer by HTTP to the analyst; a broken one raises."""
    connection = http.client.HTTPConnection("127.0.0.1", settings.clickhouse_http_port, timeout=30)
    login = {"X-ClickHouse-User": "analyst", "X-ClickHouse-Key": secrets.password("analyst")}
    connection.request("POST", "/?" + urlencode(parameters), query.encode(), login)
    answer = connection.getresponse()
    try:
        return answer.status, answer.read().decode()
    finally:
        connection.close()


@pytest.mark.parametrize("client", CLIENTS)
def test_what_a_client_sends_is_answered(settings: Settings, secrets: Secrets, connect: Connect, client: str) -> None:
    assert f"| {client} |" in (PROJECT / "docs/analyst.md").read_text()
    assert ask(settings, secrets, "SELECT 7", **CLIENTS[client]) == (HTTPStatus.OK, "7\n")
    assert connect("analyst").execute("SELECT 7", settings=CLIENTS[client]) == [(7,)]


def test_a_result_over_the_limit_is_an_error_by_http(settings: Settings, secrets: Secrets) -> None:
    status, text = ask(settings, secrets, TOO_MANY)
    assert status >= HTTPStatus.BAD_REQUEST
    assert "TOO_MANY_ROWS_OR_BYTES" in text
    with pytest.raises(http.client.IncompleteRead):
        ask(settings, secrets, TOO_MANY, wait_end_of_query=0)


@pytest.mark.parametrize("user", ["owner", "sink", "operator", "analyst"])
def test_times_without_a_zone_are_the_citys(settings: Settings, connect: Connect, user: str) -> None:
    client, zone = connect(user), ZoneInfo(settings.timezone)
    at = datetime(2026, 3, 2, 8, tzinfo=zone)
    assert client.execute("SELECT timezone(), toUnixTimestamp(toDateTime('2026-03-02 08:00:00'))") == [
        (settings.timezone, at.timestamp())
    ]
    asked = "SELECT toUnixTimestamp(toDateTime(%(at)s))"
    assert client.execute(asked, {"at": at}) == client.execute(asked, {"at": at.astimezone(UTC)}) == [(at.timestamp(),)]
    ((today, now),) = client.execute("SELECT today(), now()")
    assert today == now.date()
    assert abs((datetime.now(zone).replace(tzinfo=None) - now).total_seconds()) < 60

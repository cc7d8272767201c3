"""Other people's clients: what they send by default is answered, and what they get is whole or an error."""

from __future__ import annotations

import asyncio
import http.client
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from zoneinfo import ZoneInfo

import pytest
from clickhouse_driver.errors import NetworkError

from citystream.secrets import Secrets
from citystream.settings import PROJECT, Settings
from sinks.clickhouse import Server

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


def test_of_several_hosts_the_first_that_answers_is_taken(settings: Settings, secrets: Secrets) -> None:
    server = Server(("127.0.0.2", "127.0.0.1"), settings.clickhouse_port, "operator", secrets.password("operator"))
    with closing_client(server) as client:
        assert client.execute("SELECT 7") == [(7,)]


def test_over_tls_a_server_has_to_prove_that_it_is_who_is_meant(
    settings: Settings, secrets: Secrets, tmp_path: Path
) -> None:
    own, other = (certificate(tmp_path / name) for name in ("own", "other"))
    with over_tls(settings.clickhouse_port, own) as port:
        for ca_file, believed in ((own, True), (other, False)):
            server = Server(("127.0.0.1",), port, "operator", secrets.password("operator"), ca_file)
            with closing_client(server) as client:
                if believed:
                    assert client.execute("SELECT 7") == [(7,)]
                else:
                    with pytest.raises(NetworkError, match="certificate verify failed"):
                        client.execute("SELECT 7")


@contextmanager
def closing_client(server: Server) -> Iterator[Any]:
    """A client, disconnected afterwards."""
    client = server.connect()
    try:
        yield client
    finally:
        client.disconnect()


def certificate(file: Path) -> Path:
    """A new key and its certificate for this machine, in one file."""
    subprocess.run(
        ("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=clickhouse", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", f"{file}.key", "-out", file),
        check=True, capture_output=True,
    )  # fmt: skip
    return file


@contextmanager
def over_tls(port: int, certificate: Path) -> Iterator[int]:
    """A port at which a server that speaks without TLS is spoken to with it."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, f"{certificate}.key")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner, outer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(copy(reader, outer), copy(inner, writer))

    async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while data := await source.read(65_536):
            target.write(data)
            await target.drain()
        target.close()

    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(serve, "127.0.0.1", 0, ssl=context))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        server.close()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()

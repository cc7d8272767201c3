import contextlib
import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from starlette.testclient import TestClient

from citystream import cli
from citystream.registry import CONTENT_TYPE, ENDING_SECONDS, LARGEST_BODY, application
from citystream.stack.ports import free_ports
from schemas.catalogue import Catalogue, FrozenSchema, SchemaProblem


def schema(*fields: str) -> dict[str, Any]:
    return {"type": "record", "name": "Report", "fields": [{"name": name, "type": "string"} for name in fields]}


CATALOGUE = Catalogue(
    {
        1: FrozenSchema(1, "report", 1, schema("a")),
        2: FrozenSchema(2, "report_1m", 1, schema("b")),
        7: FrozenSchema(7, "report", 2, schema("a", "c")),
    }
)
Answer = tuple[int, Any]


def ask(method: str, path: str, body: Any = None, load: Callable[[], Catalogue] = lambda: CATALOGUE) -> Answer:
    """Status and data of an answer; a body that is a string is sent as it is."""

    data = body if body is None or isinstance(body, str) else json.dumps(body)
    response = TestClient(application(load), follow_redirects=False).request(method, path, content=data)
    assert response.headers["content-type"] == CONTENT_TYPE
    return response.status_code, response.json()


def text(frozen: FrozenSchema) -> str:
    return json.dumps(frozen.schema)


def described(schema_id: int, guid: str) -> dict[str, Any]:
    """A version as the registry tells it."""
    frozen = CATALOGUE.by_id[schema_id]
    named = {"subject": f"{frozen.subject}-value", "version": frozen.version, "id": schema_id, "guid": guid}
    return named | {"schemaType": "AVRO", "schema": text(frozen)}


OLDEST = described(1, "f86de81d-cc36-2350-12f3-649284f50377")
OTHER = described(2, "81afa826-4229-5bef-b923-0994138d4818")
NEWEST = described(7, "8a8cead2-4410-3411-43dd-21737d4a7d7c")
COMPATIBLE, INCOMPATIBLE = {"is_compatible": True}, {"is_compatible": False}


@pytest.mark.parametrize(
    ("path", "data"),
    [
        ("/", {}),
        ("/subjects", ["report-value", "report_1m-value"]),
        ("/subjects/report-value/versions", [1, 2]),
        ("/subjects/report-value/versions/2", NEWEST),
        ("/subjects/report-value/versions/latest", NEWEST),
        ("/subjects/report-value/versions/-1", NEWEST),
        ("/subjects/report.from4-value/versions/latest", NEWEST),
        ("/subjects/report-value/versions/1/schema", schema("a")),
        ("/schemas/types", ["AVRO"]),
        ("/schemas/ids/7", NEWEST),
        ("/schemas/ids/2?fetchMaxId=true", OTHER | {"maxId": 7}),
        ("/schemas/ids/7/schema", schema("a", "c")),
        ("/schemas/ids/2/subjects", ["report_1m-value"]),
        ("/schemas/ids/7/versions", [{"subject": "report-value", "version": 2}]),
        ("/config", {"compatibilityLevel": "BACKWARD_TRANSITIVE"}),
        ("/config/report-value", {"compatibilityLevel": "BACKWARD_TRANSITIVE"}),
        ("/subjects/", ["report-value", "report_1m-value"]),
        ("/subjects?deletedOnly=true", []),
        ("/subjects?deleted=true", ["report-value", "report_1m-value"]),
        ("/subjects?subjectPrefix=report_", ["report_1m-value"]),
        ("/subjects?subjectPrefix=:*:report_", ["report_1m-value"]),
        ("/subjects?subjectPrefix=:.:", ["report-value", "report_1m-value"]),
        ("/subjects?offset=1&limit=1", ["report_1m-value"]),
        ("/subjects?limit=0", []),
        ("/subjects/:.:report-value/versions", [1, 2]),
        ("/subjects/report-value/versions?offset=1", [2]),
        ("/subjects/report-value/versions?deletedOnly=True", []),
        ("/subjects/report-value/versions/Latest", NEWEST),
        ("/subjects/report-value/versions/1/referencedby", []),
        ("/schemas", [OLDEST, NEWEST, OTHER]),
        ("/schemas?latestOnly=true", [NEWEST, OTHER]),
        ("/schemas?subjectPrefix=report_&limit=5", [OTHER]),
        (f"/schemas/guids/{NEWEST['guid']}", NEWEST),
        (f"/schemas/guids/{NEWEST['guid']}/ids", [{"context": ".", "id": 7}]),
        ("/contexts", [":.:"]),
        ("/config/", {"compatibilityLevel": "BACKWARD_TRANSITIVE"}),
        ("/config/nobody-value?defaultToGlobal=true", {"compatibilityLevel": "BACKWARD_TRANSITIVE"}),
        ("/mode/nobody-value?defaultToGlobal=true", {"mode": "READONLY"}),
        ("/mode", {"mode": "READONLY"}),
        ("/mode/report-value", {"mode": "READONLY"}),
    ],
)
def test_answers_as_confluent_does(path: str, data: Any) -> None:
    assert ask("GET", path) == (200, data)


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/subjects/nobody-value/versions", 40401),
        ("/subjects/report/versions", 40401),
        ("/subjects/report.from4/versions", 40401),
        ("/subjects/report_from4-value/versions", 40401),
        ("/subjects/report-key/versions/latest", 40401),
        ("/subjects/nobody-value/versions/1/schema", 40401),
        ("/subjects/nobody-value/versions/1/referencedby", 40401),
        ("/subjects/nobody-value/metadata?key=a&value=b", 40401),
        ("/subjects/report-value/metadata?key=a&value=b", 40403),
        ("/schemas/guids/8a8cead2-4410-3411-43dd-000000000000", 40403),
        ("/schemas/guids/8a8cead2-4410-3411-43dd-000000000000/ids", 40403),
        ("/config/nobody-value", 40408),
        ("/mode/nobody-value?defaultToGlobal=false", 40409),
        ("/subjects?limit=many", 404),
        ("/subjects/report-value/versions/3", 40402),
        ("/subjects/report-value/versions/2147483647", 40402),
        ("/schemas/ids/3", 40403),
        ("/schemas/ids/3/schema", 40403),
        ("/schemas/ids/3/subjects", 40403),
        ("/schemas/ids/3/versions", 40403),
        (f"/schemas/ids/{'9' * 5000}", 40403),
        ("/subjects/report-value/versions/0", 42202),
        ("/subjects/nobody-value/versions/0", 42202),
        ("/subjects/report-value/versions/newest", 42202),
        ("/subjects/report-value/versions/2147483648", 42202),
        ("/schemas/ids/seven", 404),
        ("/nowhere", 404),
    ],
)
def test_says_what_is_not_there(path: str, code: int) -> None:
    status, error = ask("GET", path)
    assert (status, error["error_code"]) == (int(str(code)[:3]), code)
    assert error["message"]


@pytest.mark.parametrize(
    "asked",
    [
        {"schema": json.dumps(schema("a", "c"), indent=3), "schemaType": "AVRO"},
        {"schema": json.dumps(schema("a", "c")), "schemaType": None},
        {"schema": json.dumps(schema("a", "c")).replace('"string"', '{"type": "string"}')},
        {"schema": json.dumps(dict(reversed(schema("a", "c").items())))},
    ],
)
def test_looks_a_schema_up_however_it_is_written(asked: dict[str, Any]) -> None:
    assert ask("POST", "/subjects/report-value", asked) == (200, NEWEST)
    assert ask("POST", "/subjects/report-value/versions/", asked) == (200, NEWEST)


@pytest.mark.parametrize("asked", [{"unit": "km"}, {"doc": "what it is"}, {"default": ""}])
def test_a_property_makes_another_schema(asked: dict[str, Any]) -> None:
    changed = schema("a", "c")
    changed["fields"][0] |= asked
    assert ask("POST", "/subjects/report-value", {"schema": json.dumps(changed)})[0] == 404


@pytest.mark.parametrize(
    ("path", "new", "answer"),
    [
        ("report-value/versions/latest", schema("a", "c"), COMPATIBLE),
        ("report-value/versions/2", schema("a"), INCOMPATIBLE),
        ("report-value/versions/1", schema("a"), COMPATIBLE),
        ("report-value/versions", schema("a"), INCOMPATIBLE),
        ("report_1m-value/versions", schema("b"), COMPATIBLE),
        ("nobody-value/versions", schema("b"), COMPATIBLE),
        ("report_1m-value/versions/latest", "string", INCOMPATIBLE),
        ("report_1m-value/versions/latest", ["null", schema("b")], INCOMPATIBLE),
        ("report_1m-value/versions/latest?verbose=true", schema("b"), COMPATIBLE | {"messages": []}),
        (
            "report-value/versions?verbose=True",
            schema("a"),
            INCOMPATIBLE | {"messages": ["version 2: c is gone and had no default"]},
        ),
    ],
)
def test_says_which_schemas_go_together(path: str, new: Any, answer: Any) -> None:
    assert ask("POST", f"/compatibility/subjects/{path}", {"schema": json.dumps(new)}) == (200, answer)


@pytest.mark.parametrize(
    ("path", "body", "code"),
    [
        ("/subjects/nobody-value", {"schema": json.dumps(schema("a"))}, 40401),
        ("/subjects/report-value", {"schema": json.dumps(schema("b"))}, 40403),
        ("/subjects/report-value", {"schema": "{"}, 42201),
        ("/subjects/report-value", {"schema": "[" * 100_000}, 42201),
        ("/subjects/report-value", {"schema": "{}", "schemaType": "JSON"}, 42201),
        ("/subjects/report-value", {}, 42201),
        ("/subjects/report-value", [], 42201),
        ("/subjects/report-value", "not JSON", 400),
        ("/subjects/report-value", "", 400),
        ("/subjects/report-value/versions", "not JSON", 400),
        ("/subjects/report-value/versions", {"schema": "{"}, 42201),
        ("/subjects/report-value", {"schema": '{"type": "nothing"}'}, 42201),
        ("/subjects/report-value", {"schema": '"\ud800"'}, 42201),
        ("/subjects/report-value", {"schema": '{"type": "record", "name": "A", "fields": [7]}'}, 42201),
        ("/compatibility/subjects/nobody-value/versions/latest", {"schema": json.dumps(schema("a"))}, 40401),
        ("/compatibility/subjects/report-value/versions/3", {"schema": json.dumps(schema("a"))}, 40402),
        ("/compatibility/subjects/report-value/versions", {"schema": "{"}, 42201),
    ],
)
def test_refuses_what_it_does_not_know(path: str, body: Any, code: int) -> None:
    status, error = ask("POST", path, body)
    assert (status, error["error_code"]) == (int(str(code)[:3]), code)


def test_refuses_more_than_a_schema_takes() -> None:
    client = TestClient(application(lambda: CATALOGUE))
    assert client.post("/subjects/report-value", content=b" " * (LARGEST_BODY + 1)).status_code == 413
    assert client.post("/subjects/report-value", content=b" " * LARGEST_BODY).status_code == 400


def test_a_producer_that_registers_what_is_there_gets_its_id() -> None:
    assert ask("POST", "/subjects/report-value/versions", {"schema": text(CATALOGUE.by_id[1])}) == (200, OLDEST)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/subjects/report-value/versions", {"schema": json.dumps(schema("d"))}),
        ("POST", "/subjects/new-value/versions", {"schema": json.dumps(schema("a"))}),
        ("DELETE", "/subjects/report-value", None),
        ("DELETE", "/subjects/report-value/versions/1", None),
        ("PUT", "/config", {"compatibility": "NONE"}),
        ("PUT", "/config/report-value", {"compatibility": "NONE"}),
        ("DELETE", "/config/report-value", None),
        ("PUT", "/mode", {"mode": "READWRITE"}),
        ("PUT", "/mode/report-value", {"mode": "READWRITE"}),
    ],
)
def test_nothing_is_ever_written(method: str, path: str, body: Any) -> None:
    status, error = ask(method, path, body)
    assert (status, error["error_code"]) == (422, 42205)
    assert "read-only mode" in error["message"].lower()


def test_a_method_that_is_not_there() -> None:
    assert ask("DELETE", "/subjects") == (405, {"error_code": 405, "message": "HTTP 405 Method Not Allowed"})


def test_a_damaged_catalogue_is_an_error_of_the_store() -> None:
    def damaged() -> Catalogue:
        raise SchemaProblem("report version 1 was changed")

    assert ask("GET", "/subjects", load=damaged) == (
        500,
        {"error_code": 50001, "message": "report version 1 was changed"},
    )


def test_serves_what_is_frozen_now() -> None:
    catalogues = iter([Catalogue({}), CATALOGUE])
    load = lambda: next(catalogues)  # noqa: E731
    assert ask("GET", "/subjects", load=load) == (200, [])
    assert ask("GET", "/subjects", load=load)[1] == ["report-value", "report_1m-value"]


def test_what_the_web_server_says_of_broken_requests_is_kept_within_bounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log" / "registry.log"
    log.parent.mkdir()
    sizes = []

    def serve(*_: object) -> None:
        for number in range(100):
            logging.getLogger("uvicorn.error").error("Error handling request %d", number)
            sizes.append(log.stat().st_size)

    monkeypatch.setattr("citystream.stack.process.LOG_BYTES", 1_000)
    monkeypatch.setattr("citystream.registry.serve", serve)
    monkeypatch.setenv("CITYSTREAM_HOME", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["citystream", "registry"])
    before = list(logging.getLogger().handlers)
    try:
        with log.open("a") as written, contextlib.redirect_stderr(written), pytest.raises(SystemExit):
            cli.main()
    finally:
        logging.getLogger().handlers[:] = before
    assert max(sizes) < 1_100
    assert log.read_text().endswith("Error handling request 99\n")


def test_it_ends_with_success_though_a_client_has_not_said_all(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    command = [sys.executable, "-P", "-m", "citystream.cli", "registry", "--port", str(port)]
    environment = {**os.environ, "CITYSTREAM_HOME": str(tmp_path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        assert f"http://127.0.0.1:{port}" in process.stdout.readline()
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"POST /subjects/parking_site-value HTTP/1.1\r\nHost: here\r\nContent-Length: 9\r\n\r\n{")
            with urlopen(f"http://127.0.0.1:{port}/subjects") as answer:
                assert answer.status == 200
            process.terminate()
            assert process.wait(timeout=2 * ENDING_SECONDS + 1) == 0

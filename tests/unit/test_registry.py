import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer

from citystream.registry import CONTENT_TYPE, application
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

    async def asking() -> Answer:
        async with TestClient(TestServer(application(load))) as client:
            data = body if body is None or isinstance(body, str) else json.dumps(body)
            async with client.request(method, path, data=data) as response:
                assert response.content_type == CONTENT_TYPE
                return response.status, await response.json(content_type=CONTENT_TYPE)

    return asyncio.run(asking())


def text(frozen: FrozenSchema) -> str:
    return json.dumps(frozen.schema)


NEWEST = {"subject": "report-value", "version": 2, "id": 7, "schema": text(CATALOGUE.by_id[7])}


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
        ("/schemas/ids/7", {"schema": text(CATALOGUE.by_id[7])}),
        ("/schemas/ids/7/schema", schema("a", "c")),
        ("/schemas/ids/2/subjects", ["report_1m-value"]),
        ("/schemas/ids/7/versions", [{"subject": "report-value", "version": 2}]),
        ("/config", {"compatibilityLevel": "FULL_TRANSITIVE"}),
        ("/config/report-value", {"compatibilityLevel": "FULL_TRANSITIVE"}),
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
        ("/config/nobody-value", 40401),
        ("/mode/nobody-value", 40401),
        ("/subjects/report-value/versions/3", 40402),
        ("/subjects/report-value/versions/2147483647", 40402),
        ("/schemas/ids/3", 40403),
        ("/schemas/ids/3/schema", 40403),
        ("/schemas/ids/3/subjects", 40403),
        ("/schemas/ids/3/versions", 40403),
        (f"/schemas/ids/{'9' * 5000}", 40403),
        ("/subjects/report-value/versions/0", 42202),
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


def test_looks_a_schema_up() -> None:
    asked = {"schema": json.dumps(schema("a", "c"), indent=3), "schemaType": "AVRO"}
    assert ask("POST", "/subjects/report-value", asked) == (200, NEWEST)


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
    ],
)
def test_refuses_what_it_does_not_know(path: str, body: Any, code: int) -> None:
    status, error = ask("POST", path, body)
    assert (status, error["error_code"]) == (int(str(code)[:3]), code)


def test_a_producer_that_registers_what_is_there_gets_its_id() -> None:
    body = {"schema": text(CATALOGUE.by_id[1])}
    assert ask("POST", "/subjects/report-value/versions", body) == (200, {"id": 1})


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

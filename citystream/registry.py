"""The frozen schemas over HTTP, as Confluent's registry in its read-only mode serves them.

Kafka consoles, Flink and ClickHouse's AvroConfluent read our topics through it. A subject is `<topic>-value`
(Confluent's TopicNameStrategy). Paths, bodies and error codes are those of Confluent's REST interface; a write is
refused with 42205, except that registering a schema which is there already gives its id, so that a producer which
registers by itself works. Every answer is read from the files, so what was frozen a moment ago is served.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler

from schemas.catalogue import Catalogue, FrozenSchema, SchemaProblem
from streams.generations import source

CONTENT_TYPE = "application/vnd.schemaregistry.v1+json"
COMPATIBILITY = "FULL_TRANSITIVE"
MODE = "READONLY"
VALUE = "-value"

SUBJECT_NOT_FOUND, VERSION_NOT_FOUND, SCHEMA_NOT_FOUND = 40401, 40402, 40403
INVALID_SCHEMA, INVALID_VERSION, NOT_PERMITTED = 42201, 42202, 42205
STORE_ERROR = 50001


class Refusal(Exception):
    """An error of Confluent's list; its first three digits are the HTTP status."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def application(load: Callable[[], Catalogue] = Catalogue.load) -> web.Application:
    """The registry; ``load`` reads the catalogue and is called for every request."""
    registry = _Registry(load)
    version = "/subjects/{subject}/versions/{version}"
    schema = "/schemas/ids/{id:[0-9]+}"
    app = web.Application(middlewares=[_errors])
    app.add_routes(
        [
            web.get("/", _empty),
            web.get("/subjects", registry.subjects),
            web.post("/subjects/{subject}", registry.look_up),
            web.get("/subjects/{subject}/versions", registry.versions),
            web.post("/subjects/{subject}/versions", registry.register),
            web.get(version, registry.version),
            web.get(f"{version}/schema", registry.version_text),
            web.get("/schemas/types", _types),
            web.get(schema, registry.schema),
            web.get(f"{schema}/schema", registry.schema_text),
            web.get(f"{schema}/subjects", registry.schema_subjects),
            web.get(f"{schema}/versions", registry.schema_versions),
            web.get("/config", _compatibility),
            web.get("/config/{subject}", registry.subject_compatibility),
            web.get("/mode", _mode),
            web.get("/mode/{subject}", registry.subject_mode),
            *(web.delete(path, _read_only) for path in ("/subjects/{subject}", version)),
            *(
                add(path, _read_only)
                for add in (web.put, web.delete)
                for path in ("/config", "/config/{subject}", "/mode", "/mode/{subject}")
            ),
        ]
    )
    return app


def serve(host: str, port: int, say: Callable[[str], None]) -> None:
    """Answer until SIGINT or SIGTERM; ``say`` hears where, once it listens.

    Raises
    ------
    OSError
        The port is taken or the address is not one of this machine.
    """
    where = f"The schema registry is at http://{host}:{port}; Ctrl-C ends it"
    web.run_app(application(), host=host, port=port, print=lambda _: say(where), access_log=None)


class _Registry:
    def __init__(self, load: Callable[[], Catalogue]) -> None:
        self._load = load

    async def subjects(self, _: web.Request) -> web.Response:
        return _json(sorted({_subject(frozen) for frozen in self._load().by_id.values()}))

    async def versions(self, request: web.Request) -> web.Response:
        return _json([frozen.version for frozen in self._versions(request)])

    async def version(self, request: web.Request) -> web.Response:
        return _json(_described(self._version(request)))

    async def version_text(self, request: web.Request) -> web.Response:
        return _json(self._version(request).schema)

    async def schema(self, request: web.Request) -> web.Response:
        return _json({"schema": json.dumps(self._schema(request).schema)})

    async def schema_text(self, request: web.Request) -> web.Response:
        return _json(self._schema(request).schema)

    async def schema_subjects(self, request: web.Request) -> web.Response:
        return _json([_subject(self._schema(request))])

    async def schema_versions(self, request: web.Request) -> web.Response:
        frozen = self._schema(request)
        return _json([{"subject": _subject(frozen), "version": frozen.version}])

    async def look_up(self, request: web.Request) -> web.Response:
        versions = self._versions(request)
        schema = await _schema_in(request)
        found = next((frozen for frozen in versions if frozen.schema == schema), None)
        if found is None:
            raise Refusal(SCHEMA_NOT_FOUND, "Schema not found")
        return _json(_described(found))

    async def register(self, request: web.Request) -> web.Response:
        schema = await _schema_in(request)
        subject = request.match_info["subject"]
        for frozen in self._load().by_id.values():
            if frozen.subject == _name(subject) and frozen.schema == schema:
                return _json({"id": frozen.id})
        return await _read_only(request)

    async def subject_compatibility(self, request: web.Request) -> web.Response:
        self._versions(request)
        return await _compatibility(request)

    async def subject_mode(self, request: web.Request) -> web.Response:
        self._versions(request)
        return await _mode(request)

    def _versions(self, request: web.Request) -> list[FrozenSchema]:
        subject = request.match_info["subject"]
        versions = self._load().versions(_name(subject))
        if not versions:
            raise Refusal(SUBJECT_NOT_FOUND, f"Subject '{subject}' not found.")
        return versions

    def _version(self, request: web.Request) -> FrozenSchema:
        asked = request.match_info["version"]
        versions = self._versions(request)
        if asked in ("latest", "-1"):
            return versions[-1]
        if not re.fullmatch("[1-9][0-9]{0,9}", asked) or int(asked) >= 2**31:
            raise Refusal(
                INVALID_VERSION,
                f"The specified version '{asked}' is not a valid version id. "
                'Allowed values are between [1, 2^31-1] and the string "latest"',
            )
        found = next((frozen for frozen in versions if frozen.version == int(asked)), None)
        if found is None:
            raise Refusal(VERSION_NOT_FOUND, f"Version {asked} not found.")
        return found

    def _schema(self, request: web.Request) -> FrozenSchema:
        asked = request.match_info["id"]
        found = next((frozen for frozen in self._load().by_id.values() if str(frozen.id) == asked), None)
        if found is None:
            raise Refusal(SCHEMA_NOT_FOUND, f"Schema {asked} not found")
        return found


async def _empty(_: web.Request) -> web.Response:
    return _json({})


async def _types(_: web.Request) -> web.Response:
    return _json(["AVRO"])


async def _compatibility(_: web.Request) -> web.Response:
    return _json({"compatibilityLevel": COMPATIBILITY})


async def _mode(_: web.Request) -> web.Response:
    return _json({"mode": MODE})


async def _read_only(request: web.Request) -> web.Response:
    subject = request.match_info.get("subject")
    raise Refusal(NOT_PERMITTED, f"Subject {subject} is in read-only mode" if subject else "Read-only mode")


async def _schema_in(request: web.Request) -> Any:
    """The schema a client sends, as data; what is no JSON is refused."""
    try:
        body = await request.json()
    except (ValueError, RecursionError):
        raise Refusal(400, "The body is not JSON") from None
    text = body.get("schema") if isinstance(body, dict) else None
    if not isinstance(text, str):
        raise Refusal(INVALID_SCHEMA, "The body needs a string 'schema'")
    if body.get("schemaType", "AVRO") != "AVRO":
        raise Refusal(INVALID_SCHEMA, "Only AVRO schemas are here")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise Refusal(INVALID_SCHEMA, "The schema is not JSON") from None


def _subject(frozen: FrozenSchema) -> str:
    return frozen.subject + VALUE


def _name(subject: str) -> str:
    """Whose schemas they are: the topics a feed has one after the other share them."""
    return source(subject.removesuffix(VALUE), 0)[0] if subject.endswith(VALUE) else ""


def _described(frozen: FrozenSchema) -> dict[str, Any]:
    return {
        "subject": _subject(frozen),
        "version": frozen.version,
        "id": frozen.id,
        "schema": json.dumps(frozen.schema),
    }


def _json(data: Any, status: int = 200) -> web.Response:
    return web.json_response(data, status=status, content_type=CONTENT_TYPE)


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except Refusal as refusal:
        code, message = refusal.code, str(refusal)
    except SchemaProblem as problem:
        code, message = STORE_ERROR, str(problem)
    except web.HTTPException as error:
        code, message = error.status, f"HTTP {error.status} {error.reason}"
    return _json({"error_code": code, "message": message}, status=int(str(code)[:3]))

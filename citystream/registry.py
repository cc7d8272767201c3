"""The frozen schemas over HTTP, as Confluent's registry in its read-only mode serves them.

Kafka consoles, Flink and ClickHouse's AvroConfluent read our topics through it. A subject is `<topic>-value`
(Confluent's TopicNameStrategy), in the default context, the only one. Paths, parameters, bodies and error codes are
those of Confluent's REST interface; a write is refused with 42205, except that registering a schema which is there
already gives its id, so that a producer which registers by itself works. Every answer is read from the files, so what
was frozen a moment ago is served.
"""

from __future__ import annotations

import hashlib
import json
import signal
import socket
import uuid
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import avro.schema
import uvicorn
from avro.errors import AvroException
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from schemas.catalogue import Catalogue, FrozenSchema, SchemaProblem, incompatibilities
from streams.feed_topics import FeedPartition

CONTENT_TYPE = "application/vnd.schemaregistry.v1+json"
COMPATIBILITY = "BACKWARD_TRANSITIVE"
MODE = "READONLY"
VALUE = "-value"
CONTEXT = ":.:"
#: What a prefix of subjects may begin with: the default context, or any.
CONTEXTS = (CONTEXT, ":*:")

SUBJECT_NOT_FOUND, VERSION_NOT_FOUND, SCHEMA_NOT_FOUND = 40401, 40402, 40403
COMPATIBILITY_NOT_SET, MODE_NOT_SET = 40408, 40409
INVALID_SCHEMA, INVALID_VERSION, NOT_PERMITTED = 42201, 42202, 42205
STORE_ERROR = 50001

#: What a client writes for the newest version.
LATEST = -1

LARGEST_BODY = 2**20
#: How long requests may go on when the server is to end.
ENDING_SECONDS = 2

Item = TypeVar("Item")
Handler = Callable[[Request], Awaitable[Response]]


class Refusal(Exception):
    """An error of Confluent's list; its first three digits are the HTTP status."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def application(load: Callable[[], Catalogue] = Catalogue.load) -> Starlette:
    """The registry; ``load`` reads the catalogue and is called for every request."""
    registry = _Registry(load)
    version = "/subjects/{subject}/versions/{version}"
    schema = "/schemas/ids/{id}"
    guid = "/schemas/guids/{guid}"
    get: dict[str, Handler] = {
        "/contexts": _contexts,
        "/subjects": registry.subjects,
        "/subjects/{subject}/metadata": registry.with_metadata,
        "/subjects/{subject}/versions": registry.versions,
        version: registry.version,
        f"{version}/schema": registry.version_text,
        f"{version}/referencedby": registry.referenced_by,
        "/schemas": registry.schemas,
        "/schemas/types": _types,
        schema: registry.schema,
        f"{schema}/schema": registry.schema_text,
        f"{schema}/subjects": registry.schema_subjects,
        f"{schema}/versions": registry.schema_versions,
        guid: registry.schema_by_guid,
        f"{guid}/ids": registry.ids_by_guid,
        "/config": _compatibility,
        "/config/{subject}": registry.subject_compatibility,
        "/mode": _mode,
        "/mode/{subject}": registry.subject_mode,
    }
    post: dict[str, Handler] = {
        "/subjects/{subject}": registry.look_up,
        "/subjects/{subject}/versions": registry.register,
        "/compatibility/subjects/{subject}/versions": registry.compatible_with_all,
        "/compatibility/subjects/{subject}/versions/{version}": registry.compatible_with_one,
    }
    read_only: dict[str, Handler] = dict.fromkeys(
        ("/config", "/config/{subject}", "/mode", "/mode/{subject}"), _read_only
    )
    undeletable: dict[str, Handler] = dict.fromkeys(("/subjects/{subject}", version), _read_only)
    methods = {"GET": get, "POST": post, "PUT": read_only, "DELETE": read_only | undeletable}
    routes = [
        Route(path + slash, handler, methods=[method])
        for method, handlers in methods.items()
        for path, handler in handlers.items()
        for slash in ("", "/")  # Jersey, which Confluent uses, takes a slash at the end or none
    ]
    errors = dict.fromkeys((Refusal, SchemaProblem, HTTPException), _refused)
    return Starlette(routes=[Route("/", _empty), *routes], exception_handlers=errors, max_body_size=LARGEST_BODY)


def serve(host: str, port: int, say: Callable[[str], None]) -> None:
    """Answer until SIGINT or SIGTERM; ``say`` hears where, once it listens.

    Raises
    ------
    OSError
        The port is taken or the address is not one of this machine.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    listening = [socket.create_server(at, family=family) for family, at in {(one[0], one[4]) for one in found}]
    server = uvicorn.Server(
        uvicorn.Config(
            application(), loop="asyncio", http="h11", ws="none", lifespan="off", log_config=None, access_log=False,
            proxy_headers=False, server_header=False, timeout_graceful_shutdown=ENDING_SECONDS,
        )
    )  # fmt: skip
    say(f"The schema registry is at http://{host}:{port}; Ctrl-C ends it")
    with suppress(KeyboardInterrupt):  # which the server makes of the signal once it has ended
        server.run(listening)


class _Registry:
    def __init__(self, load: Callable[[], Catalogue]) -> None:
        self._load = load

    async def subjects(self, request: Request) -> Response:
        names = {_subject(frozen) for frozen in self._selected(request)}
        return _json(_page(request, [] if _flag(request, "deletedOnly") else sorted(names)))

    async def schemas(self, request: Request) -> Response:
        found = sorted(self._selected(request), key=lambda frozen: (_subject(frozen), frozen.version))
        if _flag(request, "latestOnly"):
            found = list({frozen.subject: frozen for frozen in found}.values())
        return _json(_page(request, [_described(frozen) for frozen in found]))

    async def versions(self, request: Request) -> Response:
        numbers = [frozen.version for frozen in self._versions(request)]
        return _json(_page(request, [] if _flag(request, "deletedOnly") else numbers))

    async def version(self, request: Request) -> Response:
        return _json(_described(self._version(request)))

    async def version_text(self, request: Request) -> Response:
        return _json(self._version(request).schema)

    async def referenced_by(self, request: Request) -> Response:
        self._version(request)
        return _json([])

    async def with_metadata(self, request: Request) -> Response:
        self._versions(request)
        raise Refusal(SCHEMA_NOT_FOUND, "Schema not found")

    async def schema(self, request: Request) -> Response:
        catalogue = self._load()
        newest = {"maxId": catalogue.newest_id} if _flag(request, "fetchMaxId") else {}
        return _json(_described(_by_id(catalogue, request)) | newest)

    async def schema_text(self, request: Request) -> Response:
        return _json(_by_id(self._load(), request).schema)

    async def schema_subjects(self, request: Request) -> Response:
        return _json(_page(request, [_subject(_by_id(self._load(), request))]))

    async def schema_versions(self, request: Request) -> Response:
        frozen = _by_id(self._load(), request)
        return _json(_page(request, [{"subject": _subject(frozen), "version": frozen.version}]))

    async def schema_by_guid(self, request: Request) -> Response:
        return _json(_described(self._with_guid(request)[-1]))

    async def ids_by_guid(self, request: Request) -> Response:
        return _json([{"context": ".", "id": frozen.id} for frozen in self._with_guid(request)])

    async def look_up(self, request: Request) -> Response:
        found = _same(self._versions(request), await _schema_in(request))
        if found is None:
            raise Refusal(SCHEMA_NOT_FOUND, "Schema not found")
        return _json(_described(found))

    async def register(self, request: Request) -> Response:
        found = _same(self._load().versions(_feed(request)), await _schema_in(request))
        return _json(_described(found)) if found else await _read_only(request)

    async def compatible_with_one(self, request: Request) -> Response:
        return await _compatible(request, [self._version(request)])

    async def compatible_with_all(self, request: Request) -> Response:
        return await _compatible(request, self._load().versions(_feed(request)))

    async def subject_compatibility(self, request: Request) -> Response:
        self._known(request, COMPATIBILITY_NOT_SET, "compatibility")
        return await _compatibility(request)

    async def subject_mode(self, request: Request) -> Response:
        self._known(request, MODE_NOT_SET, "mode")
        return await _mode(request)

    def _known(self, request: Request, code: int, what: str) -> None:
        if not (_flag(request, "defaultToGlobal") or self._load().versions(_feed(request))):
            subject = request.path_params["subject"]
            raise Refusal(code, f"Subject '{subject}' does not have subject-level {what} configured")

    def _selected(self, request: Request) -> Iterable[FrozenSchema]:
        prefix = request.query_params.get("subjectPrefix", "")
        for context in CONTEXTS:
            prefix = prefix.removeprefix(context)
        return (frozen for frozen in self._load().by_id.values() if _subject(frozen).startswith(prefix))

    def _versions(self, request: Request) -> list[FrozenSchema]:
        versions = self._load().versions(_feed(request))
        if not versions:
            raise Refusal(SUBJECT_NOT_FOUND, f"Subject '{request.path_params['subject']}' not found.")
        return versions

    def _version(self, request: Request) -> FrozenSchema:
        asked = _number(request.path_params["version"])
        versions = self._versions(request)
        if asked == LATEST:
            return versions[-1]
        found = next((frozen for frozen in versions if frozen.version == asked), None)
        if found is None:
            raise Refusal(VERSION_NOT_FOUND, f"Version {asked} not found.")
        return found

    def _with_guid(self, request: Request) -> list[FrozenSchema]:
        asked = request.path_params["guid"]
        found = [frozen for frozen in self._load().by_id.values() if _guid(frozen) == asked]
        if not found:
            raise Refusal(SCHEMA_NOT_FOUND, f"Schema {asked} not found")
        return found


def _number(version: str) -> int:
    """The number of a version, or ``LATEST``, as Confluent reads it."""
    number = LATEST if version.strip().lower() == "latest" else 0
    with suppress(ValueError):
        number = number or int(version)
    if number != LATEST and not 1 <= number < 2**31:
        raise Refusal(
            INVALID_VERSION,
            f"The specified version '{version}' is not a valid version id. "
            'Allowed values are between [1, 2^31-1] and the string "latest"',
        )
    return number


def _by_id(catalogue: Catalogue, request: Request) -> FrozenSchema:
    asked = request.path_params["id"]
    if not (asked.isascii() and asked.isdigit()):
        raise HTTPException(404)
    found = next((frozen for frozen in catalogue.by_id.values() if str(frozen.id) == asked), None)
    if found is None:
        raise Refusal(SCHEMA_NOT_FOUND, f"Schema {asked} not found")
    return found


def _flag(request: Request, name: str) -> bool:
    return request.query_params.get(name, "").lower() == "true"


def _page(request: Request, items: Sequence[Item]) -> Sequence[Item]:
    """The part of a list that a client asks for; a negative ``limit`` is none."""
    try:
        offset, limit = int(request.query_params.get("offset", 0)), int(request.query_params.get("limit", -1))
    except ValueError:
        raise HTTPException(404) from None
    rest = items[max(offset, 0) :]
    return rest if limit < 0 else rest[:limit]


async def _empty(_: Request) -> Response:
    return _json({})


async def _contexts(request: Request) -> Response:
    return _json(_page(request, [CONTEXT]))


async def _types(_: Request) -> Response:
    return _json(["AVRO"])


async def _compatibility(_: Request) -> Response:
    return _json({"compatibilityLevel": COMPATIBILITY})


async def _mode(_: Request) -> Response:
    return _json({"mode": MODE})


async def _read_only(request: Request) -> Response:
    subject = request.path_params.get("subject")
    raise Refusal(NOT_PERMITTED, f"Subject {subject} is in read-only mode" if subject else "Read-only mode")


async def _compatible(request: Request, versions: Sequence[FrozenSchema]) -> Response:
    new = await _schema_in(request)
    messages = [f"version {old.version}: {reason}" for old in versions for reason in incompatibilities(new, old.schema)]
    said = {"messages": messages} if _flag(request, "verbose") else {}
    return _json({"is_compatible": not messages} | said)


async def _schema_in(request: Request) -> Any:
    """The schema a client sends, in the one form that ``_canonical`` gives; what is no Avro schema is refused."""
    try:
        body = await request.json()
    except (ValueError, RecursionError):
        raise Refusal(400, "The body is not JSON") from None
    text = body.get("schema") if isinstance(body, dict) else None
    if not isinstance(text, str):
        raise Refusal(INVALID_SCHEMA, "The body needs a string 'schema'")
    if (body.get("schemaType") or "AVRO") != "AVRO":
        raise Refusal(INVALID_SCHEMA, "Only AVRO schemas are here")
    try:
        return _canonical(text)
    except (AvroException, ValueError, TypeError, RecursionError) as error:
        raise Refusal(INVALID_SCHEMA, f"Either the input schema or one of its references is invalid: {error}") from None


def _canonical(text: str) -> Any:
    """A schema with all its properties in one of the many ways to write it."""
    return avro.schema.parse(text).to_json()


def _same(versions: Sequence[FrozenSchema], schema: Any) -> FrozenSchema | None:
    """The oldest version that is this canonical schema, however its file is written."""
    return next((frozen for frozen in versions if _canonical(json.dumps(frozen.schema)) == schema), None)


def _subject(frozen: FrozenSchema) -> str:
    return frozen.subject + VALUE


def _feed(request: Request) -> str:
    """Whose schemas a request is about: the topics a feed has one after the other share them."""
    subject = request.path_params["subject"].removeprefix(CONTEXT)
    return FeedPartition.of(subject.removesuffix(VALUE), 0).feed if subject.endswith(VALUE) else ""


def _guid(frozen: FrozenSchema) -> str:
    """The same for the same schema under any subject, as Confluent's, which are of its own way to write a schema."""
    text = json.dumps(frozen.schema).encode()
    return str(uuid.UUID(bytes=hashlib.md5(text, usedforsecurity=False).digest()))


def _described(frozen: FrozenSchema) -> dict[str, Any]:
    return {
        "subject": _subject(frozen),
        "version": frozen.version,
        "id": frozen.id,
        "guid": _guid(frozen),
        "schemaType": "AVRO",
        "schema": json.dumps(frozen.schema),
    }


def _json(data: Any, status: int = 200) -> Response:
    return Response(json.dumps(data), status, media_type=CONTENT_TYPE)


async def _refused(_: Request, error: Exception) -> Response:
    match error:
        case Refusal():
            code, message = error.code, str(error)
        case HTTPException():
            code, message = error.status_code, f"HTTP {error.status_code} {error.detail}"
        case _:
            code, message = STORE_ERROR, str(error)
    return _json({"error_code": code, "message": message}, int(str(code)[:3]))

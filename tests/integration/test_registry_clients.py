"""Confluent's own client, asking the registry as its serializers and consoles do."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer, AvroSerializer
from confluent_kafka.schema_registry.error import SchemaRegistryError
from confluent_kafka.serialization import MessageField, SerializationContext

from citystream.settings import Settings
from citystream.stack.stack import Stack
from schemas.catalogue import Catalogue

pytestmark = pytest.mark.integration

FEED = "parking_site"
SUBJECT = f"{FEED}-value"
VERSIONS = Catalogue.load().versions(FEED)
NEWEST = VERSIONS[-1]


@pytest.fixture
def client(settings: Settings, stack: Stack) -> Iterator[SchemaRegistryClient]:
    with SchemaRegistryClient({"url": f"http://127.0.0.1:{settings.registry_port}", "max.retries": 0}) as opened:
        yield opened


def with_fields(*more: dict[str, Any]) -> Schema:
    """The newest schema, and fields more."""
    return Schema(json.dumps(NEWEST.schema | {"fields": [*NEWEST.schema["fields"], *more]}), "AVRO")


def test_it_finds_the_same_schema_by_every_way(client: SchemaRegistryClient) -> None:
    newest = client.get_latest_version(SUBJECT)
    assert (newest.schema_id, newest.version) == (NEWEST.id, NEWEST.version)
    assert newest.schema == with_fields()
    assert client.get_version(SUBJECT, NEWEST.version) == newest
    assert client.lookup_schema(SUBJECT, newest.schema) == newest
    assert client.register_schema(SUBJECT, newest.schema) == NEWEST.id
    assert client.get_schema(NEWEST.id).schema_str == newest.schema.schema_str
    assert newest.guid is not None
    assert client.get_schema_by_guid(newest.guid).schema_str == newest.schema.schema_str
    assert client.get_schema_versions(NEWEST.id)[0].version == NEWEST.version
    assert client.get_subjects_by_schema_id(NEWEST.id) == [SUBJECT]
    assert client.get_versions(SUBJECT) == [frozen.version for frozen in VERSIONS]
    assert client.get_referenced_by(SUBJECT, NEWEST.version) == []
    assert client.get_subjects(subject_prefix=FEED, limit=1) == [SUBJECT]
    assert client.get_contexts() == [":.:"]


def test_it_is_told_what_goes_together(client: SchemaRegistryClient) -> None:
    optional = {"name": "colour", "type": ["null", "string"], "default": None}
    assert client.test_compatibility(SUBJECT, with_fields(optional))
    assert not client.test_compatibility(SUBJECT, with_fields({"name": "colour", "type": "int"}))
    assert not client.test_compatibility_all_versions(SUBJECT, with_fields({"name": "colour", "type": "int"}))
    assert client.get_compatibility(SUBJECT) == client.get_compatibility() == "BACKWARD_TRANSITIVE"
    assert client.get_mode(SUBJECT) == client.get_global_mode() == "READONLY"


def test_its_serializer_writes_what_its_deserializer_reads(client: SchemaRegistryClient) -> None:
    context = SerializationContext(FEED, MessageField.VALUE)
    serialize = AvroSerializer(client, client.get_latest_version(SUBJECT).schema)
    record = {field["name"]: example(field) for field in NEWEST.schema["fields"]}
    body = serialize(record, context)
    assert body is not None
    assert body[:5] == b"\0" + NEWEST.id.to_bytes(4, "big")
    assert AvroDeserializer(client)(body, context) == record


def example(field: dict[str, Any]) -> Any:
    """A value of a field, null where it may be."""
    match field["type"]:
        case list():
            return None
        case {"type": "enum", "symbols": [*symbols]}:
            return symbols[0]
        case {"logicalType": _}:
            return datetime(2026, 1, 5, tzinfo=UTC)
        case "string":
            return "text"
        case _:
            return 7


def test_it_is_refused_in_the_words_it_knows(client: SchemaRegistryClient) -> None:
    with pytest.raises(SchemaRegistryError, match="not found") as unknown:
        client.get_latest_version("nope-value")
    assert unknown.value.error_code == 40401
    with pytest.raises(SchemaRegistryError, match="read-only") as written:
        client.register_schema(SUBJECT, with_fields({"name": "colour", "type": "int"}))
    assert written.value.error_code == 42205

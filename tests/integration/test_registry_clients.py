"""Confluent's own client, asking the registry as its serializers and consoles do."""

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer, AvroSerializer
from confluent_kafka.schema_registry.error import SchemaRegistryError
from confluent_kafka.serialization import MessageField, SerializationContext

from citystream.stack import registry
from schemas.catalogue import FrozenSchema, freeze
from tests.city import City, made_up

pytestmark = pytest.mark.integration

#: With an enum, a place, a number and a condition that may be null.
FEEDS = ("made_up_d", "made_up_f", "made_up_g")
FEED = FEEDS[-1]
SUBJECT = f"{FEED}-value"


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Iterator[City]:
    """The registry alone, of feeds that were made up and then described otherwise: a subject has two versions."""
    home = tmp_path_factory.mktemp("city")
    city = City(home, made_up(home / "sources", *FEEDS))
    more = {name: replace(feed, description="As it is now") for name, feed in city.installation.feeds.items()}
    freeze(more, city.sources / "schemas" / "frozen")
    process = city.process(registry.NAME)
    process.start(replace(registry.launch(city.settings), environment=city.environment))
    try:
        process.wait_until(lambda: registry.ready(city.settings))
        yield city
    finally:
        process.stop()


@pytest.fixture
def versions(city: City) -> list[FrozenSchema]:
    """Those of the subject."""
    found = city.installation.catalogue.versions(FEED)
    assert len(found) == 2
    return found


@pytest.fixture
def newest(versions: list[FrozenSchema]) -> FrozenSchema:
    return versions[-1]


@pytest.fixture
def client(city: City) -> Iterator[SchemaRegistryClient]:
    with SchemaRegistryClient({"url": f"http://127.0.0.1:{city.settings.registry_port}", "max.retries": 0}) as opened:
        yield opened


def with_fields(frozen: FrozenSchema, *more: dict[str, Any]) -> Schema:
    """A schema, and fields more."""
    return Schema(json.dumps(frozen.schema | {"fields": [*frozen.schema["fields"], *more]}), "AVRO")


def test_it_finds_the_same_schema_by_every_way(
    client: SchemaRegistryClient, versions: list[FrozenSchema], newest: FrozenSchema
) -> None:
    found = client.get_latest_version(SUBJECT)
    assert (found.schema_id, found.version) == (newest.id, newest.version)
    assert found.schema == with_fields(newest)
    assert client.get_version(SUBJECT, newest.version) == found
    assert client.lookup_schema(SUBJECT, found.schema) == found
    assert client.register_schema(SUBJECT, found.schema) == newest.id
    assert client.get_schema(newest.id).schema_str == found.schema.schema_str
    assert found.guid is not None
    assert client.get_schema_by_guid(found.guid).schema_str == found.schema.schema_str
    assert client.get_schema_versions(newest.id)[0].version == newest.version
    assert client.get_subjects_by_schema_id(newest.id) == [SUBJECT]
    assert client.get_versions(SUBJECT) == [frozen.version for frozen in versions]
    assert client.get_referenced_by(SUBJECT, newest.version) == []
    assert client.get_subjects(subject_prefix=FEED, limit=1) == [SUBJECT]
    assert client.get_contexts() == [":.:"]


def test_it_is_told_what_goes_together(client: SchemaRegistryClient, newest: FrozenSchema) -> None:
    optional = {"name": "colour", "type": ["null", "string"], "default": None}
    assert client.test_compatibility(SUBJECT, with_fields(newest, optional))
    assert not client.test_compatibility(SUBJECT, with_fields(newest, {"name": "colour", "type": "int"}))
    assert not client.test_compatibility_all_versions(SUBJECT, with_fields(newest, {"name": "colour", "type": "int"}))
    assert client.get_compatibility(SUBJECT) == client.get_compatibility() == "BACKWARD_TRANSITIVE"
    assert client.get_mode(SUBJECT) == client.get_global_mode() == "READONLY"


@pytest.mark.parametrize("feed", FEEDS)
def test_its_serializer_writes_what_its_deserializer_reads(client: SchemaRegistryClient, city: City, feed: str) -> None:
    newest = city.installation.catalogue.latest(feed)
    context = SerializationContext(feed, MessageField.VALUE)
    serialize = AvroSerializer(client, client.get_latest_version(f"{feed}-value").schema)
    record = {field["name"]: example(field) for field in newest.schema["fields"]}
    body = serialize(record, context)
    assert body is not None
    assert body[:5] == b"\0" + newest.id.to_bytes(4, "big")
    assert AvroDeserializer(client)(body, context) == record


def example(field: dict[str, Any]) -> Any:
    """A value of a field, null where it may be."""
    match field["type"]:
        case list():
            return None
        case {"type": "enum", "symbols": [*_, last]}:
            return last
        case {"logicalType": _}:
            return datetime(2026, 1, 5, tzinfo=UTC)
        case "string":
            return "text"
        case _:
            return 7


def test_it_is_refused_in_the_words_it_knows(client: SchemaRegistryClient, newest: FrozenSchema) -> None:
    with pytest.raises(SchemaRegistryError, match="not found") as unknown:
        client.get_latest_version("nope-value")
    assert unknown.value.error_code == 40401
    with pytest.raises(SchemaRegistryError, match="read-only") as written:
        client.register_schema(SUBJECT, with_fields(newest, {"name": "colour", "type": "int"}))
    assert written.value.error_code == 42205

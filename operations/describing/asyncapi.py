"""AsyncAPI 3: which topics there are, what is on them, and who publishes it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from operations.describing import Described, readers
from schemas.catalogue import FrozenSchema
from schemas.feed import Feed, milliseconds
from schemas.reference import Reference
from streams.cluster import Cluster
from streams.publisher import topic_for
from streams.topics import Topic, of_references, topics

#: Of AsyncAPI, of Avro as it names it, and of the bindings of Kafka.
VERSION, AVRO, BINDINGS = "3.0.0", "application/vnd.apache.avro+json;version=1.9.0", "0.5.0"


def document(city: Described) -> dict[str, Any]:
    """The document as plain data."""
    known = {topic.name: topic for topic in _topics(city)}
    channels, operations, messages = {}, {}, {}
    for one, subject, what in _subjects(city):
        frozen = city.schemas.latest(subject)
        name = known[_address(one, subject)].name
        channels[name] = _channel(known[name], subject, what, one)
        messages[subject] = _message(frozen, what, one)
        for action, who in _publishers(one, subject):
            operations[f"{action}_{name}"] = _operation(action, name, subject, who)
    return {
        "asyncapi": VERSION,
        "info": {
            "title": "citystream",
            "version": "1.0.0",
            "description": "What the departments of the city publish, and what is made of it. What is received, the "
            "department that is named publishes; what is sent, the city's workers do. Values are in Confluent's wire "
            "format: a zero byte, the id of the schema in four bytes, and the Avro record.",
        },
        "defaultContentType": "application/vnd.apache.avro",
        "servers": _servers(city),
        "channels": channels,
        "operations": operations,
        "components": {"messages": messages, "securitySchemes": _security(city.cluster)},
    }


def _topics(city: Described) -> list[Topic]:
    return [*topics(city.feeds.values()), *of_references(city.tables.values(), city.feeds.values())]


def _subjects(city: Described) -> Iterator[tuple[Feed | Reference, str, str]]:
    """What each subject is of, and what it is about."""
    for feed in city.feeds.values():
        yield feed, feed.name, feed.description
        yield from ((feed, one.topic, one.description) for one in feed.aggregates)
    yield from ((table, table.name, table.description) for table in city.tables.values())


def _publishers(one: Feed | Reference, subject: str) -> Iterator[tuple[str, str]]:
    """What is done with a subject, as the city sees it, and who publishes: a department, the workers, or both."""
    records = subject == one.name
    if records and not (isinstance(one, Feed) and one.by_workers):
        yield "receive", f"{one.department.name} publishes"
    if not records or (isinstance(one, Feed) and not one.is_source):
        yield "send", "The city's workers publish"


def _address(one: Feed | Reference, subject: str) -> str:
    """The topic where records of a subject are published now."""
    return topic_for(one) if isinstance(one, Feed) and subject == one.name else subject


def _servers(city: Described) -> dict[str, Any]:
    security = [{"$ref": f"#/components/securitySchemes/{name}"} for name in _security(city.cluster)]
    return {
        f"broker{number}": {
            "host": host,
            "protocol": "kafka-secure" if city.cluster.tls else "kafka",
            "description": "A broker of the city's Kafka",
            **({"security": security} if security else {}),
        }
        for number, host in enumerate(city.cluster.servers, 1)
    }


def _security(cluster: Cluster) -> dict[str, Any]:
    """How one logs in, where brokers ask."""
    if cluster.user:
        return {"login": {"type": "scramSha512", "description": "The user and password that the operator gave"}}
    if cluster.token_file:
        return {
            "login": {
                "type": "http",
                "scheme": "bearer",
                "description": "OAUTHBEARER with a token of the city's identity provider",
            }
        }
    return {}


def _channel(topic: Topic, subject: str, what: str, one: Feed | Reference) -> dict[str, Any]:
    kept = {"cleanup.policy": ["compact" if topic.retention is None else "delete"]} | (
        {} if topic.retention is None else {"retention.ms": milliseconds(topic.retention)}
    )
    return {
        "address": topic.name,
        "title": what,
        "description": readers(one),
        "messages": {subject: {"$ref": f"#/components/messages/{subject}"}},
        "bindings": {
            "kafka": {
                "topic": topic.name,
                "partitions": topic.partitions,
                "topicConfiguration": kept,
                "bindingVersion": BINDINGS,
            }
        },
    }


def _message(frozen: FrozenSchema, what: str, one: Feed | Reference) -> dict[str, Any]:
    return {
        "name": frozen.subject,
        "title": what,
        "summary": f"Version {frozen.version}, under the schema id {frozen.id}",
        "tags": [{"name": one.department.name}, {"name": f"batch {one.batch}"}],
        "contentType": "application/vnd.apache.avro",
        "payload": {"schemaFormat": AVRO, "schema": frozen.schema},
        "bindings": {
            "kafka": {
                "key": {"type": "string", "description": "UTF-8"},
                "schemaIdLocation": "payload",
                "schemaIdPayloadEncoding": "confluent",
                "schemaLookupStrategy": "TopicIdStrategy",
                "bindingVersion": BINDINGS,
            }
        },
    }


def _operation(action: str, channel: str, subject: str, who: str) -> dict[str, Any]:
    return {
        "action": action,
        "channel": {"$ref": f"#/channels/{channel}"},
        "messages": [{"$ref": f"#/channels/{channel}/messages/{subject}"}],
        "summary": who,
    }

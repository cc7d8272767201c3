"""Avro schemas of feeds and aggregates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from schemas.feed import Aggregate, Feed
from schemas.fields import DAYS, INSTANTS, PSEUDONYM, UUID
from schemas.model import Field, Kind
from schemas.reference import Reference

Schema = dict[str, Any]

#: Property ``format`` of a text that is a UUID in its canonical form.
UUID_FORMAT = "uuid"

_AVRO: dict[Kind, Any] = {
    "string": "string",
    "uuid": "string",
    "int": "int",
    "float": "double",
    "bool": "boolean",
    "instant": {"type": "long", "logicalType": "timestamp-millis"},
    "date": {"type": "int", "logicalType": "date"},
    "place": {
        "type": "record",
        "name": "Place",
        "fields": [{"name": "longitude", "type": "double"}, {"name": "latitude", "type": "double"}],
    },
}


#: Properties that hold the bounds of a kind; those of the others are the same for every field.
_BOUNDS: Mapping[Kind, tuple[str, str]] = {
    "string": ("minLength", "maxLength"),
    "int": ("minimum", "maximum"),
    "float": ("minimum", "maximum"),
}
_FIXED_BOUNDS: Mapping[Kind, tuple[float, float]] = {"instant": INSTANTS, "date": DAYS}


def feed_schema(feed: Feed | Reference) -> Schema:
    """Avro schema of the record of a feed or of reference data, with unit, bounds and sensitivity as field properties.

    A field's properties say all that a value is held against (``field_of``).
    """
    return {
        "type": "record",
        "name": "".join(word.capitalize() for word in feed.name.split("_")),
        "namespace": "city",
        "doc": feed.description,
        "fields": [_avro_field(f) for f in feed.fields],
    }


def _avro_field(field: Field) -> Schema:
    base: Any = _AVRO.get(field.kind)
    name = "".join(word.capitalize() for word in field.name.split("_"))
    if field.kind == "enum":
        base = {"type": "enum", "name": name, "symbols": list(field.symbols), "default": "unknown"}
    elif field.kind == "place":
        base = base | {"name": name}
    properties = {
        "format": UUID_FORMAT if field.kind == "uuid" else None,
        "shape": field.shape,
        "unit": field.unit,
        **dict(zip(_BOUNDS.get(field.kind, ()), (field.low, field.high), strict=False)),
        "pattern": field.pattern if field.kind == "string" else None,
        "sensitivity": "personal" if field.personal else None,
    }
    schema: Schema = {"name": field.name, "type": ["null", base] if field.nullable else base, "doc": field.description}
    if field.nullable:
        schema["default"] = None
    elif field.has_default:
        schema["default"] = field.default
    return schema | {name: value for name, value in properties.items() if value is not None}


def _key_field(field: Field) -> Schema:
    """A group key as a part has it; an enum is a text, whatever symbols it gets."""
    base = "string" if field.kind == "enum" else _AVRO[field.kind]
    if not field.nullable:
        return {"name": field.name, "type": base}
    return {"name": field.name, "type": ["null", base], "default": None}


def field_of(schema: Schema) -> Field:
    """The description of a field of a frozen feed schema, whoever declared it.

    A personal field holds a pseudonym in every version, also in those frozen before schemas said so.
    """
    nullable = isinstance(schema["type"], list)
    personal = schema.get("sensitivity") == "personal"
    base = schema["type"][1] if nullable else schema["type"]
    kind = _kind(base, schema.get("format"))
    low, high = _FIXED_BOUNDS.get(kind) or [schema.get(name) for name in _BOUNDS.get(kind, ("", ""))]
    return Field(
        name=schema["name"],
        kind=kind,
        nullable=nullable,
        description=schema["doc"],
        unit=schema.get("unit"),
        low=low,
        high=high,
        pattern=UUID if kind == "uuid" else PSEUDONYM if personal else schema.get("pattern"),
        symbols=tuple(base["symbols"]) if kind == "enum" else (),
        personal=personal,
        default=schema.get("default"),
        has_default="default" in schema,
    )


def _kind(base: Any, form: str | None) -> Kind:
    if base == "string":
        return "uuid" if form == UUID_FORMAT else "string"
    if isinstance(base, dict) and base["type"] in ("enum", "record"):
        return "enum" if base["type"] == "enum" else "place"
    return next(kind for kind, avro in _AVRO.items() if avro == base)


def tick_schema() -> Schema:
    """Avro schema of a tick (``schemas/ticks.py``)."""
    return {
        "type": "record",
        "name": "Tick",
        "namespace": "city",
        "doc": "A control record, without a key: how far event time has come in its partition",
        "fields": [
            {
                "name": "event_time",
                "type": ["null", _AVRO["instant"]],
                "doc": "Event time has come to here, as if by an event; null: delay says it",
                "default": None,
            },
            {
                "name": "delay",
                "type": ["null", "long"],
                "doc": "Event time has come to so long before this record's arrival [ms]; null: event_time says it",
                "default": None,
            },
        ],
    }


def aggregate_schema(feed: Feed, aggregate: Aggregate) -> Schema:
    """Avro schema of one part of a window: what one source partition contributed to it, by which ``definition``.

    ``since`` is the offset from which on that partition's life counts, 0 for the first one: parts of several lives add
    up. ``version`` orders the revisions of a part: 2 x last offset counted in, + 1 if final. The last part of a flush
    carries ``watermark``, the running maximum of event time of its source partition; the others carry null.
    """
    partials = [p for measure in aggregate.measures for p in measure.partials]
    fields: list[Schema] = [
        *map(_key_field, feed.grouped_by(aggregate)),
        {"name": "window_start", "type": _AVRO["instant"]},
        {"name": "source_partition", "type": "int"},
        {"name": "since", "type": "long"},
        {"name": "version", "type": "long"},
        {"name": "watermark", "type": ["null", "long"], "default": None},
        {"name": "events", "type": "long"},
    ]
    for partial in partials:
        if partial.merge == "histogram":
            fields.append({"name": f"{partial.name}_buckets", "type": {"type": "array", "items": "int"}})
            fields.append({"name": f"{partial.name}_counts", "type": {"type": "array", "items": "long"}})
        elif partial.merge in ("first", "last"):
            fields.append({"name": partial.name, "type": {"type": "array", "items": "long"}})
        elif partial.merge == "sum":
            fields.append({"name": partial.name, "type": "long"})
        else:
            fields.append({"name": partial.name, "type": ["null", "long"], "default": None})
    return {
        "type": "record",
        "name": "".join(word.capitalize() for word in aggregate.topic.split("_")),
        "namespace": "city",
        "doc": aggregate.description,
        "definition": feed.definition_of(aggregate),
        "fields": fields,
    }

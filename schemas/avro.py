"""Avro schemas of feeds and aggregates."""

from __future__ import annotations

from typing import Any

from schemas.feed import Aggregate, Feed
from schemas.model import Field, Kind

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


def feed_schema(feed: Feed) -> Schema:
    """Avro schema of a feed's record, with unit, bounds and sensitivity as field properties."""
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
        "unit": field.unit,
        "minimum": field.low if field.kind in ("int", "float") else None,
        "maximum": field.high if field.kind in ("int", "float") else None,
        "sensitivity": "personal" if field.personal else None,
    }
    schema: Schema = {"name": field.name, "type": ["null", base] if field.nullable else base, "doc": field.description}
    if field.nullable:
        schema["default"] = None
    elif field.has_default:
        schema["default"] = field.default
    return schema | {name: value for name, value in properties.items() if value is not None}


def aggregate_schema(aggregate: Aggregate) -> Schema:
    """Avro schema of one part of a window: what one source partition contributed to it.

    ``since`` is the offset from which on that partition's life counts, 0 for the first one: parts of several lives add
    up. ``version`` orders the revisions of a part: 2 x last offset counted in, + 1 if final. The last part of a flush
    carries ``watermark``, the running maximum of event time of its source partition; the others carry null.
    """
    partials = [p for measure in aggregate.measures for p in measure.partials]
    fields: list[Schema] = [
        *({"name": name, "type": "string"} for name in aggregate.by),
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
        elif partial.merge == "sum":
            fields.append({"name": partial.name, "type": "long"})
        else:
            fields.append({"name": partial.name, "type": ["null", "long"], "default": None})
    return {
        "type": "record",
        "name": "".join(word.capitalize() for word in aggregate.name.split("_")),
        "namespace": "city",
        "doc": aggregate.description,
        "fields": fields,
    }

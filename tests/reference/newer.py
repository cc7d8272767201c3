"""The toy feed as a later declaration has it: a symbol more, and new fields of every type that may be absent."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from typing import Annotated, Any

from pydantic import Field

from schemas.avro import feed_schema
from schemas.catalogue import Catalogue, FrozenSchema
from schemas.fields import Day, Instant, Location, Unit
from schemas.record_codec import encode
from tests.reference.toy import CATALOGUE, FEED, Toy, record


class Mood(StrEnum):
    """The symbols, a new one before the others."""

    ANGRY = "angry"
    CALM = "calm"
    BUSY = "busy"
    UNKNOWN = "unknown"


class Newer(Toy):
    """What a newer toy device reports."""

    mood: Annotated[Mood, Field(description="Mood of the device")]  # type: ignore[assignment]
    size: Annotated[int | None, Field(ge=1, le=9, description="Size"), Unit("1")]
    speed: Annotated[float | None, Field(ge=0, description="Speed"), Unit("m/s")]
    tag: Annotated[str | None, Field(min_length=2, pattern="^[a-z'\"湖]+$", description="Tag")]
    seen_at: Annotated[Instant | None, Field(description="When it was seen")]
    made: Annotated[Day | None, Field(description="Day it was made")]
    lit: Annotated[bool | None, Field(description="Whether it is lit")]
    home: Location
    doors: Annotated[int, Field(description="Doors")] = 4
    colour: Annotated[str, Field(description="Colour")] = "it's red"
    temper: Annotated[Mood, Field(description="Temper")] = Mood.UNKNOWN
    heated: Annotated[bool, Field(description="Whether it is heated")] = True


NEWER = replace(FEED, record=Newer)
NEW = [field.name for field in NEWER.fields if field not in FEED.fields and field.name != "mood"]
NEWER_SCHEMA = FrozenSchema(max(CATALOGUE.by_id) + 1, "toy", 2, feed_schema(NEWER))
BOTH = Catalogue({**CATALOGUE.by_id, NEWER_SCHEMA.id: NEWER_SCHEMA})


def newer(**changes: Any) -> bytes:
    """An encoded record of the newer version, its new fields null or their defaults unless they are given."""
    absent = {f.name: f.default for f in NEWER.fields if f.name in NEW}
    return encode(NEWER_SCHEMA, record(**{n: v for n, v in changes.items() if n not in absent}) | absent | changes)

"""A small feed with every type of the feed language and every kind of measure, and records of it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any, TypeVar
from uuid import UUID

from pydantic import Field

from schemas.avro import aggregate_schema, feed_schema, tick_schema
from schemas.catalogue import TICK, Catalogue, FrozenSchema
from schemas.department import Department
from schemas.expressions import Column, When
from schemas.feed import Aggregate, Feed, NotAfter, RollUp
from schemas.fields import Day, EventId, Instant, Location, Record, Text, Unit
from schemas.measures import count_where, energy_mean, first, last, quantiles, ratio, share, spread, total
from schemas.record_codec import encode

DEPARTMENT = Department(name="Toys", contact="toys@city.example", purpose="Tests")
SECOND = 1000
#: An instant on no border of anything, in ms.
NOON = int(datetime(2024, 5, 1, 12, tzinfo=UTC).timestamp()) * SECOND


class Mood(StrEnum):
    """An enum field's symbols."""

    CALM = "calm"
    BUSY = "busy"
    UNKNOWN = "unknown"


class Toy(Record):
    """What a toy device reports."""

    event_id: EventId
    device_id: Annotated[Text, Field(description="Device")]
    observed_at: Annotated[Instant, Field(description="Event time")]
    began_at: Annotated[Instant | None, Field(description="Begin of the period")]
    mood: Annotated[Mood, Field(description="Mood of the device")]
    level: Annotated[int, Field(ge=-1000, le=100_000, description="Level"), Unit("1")]
    wait: Annotated[int | None, Field(description="How long someone waited"), Unit("ms")]
    load: Annotated[float | None, Field(ge=-100, le=100, description="Load"), Unit("1")]
    weight: Annotated[float, Field(description="Weight"), Unit("kg")]
    open: Annotated[bool | None, Field(description="Whether it is open")]
    built: Annotated[Day | None, Field(description="Day it was built")]
    note: Annotated[str | None, Field(max_length=6, description="Remark")]
    place: Location


LEVEL, LOAD, WAIT = Column("level"), Column("load"), Column("wait")
SINCE = When(LEVEL >= 0, Column("observed_at") - Column("began_at"))

FEED = Feed(
    name="toy",
    description="Toy devices",
    record=Toy,
    key="device_id",
    event_time="observed_at",
    department=DEPARTMENT,
    batch=1,
    rate=1.0,
    silence=timedelta(minutes=1),
    disorder=timedelta(seconds=2),
    lateness=timedelta(seconds=3),
    rules=(NotAfter("began_at", "observed_at"),),
    partitions=1,
    aggregates=(
        Aggregate(
            name="toy_4s",
            by=("device_id",),
            window=timedelta(seconds=4),
            measures=(
                total("level", LEVEL, unit="1", description="Level"),
                spread("load", LOAD, unit="1", scale=100, description="Load"),
                ratio("gain", LOAD * LEVEL, LEVEL, unit="1", scale=10, description="Gain"),
                ratio("slope", LOAD / WAIT, LEVEL - 3, unit="1", scale=1000, description="Slope"),
            ),
            description="Toys by device",
        ),
        Aggregate(
            name="toy_5s_mood",
            by=("mood", "device_id"),
            window=timedelta(seconds=5),
            measures=(
                count_where("busy", Column("mood").equals("busy"), description="Busy ones"),
                share("high", LOAD >= 0.5, description="Share of high load"),
                quantiles("wait", WAIT, (0.5, 0.9), unit="s", divisor=1000, description="Wait"),
                quantiles("delay", SINCE, (0.5,), unit="ms", description="Delay"),
            ),
            description="Toys by mood",
        ),
    ),
)


Named = TypeVar("Named", Aggregate, RollUp)

#: The same records by what may be null, numbers and conditions.
GROUPED = replace(
    FEED,
    aggregates=(
        Aggregate(
            name="toy_4s_note",
            by=("note", "device_id"),
            window=timedelta(seconds=4),
            measures=(
                total("level", LEVEL, unit="1", description="Level"),
                first("load", LOAD, unit="1", scale=100, description="Load"),
                last("load_then", LOAD, unit="1", scale=100, description="Load"),
                last("wait", WAIT, unit="ms", description="Wait"),
            ),
            description="Toys by note",
        ),
        Aggregate(
            name="toy_5s_wait",
            by=("wait", "open", "level"),
            window=timedelta(seconds=5),
            measures=(
                spread("load", LOAD, unit="1", scale=100, description="Load"),
                energy_mean("noise", LOAD, unit="dB", description="Noise"),
                energy_mean("din", LEVEL / 3, unit="dB", description="Din, mostly too loud"),
            ),
            description="Toys by wait",
        ),
    ),
)


def renamed(feed: Feed, name: str) -> Feed:
    """The same feed, of another name."""

    def other(one: Named) -> Named:
        return replace(one, name=one.name.replace(feed.name, name, 1))

    aggregates = (replace(other(a), rollups=tuple(map(other, a.rollups))) for a in feed.aggregates)
    return replace(feed, name=name, aggregates=tuple(aggregates))


def event_id(number: int) -> str:
    """A well-formed event id."""
    return str(UUID(int=number))


def halves(text: str) -> dict[str, int]:
    """A UUID's text as columns have it."""
    number = UUID(text).int
    return {"high": number >> 64, "low": number & 2**64 - 1}


def instant(ms: int) -> datetime:
    """An instant from ms since 1970."""
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ms)


def record(**changes: Any) -> dict[str, Any]:
    """A valid record, as pydantic and fastavro take it, with these fields changed."""
    plain: dict[str, Any] = {
        "event_id": event_id(1),
        "device_id": "d-1",
        "observed_at": instant(NOON),
        "began_at": None,
        "mood": Mood.CALM,
        "level": 5,
        "wait": None,
        "load": None,
        "weight": 1.5,
        "open": None,
        "built": None,
        "note": None,
        "place": None,
    }
    assert not set(changes) - set(plain)
    return plain | changes


def frozen_catalogue(*feeds: Feed) -> Catalogue:
    """A catalogue with the first version of every subject of these feeds."""
    subjects = {feed.name: feed_schema(feed) for feed in feeds}
    subjects |= {a.topic: aggregate_schema(feed, a) for feed in feeds for a in feed.aggregates}
    subjects |= {TICK: tick_schema()}
    return Catalogue(
        {number: FrozenSchema(number, name, 1, schema) for number, (name, schema) in enumerate(subjects.items(), 1)}
    )


CATALOGUE = frozen_catalogue(FEED)


def value(**changes: Any) -> bytes:
    """The encoded record of ``record``."""
    return encode(CATALOGUE.latest("toy"), record(**changes))

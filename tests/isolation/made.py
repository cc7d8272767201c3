"""Small feeds that no city has: two that have to stay fresh, and one for each fault, all alike.

They stand in a file of their own because workers read it, too, from a copy of the platform.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from random import Random
from typing import Annotated
from uuid import UUID

from pydantic import Field

from schemas.department import Department
from schemas.expressions import Column
from schemas.feed import Aggregate, Feed
from schemas.fields import EventId, Instant, Record, Text, Unit
from schemas.measures import spread, total

#: What is published of each feed in a second.
RATE = 20.0
LEVEL_MOST = 1_000
#: A value whose record makes the code raise, where the code is broken.
CURSED = 13


class Report(Record):
    """What a device reports."""

    event_id: EventId
    device_id: Annotated[Text, Field(description="Device")]
    level: Annotated[int, Field(ge=0, le=LEVEL_MOST, description="Level"), Unit("1")]
    load: Annotated[float, Field(description="Load, without bounds"), Unit("1")]
    observed_at: Annotated[Instant, Field(description="Event time")]


def report(random: Random, device: str, at: datetime, level: int | None = None, load: float = 1.0) -> Report:
    """A valid report; its level is any but the cursed one unless it is given."""
    return Report(
        event_id=str(UUID(int=random.getrandbits(128), version=4)),
        device_id=device,
        level=random.randrange(CURSED + 1, LEVEL_MOST) if level is None else level,
        load=load,
        observed_at=at.replace(microsecond=at.microsecond // 1000 * 1000),
    )


def _feed(name: str) -> Feed:
    return Feed(
        name=name,
        description="Made up to see whether feeds hurt each other",
        record=Report,
        key="device_id",
        event_time="observed_at",
        department=Department(name=f"The {name} department", contact=f"{name}@city.example", purpose="Tests"),
        batch=1,
        rate=RATE,
        silence=timedelta(hours=1),
        disorder=timedelta(seconds=2),
        lateness=timedelta(seconds=3),
        partitions=2,
        bad_ratio=0.05,
        aggregates=(
            Aggregate(
                name=f"{name}_10s",
                by=("device_id",),
                window=timedelta(seconds=10),
                measures=(
                    spread("level", Column("level"), unit="1", scale=1, description="Level"),
                    total("load", Column("load"), unit="1", scale=1000, description="Load"),
                ),
                description="Reports by device",
            ),
        ),
    )


#: Those that nothing is done to.
OTHERS = ("first", "second")
FLOODED, TABLELESS, SUMMED, FORGED, SLOWED, SPOILED, UNKNOWN, DELETED, RAISING = VICTIMS = (
    "flooded", "tableless", "summed", "forged", "slowed", "spoiled", "unknown", "deleted", "raising",
)  # fmt: skip
FEEDS = {name: _feed(name) for name in (*OTHERS, *VICTIMS)}

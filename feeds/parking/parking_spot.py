"""Single parking spots as they change: ParkingSpot of the Smart Data Models."""

from __future__ import annotations

from datetime import timedelta
from enum import StrEnum
from typing import Annotated

from pydantic import Field

from feeds.parking import DEPARTMENT
from schemas.expressions import Column
from schemas.feed import Aggregate, Feed, Latest, Spans
from schemas.fields import EventId, Instant, Location, Record, Text
from schemas.measures import count_where


class SpotStatus(StrEnum):
    """Occupancy of a spot."""

    FREE = "free"
    OCCUPIED = "occupied"
    CLOSED = "closed"
    UNKNOWN = "unknown"


class ParkingSpot(Record):
    """A spot that changed."""

    event_id: EventId
    site_id: Annotated[Text, Field(description="Parking site the spot belongs to")]
    spot_id: Annotated[Text, Field(description="Spot, unique in the city")]
    status: Annotated[SpotStatus, Field(description="Status from now on; unknown when the sensor does not tell")]
    observed_at: Annotated[Instant, Field(description="When it changed: the event time")]
    place: Location


STATUS = Column("status")

FEED = Feed(
    name="parking_spot",
    description="Changes of single parking spots",
    record=ParkingSpot,
    key="site_id",
    event_time="observed_at",
    department=DEPARTMENT,
    batch=1,
    rate=60,
    silence=timedelta(minutes=2),
    disorder=timedelta(seconds=10),
    delay=timedelta(seconds=30),
    lateness=timedelta(seconds=60),
    latest=Latest(by="spot_id"),
    spans=Spans(of="status", by="spot_id"),
    aggregates=(
        Aggregate(
            name="parking_spot_15m",
            by=("site_id",),
            window=timedelta(minutes=15),
            measures=(
                count_where(
                    "taken", STATUS.equals(SpotStatus.OCCUPIED.value), description="Spots that became occupied"
                ),
                count_where("left", STATUS.equals(SpotStatus.FREE.value), description="Spots that became free"),
            ),
            description="Changes of spots by site_id in 15 min",
        ),
    ),
)

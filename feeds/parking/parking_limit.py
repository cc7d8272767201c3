"""From which occupancy on a car park counts as full, where that is not the usual one; also for one evening."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from feeds.parking import DEPARTMENT
from schemas.fields import Instant, Record, Text, Unit
from schemas.reference import Reference


class ParkingLimit(Record):
    """The limit of one car park, for always or for a time."""

    site_id: Annotated[Text, Field(description="Parking site")]
    valid_from: Annotated[Instant | None, Field(description="From when on it holds; null for always")]
    valid_to: Annotated[Instant | None, Field(description="Until when it holds; null for no end")]
    full: Annotated[float, Field(ge=0, le=2, description="Share of spots taken from which on it is full"), Unit("1")]
    release: Annotated[
        float, Field(ge=0, le=1, description="How much less it has to be to be full no more"), Unit("1")
    ] = 0.05
    reason: Annotated[Text | None, Field(description="Why it has one of its own")] = None


REFERENCE = Reference(
    name="parking_limit",
    description="Limits of car parks that have one of their own",
    record=ParkingLimit,
    key=("site_id",),
    department=DEPARTMENT,
    valid_from="valid_from",
    valid_to="valid_to",
)

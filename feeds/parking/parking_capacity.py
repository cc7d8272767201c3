"""How many spots a car park has that does not tell it in its reports."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from feeds.parking import DEPARTMENT
from schemas.fields import Record, Text, Unit
from schemas.reference import Reference


class ParkingCapacity(Record):
    """One car park."""

    site_id: Annotated[Text, Field(description="Parking site")]
    spot_number: Annotated[int, Field(ge=1, le=100_000, description="Spots of the site"), Unit("{spot}")]


REFERENCE = Reference(
    name="parking_capacity",
    description="Spots of car parks that do not tell how many they have",
    record=ParkingCapacity,
    key=("site_id",),
    department=DEPARTMENT,
)

"""Where and when something big goes on, and which limits are stricter there meanwhile."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from feeds.events import DEPARTMENT
from schemas.fields import Area, Instant, Record, Text, Unit
from schemas.reference import Reference


class EventPlan(Record):
    """One event. A limit that is null stays as it is elsewhere."""

    plan_id: Annotated[Text, Field(description="Plan")]
    name: Annotated[Text, Field(description="What goes on")]
    area: Annotated[Area, Field(description="Where the plan holds")]
    valid_from: Annotated[Instant | None, Field(description="From when on it holds; null for always")]
    valid_to: Annotated[Instant | None, Field(description="Until when it holds; null for no end")]
    parking_full: Annotated[
        float | None, Field(ge=0, le=2, description="Share of spots taken from which on a car park is full"), Unit("1")
    ] = None
    congestion: Annotated[
        float | None, Field(ge=1, le=100, description="Delay index from which on a road is congested"), Unit("1")
    ] = None


REFERENCE = Reference(
    name="event_plan",
    description="Plans of major events: area, time, and limits that are stricter there",
    record=EventPlan,
    key=("plan_id",),
    department=DEPARTMENT,
    valid_from="valid_from",
    valid_to="valid_to",
)

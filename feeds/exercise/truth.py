"""What was staged in the simulated city: what rules should have found. No rule reads it."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from pydantic import Field

from feeds.exercise import DEPARTMENT
from schemas.feed import Feed
from schemas.fields import EventId, Instant, Location, Record, Text


class Truth(Record):
    """An incident at one entity."""

    event_id: EventId
    kind: Annotated[Text, Field(description="What was staged")]
    entity: Annotated[Text, Field(description="Where, as the records of its feed say it; an address stands in clear")]
    begins: Annotated[Instant, Field(description="From when on: the event time")]
    ends: Annotated[Instant, Field(description="Until when")]
    rule: Annotated[Text | None, Field(description="Rule that should find it; null for what must not alarm")]
    found_by: Annotated[Instant | None, Field(description="Event time by which it should have; null if no rule should")]
    place: Location


FEED = Feed(
    name="truth",
    description="Incidents that were staged in the simulation, and the rules that should find them",
    record=Truth,
    key="entity",
    event_time="begins",
    department=DEPARTMENT,
    batch=1,
    rate=None,
    silence=None,
    disorder=timedelta(seconds=10),
    lateness=timedelta(seconds=30),
    retention=timedelta(days=30),
)

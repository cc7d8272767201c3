"""Docks of rental bikes: a department's own feed, in an installation that was made by an earlier release."""

from __future__ import annotations

from datetime import timedelta
from enum import StrEnum
from typing import Annotated

from pydantic import Field

from schemas.department import Department
from schemas.expressions import Column
from schemas.feed import Aggregate, Feed, NotAfter
from schemas.fields import EventId, Instant, Record, Text
from schemas.measures import count_where, quantiles, share, spread


class State(StrEnum):
    """What a dock holds."""

    EMPTY = "empty"
    TAKEN = "taken"
    UNKNOWN = "unknown"


class BikeDock(Record):
    """A dock that changed."""

    event_id: EventId
    dock_id: Annotated[Text, Field(description="Dock")]
    owner: Annotated[Text, Field(description="Whose dock it is")]
    state: Annotated[State, Field(description="State from now on")]
    since: Annotated[Instant | None, Field(description="When it came to the state before")]
    changed_at: Annotated[Instant, Field(description="When it changed: the event time")]
    charge: Annotated[float | None, Field(ge=0, le=100, description="Charge of the bike")]


OWNERS = ("city", "the rider's club")
MEASURES = (
    count_where("taken", Column("state").equals("taken"), description="Docks that were taken"),
    count_where("club", Column("owner").equals("the rider's club"), description="Docks of the club"),
    share("full", Column("charge") >= 80.5, description="Share of bikes that are charged"),
    spread("charge", Column("charge"), unit="%", scale=10, description="charge"),
    quantiles("stay", Column("changed_at") - Column("since"), (0.5,), unit="s", divisor=1000, description="stay"),
)


FEED = Feed(
    name="bike_dock",
    description="Changes of docks of rental bikes",
    record=BikeDock,
    key="dock_id",
    event_time="changed_at",
    department=Department(name="Bikes", contact="bikes@city.example", purpose="Lending bikes"),
    batch=1,
    rate=10.0,
    silence=timedelta(minutes=5),
    disorder=timedelta(seconds=2),
    lateness=timedelta(seconds=3),
    rules=(NotAfter("since", "changed_at"),),
    retention=timedelta(days=20_000),
    partitions=2,
    aggregates=(
        Aggregate(
            name="bike_dock_10s", by=("dock_id",), window=timedelta(seconds=10), measures=MEASURES,
            description="Docks by dock_id in 10 s",
        ),
        Aggregate(
            name="bike_dock_1m_owner", by=("owner",), window=timedelta(minutes=1), measures=MEASURES,
            description="Docks by owner in 1 min",
        ),
    ),
)  # fmt: skip

"""Traffic by road segment and lane: TrafficFlowObserved of the Smart Data Models."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from pydantic import Field

from feeds.traffic import DEPARTMENT
from schemas.alerts import Category, Severity
from schemas.expressions import Column
from schemas.feed import Aggregate, Feed, NotAfter
from schemas.fields import Count, EventId, Instant, Location, Record, Text, Unit
from schemas.measures import Measure, ratio, total
from schemas.rules import Held, Level, Rule, above


class TrafficFlow(Record):
    """Vehicles counted on one lane of a segment in one period."""

    event_id: EventId
    segment_id: Annotated[Text, Field(description="Road segment")]
    lane: Annotated[int, Field(ge=0, le=31, description="Lane, counted from the kerb; 0 is the whole carriageway")]
    district: Annotated[Text, Field(description="District the segment lies in")]
    intensity: Annotated[Count, Field(description="Vehicles counted in the period"), Unit("{vehicle}")]
    occupancy: Annotated[float | None, Field(ge=0, le=1, description="Share of the period the detector was covered")]
    average_vehicle_speed: Annotated[
        float | None, Field(ge=0, le=300, description="Mean speed; null when no vehicle passed"), Unit("km/h")
    ]
    free_flow_speed: Annotated[float | None, Field(ge=0, le=300, description="Speed on the empty road"), Unit("km/h")]
    congested: Annotated[bool | None, Field(description="The detector's own judgement")]
    date_observed_from: Annotated[Instant, Field(description="Start of the period")]
    date_observed_to: Annotated[Instant, Field(description="End of the period: the event time")]
    place: Location


VEHICLES = Column("intensity")
SPEED = Column("average_vehicle_speed")
FREE_FLOW = Column("free_flow_speed")

MEASURES: tuple[Measure, ...] = (
    total("vehicles", VEHICLES, unit="{vehicle}", description="Vehicles counted"),
    ratio("speed", SPEED * VEHICLES, VEHICLES, unit="km/h", scale=100, description="Speed, weighted by vehicles"),
    ratio(
        "delay_index",
        FREE_FLOW * VEHICLES,
        SPEED * VEHICLES,
        unit="1",
        scale=100,
        description="Free-flow speed over actual speed, both weighted by vehicles",
    ),
)


#: Twice and four times as long on the way as on the empty road, for half an hour.
CONGESTION = Rule(
    name="congestion",
    headline="Congestion",
    category=Category.TRANSPORT,
    levels=tuple(
        Level(
            severity=severity,
            when=above(Column("delay_index"), limit, release=0.5),
            held=Held(times=2),
            clear=Held(times=2),
        )
        for severity, limit in ((Severity.MODERATE, 2), (Severity.SEVERE, 4))
    ),
    shows={"speed": Column("speed"), "vehicles": Column("vehicles")},
)


def _aggregate(minutes: int, by: str, suffix: str = "", alerts: tuple[Rule, ...] = ()) -> Aggregate:
    return Aggregate(
        name=f"traffic_flow_{minutes}m{suffix}",
        by=(by,),
        window=timedelta(minutes=minutes),
        measures=MEASURES,
        description=f"Traffic by {by} in {minutes} min",
        alerts=alerts,
    )


FEED = Feed(
    name="traffic_flow",
    description="Vehicles, speed and occupancy by road segment and lane",
    record=TrafficFlow,
    key="segment_id",
    event_time="date_observed_to",
    department=DEPARTMENT,
    batch=1,
    rate=1300 * 8 / 60,
    silence=timedelta(minutes=3),
    disorder=timedelta(seconds=10),
    delay=timedelta(seconds=30),
    lateness=timedelta(seconds=30),
    rules=(NotAfter("date_observed_from", "date_observed_to"),),
    aggregates=(
        _aggregate(1, "segment_id"),
        _aggregate(1, "district", "_district"),
        _aggregate(15, "segment_id", alerts=(CONGESTION,)),
        _aggregate(15, "district", "_district"),
    ),
)

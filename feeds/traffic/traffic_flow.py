"""Traffic by road segment and lane: TrafficFlowObserved of the Smart Data Models."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from pydantic import Field

from feeds.events import event_plan
from feeds.traffic import DEPARTMENT
from schemas.alerts import Category, Severity
from schemas.expressions import Column, Constant, least
from schemas.feed import Aggregate, Feed, NotAfter, RollUp
from schemas.fields import Count, EventId, Instant, Location, Record, Text, Unit
from schemas.measures import Measure, ratio, share, total
from schemas.rules import Due, Held, Level, Rule, above, covering


class TrafficFlow(Record):
    """Vehicles counted on one lane of a segment in one period."""

    event_id: EventId
    segment_id: Annotated[Text, Field(description="Road segment")]
    lane: Annotated[int, Field(ge=0, le=31, description="Lane, counted from the kerb; 0 is the whole carriageway")]
    district: Annotated[Text, Field(description="District the segment lies in")]
    road_id: Annotated[Text | None, Field(description="Road the segment is a piece of")] = None
    distance_along: Annotated[
        float | None,
        Field(ge=0, le=10_000_000, description="From the beginning of the road to the middle of the segment"),
        Unit("m"),
    ] = None
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

#: Share of the period from which on a detector counts as covered.
COVERED = 0.8

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


#: Of a lane whose detector is covered while nobody passes.
STANDING = share(
    "standing",
    VEHICLES.equals(0) & (Column("occupancy") >= COVERED),
    description="Share of reports without a vehicle while the detector was covered",
)

#: The plan of a major event around a detector.
PLAN = covering(event_plan.REFERENCE, Column("place"))

#: Twice and four times as long on the way as on the empty road, for half an hour; less where an event is.
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
        for severity, limit in (
            (Severity.MODERATE, least(2, PLAN.column("congestion").otherwise(2))),
            (Severity.SEVERE, Constant(4)),
        )
    ),
    shows={"speed": Column("speed"), "vehicles": Column("vehicles")},
)


#: For three minutes nobody passes on four of five lanes, and yet they are not empty.
STANDSTILL = Rule(
    name="standstill",
    headline="Traffic stands still",
    category=Category.TRANSPORT,
    levels=(Level(severity=Severity.SEVERE, when=above(Column("standing"), 0.8, release=0.3), held=Held(times=3)),),
    shows={"vehicles": Column("vehicles")},
)

#: No lane of a segment reports for three minutes. An empty road goes on reporting that nobody came.
DETECTOR_SILENT = Rule(
    name="detector_silent",
    headline="Detectors are silent",
    category=Category.INFRASTRUCTURE,
    levels=(Level(severity=Severity.MINOR, when=Due(at=Column("date_observed_to") + 180_000)),),
)


def _aggregate(
    minutes: int,
    by: str,
    suffix: str = "",
    *,
    version: int = 1,
    more: tuple[Measure, ...] = (),
    alerts: tuple[Rule, ...] = (),
    rolled_up: bool = False,
) -> Aggregate:
    return Aggregate(
        name=f"traffic_flow_{minutes}m{suffix}",
        by=(by,),
        window=timedelta(minutes=minutes),
        version=version,
        measures=(*MEASURES, *more),
        description=f"Traffic by {by} in {minutes} min",
        alerts=alerts,
        rollups=(
            RollUp(name=f"traffic_flow_1h{suffix}", to="hour", capture=0.75),
            RollUp(name=f"traffic_flow_1d{suffix}", to="day", capture=0.75),
        )
        if rolled_up
        else (),
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
    alerts=(DETECTOR_SILENT,),
    aggregates=(
        _aggregate(1, "segment_id", version=2, more=(STANDING,), alerts=(STANDSTILL,)),
        _aggregate(1, "district", "_district"),
        _aggregate(15, "segment_id", alerts=(CONGESTION,), rolled_up=True),
        _aggregate(15, "road_id", "_road", rolled_up=True),
        _aggregate(15, "district", "_district", rolled_up=True),
    ),
)

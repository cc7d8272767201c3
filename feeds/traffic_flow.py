"""Traffic by road segment and lane: TrafficFlowObserved of the Smart Data Models."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from random import Random
from typing import Annotated

from pydantic import Field

from schemas.expressions import Column
from schemas.feed import Aggregate, Feed, NotAfter
from schemas.fields import Count, EventId, Instant, Location, Place, Record, Text, Unit
from schemas.measures import Measure, ratio, total
from schemas.simulation import HEIGHT, SOUTH, WEST, WIDTH, bump, city_hour, event_id, poisson


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


def _aggregate(minutes: int, by: str, suffix: str = "") -> Aggregate:
    return Aggregate(
        name=f"traffic_flow_{minutes}m{suffix}",
        by=(by,),
        window=timedelta(minutes=minutes),
        measures=MEASURES,
        description=f"Traffic by {by} in {minutes} min",
    )


#: 1,300 segments, 20 to a road, and 8 lanes each.
ROADS, SEGMENTS_OF_ROAD, LANES = 65, 20, 8
SEGMENTS = ROADS * SEGMENTS_OF_ROAD
PERIOD = timedelta(minutes=1)
DISTRICTS = ("xihu", "gongshu", "shangcheng", "binjiang")


@dataclass(frozen=True)
class Segment:
    """A simulated piece of a road. ``delay`` is how many hours later than elsewhere the rush reaches it."""

    id: str
    road: int
    district: str
    limit: float
    delay: float
    place: Place


@cache
def segments() -> tuple[Segment, ...]:
    """The city's roads, the same in every simulation: each runs east or north, from one district into the next."""
    random = Random(2)
    found = []
    for road in range(ROADS):
        limit = random.choice((40.0, 50.0, 60.0, 80.0))
        across, eastward = random.random(), road % 2 == 0
        for number in range(SEGMENTS_OF_ROAD):
            along = (number + 0.5) / SEGMENTS_OF_ROAD
            east, north = (along, across) if eastward else (across, along)
            found.append(
                Segment(
                    id=f"xihu-{road:02d}-{number:02d}",
                    road=road,
                    district=DISTRICTS[2 * (east > 0.5) + (north > 0.5)],
                    limit=limit,
                    delay=along,
                    place=Place(longitude=round(WEST + WIDTH * east, 6), latitude=round(SOUTH + HEIGHT * north, 6)),
                )
            )
    return tuple(found)


def _load(segment: Segment, at: datetime) -> float:
    """How busy a segment is, 0 to 1: two rush hours on weekdays, one long noon at weekends, moving along the road."""
    hour, weekend = city_hour(at - timedelta(hours=segment.delay))
    if weekend:
        return 0.1 + 0.5 * bump(hour, 14, 4)
    return 0.08 + 0.85 * (bump(hour, 7.5, 1.3) + bump(hour, 17.5, 1.6))


def simulate(start: datetime, random: Random) -> Iterator[TrafficFlow]:
    """1,300 segments of 8 lanes around the West Lake, each lane once a minute; the segments of a road are alike."""
    moods = [0.0] * ROADS
    begin = start
    while True:
        moods = [0.9 * mood + random.gauss(0, 0.03) for mood in moods]
        loads = [_load(segment, begin) + moods[segment.road] + random.gauss(0, 0.02) for segment in segments()]
        for place in range(LANES * SEGMENTS):
            lane, number = divmod(place, SEGMENTS)
            segment = segments()[number]
            end = begin + timedelta(milliseconds=place * 60_000 // (LANES * SEGMENTS))
            load = min(1.0, max(0.0, loads[number] + random.gauss(0, 0.02)))
            vehicles = poisson(random, 28 * load)
            speed = round(segment.limit * (1 - 0.8 * load**2) * random.uniform(0.95, 1.05), 1)
            yield TrafficFlow(
                event_id=event_id(random),
                segment_id=segment.id,
                lane=lane + 1,
                district=segment.district,
                intensity=vehicles,
                occupancy=round(load, 3),
                average_vehicle_speed=speed if vehicles else None,
                free_flow_speed=segment.limit,
                congested=load > 0.85,
                date_observed_from=end - PERIOD,
                date_observed_to=end,
                place=segment.place,
            )
        begin += PERIOD


FEED = Feed(
    name="traffic_flow",
    description="Vehicles, speed and occupancy by road segment and lane",
    record=TrafficFlow,
    key="segment_id",
    event_time="date_observed_to",
    department="Traffic police",
    batch=1,
    stage="connected",
    rate=SEGMENTS * LANES / PERIOD.total_seconds(),
    silence=timedelta(minutes=3),
    disorder=timedelta(seconds=10),
    lateness=timedelta(seconds=30),
    rules=(NotAfter("date_observed_from", "date_observed_to"),),
    aggregates=(
        _aggregate(1, "segment_id"),
        _aggregate(1, "district", "_district"),
        _aggregate(15, "segment_id"),
        _aggregate(15, "district", "_district"),
    ),
    simulate=simulate,
)

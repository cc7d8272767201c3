"""Roads of the district, whose rush hours move along them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from random import Random

from feeds.traffic.traffic_flow import TrafficFlow
from schemas.fields import Place
from simulation.world import (
    HEIGHT,
    METRES,
    WIDTH,
    World,
    area,
    bump,
    city_hour,
    district,
    event_id,
    place,
    poisson,
)

#: 1,300 segments, 20 to a road, and 8 lanes each.
ROADS, SEGMENTS_OF_ROAD, LANES = 65, 20, 8
SEGMENTS = ROADS * SEGMENTS_OF_ROAD
PERIOD = timedelta(minutes=1)
#: Nothing but an incident makes a segment busier than this: then vehicles need 1.4 times as long as on the empty road.
CALM = 0.6


@dataclass(frozen=True)
class Segment:
    """A simulated piece of a road, the ``number``-th in the direction of traffic, its middle so many ``metres`` along.

    ``delay`` is how many hours later than elsewhere the rush reaches it.
    """

    id: str
    road: int
    number: int
    metres: float
    area: str
    district: str
    limit: float
    delay: float
    place: Place

    @property
    def road_id(self) -> str:
        """Its road."""
        return f"xihu-{self.road:02d}"


@cache
def segments() -> tuple[Segment, ...]:
    """The city's roads, the same in every simulation: each runs east or north, from one district into the next."""
    random = Random(2)
    found = []
    for road in range(ROADS):
        limit = random.choice((40.0, 50.0, 60.0, 80.0))
        across, eastward = random.random(), road % 2 == 0
        length = WIDTH * METRES[0] if eastward else HEIGHT * METRES[1]
        for number in range(SEGMENTS_OF_ROAD):
            along = (number + 0.5) / SEGMENTS_OF_ROAD
            east, north = (along, across) if eastward else (across, along)
            found.append(
                Segment(
                    id=f"xihu-{road:02d}-{number:02d}",
                    road=road,
                    number=number,
                    metres=round(length * along, 1),
                    area=area(east, north),
                    district=district(east, north),
                    limit=limit,
                    delay=along,
                    place=place(east, north),
                )
            )
    return tuple(found)


def _load(segment: Segment, at: datetime) -> float:
    """How busy a segment is, 0 to 1: two rush hours on weekdays, one long noon at weekends, moving along the road."""
    hour, weekend = city_hour(at - timedelta(hours=segment.delay))
    if weekend:
        return 0.1 + 0.25 * bump(hour, 14, 4)
    return 0.08 + 0.5 * (bump(hour, 7.5, 1.3) + bump(hour, 17.5, 1.6))


def traffic_flow(world: World) -> Iterator[TrafficFlow]:
    """1,300 segments of 8 lanes around the West Lake, each lane once a minute; the segments of a road are alike."""
    random = world.random("traffic_flow")
    moods = [0.0] * ROADS
    begin = world.start
    while True:
        moods = [0.9 * mood + random.gauss(0, 0.03) for mood in moods]
        loads = [_load(segment, begin) + moods[segment.road] + random.gauss(0, 0.02) for segment in segments()]
        for turn in range(LANES * SEGMENTS):
            lane, number = divmod(turn, SEGMENTS)
            segment = segments()[number]
            end = begin + timedelta(milliseconds=turn * 60_000 // (LANES * SEGMENTS))
            load = min(CALM, max(0.0, loads[number] + random.gauss(0, 0.02)))
            vehicles = poisson(random, 28 * load)
            speed = round(segment.limit * (1 - 0.8 * load**2) * random.uniform(0.95, 1.05), 1)
            yield TrafficFlow(
                event_id=event_id(random),
                segment_id=segment.id,
                lane=lane + 1,
                district=segment.district,
                road_id=segment.road_id,
                distance_along=segment.metres,
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


SIMULATORS = {"traffic_flow": traffic_flow}

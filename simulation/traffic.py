"""Roads of the district, whose rush hours move along them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from random import Random

from feeds.traffic.traffic_flow import TrafficFlow
from schemas.fields import Place
from simulation.incidents import Going, Incident, Staging, concerts, due_after, expected, staged
from simulation.world import (
    HEIGHT,
    METRES,
    WIDTH,
    Kind,
    World,
    area,
    bump,
    city_hour,
    district,
    event_id,
    metres,
    place,
    poisson,
)

#: 1,300 segments, 20 to a road, and 8 lanes each.
ROADS, SEGMENTS_OF_ROAD, LANES = 65, 20, 8
SEGMENTS = ROADS * SEGMENTS_OF_ROAD
PERIOD = timedelta(minutes=1)
#: Nothing but an incident makes a segment busier than this: then vehicles need 1.4 times as long as on the empty road.
CALM = 0.6
#: How busy a segment is where a junction is blocked, and where nothing moves.
JAMMED, STANDING = 0.95, 0.98
#: How many segments a jam grows to, and how long it takes from one to the next.
JAM_SEGMENTS, JAM_STEP = (2, 6), timedelta(minutes=4)
#: A concert slows the roads within so many metres, by so much load.
NEAR, CROWD = 1500.0, 0.25


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
    begin, going, crowded = world.start, Going(incidents(world)), Going(crowds(world))
    while True:
        moods = [0.9 * mood + random.gauss(0, 0.03) for mood in moods]
        kinds = [None if (one := going.of(segment.id, begin)) is None else one.kind for segment in segments()]
        loads = [
            _load(segment, begin)
            + moods[segment.road]
            + (CROWD if crowded.of(segment.id, begin) else 0)
            + random.gauss(0, 0.02)
            for segment in segments()
        ]
        for turn in range(LANES * SEGMENTS):
            lane, number = divmod(turn, SEGMENTS)
            segment = segments()[number]
            end = begin + timedelta(milliseconds=turn * 60_000 // (LANES * SEGMENTS))
            load, kind = min(CALM, max(0.0, loads[number] + random.gauss(0, 0.02))), kinds[number]
            vehicles = poisson(random, 28 * load)
            match kind:
                case Kind.DETECTOR_SILENT:
                    continue
                case Kind.JAM:
                    load, vehicles = JAMMED, 1 + vehicles // 3
                case Kind.STANDSTILL:
                    load, vehicles = STANDING, 0
                case Kind.ROAD_EMPTY:
                    load, vehicles = 0.0, 0
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


def incidents(world: World) -> Iterator[Incident]:
    """What is staged on roads."""
    return staged(world, STAGINGS)


def crowds(world: World) -> Iterator[Incident]:
    """Segments that are slower for a concert, though not so slow that anybody has to know."""
    for one in concerts(world):
        for segment in segments():
            if metres(one.place, segment.place) < NEAR:
                yield Incident(
                    kind=Kind.CONCERT, entity=segment.id, begins=one.begins, ends=one.ends, place=segment.place
                )


def _jam(at: datetime, random: Random) -> list[Incident]:
    """From the blocked junction back along the road, a segment after the other; the first one is free first."""
    first, lasts = random.choice(segments()), timedelta(minutes=random.randint(60, 100))
    found = []
    for step in range(min(first.number + 1, random.randint(*JAM_SEGMENTS))):
        segment = segments()[first.road * SEGMENTS_OF_ROAD + first.number - step]
        begins = at + step * JAM_STEP
        rule, found_by = expected("congestion", begins, PERIOD)
        found.append(
            Incident(
                kind=Kind.JAM, entity=segment.id, begins=begins, ends=begins + lasts, place=segment.place, rule=rule,
                found_by=found_by,
            )
        )  # fmt: skip
    return found


def _alone(kind: Kind, rule: str | None) -> Callable[[datetime, Random], list[Incident]]:
    """One segment, for a while."""

    def make(at: datetime, random: Random) -> list[Incident]:
        segment, ends = random.choice(segments()), at + timedelta(minutes=random.randint(20, 40))
        name, found_by = (None, None) if rule is None else expected(rule, at + PERIOD, PERIOD)
        if rule is not None and (due := due_after(rule)) is not None:
            found_by = at + PERIOD + due
        return [
            Incident(
                kind=kind, entity=segment.id, begins=at, ends=ends, place=segment.place, rule=name, found_by=found_by
            )
        ]

    return make


REST = timedelta(hours=2)
STAGINGS = {
    Kind.JAM: Staging(_jam, REST),
    Kind.STANDSTILL: Staging(_alone(Kind.STANDSTILL, "standstill"), REST),
    Kind.DETECTOR_SILENT: Staging(_alone(Kind.DETECTOR_SILENT, "detector_silent"), REST),
    Kind.ROAD_EMPTY: Staging(_alone(Kind.ROAD_EMPTY, None), REST),
}
SIMULATORS = {"traffic_flow": traffic_flow}

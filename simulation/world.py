"""One world for all simulators: its map, the city's day, and the chance that everything in it comes from."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from random import Random
from typing import TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo

from schemas.fields import Place

CITY = ZoneInfo("Asia/Shanghai")
#: The district of Xihu, Hangzhou, in degrees: west, south, and how far it reaches east and north.
WEST, SOUTH, WIDTH, HEIGHT = 120.08, 30.20, 0.10, 0.10
#: Metres of a degree there, of longitude and of latitude.
METRES = (111_320 * math.cos(math.radians(SOUTH + HEIGHT / 2)), 110_574.0)
#: Quarters of the map: south-west, north-west, south-east, north-east.
DISTRICTS = ("xihu", "gongshu", "shangcheng", "binjiang")
#: Areas of the map, from west to east and from south to north; each lies in one quarter.
COLUMNS, ROWS = 6, 4

T = TypeVar("T")


class Kind(StrEnum):
    """What may be staged.

    CAR_PARK_FILLS: until nearly every spot is taken, for a while. GATE_DRIFTS: a gate counts cars that did not come,
    and is set right. SITE_SILENT: a car park does not report. JAM: a junction is blocked; the queue grows back along
    the road and dissolves. STANDSTILL: no vehicle moves, and detectors are covered. DETECTOR_SILENT: a segment does
    not report. ROAD_EMPTY: it reports that no vehicle came, which is nothing to worry about. DISPATCH_LATE: a patrol
    sets out too late. STATUS_SKIPPED: one is there that never set out. REPEATED_CALLS: one address calls again and
    again. CONCERT: people come by car, fill car parks nearby and slow the roads around.
    """

    CAR_PARK_FILLS = "car_park_fills"
    GATE_DRIFTS = "gate_drifts"
    SITE_SILENT = "site_silent"
    JAM = "jam"
    STANDSTILL = "standstill"
    DETECTOR_SILENT = "detector_silent"
    ROAD_EMPTY = "road_empty"
    DISPATCH_LATE = "dispatch_late"
    STATUS_SKIPPED = "status_skipped"
    REPEATED_CALLS = "repeated_calls"
    CONCERT = "concert"


@dataclass(frozen=True)
class World:
    """All that decides what happens: where it begins, a seed, and how many incidents of which kind are staged an hour.

    Simulators of the same world tell of the same things, each by itself: whatever they share comes from the chance of
    one purpose.
    """

    start: datetime
    seed: int | str
    incidents: Mapping[Kind, float] = field(default_factory=dict)

    def random(self, purpose: str) -> Random:
        """The chance of one purpose, from its beginning."""
        return Random(f"{self.seed}/{self.start.isoformat()}/{purpose}")


def place(east: float, north: float) -> Place:
    """A place so far east and north on the map, each 0 to 1."""
    return Place(longitude=round(WEST + WIDTH * east, 6), latitude=round(SOUTH + HEIGHT * north, 6))


def district(east: float, north: float) -> str:
    """The quarter of the map that a place lies in."""
    return DISTRICTS[2 * (east > 0.5) + (north > 0.5)]


def area(east: float, north: float) -> str:
    """The area that a place lies in: the beat of the police, by which other departments name it too."""
    return f"xihu-beat-{int(north * ROWS) * COLUMNS + int(east * COLUMNS) + 1:02d}"


def metres(one: Place, other: Place) -> float:
    """How far apart two places of the map are."""
    return math.hypot(
        (one.longitude - other.longitude) * METRES[0],
        (one.latitude - other.latitude) * METRES[1],
    )


def event_id(random: Random) -> str:
    """A random UUID (version 4)."""
    return str(UUID(int=random.getrandbits(128), version=4))


def city_hour(at: datetime) -> tuple[float, bool]:
    """Hour of the day in the city, 0 to 24, and whether it is a weekend."""
    local = at.astimezone(CITY)
    return local.hour + local.minute / 60 + local.second / 3600, local.weekday() >= 5


def bump(hour: float, peak: float, width: float) -> float:
    """How near an hour is to a peak: 1 at the peak, exp(-1) at ``width`` hours from it, round the clock."""
    distance = (hour - peak + 12) % 24 - 12
    return math.exp(-((distance / width) ** 2))


def arrivals(start: datetime, random: Random, rate: Callable[[datetime], float]) -> Iterator[datetime]:
    """Instants from ``start`` on, in whole ms, of a Poisson process with ``rate`` (1/s, more than 0)."""
    at = start
    while True:
        at += timedelta(seconds=random.expovariate(rate(at)))
        yield whole_ms(at)


def whole_ms(at: datetime) -> datetime:
    """An instant in UTC without what is finer than a millisecond."""
    return at.astimezone(UTC).replace(microsecond=at.microsecond // 1000 * 1000)


def poisson(random: Random, mean: float) -> int:
    """About a Poisson-distributed number: the normal approximation, cut off at 0."""
    return max(0, round(random.gauss(mean, math.sqrt(mean))))


def in_order(courses: Iterable[Iterable[T]], at: Callable[[T], datetime]) -> Iterator[T]:
    """Everything of all courses in order of time; each is in order itself, and none begins before the one before it."""
    running: list[tuple[datetime, int, T, Iterator[T]]] = []

    def go_on(number: int, course: Iterator[T]) -> datetime | None:
        if (one := next(course, None)) is None:
            return None
        heapq.heappush(running, (at(one), number, one, course))
        return at(one)

    def until(begin: datetime | None) -> Iterator[T]:
        while running and (begin is None or running[0][0] < begin):
            _, number, one, course = heapq.heappop(running)
            go_on(number, course)
            yield one

    for number, course in enumerate(courses):
        if (begin := go_on(number, iter(course))) is not None:
            yield from until(begin)
    yield from until(None)

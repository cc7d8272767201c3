"""Words the simulators share: the city's day, identities, and arrivals whose rate changes over the day."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from random import Random
from uuid import UUID
from zoneinfo import ZoneInfo

CITY = ZoneInfo("Asia/Shanghai")
#: The district of Xihu, Hangzhou, in degrees: west, south, and how far it reaches east and north.
WEST, SOUTH, WIDTH, HEIGHT = 120.08, 30.20, 0.10, 0.10


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
        yield at.astimezone(UTC).replace(microsecond=at.microsecond // 1000 * 1000)


def poisson(random: Random, mean: float) -> int:
    """About a Poisson-distributed number: the normal approximation, cut off at 0."""
    return max(0, round(random.gauss(mean, math.sqrt(mean))))

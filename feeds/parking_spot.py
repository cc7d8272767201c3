"""Single parking spots as they change: ParkingSpot of the Smart Data Models."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from datetime import datetime, timedelta
from enum import StrEnum
from itertools import accumulate
from random import Random
from typing import Annotated

from pydantic import Field

from feeds.parking_site import Site, fullness, sites
from schemas.expressions import Column
from schemas.feed import Aggregate, Feed
from schemas.fields import EventId, Instant, Location, Record, Text
from schemas.measures import count_where
from schemas.simulation import arrivals, bump, city_hour, event_id


class Status(StrEnum):
    """Occupancy of a spot."""

    FREE = "free"
    OCCUPIED = "occupied"
    CLOSED = "closed"
    UNKNOWN = "unknown"


class ParkingSpot(Record):
    """A spot that changed."""

    event_id: EventId
    site_id: Annotated[Text, Field(description="Parking site the spot belongs to")]
    spot_id: Annotated[Text, Field(description="Spot, unique in the city")]
    status: Annotated[Status, Field(description="Status from now on; unknown when the sensor does not tell")]
    observed_at: Annotated[Instant, Field(description="When it changed: the event time")]
    place: Location


STATUS = Column("status")

#: Changes a second, the mean of a weekday.
RATE = 60.0
#: Share of changes that are a sensor failing or coming back, a spot being closed or opened, and about how many are so.
OUT_OF_USE_CHANGES = 0.004
OUT_OF_USE = 500


def _changes(at: datetime) -> float:
    """Changes a second: five times the mean in the rush hours, a broad noon at weekends."""
    hour, weekend = city_hour(at)
    if weekend:
        return RATE * (0.4 + 1.7 * bump(hour, 14, 4))
    return RATE * (0.52 + 4.5 * (bump(hour, 8, 0.7) + bump(hour, 18, 0.7)))


class _Lot:
    """The spots of one site."""

    def __init__(self, site: Site, at: datetime, random: Random) -> None:
        self.site = site
        wanted = fullness(site, at)
        self.states = [Status.OCCUPIED if random.random() < wanted else Status.FREE for _ in range(site.spots)]
        self.taken = self.states.count(Status.OCCUPIED)

    def pick(self, at: datetime, random: Random) -> tuple[int, Status]:
        """A spot and what it becomes: drivers come while the site is emptier than wanted, and go while it is fuller."""
        missing = fullness(self.site, at) - self.taken / self.site.spots
        before = Status.FREE if random.random() < 0.5 + 4 * missing else Status.OCCUPIED
        for _ in range(50):
            spot = random.randrange(self.site.spots)
            if self.states[spot] is before:
                break
        return spot, Status.OCCUPIED if self.states[spot] is Status.FREE else Status.FREE

    def set(self, spot: int, status: Status) -> None:
        """Change a spot."""
        self.taken += (status is Status.OCCUPIED) - (self.states[spot] is Status.OCCUPIED)
        self.states[spot] = status


def simulate(start: datetime, random: Random) -> Iterator[ParkingSpot]:
    """The 600,000 spots of the car parks that report as parking_site, each as full as its car park is wanted."""
    lots = [_Lot(site, start, random) for site in sites()]
    weights = list(accumulate(site.spots for site in sites()))
    out_of_use: deque[tuple[_Lot, int]] = deque()
    for at in arrivals(start, random, _changes):
        if random.random() >= OUT_OF_USE_CHANGES:
            lot = random.choices(lots, cum_weights=weights)[0]
            spot, status = lot.pick(at, random)
        elif len(out_of_use) > random.randrange(2 * OUT_OF_USE):
            (lot, spot), status = out_of_use.popleft(), Status.FREE
        else:
            lot = random.choices(lots, cum_weights=weights)[0]
            spot, status = random.randrange(lot.site.spots), random.choice((Status.CLOSED, Status.UNKNOWN))
            out_of_use.append((lot, spot))
        if lot.states[spot] is status:
            continue
        lot.set(spot, status)
        yield ParkingSpot(
            event_id=event_id(random),
            site_id=lot.site.id,
            spot_id=f"{lot.site.id}-{spot:04d}",
            status=status,
            observed_at=at,
            place=lot.site.place,
        )


FEED = Feed(
    name="parking_spot",
    description="Changes of single parking spots",
    record=ParkingSpot,
    key="site_id",
    event_time="observed_at",
    department="Urban management",
    batch=1,
    stage="connected",
    rate=RATE,
    silence=timedelta(minutes=2),
    disorder=timedelta(seconds=10),
    lateness=timedelta(seconds=60),
    aggregates=(
        Aggregate(
            name="parking_spot_15m",
            by=("site_id",),
            window=timedelta(minutes=15),
            measures=(
                count_where("taken", STATUS.equals(Status.OCCUPIED.value), description="Spots that became occupied"),
                count_where("left", STATUS.equals(Status.FREE.value), description="Spots that became free"),
            ),
            description="Changes of spots by site_id in 15 min",
        ),
    ),
    simulate=simulate,
)

"""Car parks as a whole: OffStreetParking of the Smart Data Models."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from random import Random
from typing import Annotated, Literal

from pydantic import Field

from schemas.expressions import Column
from schemas.feed import Aggregate, Feed
from schemas.fields import Count, EventId, Instant, Location, Place, Record, Text, Unit
from schemas.measures import share, spread
from schemas.simulation import HEIGHT, SOUTH, WEST, WIDTH, bump, city_hour, event_id, poisson


class ParkingSite(Record):
    """What a car park reports about itself."""

    event_id: EventId
    site_id: Annotated[Text, Field(description="Parking site")]
    total_spot_number: Annotated[
        Count | None, Field(description="Spots of the site; null when it does not tell"), Unit("{spot}")
    ]
    occupied_spot_number: Annotated[
        Count, Field(description="Spots taken; real sites report more than they have"), Unit("{spot}")
    ]
    available_spot_number: Annotated[Count | None, Field(description="Spots a driver can still take"), Unit("{spot}")]
    vehicle_entrance_count: Annotated[
        Count | None, Field(description="Vehicles that came in since the last report"), Unit("{vehicle}")
    ]
    vehicle_exit_count: Annotated[
        Count | None, Field(description="Vehicles that went out since the last report"), Unit("{vehicle}")
    ]
    observed_at: Annotated[Instant, Field(description="When the spots were counted: the event time")]
    place: Location


OCCUPANCY = Column("occupied_spot_number") / Column("total_spot_number")

SITES = 600
REPORT_EVERY = timedelta(minutes=1)

Use = Literal["homes", "offices", "shops", "sights"]


@dataclass(frozen=True)
class Site:
    """A simulated car park. ``demand`` scales how full it gets."""

    id: str
    use: Use
    spots: int
    demand: float
    place: Place
    has_gate_counter: bool
    has_display: bool
    tells_total: bool


@cache
def sites() -> tuple[Site, ...]:
    """The city's car parks, the same in every simulation: sights by the lake in the east, homes in the west."""
    random = Random(1)
    found = []
    for number in range(SITES):
        east, north = random.random(), random.random()
        uses: tuple[Use, ...] = ("sights", "shops", "offices") if east > 0.7 else ("homes", "offices", "shops")
        found.append(
            Site(
                id=f"xihu-p{number:03d}",
                use=random.choice(uses),
                spots=random.randint(100, 1900),
                demand=0.8 + 0.2 * east + random.uniform(-0.1, 0.1),
                place=Place(longitude=round(WEST + WIDTH * east, 6), latitude=round(SOUTH + HEIGHT * north, 6)),
                has_gate_counter=random.random() < 0.9,
                has_display=random.random() < 0.95,
                tells_total=number % 20 != 19,
            )
        )
    return tuple(found)


def fullness(site: Site, at: datetime) -> float:
    """Share of its spots that drivers want at a time; above 1 at the sights on a fine weekend."""
    hour, weekend = city_hour(at)
    match site.use:
        case "homes":
            wanted = 0.95 - (0.25 if weekend else 0.5) * bump(hour, 13.5, 5)
        case "offices":
            wanted = 0.1 + (0.1 if weekend else 0.8) * bump(hour, 13, 5)
        case "shops":
            wanted = 0.1 + (0.75 if weekend else 0.4) * bump(hour, 15, 4) + 0.2 * bump(hour, 19.5, 2)
        case "sights":
            wanted = 0.05 + (0.95 if weekend else 0.55) * bump(hour, 13.5, 4)
    return site.demand * wanted


def simulate(start: datetime, random: Random) -> Iterator[ParkingSite]:
    """600 car parks around the West Lake, each reporting once a minute; what is taken follows the gate counts."""
    taken = [round(site.spots * fullness(site, start) * random.uniform(0.95, 1.05)) for site in sites()]
    begin = start
    while True:
        for number, site in enumerate(sites()):
            at = begin + timedelta(milliseconds=number * 60_000 // SITES)
            missing = site.spots * fullness(site, at) - taken[number]
            churn = site.spots * 0.002
            entrances = poisson(random, churn + max(missing, 0) * 0.05)
            exits = min(taken[number] + entrances, poisson(random, churn + max(-missing, 0) * 0.05))
            taken[number] += entrances - exits
            yield ParkingSite(
                event_id=event_id(random),
                site_id=site.id,
                total_spot_number=site.spots if site.tells_total else None,
                occupied_spot_number=taken[number],
                available_spot_number=max(0, site.spots - taken[number]) if site.has_display else None,
                vehicle_entrance_count=entrances if site.has_gate_counter else None,
                vehicle_exit_count=exits if site.has_gate_counter else None,
                observed_at=at,
                place=site.place,
            )
        begin += REPORT_EVERY


FEED = Feed(
    name="parking_site",
    description="Spots taken and free, and vehicles in and out, by car park",
    record=ParkingSite,
    key="site_id",
    event_time="observed_at",
    department="Urban management",
    batch=1,
    stage="connected",
    rate=SITES / REPORT_EVERY.total_seconds(),
    silence=timedelta(minutes=5),
    disorder=timedelta(seconds=30),
    lateness=timedelta(seconds=90),
    aggregates=(
        Aggregate(
            name="parking_site_15m",
            by=("site_id",),
            window=timedelta(minutes=15),
            measures=(
                spread("occupancy", OCCUPANCY, unit="1", scale=1_000_000, description="spots taken over spots there"),
                share("full", OCCUPANCY >= 0.95, description="Share of reports with 0.95 or more of the spots taken"),
            ),
            description="Occupancy by site_id in 15 min",
        ),
    ),
    simulate=simulate,
)

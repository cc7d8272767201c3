"""Car parks of the district, as a whole and spot by spot: both feeds tell of the same ones."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from itertools import accumulate
from random import Random
from typing import Literal

from feeds.parking.parking_site import ParkingSite
from feeds.parking.parking_spot import ParkingSpot, SpotStatus
from schemas.fields import Place
from simulation.world import HEIGHT, SOUTH, WEST, WIDTH, arrivals, bump, city_hour, event_id, poisson

SITES = 600
REPORT_EVERY = timedelta(minutes=1)

Use = Literal["homes", "offices", "shops", "sights"]

#: Changes a second, the mean of a weekday.
RATE = 60.0
#: Share of changes that are a sensor failing or coming back, a spot being closed or opened, and about how many are so.
OUT_OF_USE_CHANGES = 0.004
OUT_OF_USE = 500


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


def parking_site(start: datetime, random: Random) -> Iterator[ParkingSite]:
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
        self.states = [SpotStatus.OCCUPIED if random.random() < wanted else SpotStatus.FREE for _ in range(site.spots)]
        self.taken = self.states.count(SpotStatus.OCCUPIED)

    def pick(self, at: datetime, random: Random) -> tuple[int, SpotStatus]:
        """A spot and what it becomes: drivers come while the site is emptier than wanted, and go while it is fuller."""
        missing = fullness(self.site, at) - self.taken / self.site.spots
        before = SpotStatus.FREE if random.random() < 0.5 + 4 * missing else SpotStatus.OCCUPIED
        for _ in range(50):
            spot = random.randrange(self.site.spots)
            if self.states[spot] is before:
                break
        return spot, SpotStatus.OCCUPIED if self.states[spot] is SpotStatus.FREE else SpotStatus.FREE

    def set(self, spot: int, status: SpotStatus) -> None:
        """Change a spot."""
        self.taken += (status is SpotStatus.OCCUPIED) - (self.states[spot] is SpotStatus.OCCUPIED)
        self.states[spot] = status


def parking_spot(start: datetime, random: Random) -> Iterator[ParkingSpot]:
    """The 600,000 spots of the car parks that report as parking_site, each as full as its car park is wanted."""
    lots = [_Lot(site, start, random) for site in sites()]
    weights = list(accumulate(site.spots for site in sites()))
    out_of_use: deque[tuple[_Lot, int]] = deque()
    for at in arrivals(start, random, _changes):
        if random.random() >= OUT_OF_USE_CHANGES:
            lot = random.choices(lots, cum_weights=weights)[0]
            spot, status = lot.pick(at, random)
        elif len(out_of_use) > random.randrange(2 * OUT_OF_USE):
            (lot, spot), status = out_of_use.popleft(), SpotStatus.FREE
        else:
            lot = random.choices(lots, cum_weights=weights)[0]
            spot, status = random.randrange(lot.site.spots), random.choice((SpotStatus.CLOSED, SpotStatus.UNKNOWN))
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


SIMULATORS = {"parking_site": parking_site, "parking_spot": parking_spot}

"""Car parks of the district, as a whole and spot by spot: both feeds tell of the same ones."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cache
from itertools import accumulate, cycle
from operator import attrgetter, itemgetter
from random import Random
from typing import Literal, NamedTuple

from feeds.parking.parking_site import ParkingSite
from feeds.parking.parking_spot import ParkingSpot, SpotStatus
from schemas.fields import Place
from simulation.incidents import Going, Incident, Staging, concert, expected, staged
from simulation.world import Kind, World, area, arrivals, bump, city_hour, event_id, in_order, metres, place, whole_ms

SITES = 600
REPORT_EVERY = MINUTE = timedelta(minutes=1)

Use = Literal["homes", "offices", "shops", "sights"]

#: Changes a second, the mean of a weekday.
RATE = 60.0
#: Share of changes that are a sensor failing or coming back, a spot being closed or opened, and about how many are so.
OUT_OF_USE_CHANGES = 0.004
OUT_OF_USE = 500
#: Nothing but an incident fills a car park further than this, nor do its drivers want more; one that does, so far.
CALM, FULL = 0.84, 0.98
#: How long it takes to fill it, and to empty it again.
RAMP = timedelta(minutes=15)
#: Cars that a gate counts too many at each report, and then too few.
DRIFT = 3
#: People that come in a car.
IN_A_CAR = 3


@dataclass(frozen=True)
class Site:
    """A simulated car park. ``demand`` scales how full it gets."""

    id: str
    use: Use
    spots: int
    demand: float
    area: str
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
                area=area(east, north),
                place=place(east, north),
                has_gate_counter=random.random() < 0.9,
                has_display=random.random() < 0.95,
                tells_total=number % 20 != 19,
            )
        )
    return tuple(found)


@cache
def _by_id() -> dict[str, Site]:
    return {site.id: site for site in sites()}


def fullness(site: Site, at: datetime) -> float:
    """Share of its spots that drivers want at a time; most at the sights on a fine weekend."""
    hour, weekend = city_hour(at)
    match site.use:
        case "homes":
            wanted = 0.75 - (0.2 if weekend else 0.4) * bump(hour, 13.5, 5)
        case "offices":
            wanted = 0.1 + (0.1 if weekend else 0.65) * bump(hour, 13, 5)
        case "shops":
            wanted = 0.1 + (0.6 if weekend else 0.3) * bump(hour, 15, 4) + 0.15 * bump(hour, 19.5, 2)
        case "sights":
            wanted = 0.05 + (0.75 if weekend else 0.45) * bump(hour, 13.5, 4)
    return min(CALM, site.demand * wanted)


def _rate(at: datetime) -> float:
    """Changes a second: five times the mean in the rush hours, a broad noon at weekends."""
    hour, weekend = city_hour(at)
    if weekend:
        return RATE * (0.4 + 1.7 * bump(hour, 14, 4))
    return RATE * (0.52 + 4.5 * (bump(hour, 8, 0.7) + bump(hour, 18, 0.7)))


class Lot:
    """The spots of one site."""

    def __init__(self, site: Site, at: datetime) -> None:
        self.site, self._at, self._wanted = site, at, fullness(site, at)
        taken = round(site.spots * fullness(site, at))
        self.occupied, self.free = list(range(taken)), list(range(taken, site.spots))

    def fills(self, at: datetime, random: Random) -> bool:
        """Whether the next driver comes: more do while the site is emptier than wanted, and go while it is fuller."""
        taken = len(self.occupied)
        missing = self.wanted(at) - taken / self.site.spots
        return taken + 1 <= CALM * self.site.spots and random.random() < 0.5 + 4 * missing

    def wanted(self, at: datetime) -> float:
        """Share of its spots that drivers want, which changes from minute to minute."""
        if at - self._at >= MINUTE:
            self._at, self._wanted = at, fullness(self.site, at)
        return self._wanted

    def missing(self, at: datetime, filling: Incident) -> float:
        """Cars that have to come for it to be as full as is staged then; less than none if some have to go."""
        calm = self.wanted(at)
        done = min(at - filling.begins, filling.ends - at, RAMP) / RAMP
        return self.site.spots * (calm + (FULL - calm) * done) - len(self.occupied)


class Change(NamedTuple):
    """What a spot becomes, and how many cars came for it: one, none, or one less as it goes."""

    at: datetime
    site: Site
    spot: int
    status: SpotStatus
    cars: int = 0


def _one_of(spots: list[int], random: Random) -> int:
    """Take one out of some spots."""
    at = random.randrange(len(spots))
    spots[at], spots[-1] = spots[-1], spots[at]
    return spots.pop()


def _drive(at: datetime, lot: Lot, random: Random, *, fills: bool) -> Iterator[Change]:
    """A car comes or goes, if there is a spot or a car for it."""
    before, after = (lot.free, lot.occupied) if fills else (lot.occupied, lot.free)
    if before:
        spot = _one_of(before, random)
        after.append(spot)
        yield (
            Change(at, lot.site, spot, SpotStatus.OCCUPIED, 1)
            if fills
            else Change(at, lot.site, spot, SpotStatus.FREE, -1)
        )


def changes(world: World) -> Iterator[Change]:
    """Every change of a spot, as cars come and go, sensors fail and spots are closed: what both feeds tell of."""
    random, lots = world.random("cars"), {site.id: Lot(site, world.start) for site in sites()}
    weights = list(accumulate(site.spots for site in sites()))
    out_of_use: deque[tuple[Lot, int]] = deque()
    going = Going(_fillings(world))
    usual: Iterator[tuple[datetime, str]] = ((at, "") for at in arrivals(world.start, random, _rate))
    for at, pushed in heapq.merge(usual, _pushes(world), key=itemgetter(0)):
        lot = lots[pushed or random.choices(sites(), cum_weights=weights)[0].id]
        if (filling := going.of(lot.site.id, at)) is not None:
            missing = lot.missing(at, filling)
            if not pushed or abs(missing) >= 1:
                yield from _drive(at, lot, random, fills=missing > 0)
        elif pushed:
            continue
        elif random.random() >= OUT_OF_USE_CHANGES:
            yield from _drive(at, lot, random, fills=lot.fills(at, random))
        elif len(out_of_use) > random.randrange(2 * OUT_OF_USE):
            lot, spot = out_of_use.popleft()
            lot.free.append(spot)
            yield Change(at, lot.site, spot, SpotStatus.FREE)
        elif lot.free:
            spot = _one_of(lot.free, random)
            out_of_use.append((lot, spot))
            yield Change(at, lot.site, spot, random.choice((SpotStatus.CLOSED, SpotStatus.UNKNOWN)))


def _fillings(world: World) -> Iterator[Incident]:
    kinds = (Kind.CAR_PARK_FILLS, Kind.CONCERT)
    return (one for one in incidents(world) if one.kind in kinds and one.entity in _by_id())


def _pushes(world: World) -> Iterator[tuple[datetime, str]]:
    """When a car may come or go because a car park is staged to fill, or to empty again."""
    return in_order(map(_ramps, _fillings(world)), itemgetter(0))


def _ramps(filling: Incident) -> Iterator[tuple[datetime, str]]:
    often = 2 * _by_id()[filling.entity].spots
    for begin in (filling.begins, filling.ends - RAMP):
        for number in range(often):
            yield whole_ms(begin + number * RAMP / often), filling.entity


@dataclass
class Count:
    """What a car park knows of itself: spots taken and free, and cars that came and went since its last report."""

    taken: int
    free: int
    came: int = 0
    went: int = 0

    def take(self, change: Change) -> None:
        """Count a change."""
        self.taken += change.cars
        self.came += change.cars > 0
        self.went += change.cars < 0
        self.free += 1 if change.status is SpotStatus.FREE else -1


def parking_site(world: World) -> Iterator[ParkingSite]:
    """600 car parks around the West Lake, each reporting once a minute what is taken, and what came and went since."""
    random = world.random("parking_site")
    lots = (Lot(site, world.start) for site in sites())
    counts = {lot.site.id: Count(len(lot.occupied), len(lot.free)) for lot in lots}
    coming, going = changes(world), Going(incidents(world))
    change = next(coming)
    for turn, site in enumerate(cycle(sites())):
        at = world.start + turn * REPORT_EVERY / SITES
        while change.at <= at:
            counts[change.site.id].take(change)
            change = next(coming)
        now, incident = counts[site.id], going.of(site.id, at)
        counts[site.id] = Count(now.taken, now.free)
        if incident is not None and incident.kind is Kind.SITE_SILENT:
            continue
        if incident is not None and incident.kind is Kind.GATE_DRIFTS:
            early = at < incident.begins + (incident.ends - incident.begins) / 2
            now = replace(now, came=now.came + DRIFT * early, went=now.went + DRIFT * (not early))
        yield ParkingSite(
            event_id=event_id(random),
            site_id=site.id,
            total_spot_number=site.spots if site.tells_total else None,
            occupied_spot_number=now.taken,
            available_spot_number=now.free if site.has_display else None,
            vehicle_entrance_count=now.came if site.has_gate_counter else None,
            vehicle_exit_count=now.went if site.has_gate_counter else None,
            observed_at=at,
            place=site.place,
        )


def parking_spot(world: World) -> Iterator[ParkingSpot]:
    """The 600,000 spots of the car parks that report as parking_site, each as full as its car park is wanted."""
    random = world.random("parking_spot")
    for change in changes(world):
        site = change.site
        yield ParkingSpot(
            event_id=event_id(random),
            site_id=site.id,
            spot_id=f"{site.id}-{change.spot:04d}",
            status=change.status,
            observed_at=change.at,
            place=site.place,
        )


def incidents(world: World) -> Iterator[Incident]:
    """What is staged at car parks."""
    return staged(world, STAGINGS)


def _some(random: Random, which: Callable[[Site], object]) -> Site:
    return random.choice([site for site in sites() if which(site)])


def _filling(kind: Kind, site: Site, begins: datetime, ends: datetime) -> Incident:
    rule, found_by = expected("parking_full", begins + RAMP, REPORT_EVERY)
    return Incident(
        kind=kind, entity=site.id, begins=begins, ends=ends, place=site.place, rule=rule, found_by=found_by
    )  # fmt: skip


def _fills(at: datetime, random: Random) -> list[Incident]:
    """Full for longer than the rule takes."""
    site, full = _some(random, attrgetter("tells_total")), timedelta(minutes=random.randint(20, 60))
    return [_filling(Kind.CAR_PARK_FILLS, site, at, at + 2 * RAMP + full)]


def _drifts(at: datetime, random: Random) -> list[Incident]:
    site, ends = _some(random, attrgetter("has_gate_counter")), at + timedelta(minutes=random.randint(80, 120))
    rule, _ = expected("gate_drift", at)
    found_by = None if rule is None else at + (ends - at) / 2
    return [
        Incident(
            kind=Kind.GATE_DRIFTS, entity=site.id, begins=at, ends=ends, place=site.place, rule=rule, found_by=found_by
        )
    ]


def _silent(at: datetime, random: Random) -> list[Incident]:
    site, ends = random.choice(sites()), at + timedelta(minutes=random.randint(10, 30))
    return [Incident(kind=Kind.SITE_SILENT, entity=site.id, begins=at, ends=ends, place=site.place)]


def _concert(at: datetime, random: Random) -> list[Incident]:
    """The nearest car parks fill, so many as the people have cars."""
    given, near = concert(at, random), list[Incident]()
    cars = given.people / IN_A_CAR
    for site in sorted(filter(attrgetter("tells_total"), sites()), key=lambda site: metres(given.place, site.place)):
        if cars > 0:
            near.append(_filling(Kind.CONCERT, site, given.begins, given.ends))
            cars -= (FULL - fullness(site, at)) * site.spots
    return [
        Incident(kind=Kind.CONCERT, entity=given.venue, begins=given.begins, ends=given.ends, place=given.place),
        *near,
    ]


REST = timedelta(hours=1)
STAGINGS = {
    Kind.CAR_PARK_FILLS: Staging(_fills, REST),
    Kind.GATE_DRIFTS: Staging(_drifts, timedelta(days=30)),
    Kind.SITE_SILENT: Staging(_silent, REST),
    Kind.CONCERT: Staging(_concert, REST),
}
SIMULATORS = {"parking_site": parking_site, "parking_spot": parking_spot}

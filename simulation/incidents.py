"""Incidents that are staged on request: what rules should tell of, and what looks like it and is nothing.

Each is staged by the simulator of its domain, as a pure function of the world.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from operator import attrgetter
from random import Random

import polars as pl

import feeds
from schemas.expressions import columns, to_polars
from schemas.fields import Place
from schemas.rules import Due, Level
from simulation.request import Request
from simulation.world import Kind, World, arrivals, in_order, place

#: How many begin in an hour of those that are named without a number.
USUAL = {
    Kind.CAR_PARK_FILLS: 6.0,
    Kind.GATE_DRIFTS: 2.0,
    Kind.SITE_SILENT: 2.0,
    Kind.JAM: 4.0,
    Kind.STANDSTILL: 6.0,
    Kind.DETECTOR_SILENT: 4.0,
    Kind.ROAD_EMPTY: 4.0,
    Kind.DISPATCH_LATE: 20.0,
    Kind.STATUS_SKIPPED: 20.0,
    Kind.REPEATED_CALLS: 4.0,
    Kind.CONCERT: 0.5,
}
#: Kinds come at most so often an hour.
MOST = 1000.0
#: Kinds of which one is over before the next begins.
ALONE = {Kind.CONCERT: timedelta(hours=4)}
#: So often another entity is looked for where the first one is part of another incident.
TRIES = 20


class IncidentsError(ValueError):
    """A description of incidents makes no sense; the message says what there is."""


_REQUEST = Request(
    what="incident",
    usual=USUAL,
    needed=f"a number an hour above 0 is needed, at most {MOST:g}",
    allows=lambda number: 0 < number <= MOST,
    wrong=IncidentsError,
)


def parse_incidents(text: str) -> dict[Kind, float]:
    """How many an hour by kind, from ``all``, or from names with or without numbers: ``jam=10,concert``.

    Raises
    ------
    IncidentsError
        A name does not exist, or a number is not above 0 or too large.
    """
    return _REQUEST.parse(text)


@dataclass(frozen=True, kw_only=True)
class Incident:
    """What is staged at one entity, and the rule that should find it, by when; no rule if it must not alarm."""

    kind: Kind
    entity: str
    begins: datetime
    ends: datetime
    place: Place | None
    rule: str | None = None
    found_by: datetime | None = None


@dataclass(frozen=True)
class Staging:
    """How a kind is staged: ``make`` gives what one that begins then is made of, in the order it begins.

    An entity is part of nothing else until so long after it.
    """

    make: Callable[[datetime, Random], list[Incident]]
    rests: timedelta


def staged(world: World, stagings: Mapping[Kind, Staging]) -> Iterator[Incident]:
    """The incidents of some kinds in the order they begin, at most one at an entity at a time."""
    return in_order(_courses(world, stagings), attrgetter("begins"))


def _courses(world: World, stagings: Mapping[Kind, Staging]) -> Iterator[list[Incident]]:
    busy: dict[str, datetime] = {}
    for at, kind, random in occurrences(world, stagings):
        staging = stagings[kind]
        for _ in range(TRIES):
            first, *others = staging.make(at, random)
            if busy.get(first.entity, at) <= at:
                found = [first, *(one for one in others if busy.get(one.entity, at) <= one.begins)]
                busy |= {one.entity: one.ends + staging.rests for one in found}
                yield found
                break


def occurrences(world: World, kinds: Iterable[Kind]) -> Iterator[tuple[datetime, Kind, Random]]:
    """When incidents of some kinds begin, and the chance each is made of."""
    return heapq.merge(*(_of_kind(world, kind) for kind in kinds if kind in world.incidents), key=lambda one: one[0])


def _of_kind(world: World, kind: Kind) -> Iterator[tuple[datetime, Kind, Random]]:
    an_hour, free = world.incidents[kind], world.start
    for number, at in enumerate(arrivals(world.start, world.random(kind), lambda _: an_hour / 3600)):
        if at >= free:
            free = at + ALONE.get(kind, timedelta(0))
            yield at, kind, world.random(f"{kind}/{number}")


class Going:
    """What is staged at a time that never goes back, by entity."""

    def __init__(self, incidents: Iterable[Incident]) -> None:
        self._coming = iter(incidents)
        self._next = next(self._coming, None)
        self._by_entity: dict[str, Incident] = {}

    def of(self, entity: str, at: datetime) -> Incident | None:
        """What is staged at an entity then."""
        while self._next is not None and self._next.begins <= at:
            self._by_entity[self._next.entity] = self._next
            self._next = next(self._coming, None)
        if (found := self._by_entity.get(entity)) is not None and found.ends <= at:
            del self._by_entity[entity]
            return None
        return found


def expected(rule: str, begins: datetime, every: timedelta = timedelta(0)) -> tuple[str | None, datetime | None]:
    """A rule, and by when it finds what begins then; neither if no feed declares it.

    ``every`` is how often a feed tells of one entity. A window may have begun before, so there is one more.
    """
    if (found := _declared().get(rule)) is None:
        return None, None
    level, window = found
    times = level.held.times
    return rule, begins + level.held.lasting + (every * times if window is None else window * (times + 1))


def due_after(rule: str, **values: int) -> timedelta | None:
    """How long after its start something is due by a rule, for an observation with these values.

    None if there is no such rule.
    """
    declared = _declared().get(rule)
    if declared is None or not isinstance(declared[0].when, Due):
        return None
    at = declared[0].when.at
    row = pl.DataFrame({name: [values.get(name, 0)] for name in columns(at)})
    return timedelta(milliseconds=row.select(to_polars(at)).item())


@cache
def _declared() -> dict[str, tuple[Level, timedelta | None]]:
    """The mildest level of each rule there is, and the window it watches if it does."""
    watched = [one for feed in feeds.load().values() for one in feed.watched]
    return {rule.name: (rule.levels[0], None if one is None else one.window) for one, rule in watched}


#: Where concerts are given, by how far east and north.
VENUES = {"Yellow Dragon Stadium": (0.55, 0.65), "Westlake Stage": (0.8, 0.4), "Zijingang Hall": (0.25, 0.8)}
LASTS = timedelta(hours=3)


@dataclass(frozen=True)
class Concert:
    """People come to a place; the first ones when it begins, and the last ones are gone when it ends."""

    venue: str
    place: Place
    people: int
    begins: datetime
    ends: datetime


def concert(at: datetime, random: Random) -> Concert:
    """One that begins then."""
    venue, where = random.choice(list(VENUES.items()))
    return Concert(venue, place(*where), random.randrange(6_000, 20_000), at, at + LASTS)


def concerts(world: World) -> Iterator[Concert]:
    """All of a world, one after the other."""
    for at, _, random in occurrences(world, [Kind.CONCERT]):
        yield concert(at, random)

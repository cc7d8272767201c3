"""Incidents of the district, on their way from report to end."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import cycle
from operator import attrgetter
from random import Random

from feeds.police.police_incident import MOST_WAIT, IncidentStatus, PoliceIncident
from simulation.world import COLUMNS, World, area, arrivals, bump, city_hour, event_id, in_order, place

#: Records a second, the mean of a day; four to an incident.
RATE = 1.0
STEPS = (IncidentStatus.REPORTED, IncidentStatus.DISPATCHED, IncidentStatus.ON_SCENE, IncidentStatus.CLOSED)
#: A patrol is on its way within this share of the longest wait that is allowed, but for an incident that is staged.
CALM = 0.9
STREETS = ("Wensan Road", "Tianmushan Road", "Shuguang Road", "Longjing Road", "Gudun Road", "Lingyin Road")
#: Category: how often of 100, and its usual priority.
CATEGORIES = {
    "traffic accident": (34, 2),
    "theft": (18, 4),
    "dispute": (17, 3),
    "noise": (13, 5),
    "lost person": (8, 2),
    "violence": (6, 1),
    "fraud": (4, None),
}
#: Incidents before the start that may still be open at it.
BEFORE = timedelta(hours=3)


def _reports(at: datetime) -> float:
    """Incidents reported a second: most in the evening, later at weekends, few before dawn."""
    hour, weekend = city_hour(at)
    return RATE / len(STEPS) * (0.67 + 0.5 * bump(hour, 9, 2.5) + 0.8 * bump(hour, 22 if weekend else 19, 4))


def _steps(at: datetime, remoteness: float, priority: int | None, random: Random) -> Iterator[datetime]:
    """When each status is reached: dispatched after a minute or two, there after some ten, closed within the hour."""
    hour, weekend = city_hour(at)
    traffic = 1 if weekend else 1 + 0.6 * (bump(hour, 8, 1.5) + bump(hour, 18, 1.5))
    medians = (40 * (priority or 3) ** 0.7, 420 * remoteness * traffic, 1500)
    longest = (CALM * (priority or 1) * MOST_WAIT / 1000, 3600, 3600)
    yield at
    for median, most in zip(medians, longest, strict=True):
        at += timedelta(milliseconds=round(1000 * min(most, random.lognormvariate(0, 0.45) * median)))
        yield at


def _addresses(random: Random) -> Iterator[str]:
    """Where calls come from, each as long after its last call as any other."""
    addresses = [f"{street} {number}" for street in STREETS for number in range(1, 401)]
    random.shuffle(addresses)
    return cycle(addresses)


def _incident(at: datetime, address: str, random: Random) -> Iterator[PoliceIncident]:
    """The records of one incident."""
    category = random.choices(list(CATEGORIES), [often for often, _ in CATEGORIES.values()])[0]
    priority = CATEGORIES[category][1]
    incident = f"xihu-{at:%Y%m%d}-{random.getrandbits(40):010x}"
    east, north = random.random(), random.random()
    steps = _steps(at, 0.8 + 0.1 * abs(int(COLUMNS * east) - COLUMNS // 2), priority, random)
    for status, changed in zip(STEPS, steps, strict=True):
        yield PoliceIncident(
            event_id=event_id(random),
            incident_id=incident,
            category=category,
            priority=priority,
            status=status,
            changed_at=changed,
            reported_at=at,
            beat_id=area(east, north),
            address=address,
            place=place(east, north),
        )


def police_incident(world: World) -> Iterator[PoliceIncident]:
    """24 beats around the West Lake; each incident is reported, dispatched to, reached and closed."""
    random = world.random("police_incident")
    reports = zip(arrivals(world.start - BEFORE, random, _reports), _addresses(random), strict=False)
    incidents = (list(_incident(at, address, random)) for at, address in reports)
    for record in in_order(incidents, attrgetter("changed_at")):
        if record.changed_at >= world.start:
            yield record


SIMULATORS = {"police_incident": police_incident}

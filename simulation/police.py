"""Incidents of the district, on their way from report to end."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from datetime import datetime, timedelta
from random import Random

from feeds.police.police_incident import IncidentStatus, PoliceIncident
from schemas.fields import Place
from simulation.world import HEIGHT, SOUTH, WEST, WIDTH, arrivals, bump, city_hour, event_id

#: Records a second, the mean of a day; four to an incident.
RATE = 1.0
STEPS = (IncidentStatus.REPORTED, IncidentStatus.DISPATCHED, IncidentStatus.ON_SCENE, IncidentStatus.CLOSED)
BEATS = 24
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
    yield at
    for median in medians:
        at += timedelta(milliseconds=round(1000 * min(3600, random.lognormvariate(0, 0.45) * median)))
        yield at


def _incident(at: datetime, random: Random) -> Iterator[PoliceIncident]:
    """The records of one incident."""
    beat = random.randrange(BEATS)
    category = random.choices(list(CATEGORIES), [often for often, _ in CATEGORIES.values()])[0]
    priority = CATEGORIES[category][1]
    incident = f"xihu-{at:%Y%m%d}-{random.getrandbits(40):010x}"
    column, row = beat % 6, beat // 6
    place = Place(
        longitude=round(WEST + WIDTH * (column + random.random()) / 6, 6),
        latitude=round(SOUTH + HEIGHT * (row + random.random()) / 4, 6),
    )
    address = f"{random.choice(STREETS)} {random.randint(1, 400)}"
    steps = _steps(at, 0.8 + 0.1 * abs(column - 3), priority, random)
    for status, changed in zip(STEPS, steps, strict=True):
        yield PoliceIncident(
            event_id=event_id(random),
            incident_id=incident,
            category=category,
            priority=priority,
            status=status,
            changed_at=changed,
            reported_at=at,
            beat_id=f"xihu-beat-{beat + 1:02d}",
            address=address,
            place=place,
        )


def police_incident(start: datetime, random: Random) -> Iterator[PoliceIncident]:
    """24 beats around the West Lake; each incident is reported, dispatched to, reached and closed."""
    waiting: list[tuple[datetime, str, PoliceIncident]] = []
    for at in arrivals(start - BEFORE, random, _reports):
        while waiting and waiting[0][0] <= at:
            yield heapq.heappop(waiting)[2]
        for record in _incident(at, random):
            if record.changed_at >= start:
                heapq.heappush(waiting, (record.changed_at, record.event_id, record))


SIMULATORS = {"police_incident": police_incident}

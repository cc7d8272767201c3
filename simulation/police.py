"""Incidents of the district, on their way from report to end."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import cycle
from operator import attrgetter
from random import Random

from feeds.police.police_incident import MOST_WAIT, IncidentStatus, PoliceIncident
from simulation.incidents import Incident, Staging, due_after, expected, staged
from simulation.world import COLUMNS, Kind, World, area, arrivals, bump, city_hour, event_id, in_order, place, whole_ms

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
CHANGED_AT = attrgetter("changed_at")


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


@dataclass(frozen=True)
class Call:
    """A call that becomes an incident."""

    at: datetime
    incident: str
    address: str
    category: str
    east: float
    north: float

    @classmethod
    def draw(cls, at: datetime, address: str, random: Random) -> Call:
        """Any."""
        category = random.choices(list(CATEGORIES), [often for often, _ in CATEGORIES.values()])[0]
        return cls(at, _incident_id(at, random), address, category, random.random(), random.random())

    @property
    def priority(self) -> int | None:
        """How urgent it is."""
        return CATEGORIES[self.category][1]

    def steps(self, random: Random) -> list[tuple[IncidentStatus, datetime]]:
        """What is reached when, as usual."""
        remoteness = 0.8 + 0.1 * abs(int(COLUMNS * self.east) - COLUMNS // 2)
        return list(zip(STEPS, _steps(self.at, remoteness, self.priority, random), strict=True))

    def records(self, steps: Iterable[tuple[IncidentStatus, datetime]], random: Random) -> list[PoliceIncident]:
        """The records of these steps."""
        return [
            PoliceIncident(
                event_id=event_id(random),
                incident_id=self.incident,
                category=self.category,
                priority=self.priority,
                status=status,
                changed_at=changed,
                reported_at=self.at,
                beat_id=area(self.east, self.north),
                address=self.address,
                place=place(self.east, self.north),
            )
            for status, changed in steps
        ]


def _incident_id(at: datetime, random: Random) -> str:
    return f"xihu-{at:%Y%m%d}-{random.getrandbits(40):010x}"


def police_incident(world: World) -> Iterator[PoliceIncident]:
    """24 beats around the West Lake; each incident is reported, dispatched to, reached and closed."""
    random = world.random("police_incident")
    reports = zip(arrivals(world.start - BEFORE, random, _reports), _addresses(random), strict=False)
    calls = (Call.draw(at, address, random) for at, address in reports)
    usual = (call.records(call.steps(random), random) for call in calls)
    rare = (_staged_records(one, world.random(f"{one.entity}/{one.begins}")) for one in incidents(world))
    for record in heapq.merge(in_order(usual, CHANGED_AT), in_order(rare, CHANGED_AT), key=CHANGED_AT):
        if record.changed_at >= world.start:
            yield record


def incidents(world: World) -> Iterator[Incident]:
    """What is staged with calls to the police."""
    return staged(world, STAGINGS)


def _staged_call(incident: str, at: datetime) -> Call:
    """The call of an incident that is staged; all of it follows from its name."""
    random = Random(incident)
    category = random.choice([name for name, (_, priority) in CATEGORIES.items() if priority is not None])
    address = f"{random.choice(STREETS)} {incident[-10:]}"  # nobody else's, so that nobody calls again
    return Call(at, incident, address, category, random.random(), random.random())


def _wait(call: Call, random: Random, least: float, most: float) -> timedelta:
    """So many times as long as a call may wait for a patrol."""
    longest = timedelta(milliseconds=MOST_WAIT) * (call.priority or 1)
    return whole_ms(call.at + longest * random.uniform(least, most)) - call.at


def _late(at: datetime, random: Random) -> list[Incident]:
    call = _staged_call(_incident_id(at, random), at)
    ends = at + _wait(call, random, 1.5, 3)
    rule, _ = expected("overdue_dispatch", at)
    due = due_after("overdue_dispatch", priority=call.priority or 0)
    return [_told(Kind.DISPATCH_LATE, call, ends, rule, None if due is None else at + due)]


def _skipped(at: datetime, random: Random) -> list[Incident]:
    call = _staged_call(_incident_id(at, random), at)
    ends = at + _wait(call, random, 0.5, CALM)
    rule, _ = expected("illegal_transition", at)
    return [_told(Kind.STATUS_SKIPPED, call, ends, rule, None if rule is None else ends)]


def _told(kind: Kind, call: Call, ends: datetime, rule: str | None, found_by: datetime | None) -> Incident:
    return Incident(
        kind=kind, entity=call.incident, begins=call.at, ends=ends, place=place(call.east, call.north), rule=rule,
        found_by=found_by,
    )  # fmt: skip


def _repeated(at: datetime, random: Random) -> list[Incident]:
    ends = at + (CALLS - 1) * CALL_EVERY
    rule, _ = expected("repeated_calls", at)
    return [
        Incident(
            kind=Kind.REPEATED_CALLS, entity=f"Yugu Road {random.randint(1, 10_000)}", begins=at, ends=ends,
            place=place(random.random(), random.random()), rule=rule, found_by=None if rule is None else ends,
        )
    ]  # fmt: skip


def _staged_records(one: Incident, random: Random) -> Iterator[PoliceIncident]:
    if one.kind is Kind.REPEATED_CALLS:
        calls = (Call.draw(one.begins + turn * CALL_EVERY, one.entity, random) for turn in range(CALLS))
        return in_order((call.records(call.steps(random), random) for call in calls), CHANGED_AT)
    call = _staged_call(one.entity, one.begins)
    reported, dispatched, on_scene, closed = call.steps(random)
    rest = [on_scene, closed] if one.kind is Kind.STATUS_SKIPPED else [dispatched, on_scene, closed]
    by = one.ends - rest[0][1]
    return iter(call.records([reported, *((status, at + by) for status, at in rest)], random))


#: Calls from one address, and how long after another.
CALLS, CALL_EVERY = 6, timedelta(minutes=6)
REST = timedelta(hours=2)
STAGINGS = {
    Kind.DISPATCH_LATE: Staging(_late, REST),
    Kind.STATUS_SKIPPED: Staging(_skipped, REST),
    Kind.REPEATED_CALLS: Staging(_repeated, REST),
}


SIMULATORS = {"police_incident": police_incident}

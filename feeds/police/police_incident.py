"""Police incidents on their way from report to end; the city's own model, no standard has one."""

from __future__ import annotations

from datetime import timedelta
from enum import StrEnum
from typing import Annotated

from pydantic import Field

from feeds.police import DEPARTMENT
from schemas.alerts import Category, Severity
from schemas.expressions import Column, Expression, When
from schemas.feed import Aggregate, Feed, Latest, NotAfter, RollUp, Spans
from schemas.fields import Coarse, EventId, Instant, Location, Personal, Record, Text
from schemas.measures import Measure, count_where, quantiles
from schemas.rules import Due, Held, Level, Rule, above, previous, while_true


class IncidentStatus(StrEnum):
    """How far the police are with an incident."""

    REPORTED = "reported"
    DISPATCHED = "dispatched"
    ON_SCENE = "on_scene"
    CLOSED = "closed"
    UNKNOWN = "unknown"


class PoliceIncident(Record):
    """An incident that reached its next status."""

    event_id: EventId
    incident_id: Annotated[Text, Field(description="Incident")]
    category: Annotated[Text, Field(description="What was reported")]
    priority: Annotated[int | None, Field(ge=1, le=5, description="1 is the most urgent, 5 the least")]
    status: Annotated[IncidentStatus, Field(description="Status reached")]
    changed_at: Annotated[Instant, Field(description="When the status was reached: the event time")]
    reported_at: Annotated[Instant, Field(description="When the incident was reported")]
    beat_id: Annotated[Text, Field(description="Beat responsible")]
    address: Annotated[Text, Field(description="Where to go, as a pseudonym"), Personal()]
    place: Annotated[Location, Coarse(decimals=2)]


STATUS = Column("status")
RESPONSE_TIME = When(STATUS.equals(IncidentStatus.ON_SCENE.value), Column("changed_at") - Column("reported_at"))

IS_CALL = STATUS.equals(IncidentStatus.REPORTED.value)
MEASURES: tuple[Measure, ...] = (
    count_where("incidents", IS_CALL, description="Incidents reported"),
    quantiles(
        "response_time",
        RESPONSE_TIME,
        (0.5, 0.9),
        unit="s",
        divisor=1000,
        description="time from report to arrival on scene",
    ),
)

BEFORE = Column("before")
#: What may come before a status; a report comes first.
STEPS = {
    IncidentStatus.DISPATCHED: (IncidentStatus.REPORTED,),
    IncidentStatus.ON_SCENE: (IncidentStatus.DISPATCHED,),
    IncidentStatus.CLOSED: (IncidentStatus.DISPATCHED, IncidentStatus.ON_SCENE),
}
#: Milliseconds that an incident may wait for a patrol, for each step of its priority; without one it has the last.
MOST_WAIT, LAST = 180_000, 5
PRIORITY = Column("priority").otherwise(LAST)

#: Calls from one place in three different five minutes of an hour; over when an hour passed without one.
REPEATED = Rule(
    name="repeated_calls",
    headline="Calls again and again from one place",
    category=Category.SECURITY,
    levels=(
        Level(
            severity=Severity.MINOR,
            when=above(Column("calls"), 1),
            held=Held(times=3, within=timedelta(hours=1)),
            clear=Held(lasting=timedelta(hours=1)),
        ),
    ),
)


def _is_illegal() -> Expression:
    """Whether a status follows one that it may not follow."""
    found = IS_CALL & ~BEFORE.equals(IncidentStatus.REPORTED.value)
    for status, allowed in STEPS.items():
        found |= STATUS.equals(status.value) & ~BEFORE.is_in(*(one.value for one in (status, *allowed)))
    return found


FEED = Feed(
    name="police_incident",
    description="Police incidents, one record for each status reached",
    record=PoliceIncident,
    key="incident_id",
    event_time="changed_at",
    department=DEPARTMENT,
    batch=2,
    rate=1,
    silence=timedelta(minutes=5),
    disorder=timedelta(seconds=30),
    delay=timedelta(seconds=60),
    lateness=timedelta(minutes=2),
    rules=(NotAfter("reported_at", "changed_at"),),
    latest=Latest(),
    spans=Spans(of="status"),
    alerts=(
        Rule(
            name="overdue_dispatch",
            headline="No patrol is on its way",
            category=Category.SECURITY,
            levels=(
                Level(
                    severity=Severity.SEVERE,
                    when=Due(
                        at=Column("reported_at") + PRIORITY * MOST_WAIT,
                        start=IS_CALL,
                        done=~STATUS.is_in(IncidentStatus.REPORTED.value, IncidentStatus.UNKNOWN.value),
                    ),
                ),
            ),
            shows={"priority": PRIORITY},
        ),
        Rule(
            name="illegal_transition",
            headline="Status that cannot follow the one before",
            category=Category.OTHER,
            keep={"before": previous(STATUS)},
            levels=(Level(severity=Severity.MINOR, when=while_true(_is_illegal())),),
        ),
    ),
    aggregates=(
        Aggregate(
            name="police_incident_15m",
            by=("beat_id", "category"),
            window=timedelta(minutes=15),
            version=2,
            measures=MEASURES,
            description="Incidents and response times by beat_id and category in 15 min",
        ),
        Aggregate(
            name="police_incident_15m_beat",
            by=("beat_id",),
            window=timedelta(minutes=15),
            measures=MEASURES,
            description="Incidents and response times by beat_id in 15 min",
            rollups=(
                RollUp(name="police_incident_1h_beat", to="hour"),
                RollUp(name="police_incident_1d_beat", to="day"),
            ),
        ),
        Aggregate(
            name="police_incident_5m_address",
            by=("address",),
            window=timedelta(minutes=5),
            measures=(count_where("calls", IS_CALL, description="Incidents reported from there"),),
            description="Calls by address in 5 min",
            alerts=(REPEATED,),
        ),
    ),
)

"""Cases of grassroots governance, step by step: alerts open them by rules, people move them on.

The city's own model; its steps are those of the grids (report, dispatch, handle, verify and close).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from enum import StrEnum
from typing import Annotated

from pydantic import Field

from feeds.alerts import alert
from feeds.governance import DEPARTMENT, case_route, grid
from schemas.alerts import LONGEST_ENTITY, LONGEST_TEXT, SENDER, Category, Kind, Severity, Status
from schemas.expressions import Column, Constant, Expression, Operand, Present, When
from schemas.feed import Feed, MadeOf
from schemas.fields import Coarse, EventId, Instant, Location, Personal, Record, Text
from schemas.rules import Due, Level, Rule, covering, lookup, running_total


class Step(StrEnum):
    """What happened to a case."""

    REPORTED = "reported"
    UPDATED = "updated"
    ENDED = "ended"
    ASSIGNED = "assigned"
    HANDLED = "handled"
    CLOSED = "closed"
    REOPENED = "reopened"
    COMMENTED = "commented"
    UNKNOWN = "unknown"


class State(StrEnum):
    """How far a case is."""

    OPEN = "open"
    ASSIGNED = "assigned"
    HANDLED = "handled"
    CLOSED = "closed"


#: The state of a case of which nothing counted yet.
NOTHING = ""
_ALL = {state.value: state.value for state in State}
#: For each step the states in which it counts, and to which it leads. A report opens a case unless it waits already.
MOVES: Mapping[Step, Mapping[str, str]] = {
    Step.REPORTED: dict.fromkeys((NOTHING, State.HANDLED.value, State.CLOSED.value), State.OPEN.value),
    Step.UPDATED: _ALL,
    Step.ENDED: _ALL,
    Step.ASSIGNED: dict.fromkeys((State.OPEN.value, State.ASSIGNED.value), State.ASSIGNED.value),
    Step.HANDLED: dict.fromkeys((State.OPEN.value, State.ASSIGNED.value), State.HANDLED.value),
    Step.CLOSED: dict.fromkeys((State.OPEN.value, State.ASSIGNED.value, State.HANDLED.value), State.CLOSED.value),
    Step.REOPENED: dict.fromkeys((State.HANDLED.value, State.CLOSED.value), State.OPEN.value),
    Step.COMMENTED: _ALL,
}


#: The steps that people take; the others are the workers' own.
OF_PEOPLE = (Step.ASSIGNED, Step.HANDLED, Step.CLOSED, Step.REOPENED, Step.COMMENTED)


def possible(state: str) -> list[Step]:
    """The steps that people may take in a state."""
    return [step for step in OF_PEOPLE if state in MOVES[step]]


class Case(Record):
    """A step of a case. What a step does not say stays as it was."""

    event_id: EventId
    case_id: Annotated[Text, Field(description="Case, the same for all alerts of a rule about one entity")]
    step: Annotated[Step, Field(description="What happened")]
    at: Annotated[Instant, Field(description="When it happened: the event time")]
    status: Annotated[Status, Field(description="Exercise for what is simulated")]
    role: Annotated[Text, Field(description="In which role somebody did it, no person's name; of workers their name")]
    who: Annotated[Text | None, Field(description="Who did it, as a pseudonym; null of workers"), Personal()]
    why: Annotated[str | None, Field(max_length=LONGEST_TEXT, description="Why, or what came of it")]
    agency: Annotated[Text | None, Field(description="Agency that handles it")]
    assignee: Annotated[Text | None, Field(description="Team or post of the agency, no person's name")]
    grid: Annotated[Text | None, Field(description="Grid it lies in; null without a place")]
    deadline: Annotated[Instant | None, Field(description="By when it has to be handled")]
    source: Annotated[Text | None, Field(description="Feed that reported it")]
    source_id: Annotated[Text | None, Field(description="Alert or request that reported it")]
    kind: Annotated[Text | None, Field(description="Rule or service it is about")]
    subject: Annotated[str | None, Field(max_length=LONGEST_ENTITY, description="Whom or what it is about")]
    severity: Annotated[Text | None, Field(description="How grave it is")]
    place: Annotated[Location, Coarse(decimals=3)]


STEP = Column("step")
ROUTE = lookup(case_route.REFERENCE, Column("rule"))
GRID = covering(grid.REFERENCE, Column("place"))
HOUR = 3_600_000


def is_step(*steps: Step) -> Expression:
    """Whether a record is one of these steps."""
    return STEP.is_in(*(step.value for step in steps))


#: What ends that a case waits, and what counts while it does and lets it wait.
DONE = (Step.HANDLED, Step.CLOSED)
WHILE_IT_WAITS = (Step.UPDATED, Step.ENDED, Step.ASSIGNED, Step.COMMENTED)
#: What opens a case that does not wait: nobody reopens one that was never reported.
OPENS = is_step(Step.REPORTED) | (is_step(Step.REOPENED) & (Column("reports") >= 1))


def _of_alerts(does: Kind, step: Step, **more: Operand) -> MadeOf:
    """What messages of a kind become; alerts about cases become none."""
    said: dict[str, Operand] = {
        "step": step.value,
        "at": Column("sent"),
        "status": Column("status"),
        "role": SENDER,
        "why": Column("headline"),
        "source": alert.FEED.name,
        "source_id": Column("alert_id"),
        "kind": Column("rule"),
        "subject": Column("entity"),
        "severity": Column("severity"),
        "place": Column("place"),
    }
    of_cases = Column("feed").equals("case")
    return MadeOf(
        of=alert.FEED,
        key=("rule", "entity"),
        where=Column("msg_type").equals(does.value) & Present(ROUTE.column("agency")) & ~of_cases,
        fields={**said, **more},
    )


FEED = Feed(
    name="case",
    description="Cases of grassroots governance, one record for each step",
    record=Case,
    key="case_id",
    event_time="at",
    department=DEPARTMENT,
    batch=2,
    rate=None,
    silence=None,
    disorder=timedelta(minutes=5),
    delay=timedelta(minutes=5),
    lateness=timedelta(minutes=10),
    ahead=timedelta(hours=1),
    retention=timedelta(days=30),
    made_of=(
        _of_alerts(
            Kind.ALERT,
            Step.REPORTED,
            agency=ROUTE.column("agency"),
            grid=GRID.column("grid"),
            deadline=Column("sent") + ROUTE.column("hours") * HOUR,
        ),
        _of_alerts(Kind.UPDATE, Step.UPDATED),
        _of_alerts(Kind.CANCEL, Step.ENDED),
    ),
    alerts=(
        Rule(
            name="case_overdue",
            headline="Case not handled in time",
            category=Category.OTHER,
            keep={
                "reports": running_total(When(is_step(Step.REPORTED), Constant(1))),
                "openings": running_total(When(OPENS, Constant(1)), reset=is_step(*DONE)),
            },
            levels=(
                Level(
                    severity=Severity.MODERATE,
                    when=Due(
                        at=Column("deadline"),
                        # Of a case that waits, what counts and says a deadline: its first opening, and later steps.
                        start=Present(Column("deadline"))
                        & (Column("openings") >= 1)
                        & ((OPENS & (Column("openings") <= 1)) | is_step(*WHILE_IT_WAITS)),
                        done=is_step(*DONE),
                    ),
                ),
            ),
            remembers=timedelta(days=400),
        ),
    ),
)

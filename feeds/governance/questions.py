"""What is asked about cases."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from feeds.governance.case import MOVES
from schemas.fields import Count, Instant, Record, Text
from schemas.question import Question

#: Fields that stay as they were where a step says nothing of them.
STAND = (
    "agency", "assignee", "grid", "opened_at", "deadline", "source", "source_id", "kind", "subject", "severity",
)  # fmt: skip
#: Of the newest step that counts.
NEWEST = ("step", "at", "role", "who", "why", "status")


class CaseNow(Record):
    """A case."""

    case_id: Annotated[Text, Field(description="Case")]
    state: Annotated[Text, Field(description="open, assigned, handled or closed")]
    steps: Annotated[Count, Field(description="Steps, also those that did not count")]
    step: Annotated[Text, Field(description="Newest step that counted")]
    at: Annotated[Instant, Field(description="When it happened")]
    role: Annotated[Text, Field(description="In which role somebody did it")]
    who: Annotated[Text | None, Field(description="Who did it, as a pseudonym; null of workers")]
    why: Annotated[Text | None, Field(description="Why, or what came of it")]
    status: Annotated[Text, Field(description="Exercise for what is simulated")]
    agency: Annotated[Text | None, Field(description="Agency that handles it")]
    assignee: Annotated[Text | None, Field(description="Team or post of the agency")]
    grid: Annotated[Text | None, Field(description="Grid it lies in")]
    opened_at: Annotated[Instant | None, Field(description="When it was reported, the last time it was opened")]
    deadline: Annotated[Instant | None, Field(description="By when it has to be handled")]
    source: Annotated[Text | None, Field(description="Feed that reported it")]
    source_id: Annotated[Text | None, Field(description="Alert or request that reported it")]
    kind: Annotated[Text | None, Field(description="Rule or service it is about")]
    subject: Annotated[Text | None, Field(description="Whom or what it is about")]
    severity: Annotated[Text | None, Field(description="How grave it is")]


def _now() -> str:
    """SQL that goes through the steps of each case in their order, and leaves out those that do not count."""
    moves = [(f"{step.value} {before}", after) for step, moves in MOVES.items() for before, after in moves.items()]
    allowed = "map(" + ", ".join(f"'{move}', '{after}'" for move, after in moves) + ")"
    names = (*NEWEST, *STAND)
    place = {name: n for n, name in enumerate(names, 1)}
    shown = [f"tupleElement(counted[-1], {place[name]}) AS {name}" for name in NEWEST]
    shown += [
        f"tupleElement(arrayLast(e -> tupleElement(e, {place[name]}) IS NOT NULL, counted), {place[name]}) AS {name}"
        for name in STAND
    ]
    move = "concat(tupleElement(taken, 3), ' ', tupleElement(before, 1))"
    fold = (
        f"arrayFold((before, taken, n) -> if(mapContains({allowed}, {move}), "
        f"({allowed}[{move}], arrayPushBack(tupleElement(before, 2), n)), before), "
        "events, arrayEnumerate(events), ('', []::Array(UInt32)))"
    )
    return f"""
        SELECT case_id, tupleElement(folded, 1) AS state, length(events) AS steps, {", ".join(shown)}
        FROM (
            SELECT case_id, events, {fold} AS folded,
                arrayMap(n -> tupleElement(events[n], 4), tupleElement(folded, 2)) AS counted
            FROM (
                SELECT case_id, arraySort(groupArray((at, toUInt128(event_id), step, ({", ".join(names)})))) AS events
                FROM city.case
                GROUP BY case_id
            )
        )
        WHERE notEmpty(counted)
        ORDER BY case_id
    """  # noqa: S608


QUESTIONS = (
    Question(name="case_now", asks="In which state is each case, and what stands of it?", answer=CaseNow, sql=_now()),
)

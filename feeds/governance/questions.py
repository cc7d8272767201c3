"""What is asked about cases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

from feeds.governance.case import MOVES, Step
from schemas.fields import Count, Instant, Record, Text, Unit
from schemas.question import Question

#: The order in which steps count, as SQL: that of rules, by event time and then by where they lie in the log.
IN_ORDER = "at, source_partition, source_offset"
#: Fields that stay as they were where a step says nothing of them.
STAND = ("agency", "assignee", "grid", "deadline", "source", "source_id", "kind", "subject", "severity")
#: Those of them that an opening says anew.
ANEW = ("deadline",)
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
    grid: Annotated[Text | None, Field(description="Grid it lies in; null without a place")]
    first_opened_at: Annotated[Instant, Field(description="When it was opened first")]
    opened_at: Annotated[Instant, Field(description="When it was reported or reopened, the last time")]
    deadline: Annotated[Instant | None, Field(description="By when it has to be handled")]
    source: Annotated[Text | None, Field(description="Feed that reported it")]
    source_id: Annotated[Text | None, Field(description="Alert or request that reported it")]
    kind: Annotated[Text | None, Field(description="Rule or service it is about")]
    subject: Annotated[Text | None, Field(description="Whom or what it is about")]
    severity: Annotated[Text | None, Field(description="How grave it is")]


class Handling(Record):
    """Cases of one agency. What cannot come in the state that a case is in does not count."""

    agency: Annotated[Text | None, Field(description="Agency that handled them then")]
    opened: Annotated[Count, Field(description="Cases that were opened by a report")]
    assigned: Annotated[Count, Field(description="Times that one was assigned")]
    handled: Annotated[Count, Field(description="Times that one was handled")]
    closed: Annotated[Count, Field(description="Times that one was closed")]
    reopened: Annotated[Count, Field(description="Times that one was reopened by people")]
    overdue: Annotated[Count, Field(description="Times that one was handled after its deadline")]
    handling_p50: Annotated[
        float | None, Field(description="How long half of the handled ones had been open at most"), Unit("s")
    ]
    handling_p90: Annotated[
        float | None, Field(description="How long nine of ten of the handled ones had been open at most"), Unit("s")
    ]


#: Where a field of a step lies in what is gone through.
_PLACE = {name: n for n, name in enumerate((*NEWEST, *STAND), 1)}


def _since_opened(counted: str) -> str:
    """SQL of the steps from the last opening on, of those that counted."""
    opens = f"tupleElement(e, {_PLACE['step']}) IN ('{Step.REPORTED.value}', '{Step.REOPENED.value}')"
    return f"arraySlice({counted}, arrayLastIndex(e -> {opens}, {counted}))"


def _said(name: str, steps: str, which: int) -> str:
    """SQL of what one of these steps says."""
    return f"tupleElement(({steps})[{which}], {_PLACE[name]})"


def _stands(name: str, counted: str) -> str:
    """SQL of what stands of a case after steps that counted."""
    among = _since_opened(counted) if name in ANEW else counted
    return f"tupleElement(arrayLast(e -> tupleElement(e, {_PLACE[name]}) IS NOT NULL, {among}), {_PLACE[name]})"


def _counted() -> str:
    """SQL that goes through the steps of each case in their order: its state, and the steps that ``counted``."""
    moves = [(f"{step.value} {before}", after) for step, moves in MOVES.items() for before, after in moves.items()]
    allowed = "map(" + ", ".join(f"'{move}', '{after}'" for move, after in moves) + ")"
    move = "concat(tupleElement(tupleElement(taken, 4), 1), ' ', tupleElement(before, 1))"
    fold = (
        f"arrayFold((before, taken, n) -> if(mapContains({allowed}, {move}), "
        f"({allowed}[{move}], arrayPushBack(tupleElement(before, 2), n)), before), "
        "events, arrayEnumerate(events), ('', []::Array(UInt32)))"
    )
    return f"""
            SELECT case_id, events, {fold} AS folded,
                arrayMap(n -> tupleElement(events[n], 4), tupleElement(folded, 2)) AS counted
            FROM (
                SELECT case_id, arraySort(groupArray(({IN_ORDER}, ({", ".join(_PLACE)})))) AS events
                FROM city.case
                GROUP BY case_id
            )
            WHERE notEmpty(counted)
    """  # noqa: S608


def _now() -> str:
    shown = {name: _said(name, "counted", -1) for name in NEWEST}
    shown |= {name: _stands(name, "counted") for name in STAND}
    shown |= {"first_opened_at": _said("at", "counted", 1), "opened_at": _said("at", _since_opened("counted"), 1)}
    return f"""
        SELECT case_id, tupleElement(folded, 1) AS state, length(events) AS steps, {_named(shown)}
        FROM ({_counted()})
        ORDER BY case_id
    """  # noqa: S608


def _handling() -> str:
    so_far = "arraySlice(counted, 1, n)"
    shown = {name: _said(name, so_far, -1) for name in ("step", "at")}
    shown |= {name: _stands(name, so_far) for name in ("agency", "deadline")}
    shown |= {"opened_at": _said("at", _since_opened(so_far), 1)}
    times = {
        name: f"countIf(step = '{step.value}')"
        for name, step in (
            ("opened", Step.REPORTED), ("assigned", Step.ASSIGNED), ("handled", Step.HANDLED),
            ("closed", Step.CLOSED), ("reopened", Step.REOPENED),
        )
    }  # fmt: skip
    is_handled = f"step = '{Step.HANDLED.value}'"
    open_for = "(toUnixTimestamp64Milli(at) - toUnixTimestamp64Milli(opened_at)) / 1000"
    times |= {"overdue": f"countIf({is_handled} AND at > deadline)"}
    times |= {f"handling_p{p}": f"quantileExactOrNullIf({p / 100})({open_for}, {is_handled})" for p in (50, 90)}
    return f"""
        SELECT agency, {_named(times)}
        FROM (
            SELECT {_named(shown)}
            FROM ({_counted()})
            ARRAY JOIN arrayEnumerate(counted) AS n
        )
        WHERE at >= {{since:DateTime64(3)}} AND at < {{until:DateTime64(3)}}
        GROUP BY agency
        ORDER BY agency
    """  # noqa: S608


def _named(values: Mapping[str, str]) -> str:
    return ", ".join(f"{value} AS {name}" for name, value in values.items())


QUESTIONS = (
    Question(name="case_now", asks="In which state is each case, and what stands of it?", answer=CaseNow, sql=_now()),
    Question(
        name="case_handling",
        asks="How many cases did each agency get and handle, how fast, and how many too late?",
        answer=Handling,
        sql=_handling(),
        parameters={"since": "2026-03-02 00:00:00", "until": "2026-03-03 00:00:00"},
    ),
)

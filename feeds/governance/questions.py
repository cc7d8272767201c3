"""What is asked about cases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, create_model

from feeds.governance.case import MOVES, Case, Step
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


def _of_steps(*names: str) -> dict[str, Any]:
    """Fields of a step, as they are declared."""
    return {name: (Case.model_fields[name].annotation, Case.model_fields[name]) for name in names}


#: A case: how far it is, what the newest step says that counts, and what stands.
CaseNow = create_model(
    "CaseNow",
    __base__=Record,
    **_of_steps("case_id"),
    state=(Text, Field(description="open, assigned, handled or closed")),
    steps=(Count, Field(description="Steps, also those that did not count")),
    step=(Text, Field(description="Newest step that counted")),
    at=(Instant, Field(description="When it happened")),
    **_of_steps("role", "who", "why", "status", "agency", "assignee", "grid"),
    first_opened_at=(Instant, Field(description="When it was opened first")),
    opened_at=(Instant, Field(description="When it was reported or reopened, the last time")),
    **_of_steps("deadline", "source", "source_id", "kind", "subject", "severity"),
)


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
    opens = _opens(f"tupleElement(e, {_PLACE['step']})")
    return f"arraySlice({counted}, arrayLastIndex(e -> {opens}, {counted}))"


def _opens(step: str) -> str:
    """SQL of whether a step that counts opens its case."""
    return f"{step} IN ('{Step.REPORTED.value}', '{Step.REOPENED.value}')"


def _said(name: str, steps: str, which: int) -> str:
    """SQL of what one of these steps says."""
    return f"tupleElement(({steps})[{which}], {_PLACE[name]})"


def _stands(name: str, counted: str) -> str:
    """SQL of what stands of a case after steps that counted."""
    among = _since_opened(counted) if name in ANEW else counted
    return f"tupleElement(arrayLast(e -> tupleElement(e, {_PLACE[name]}) IS NOT NULL, {among}), {_PLACE[name]})"


def _counted() -> str:
    """SQL that goes through the steps of each case in their order: its state, and the steps that ``counted``.

    No function of an array takes a second array along from outside: ClickHouse would have it once for each element.
    """
    moves = {f"{step.value} {before}": after for step, moves in MOVES.items() for before, after in moves.items()}
    after = f"transform(concat(taken, ' ', tupleElement(before, 1)), {[*moves]}, {[*moves.values()]}, '')"
    fold = (
        f"arrayFold((before, taken) -> (if({after} = '', tupleElement(before, 1), {after}), "
        f"arrayPushBack(tupleElement(before, 2), toUInt8({after} != ''))), "
        f"arrayMap(e -> tupleElement(e, {_PLACE['step']}), said), ('', []::Array(UInt8)))"
    )
    return f"""
            SELECT case_id, length(said) AS steps, {fold} AS folded,
                arrayFilter((e, counts) -> counts, said, tupleElement(folded, 2)) AS counted
            FROM (
                SELECT case_id, arrayMap(
                    e -> tupleElement(e, -1), arraySort(groupArray(({IN_ORDER}, ({", ".join(_PLACE)}))))
                ) AS said
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
        SELECT case_id, tupleElement(folded, 1) AS state, steps, {_named(shown)}
        FROM ({_counted()})
        ORDER BY case_id
    """  # noqa: S608


def _handling() -> str:
    taken = {
        name: f"tupleElement(tupleElement(taken, 1), {_PLACE[of]})"
        for name, of in (("step", "step"), ("at", "at"), ("of_agency", "agency"), ("due", "deadline"))
    }
    so_far = "ORDER BY n ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW"
    opening = f"countIf({_opens('step')}) OVER (PARTITION BY case_id {so_far})"
    stands = {
        "agency": f"anyLast(of_agency) OVER (PARTITION BY case_id {so_far})",
        "deadline": f"anyLast(due) OVER (PARTITION BY case_id, opening {so_far})",
        "opened_at": f"min(at) OVER (PARTITION BY case_id, opening {so_far})",
    }
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
            SELECT step, at, {_named(stands)}
            FROM (
                SELECT case_id, tupleElement(taken, 2) AS n, {_named(taken)}, {opening} AS opening
                FROM (
                    SELECT case_id, arrayJoin(arrayZip(counted, arrayEnumerate(counted))) AS taken FROM ({_counted()})
                )
            )
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

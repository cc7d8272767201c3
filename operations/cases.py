"""Moving cases on: a step is an event like any other, published if it may come in the state that the case is in.

Two people may move a case at once: then the step that comes first counts, and the other one if it may still come.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid5

from clickhouse_driver import Client
from kafka.producer.future import RecordMetadata
from pydantic import ValidationError

from feeds.governance.case import Case, State, Step, possible
from feeds.governance.questions import IN_ORDER
from operations.problems import CaseProblem
from schemas.alerts import Status
from sinks.queries import named_rows
from streams.publisher import Publisher

_NAMES = UUID("5b0c7e0e-6f0f-4f3a-8e0a-3b8f6e2f9c55")
_MOMENT = timedelta(milliseconds=1)


def cases(client: Client, where: Mapping[str, str]) -> list[dict[str, Any]]:
    """Cases that are not closed and alike in these columns of ``city.case_now``.

    Those that have to be handled first come first, then those without a deadline, the longest open one first. Those
    that are handled and wait to be closed come last.
    """
    asked = "".join(f" AND {name} = %({name})s" for name in where)
    order = f"ORDER BY state = '{State.HANDLED}', deadline ASC NULLS LAST, opened_at ASC NULLS LAST, case_id"
    return named_rows(client, f"SELECT * FROM city.case_now WHERE state != 'closed'{asked} {order}", where)  # noqa: S608


def case(client: Client, case_id: str) -> dict[str, Any]:
    """A case as it is.

    Raises
    ------
    CaseProblem
        There is none.
    """
    found = named_rows(client, "SELECT * FROM city.case_now WHERE case_id = %(case_id)s", {"case_id": case_id})
    if not found:
        raise CaseProblem(f"there is no case {case_id}; those that are not closed: citystream case list")
    return found[0]


def history(client: Client, case_id: str) -> list[dict[str, Any]]:
    """The steps of a case in the order in which they happened, also those that did not count."""
    columns = "at, step, role, who, why, agency, assignee, deadline, source_id, severity"
    query = f"SELECT {columns} FROM city.case WHERE case_id = %(case_id)s ORDER BY {IN_ORDER}"  # noqa: S608
    return named_rows(client, query, {"case_id": case_id})


def step_of(
    there: Mapping[str, Any],
    taken: str,
    *,
    who: str,
    role: str,
    why: str | None,
    now: datetime,
    agency: str | None = None,
    assignee: str | None = None,
) -> Case:
    """The event of a step that is ``taken`` of a case, as it is ``there``.

    ``who`` is replaced by a pseudonym when it is published. It happened ``now``, or a moment after the newest step
    where that one's clock was ahead. A case that is reopened has as long as it had before.

    Raises
    ------
    CaseProblem
        The step cannot come in its state, or a word is empty or too long.
    """
    able = possible(there["state"])
    if taken not in able:
        raise CaseProblem(f"the case is {there['state']}, and cannot be {taken}; it can be {', '.join(able)}")
    step = Step(taken)
    at = max(now, there["at"] + _MOMENT)
    reopens, due = step is Step.REOPENED, there["deadline"]
    try:
        return Case(
            event_id=str(uuid5(_NAMES, "\n".join((there["case_id"], at.isoformat(), step.value, who)))),
            case_id=there["case_id"],
            step=step,
            at=at,
            status=Status(there["status"]),
            role=role,
            who=who,
            why=why,
            agency=agency,
            assignee=assignee,
            grid=None,
            deadline=at + (due - there["opened_at"]) if reopens and due is not None else None,
            source=None,
            source_id=None,
            kind=None,
            subject=None,
            severity=None,
            place=None,
        )
    except ValidationError as wrong:
        reasons = (f"--{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in wrong.errors())
        raise CaseProblem("; ".join(reasons)) from None


def move(publisher: Publisher, step: Case) -> None:
    """Publish a step and wait until the brokers have it.

    Raises
    ------
    CaseProblem
        They did not take it.
    """
    failed: list[Exception] = []

    def hear(result: RecordMetadata | Exception) -> None:
        if isinstance(result, Exception):
            failed.append(result)

    publisher.publish(step, hear)
    publisher.flush()
    if failed:
        raise CaseProblem(f"Kafka has not taken the step ({failed[0]}); try again")

"""Steps of cases that people take."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from feeds.governance.case import FEED, MOVES, NOTHING, State, Step, possible
from operations.cases import step_of
from operations.problems import CaseProblem

NOW = datetime(2026, 3, 2, 8, tzinfo=UTC)
THERE: dict[str, Any] = {
    "case_id": "c-1", "state": "open", "at": NOW - timedelta(hours=1), "status": "Exercise", "agency": "Police",
    "opened_at": NOW - timedelta(hours=2), "deadline": NOW + timedelta(hours=2),
}  # fmt: skip
SAID: dict[str, Any] = {"who": "wang", "role": "dispatcher", "why": None, "now": NOW}


def test_a_step_carries_what_is_counted_by() -> None:
    step = step_of(THERE, Step.ASSIGNED, **SAID, assignee="team 2")
    assert (step.at, step.agency, step.assignee, step.deadline) == (NOW, "Police", "team 2", THERE["deadline"])
    assert step_of(THERE, Step.ASSIGNED, **SAID, agency="Parks").agency == "Parks"
    assert step == step_of(THERE, Step.ASSIGNED, **SAID, assignee="team 2")


def test_a_step_is_after_what_it_follows_though_that_clock_was_ahead() -> None:
    ahead = NOW + timedelta(minutes=3)
    assert step_of(THERE | {"at": ahead}, Step.HANDLED, **SAID).at == ahead + timedelta(milliseconds=1)


def test_a_step_that_cannot_come_is_refused_with_those_that_can() -> None:
    with pytest.raises(CaseProblem, match="the case is closed, and cannot be handled; it can be reopened, commented"):
        step_of(THERE | {"state": "closed"}, Step.HANDLED, **SAID)
    with pytest.raises(CaseProblem, match="cannot be reported"):
        step_of(THERE, Step.REPORTED, **SAID)


def test_every_state_can_be_reached_and_left_and_every_step_comes_in_one() -> None:
    states = {state.value for state in State}
    assert {after for moves in MOVES.values() for after in moves.values()} == states
    assert {before for moves in MOVES.values() for before in moves} == states | {NOTHING}
    assert MOVES.keys() == {*Step} - {Step.UNKNOWN}
    assert all(possible(state) for state in states)
    assert FEED.field("who").personal

"""Steps of cases that people take."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import feeds
from feeds.governance.case import FEED, MOVES, NOTHING, State, Step, possible
from operations.cases import step_of
from operations.problems import CaseProblem
from processors.events import column_of
from processors.making import Making
from processors.reading import LookUps
from schemas.alerts import Alert, Category, Kind, Severity, Status
from schemas.catalogue import Catalogue
from schemas.fields import Place
from schemas.record_codec import decode, encode
from schemas.reference_rows import Row
from schemas.verdict import instant_ms
from simulation import parking
from streams.history import GRACE_MS, History
from streams.wire.column_reader import ColumnReader
from tests.reference.areas import covers
from tests.reference.cases import overdue, steps
from tests.reference.rules import Observation, alerts
from tests.reference.toy import NOON

FEEDS, CATALOGUE = feeds.load(), Catalogue.load()
NOW = datetime(2026, 3, 2, 8, tzinfo=UTC)
THERE: dict[str, Any] = {
    "case_id": "c-1", "state": "open", "at": NOW - timedelta(hours=1), "status": "Exercise", "agency": "Police",
    "opened_at": NOW - timedelta(hours=2), "deadline": NOW + timedelta(hours=2),
}  # fmt: skip
SAID: dict[str, Any] = {"who": "wang", "role": "dispatcher", "why": None, "now": NOW}


def test_a_step_says_what_changes_by_it_and_nothing_else() -> None:
    step = step_of(THERE, Step.ASSIGNED, **SAID, assignee="team 2")
    assert (step.at, step.agency, step.assignee, step.deadline) == (NOW, None, "team 2", None)
    assert step_of(THERE, Step.ASSIGNED, **SAID, agency="Parks").agency == "Parks"
    assert step == step_of(THERE, Step.ASSIGNED, **SAID, assignee="team 2")


def test_a_case_that_is_reopened_has_as_long_as_it_had_before() -> None:
    handled = THERE | {"state": "handled"}
    assert step_of(handled, Step.REOPENED, **SAID).deadline == NOW + timedelta(hours=4)
    assert step_of(handled | {"deadline": None}, Step.REOPENED, **SAID).deadline is None


@settings(max_examples=300)
@given(steps(NOON), st.integers(NOON, NOON + 8))
def test_a_case_is_overdue_by_the_steps_that_count_and_by_no_others(found: list[dict[str, Any]], until: int) -> None:
    """Whatever comes that cannot: the rule knows no more of a case than its steps, one after the other."""
    (rule,) = FEED.alerts
    rows = [Observation(one["at"], (one["source_offset"],), one) for one in found]
    told = [(one.entity, one.sent, one.kind) for one in alerts(rule, (FEED.key,), rows, until)]
    wanted = {
        case_id: overdue([one for one in found if one["case_id"] == case_id], until)
        for case_id in sorted({one["case_id"] for one in found})
    }
    assert told == [((case_id,), *one) for case_id, said in wanted.items() for one in said]


def test_a_step_is_after_what_it_follows_though_that_clock_was_ahead() -> None:
    ahead = NOW + timedelta(minutes=3)
    assert step_of(THERE | {"at": ahead}, Step.HANDLED, **SAID).at == ahead + timedelta(milliseconds=1)


def test_a_step_that_cannot_come_is_refused_with_those_that_can() -> None:
    with pytest.raises(CaseProblem, match="the case is closed, and cannot be handled; it can be reopened, commented"):
        step_of(THERE | {"state": "closed"}, Step.HANDLED, **SAID)
    for step in (Step.REPORTED, "reopened", "mended"):
        with pytest.raises(CaseProblem, match=f"cannot be {step}; it can be assigned, handled, closed, commented$"):
            step_of(THERE, step, **SAID)


@pytest.mark.parametrize(("word", "value"), [("role", ""), ("who", ""), ("assignee", "a" * 129), ("why", "w" * 5000)])
def test_a_word_that_is_empty_or_too_long_is_refused(word: str, value: str) -> None:
    with pytest.raises(CaseProblem, match=f"^--{word}: "):
        step_of(THERE, Step.HANDLED, **SAID | {word: value})


def test_every_state_can_be_reached_and_left_and_every_step_comes_in_one() -> None:
    states = {state.value for state in State}
    assert {after for moves in MOVES.values() for after in moves.values()} == states
    assert {before for moves in MOVES.values() for before in moves} == states | {NOTHING}
    assert MOVES.keys() == {*Step} - {Step.UNKNOWN}
    assert all(possible(state) for state in states)
    assert FEED.field("who").personal


def feature(grid: str, west: float) -> dict[str, Any]:
    ring = [[west, 30], [west + 1, 30], [west + 1, 31], [west, 31], [west, 30]]
    return {"grid": grid, "name": grid, "area": json.dumps({"type": "Polygon", "coordinates": [ring]})}


def message(number: int, place: Place | None, rule: str = "parking_full") -> Alert:
    at = NOW + timedelta(minutes=number)
    return Alert(
        event_id=str(UUID(int=number + 1)), alert_id=f"a-{number}", sender="citystream", sent=at,
        status=Status.EXERCISE, msg_type=Kind.ALERT, references=None, category=Category.OTHER,
        severity=Severity.MINOR, headline="It is full", onset=at, feed="parking_site", series="parking_site",
        rule=rule, entity=f"p-{number}", numbers="{}", observed_from=at, observed_to=at, query="SELECT 1", place=place,
    )  # fmt: skip


def test_a_case_lies_in_the_grid_that_covers_the_place_of_its_alert() -> None:
    """As it was known when the alert arrived; without a place, or outside, it lies in none."""
    alert, known = FEEDS["alert"], instant_ms(NOW) - GRACE_MS
    rows = {
        "grid": [((name,), feature(name, west)) for name, west in (("east", 121.0), ("west", 120.0))],
        "case_route": [(("parking_full",), {"rule": "parking_full", "agency": "Parks", "hours": 2})],
    }
    tables = feeds.references()
    histories = {
        name: History(tables[name], [(known, Row(key, None, values)) for key, values in rows[name]]) for name in rows
    }
    places = [(120.5, 30.5), (121.0, 30.5), (121.5, 31.0), (119.0, 30.5)]
    at = [*(Place(longitude=longitude, latitude=latitude) for longitude, latitude in places), None]
    sent = [*map(message, range(5), at), message(5, at[0], rule="no_route")]
    frozen = CATALOGUE.latest(alert.name)
    frame, bad = ColumnReader(frozen).read_values([encode(frozen, one) for one in sent])
    assert not bad
    arrived = pl.Series([instant_ms(NOW) - 1, *(instant_ms(one.sent) for one in sent[1:])])
    frame = frame.with_columns(_partition=pl.lit(0), _offset=pl.int_range(len(sent), dtype=pl.Int64), _arrived=arrived)
    making = Making(alert, FEED, CATALOGUE.latest(FEED.name))
    look_ups = LookUps({column_of(leaf): leaf for leaf in making.looked_up}, alert.event_time)
    made = [decode(CATALOGUE, one.value) for one in making.of(look_ups.beside(frame, lambda name, _: histories[name]))]
    assert [(one["source_id"], one["grid"]) for one in made] == [
        ("a-1", "east"), ("a-2", "east"), ("a-3", None), ("a-4", None),
    ]  # fmt: skip
    assert {(one["step"], one["agency"], one["deadline"] - one["at"]) for one in made} == {
        ("reported", "Parks", timedelta(hours=2))
    }


def test_every_place_of_the_simulated_city_lies_in_the_grid_of_its_area() -> None:
    file = feeds.rows_of(feeds.references()["grid"])
    assert file is not None
    grids = json.loads(file.read_text())["features"]
    for site in parking.sites():
        at = site.place.model_dump()
        found = [one["properties"]["grid"] for one in grids if covers(one["geometry"], at)]
        assert found == [site.area.replace("beat", "grid")]

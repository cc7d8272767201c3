"""A rule step by step says what it says at once, and of each condition what the reference says."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from processors.observations import Observations
from processors.rules import Said, Series
from processors.steps import Step, Stepping
from processors.tables import Texts
from schemas.expressions import Column, LookedUp
from schemas.rules import Condition, Rule, read_by
from tests.reference.partition import evaluate
from tests.reference.rules import Observation, Told, alerts, kept
from tests.reference.toy import FEED, NOON
from tests.unit.test_rules import AT, LEVEL, LOAD, RULES

#: Those that look nothing up.
ALONE = [rule for rule in RULES if not any(isinstance(leaf, LookedUp) for leaf in read_by(rule))]
NUMBERS = (LEVEL, LOAD, AT, Column("wait"))
SERIES = Series(
    feed=FEED, view="toy", time="observed_at", span_ms=0, entity=("device_id",), texts={"device_id": 0, "mood": 1},
    values={one: n for n, one in enumerate(NUMBERS)}, stands_for={}, place=None, definition={},
)  # fmt: skip

observed = st.lists(
    st.tuples(
        # Observations also come at the very time at which something falls due.
        st.sampled_from([0, 1, 500, 1000, 1500, 2000, 2500]),
        st.integers(-3, 7) | st.none(),
        st.sampled_from([None, 0.0, 0.02]),
        st.sampled_from(["busy", "calm"]),
        st.none() | st.integers(0, 200),
    ),
    max_size=14,
)


def rows_of(values: list[dict[str, Any]], texts: Texts) -> Observations:
    numbers = [[one[number.name] for number in NUMBERS] for one in values]
    return Observations(
        np.array([one["observed_at"] for one in values], np.int64),
        np.array([[*texts.number_all(["d-1", one["mood"]])] for one in values], np.int64).reshape(-1, 2),
        np.array(numbers, np.float64).reshape(-1, len(NUMBERS)),
    )


def told(rule: Rule, said: Said) -> Told:
    numbers = tuple(None if np.isnan(one) else one for one in said.numbers.values())
    return Told(
        rule.name, ("d-1",), said.sent, ("Alert", "Update", "Cancel")[said.does],
        rule.levels[said.level].severity.value, said.onset, numbers,
    )  # fmt: skip


def conditions(rule: Rule, values: dict[str, Any]) -> list[dict[str, Any]]:
    """What each level's conditions come to at an observation, by the reference."""
    found = []
    for level in rule.levels:
        names = ("begins", "ends") if isinstance(level.when, Condition) else ("start", "done")
        parts = {name: getattr(level.when, name) for name in names}
        found.append({name: evaluate(part, values) for name, part in parts.items() if part is not None})
    return found


@given(st.sampled_from(ALONE), observed, st.lists(st.integers(0, 14), max_size=3))
def test_steps_are_what_the_reference_says(rule: Rule, moments: list[Any], cuts: list[int]) -> None:
    at, values = NOON, []
    for pause, level, load, mood, wait in moments:
        at += pause
        values.append({"device_id": "d-1", "observed_at": at, "level": level, "load": load, "mood": mood, "wait": wait})
    through, texts, steps = at + 10_000, Texts(), list[Step]()
    rows, stepping = rows_of(values, texts), Stepping(rule, SERIES)
    for cut in sorted(cuts):
        until = NOON + 1000 * cut
        steps += stepping.take(rows.where((rows.times <= until) & (rows.times > stepping.watch.through)), until, texts)
    steps += stepping.take(rows.where(rows.times > stepping.watch.through), through, texts)
    observations = [Observation(one["observed_at"], (n,), one) for n, one in enumerate(values)]
    assert [told(rule, step.said) for step in steps if step.said] == alerts(rule, ("device_id",), observations, through)
    assert sum(step.observations for step in steps) == len(values)
    if rule.remembers.days:
        check_values(rule, values, steps)


def check_values(rule: Rule, values: list[dict[str, Any]], steps: list[Step]) -> None:
    """Hold what is said of each observation, of an entity that is never forgotten, to the reference."""
    known = [dict(one) for one in values]
    for name, memory in rule.keep.items():
        found = kept(memory, [Observation(one["observed_at"], (), one) for one in known])
        for one, value in zip(known, found, strict=True):
            one[name] = value
    last = {one["observed_at"]: one for one in known}
    for step in steps:
        if step.observations:
            own = last[step.time]
            assert [level.said for level in step.levels] == conditions(rule, own)
            assert {name: own[name] for name in step.values if name in own}.items() <= step.values.items()

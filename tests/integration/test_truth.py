"""What is staged in a small city is found, once and in time, nothing else is, and a replay says the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.truth.campaign import run

pytestmark = pytest.mark.integration

SEED = 20261129
#: Of traffic there is too much in an hour: `make truth` takes all feeds, and longer.
HOURS = {"parking_site": 1.0, "police_incident": 2.0}
FOUND = {"gate_drift", "illegal_transition", "overdue_dispatch", "parking_full", "repeated_calls"}


def test_alerts_are_true_and_the_same_again(tmp_path: Path) -> None:
    outcome = run(tmp_path, HOURS, SEED, print)
    assert outcome.differ == []
    scores = [one for one in outcome.scores if one.rule in FOUND]
    assert [(one.rule, one.missed, one.again, one.false) for one in scores] == [
        (rule, 0, 0, 0) for rule in sorted(FOUND)
    ]
    assert all(one.recall >= 0.99 and one.staged for one in scores)

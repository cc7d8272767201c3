"""What is said of alerts and truth: every way to be right and wrong counts once."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from tests.truth.scoring import Harm, Raised, Score, Staged, decided, score

NOON, MINUTE = datetime(2026, 3, 18, 12, tzinfo=UTC), timedelta(minutes=1)
FULL = Staged("fills", "full", "p-1", NOON, NOON + 60 * MINUTE, NOON + 20 * MINUTE)


def raised(minutes: int, entity: str = "p-1", rule: str = "full") -> Raised:
    return Raised(rule, entity, NOON + minutes * MINUTE)


@pytest.mark.parametrize(
    ("alerts", "harms", "expected"),
    [
        ([raised(20)], [], Score("full", staged=1, found=1, in_time=1)),
        ([raised(21)], [], Score("full", staged=1, found=1)),
        ([raised(21)], [5], Score("full", staged=1, found=1, hidden=1)),
        ([raised(10), raised(50)], [], Score("full", staged=1, found=1, in_time=1, again=1)),
        ([], [], Score("full", staged=1, missed=1)),
        ([], [-5], Score("full", staged=1, missed=1)),
        ([], [5], Score("full", staged=1, hidden=1)),
        ([raised(10), raised(-1)], [], Score("full", staged=1, found=1, in_time=1, false=1)),
        ([raised(10), raised(-1)], [-9], Score("full", staged=1, found=1, in_time=1, faked=1)),
        ([raised(10), raised(10, "p-2")], [5], Score("full", staged=1, found=1, in_time=1, false=1)),
    ],
)
def test_what_is_staged_and_what_is_raised_is_one_thing_each(
    alerts: list[Raised], harms: list[int], expected: Score
) -> None:
    assert score([FULL], alerts, [Harm("p-1", NOON + at * MINUTE) for at in harms]) == [expected]


def test_what_must_not_alarm_is_false_when_it_does() -> None:
    empty = Staged("empty", None, "s-1", NOON, NOON + 30 * MINUTE, None)
    assert score([empty], [], []) == []
    assert score([empty], [raised(5, "s-1", "silent")], []) == [Score("silent", false=1)]


def test_what_the_end_leaves_undecided_is_not_judged_nor_what_is_said_of_it() -> None:
    early, late = (replace(FULL, begins=NOON + at * MINUTE, found_by=NOON + (at + 20) * MINUTE) for at in (90, 300))
    alerts = [raised(10), raised(95), raised(95, "p-2"), raised(310)]
    until = {"full": NOON + 100 * MINUTE}
    assert decided([late, FULL, early], alerts, until) == ([FULL], [alerts[0], alerts[2]])
    assert decided([FULL], alerts, until) == ([FULL], alerts)


def test_precision_is_of_what_is_raised_and_recall_of_what_is_staged() -> None:
    one = Score("full", staged=10, found=9, in_time=8, again=1, hidden=1, missed=0, faked=5, false=2)
    assert (one.precision, one.recall) == (9 / 12, 8 / 9)
    assert Score("none", staged=1, missed=1).recall == 0

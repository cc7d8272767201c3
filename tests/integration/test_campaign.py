"""A short campaign: a fault of each sort on real processes, and then nothing differs from the reference."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.campaign.campaign import run
from tests.campaign.faults import KILLS, OUTAGES

pytestmark = pytest.mark.integration

SEED = 20261121
EVENTS = 2_000
FAULTS = (
    "processor killed: parts half sent",
    "processor killed: flushed, not committed",
    "sink killed: inserted, not acknowledged",
    "publisher killed",
    "upgrade",
    "ClickHouse killed",
    "ClickHouse refuses: too many parts",
    "network cut: clickhouse",
)


def test_nothing_is_lost_and_nothing_counted_twice(tmp_path: Path) -> None:
    """`make faults` does all of them, and more often."""
    chosen = [(name, {**KILLS, **OUTAGES}[name]) for name in FAULTS]
    outcome = run(tmp_path, SEED, chosen, EVENTS, print)
    assert [str(difference) for difference in outcome.comparison.differences] == []
    assert outcome.absent == []
    assert outcome.finished.worse == []
    assert outcome.ended == []
    assert all(one.events >= EVENTS for one in outcome.rounds)


def test_a_rule_broken_on_purpose_is_found_out(tmp_path: Path) -> None:
    """A sink that commits before ClickHouse has the rows loses them when it is killed, and only then.

    It is killed several times: parts of windows that are lost come again in the next ones.
    """
    name = "sink killed: rows not sent"
    outcome = run(tmp_path, SEED, 4 * [(name, KILLS[name])], EVENTS, print, "commit-before-insert")
    assert "lost" in {difference.kind for difference in outcome.comparison.differences}

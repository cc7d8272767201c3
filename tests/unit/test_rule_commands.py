"""What commands about rules and alerts say before they ask a server, and of what one said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from citystream import cli
from citystream.commands import rules
from feeds.parking import parking_site
from operations.trying import Trial
from schemas.alerts import entity_name
from schemas.feed import Feed

UNDECLARED = """
from dataclasses import replace

from feeds.parking import parking_limit, parking_site
from schemas.alerts import Category, Severity
from schemas.expressions import Column
from schemas.rules import Level, Rule, above, lookup

NOWHERE = lookup(replace(parking_limit.REFERENCE, name="nowhere"), Column("site_id"))
FULL = Rule(
    name="fuller",
    headline="Fuller",
    category=Category.TRANSPORT,
    levels=(Level(severity=Severity.MINOR, when=above(Column("occupied_spot_number"), NOWHERE.column("full"))),),
)
FEED = replace(parking_site.FEED, alerts=(FULL,))
"""


def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What is said to a command that makes no sense."""
    monkeypatch.setattr("sys.argv", ["citystream", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_a_rule_that_looks_up_what_is_not_declared_is_not_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "parking_site.py").write_text(UNDECLARED)
    words = ("rules", "try", "fuller", "--since", "2026-03-22", "--file", str(tmp_path / "parking_site.py"))
    said = refused(monkeypatch, capsys, *words)
    assert f"{tmp_path / 'parking_site.py'}: the rule fuller looks something up in nowhere, which is no table" in said
    assert "parking_limit" in said


@pytest.mark.parametrize("command", ["show", "explain", "cap"])
def test_an_alert_has_to_be_called_by_something(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "an alert is called by its id" in refused(monkeypatch, capsys, "alerts", command, "")


@pytest.mark.parametrize(
    ("feed", "ends"),
    [(parking_site.FEED, "08:00:00"), (replace(parking_site.FEED, aggregates=()), "later ticks are not stored")],
    ids=["aggregates", "none"],
)
def test_how_far_the_past_is_known_is_said(feed: Feed, ends: str) -> None:
    text = rules._in_all(Trial([], [], [], 0, 0), feed, 1, ZoneInfo("Asia/Shanghai"))
    assert text.startswith("0 observations: 0 raised by both")
    assert text.endswith(ends)
    assert "come" not in rules._in_all(Trial([], [], [], 1, 0), feed, 1, ZoneInfo("Asia/Shanghai"))


def test_no_two_entities_have_one_name() -> None:
    names = ("a", "a, b", "b", ",", ", ", ",,", "a,")
    pairs = [(one, other) for one in names for other in names]
    assert len({entity_name(pair) for pair in pairs}) == len(pairs)
    assert entity_name(("x, y",)) == "x, y"
    assert entity_name(("x", "y")) == "x, y"

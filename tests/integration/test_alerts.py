"""Alerts on a real stack: from records to their topic and ClickHouse, over kills, are those of the reference."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from citystream.secrets import pseudonym_key
from feeds import declared_in
from operations import cases as moving
from operations import rules
from operations.trying import Trial, try_rule
from schemas.alerts import FEED_NAME
from schemas.feed import Feed
from schemas.reference import GRACE
from schemas.verdict import instant_ms
from sinks.queries import named_rows
from streams.publisher import Producer, Publisher
from tests.city import START, City, made_up, own_city
from tests.reference import cases
from tests.reference.city import Schemas, read_feed, tables
from tests.reference.made import made
from tests.reference.partition import truth as truth_of_partition
from tests.reference.whole import compare

pytestmark = pytest.mark.integration

WATCHED = "made_up_j"
RULES = """
from dataclasses import replace
from datetime import timedelta

from bench.made_up import FEEDS
from schemas.alerts import Category, Severity
from schemas.expressions import Absolute, Column
from schemas.rules import Due, Held, Level, Rule, above, previous, running_total, while_true

#: What is simulated goes up to 2^31.
INWARD, SECONDS = Column("inward") / 1e8, 1000


def rule(name, *whens, **more):
    levels = tuple(Level(severity=one, **dict(when)) for one, when in zip((Severity.MINOR, Severity.SEVERE), whens))
    return Rule(name=name, headline=f"It is {name}", category=Category.OTHER, levels=levels, **more)


BUSY = rule(
    "busy",
    {"when": above(INWARD, 12, release=4)}.items(),
    {"when": above(INWARD, 16), "held": Held(times=2), "clear": Held(lasting=timedelta(seconds=3))}.items(),
    shows={"outward": Column("outward")},
)
SILENT = rule("silent", {"when": Due(at=Column("observed_at") + 4 * SECONDS)}.items())
JUMPED = rule("jumped", {"when": while_true(INWARD - Column("was") > 15)}.items(), keep={"was": previous(INWARD)})
ADRIFT = rule(
    "adrift",
    {"when": above(Absolute(Column("sum")), 30, release=20)}.items(),
    keep={"sum": running_total(INWARD - 10.7)},
    remembers=timedelta(minutes=2),
)
FULL = rule("full", {"when": above(Column("inward"), 2000, release=500), "held": Held(times=2)}.items())
CROWDED = rule("crowded", {"when": above(Column("inward"), 4000, release=1000), "clear": Held(times=2)}.items())
MADE = FEEDS["made_up_j"]
FEED = replace(
    MADE,
    alerts=(BUSY, SILENT, JUMPED, ADRIFT),
    aggregates=(replace(MADE.aggregates[0], alerts=(CROWDED,)), replace(MADE.aggregates[1], alerts=(FULL,))),
)
"""
RAISED = ("busy", "silent", "jumped", "adrift", "full", "crowded")
#: Who handles cases of which rules; those of others open none.
ROUTES = "rule,agency,hours\nbusy,Parks,4\nfull,Roads,24\n"
CASES = "case"


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Iterator[City]:
    """Of the project's feeds it has those of alerts and cases."""
    home = tmp_path_factory.mktemp("city")
    sources = made_up(home / "sources", "made_up_k", departments=("alerts", "governance"), **{WATCHED: RULES})
    (home / "routes.csv").write_text(ROUTES)
    with own_city(home, sources) as opened:
        done = opened.command("reference", "publish", "case_route", str(home / "routes.csv"))
        assert done.returncode == 0, done.stderr
        known = time.monotonic() + GRACE.total_seconds()
        opened.wait(lambda: time.monotonic() > known)
        yield opened


def test_alerts_are_those_of_the_reference_over_kills(city: City) -> None:
    """Killed at any point, a worker goes on from a snapshot or from its first position, and says the same again.

    Of the windows by zone each lies in all partitions of the feed."""
    for part in range(4):
        city.publish([WATCHED], START + timedelta(minutes=10 * part), part, 9_000)
        city.kill("processor")
        city.start("processor")
        city.drain()
    city.drain()  # of cases that were made meanwhile
    found = compare(city.installation, city.feeds)
    assert found.differences == []
    client = city.installation.server("analyst").connect()
    rules = dict(client.execute(f"SELECT rule, count() FROM city.{FEED_NAME} WHERE msg_type = 'Alert' GROUP BY rule"))
    assert rules.keys() == {*RAISED}, rules
    ((query,),) = client.execute(
        f"SELECT query FROM city.{FEED_NAME} WHERE rule = 'full' AND msg_type = 'Alert' LIMIT 1"
    )
    assert client.execute(query), "it shows the windows that raised the alert"
    ended = "SELECT alert_id FROM city.alert WHERE msg_type = 'Cancel'"
    ids = f"SELECT alert_id, max(sent) FROM city.alert WHERE alert_id NOT IN ({ended}) GROUP BY alert_id"
    shown = client.execute(f"SELECT alert_id, sent FROM city.{FEED_NAME}_active ORDER BY ALL")
    assert shown, "something is active"
    assert shown == client.execute(f"{ids} ORDER BY ALL")
    client.disconnect()


def both(city: City, name: str, declared: Mapping[str, Feed], since: datetime, until: datetime) -> Trial:
    """A rule tried on a span of the past."""
    (found,) = (one for one in rules.declared(declared) if one.rule.name == name)
    with city.installation.server("operator").connect() as client:
        return try_rule(client, found, {}, instant_ms(since), instant_ms(until))


def said(messages: Iterable[Mapping[str, Any]], since: datetime) -> list[tuple[Any, ...]]:
    """What messages from a time on say, but for whether they are meant and the SQL that shows more."""
    texts = ("event_id", "alert_id", "msg_type", "severity", "entity", "numbers", "references")
    times = ("sent", "onset", "observed_from", "observed_to")
    return sorted(
        (*(str(one[name]) for name in texts), *(instant_ms(one[name]) for name in times))
        for one in messages
        if one["sent"] >= since
    )


@pytest.mark.parametrize("name", RAISED)
def test_a_rule_tried_on_the_past_says_what_it_has_said(city: City, name: str) -> None:
    """To the byte, of any span; what is kept of an entity may be older than what a rule remembers."""
    feeds, end = city.installation.feeds, START + timedelta(hours=1)
    for since, until in ((START, end), (START + timedelta(minutes=7), START + timedelta(minutes=19))):
        trial = both(city, name, feeds, since, until)
        assert trial.present
        assert said(trial.tried, since) == said(trial.present, since)
        assert {pair.raised_by for pair in trial.pairs} == {"both"}


def test_a_stricter_rule_says_more_and_one_from_a_file_is_tried(city: City, tmp_path: Path) -> None:
    stricter = tmp_path / f"{WATCHED}.py"
    stricter.write_text(RULES.replace("above(INWARD, 12, release=4)", "above(INWARD, 9, release=4)"))
    since = START + timedelta(minutes=5)
    trial = both(city, "busy", {WATCHED: declared_in(stricter)}, since, START + timedelta(minutes=15))
    kinds = Counter(pair.raised_by for pair in trial.pairs)
    assert kinds["tried"] > 50
    assert kinds["both"] > 50
    assert not kinds["present"]
    words = ("rules", "try", "busy", "--since", since.isoformat(), "--until", "2024-05-06T07:15:00+00:00")
    shown = city.command(*words, "--file", str(stricter))
    assert f"{kinds['tried']} only by the one tried" in shown.stdout, shown.stderr
    told = json.loads(city.command(*words, "-o", "json").stdout)
    times = [one[of][name] for one in told for of in ("tried", "present") for name in ("onset", "ended") if one[of]]
    assert {at[19:][-6:] for at in times if at} == {"+08:00"}, "the city's"
    (tmp_path / "odd.py").write_text("FEED = 1")
    refused = city.command(*words, "--file", str(tmp_path / "odd.py"))
    assert (refused.returncode, "odd.py: has to declare FEED" in refused.stderr) == (1, True)
    refused = city.command("rules", "try", "bussy", "--since", since.isoformat())
    assert (refused.returncode, "there is no rule bussy; busy is meant, perhaps" in refused.stderr) == (2, True)


@pytest.mark.parametrize("name", RAISED)
def test_an_alert_is_explained_by_what_was_observed(city: City, name: str) -> None:
    done = city.command("alerts", "history", "--rule", name, "--limit", "1000", "-o", "json")
    said = json.loads(done.stdout)
    chosen = [one for one in said if one["msg_type"] == "Cancel"] or said
    assert chosen, done.stderr
    for message in chosen[:: len(chosen) // 3 + 1]:
        why = json.loads(city.command("alerts", "explain", message["alert_id"], "-o", "json").stdout)
        assert why["agree"], message
        kinds = [step["msg_type"] for step in why["steps"] if step["msg_type"]]
        assert kinds[-1] == message["msg_type"]
        assert "Alert" in kinds
        shown = city.command("alerts", "explain", message["alert_id"][:13])
        assert "Alert Minor" in shown.stdout, shown.stderr
        assert "not what was said" not in shown.stdout
        whole = city.command("alerts", "show", message["alert_id"])
        assert message["alert_id"] in whole.stdout


def test_who_is_in_alarm_is_shown_the_gravest_and_oldest_first(city: City) -> None:
    rows = json.loads(city.command("alerts", "active", "-o", "json").stdout)
    order = [(-["Minor", "Severe"].index(row["severity"]), row["onset"]) for row in rows]
    assert rows
    assert order == sorted(order)
    refused = city.command("alerts", "show", "nothing")
    assert (refused.returncode, "there is no alert nothing" in refused.stderr) == (2, True)


def made_of_alerts(city: City) -> dict[str, dict[str, Any]]:
    """The steps of cases that the alerts of the log become, by their event ids."""
    alert, case = city.installation.feeds[FEED_NAME], city.installation.feeds[CASES]
    cluster, schemas = city.installation.cluster, Schemas(city.installation.catalogue.folder)
    known, found = tables(cluster, city.installation.references.values(), schemas), dict[str, dict[str, Any]]()
    for _, _, records in read_feed(cluster, alert, schemas):
        said = list(records)
        there = truth_of_partition(alert, said)
        counted = {*there.valid} - {*there.repeats}
        found |= made(case, alert, [one for one in said if one.offset in counted], known)
    return found


def steps_of_cases(city: City) -> list[dict[str, Any]]:
    """The steps in the log, each once, with where it lies."""
    case, schemas = city.installation.feeds[CASES], Schemas(city.installation.catalogue.folder)
    found: dict[str, dict[str, Any]] = {}
    for number, _, records in read_feed(city.installation.cluster, case, schemas):
        for one in records:
            assert one.values is not None
            place = {"source_partition": number, "source_offset": one.offset}
            found.setdefault(one.values["event_id"], {**one.values, **place})
    return [*found.values()]


def in_log(step: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in step.items() if name not in ("source_partition", "source_offset")}


def now(city: City) -> dict[str, dict[str, Any]]:
    """Cases as they are shown, by their ids."""
    with city.installation.server("analyst").connect() as client:
        return {row["case_id"]: row for row in named_rows(client, "SELECT * FROM city.case_now")}


def test_alerts_open_cases_and_join_them_once_over_kills(city: City) -> None:
    there, wanted = steps_of_cases(city), made_of_alerts(city)
    assert {step["event_id"]: in_log(step) for step in there} == wanted
    kept = cases.cases(there)
    shown = now(city)
    assert {name: (row["state"], row["steps"], row["agency"]) for name, row in shown.items()} == {
        name: (one.state, one.steps, one.stands["agency"]) for name, one in kept.items()
    }
    about = {(step["kind"], step["subject"]) for step in there}
    assert len(shown) == len(about), "each rule and entity has one case"
    assert {kind for kind, _ in about} == {"busy", "full"}
    taken = [Counter(step["step"] for step in there if step["case_id"] == name) for name in kept]
    assert any(one["reported"] > 1 and one["updated"] and one["ended"] for one in taken), "joined by all kinds"


def test_people_move_a_case_on_and_no_step_that_cannot_come(city: City) -> None:
    feed = city.installation.feeds[CASES]
    with city.installation.server("analyst").connect() as client:
        first, *others = moving.cases(client, {"agency": "Parks"})
        assert [row["deadline"] for row in (first, *others)] == sorted(row["deadline"] for row in (first, *others))
        step = moving.step_of(
            first, "assigned", who="wang", role="dispatcher", why=None, now=datetime.now(UTC), assignee="team 2"
        )
    case_id, secret = first["case_id"], pseudonym_key(city.settings, feed)
    with (
        closing(Producer(city.installation.cluster)) as producer,
        Publisher(producer, feed, city.installation.catalogue.latest(CASES), secret) as publisher,
    ):
        moving.move(publisher, step)
    city.wait(lambda: now(city)[case_id]["state"] == "assigned")
    assert (now(city)[case_id]["assignee"], now(city)[case_id]["deadline"]) == ("team 2", first["deadline"])
    refused = city.command("case", "move", case_id, "reopened", "--who", "wang", "--role", "dispatcher")
    reason = "the case is assigned, and cannot be reopened; it can be assigned, handled, closed, commented"
    assert (refused.returncode, reason in refused.stderr) == (1, True), refused.stderr
    done = city.command("case", "move", case_id, "handled", "--who", "li", "--role", "patrol", "--why", "cleared")
    assert done.returncode == 0, done.stderr
    city.wait(lambda: now(city)[case_id]["state"] == "handled")
    city.kill("processor")
    city.start("processor")
    city.drain()
    there = steps_of_cases(city)
    assert {step["case_id"] for step in there} == now(city).keys(), "no case came by the kill"
    told = json.loads(city.command("case", "show", case_id, "-o", "json").stdout)
    assert [(row["step"], row["role"], row["why"]) for row in told[-2:]] == [
        ("assigned", "dispatcher", None), ("handled", "patrol", "cleared"),
    ]  # fmt: skip
    assert all(re.fullmatch("[0-9a-f]{32}", row["who"]) for row in told[-2:])
    listed = json.loads(city.command("case", "list", "--agency", "Parks", "-o", "json").stdout)
    assert listed[-1]["case_id"] == case_id, "what is handled waits to be closed alone"

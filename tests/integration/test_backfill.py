"""A topic read again from its beginning, into an empty ClickHouse, gives the tables that live processing gave."""

from __future__ import annotations

import json
import re
import shlex
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, cast
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest

import feeds
from citystream.settings import PROJECT, Settings
from operations.rules import declared
from operations.trying import Episode, Trial, try_rule
from schemas.alerts import FEED_NAME
from schemas.fields import Place
from schemas.question import Question
from schemas.reference import GRACE
from schemas.verdict import instant_ms
from simulation.world import Kind
from sinks.questions import question_columns
from streams.publisher import Producer, Publisher
from tests.city import START, City, Snapshot, own_city
from tests.reference.whole import compare

pytestmark = pytest.mark.integration

SPAN = timedelta(minutes=8)
#: When plans begin to hold, and where two car parks are, by their longitude.
EVENING = datetime(2024, 5, 7, 10, tzinfo=UTC)
MATCH = EVENING + timedelta(hours=6)
PLACES = {"in-the-area": 120.13, "outside": 120.15}
#: When both segments are slow, and it is known.
JAMMED = EVENING + timedelta(minutes=70)


def of_published(city: City, found: Snapshot) -> Snapshot:
    """Without what workers write as records of feeds: they write it again, and it is stored where it then lies."""
    written = [feed for feed in city.installation.feeds.values() if not feed.is_source]
    names = {name for feed in written for name in (feed.name, *(aggregate.topic for aggregate in feed.aggregates))}
    return {
        name: [row for row in rows if str(getattr(row[0], "feed", row[0])) not in names]
        for name, rows in found.items()
        if name.removeprefix("raw.") not in names
    }


def publish_evening(city: City) -> None:
    """Two car parks, one in the area of a plan, as full from an hour before it to an hour and a half after it."""
    with publisher_of(city, "parking_site") as (publisher, record):
        for number, (site, longitude) in enumerate(PLACES.items()):
            for minute in range(-60, 331):
                publisher.publish(
                    record(
                        event_id=str(UUID(int=1000 * number + minute + 60)), site_id=site, total_spot_number=1000,
                        occupied_spot_number=880, available_spot_number=120, vehicle_entrance_count=None,
                        vehicle_exit_count=None, observed_at=EVENING + timedelta(minutes=minute),
                        place=Place(longitude=longitude, latitude=30.25),
                    )
                )  # fmt: skip


def publish_roads(city: City) -> None:
    """Two roads, one in the area of a plan, as slow from an hour before it to an hour after it."""
    with publisher_of(city, "traffic_flow") as (publisher, record):
        for number, (segment, longitude) in enumerate(PLACES.items()):
            for minute in range(-60, 121, 3):
                at = MATCH + timedelta(minutes=minute)
                publisher.publish(
                    record(
                        event_id=str(UUID(int=2 * 10**6 + 1000 * number + minute)), segment_id=segment, lane=0,
                        district="xihu", intensity=100, occupancy=0.3, average_vehicle_speed=35, free_flow_speed=50,
                        congested=False, date_observed_from=at, date_observed_to=at,
                        place=Place(longitude=longitude, latitude=30.25),
                    )
                )  # fmt: skip


@contextmanager
def publisher_of(city: City, name: str) -> Iterator[tuple[Publisher, Any]]:
    """A publisher of a feed, and what makes its records."""
    feed = city.installation.feeds[name]
    with (
        closing(Producer(city.installation.cluster)) as producer,
        Publisher(producer, feed, city.installation.catalogue.latest(name), None) as publisher,
    ):
        yield publisher, cast("Any", feed.record)


def publish_plan(city: City, path: Path) -> None:
    """An area of some hundred metres, for four hours, and for an hour later on."""
    ring = [[120.12, 30.24], [120.14, 30.24], [120.14, 30.26], [120.12, 30.26], [120.12, 30.24]]
    plans = (
        ("concert", EVENING, timedelta(hours=4), {"parking_full": 0.85}),
        ("match", MATCH, timedelta(hours=1), {"congestion": 1.3}),
    )
    features = [
        {
            "type": "Feature",
            "properties": {
                "plan_id": name, "name": name, "valid_from": at.isoformat(), "valid_to": (at + lasting).isoformat(),
                **limits,
            },
            "geometry": {"type": "Polygon", "coordinates": [ring]},
        }
        for name, at, lasting, limits in plans
    ]  # fmt: skip
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    done = city.command("reference", "publish", "event_plan", str(path))
    assert done.returncode == 0, done.stderr


def said(city: City) -> list[tuple[Any, ...]]:
    """Every message about an alert that is stored."""
    with city.installation.server("analyst").connect() as client:
        found: list[tuple[Any, ...]] = client.execute(
            "SELECT * EXCEPT (source_partition, source_offset, arrived_at) FROM city.alert ORDER BY ALL"
        )
    return found


def publish_incidents(city: City) -> None:
    """An hour of calls, some of them staged, and two segments of a road that are slow for an hour and a quarter."""
    staged = {Kind.STATUS_SKIPPED: 60.0, Kind.REPEATED_CALLS: 60.0}
    city.publish(["police_incident"], EVENING, 9, 4_000, faults=(), incidents=staged)
    with publisher_of(city, "traffic_flow") as (publisher, record):
        for minute in range(120):
            for number, segment in enumerate(("slow-0", "slow-1")):
                at = EVENING + timedelta(minutes=minute)
                publisher.publish(
                    record(
                        event_id=str(UUID(int=10**6 + 1000 * number + minute)), segment_id=segment, lane=1,
                        district="xihu", road_id="slow", distance_along=100.0 * number, intensity=20, occupancy=0.3,
                        average_vehicle_speed=10.0 if minute < 75 else 50.0, free_flow_speed=50.0, congested=None,
                        date_observed_from=at, date_observed_to=at + timedelta(minutes=1),
                        place=Place(longitude=120.13, latitude=30.25),
                    )
                )  # fmt: skip


def asked(city: City) -> dict[str, Answer]:
    """What each question of the departments is answered."""
    zone = ZoneInfo(city.installation.settings.timezone)
    times = {"since": START - timedelta(hours=1), "until": EVENING + timedelta(days=1), "at": JAMMED}
    found = {}
    with city.installation.server("analyst").connect() as client:
        for question in city.installation.questions.values():
            values = {name: f"{times[name].astimezone(zone):%F %T}" for name in question.parameters}
            rows, columns = client.execute(replace(question, parameters=values).query, with_column_types=True)
            found[question.name] = Answer(len(rows), columns)
    return found


@dataclass
class Answer:
    """How many rows there are, and the names and types of their columns."""

    rows: int
    columns: list[tuple[str, str]]


@dataclass
class Replayed:
    """What was there, and what was there when everything was read again."""

    city: City
    live: Snapshot
    again: Snapshot
    said: list[tuple[Any, ...]]
    said_again: list[tuple[Any, ...]]
    messages: tuple[int, int]
    trials: dict[str, Trial]
    explained: list[bool]
    answers: Mapping[str, Answer]
    cases: list[tuple[Any, ...]]


@pytest.fixture(scope="module")
def replayed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replayed]:
    """All simulator faults, and an evening with a plan."""
    home = tmp_path_factory.mktemp("city")
    with own_city(home, PROJECT) as city:
        publish_plan(city, home / "plans.geojson")
        # What arrives before is judged without the tables; said again in the replay it would arrive behind them.
        known = time.monotonic() + GRACE.total_seconds()
        city.wait(lambda: time.monotonic() > known)
        for number in range(3):
            for name, feed in city.installation.feeds.items():
                if not feed.by_workers:
                    city.publish([name], START + number * SPAN, number, 3_000)
            city.drain()
        publish_evening(city)
        city.drain()
        found = compare(city.installation, city.feeds)
        assert found.differences == []
        publish_incidents(city)
        city.drain()
        answers = asked(city)
        publish_roads(city)
        city.drain()
        live, told = of_published(city, city.snapshot() | city.parts()), said(city)
        messages = sum(city.ends(FEED_NAME).values())
        trials = {name: tried(city, name) for name in ("parking_full", "congestion")}
        alerts = [one.alert_id for one in present(trials["congestion"])]
        explained = [json.loads(city.command("alerts", "explain", one, "-o", "json").stdout)["agree"] for one in alerts]
        kept = cases(city)
        again = of_published(city, city.undisturbed() | city.parts())
        counted = messages, sum(city.ends(FEED_NAME).values())
        yield Replayed(city, live, again, told, said(city), counted, trials, explained, answers, kept)


def cases(city: City) -> list[tuple[Any, ...]]:
    """Every case that is stored."""
    with city.installation.server("analyst").connect() as client:
        found: list[tuple[Any, ...]] = client.execute("SELECT * FROM city.case_now ORDER BY case_id")
    return found


def tried(city: City, name: str) -> Trial:
    """A rule that is there tried on the evening."""
    (rule,) = (one for one in declared(city.installation.feeds) if one.rule.name == name)
    begin, end = (instant_ms(EVENING + timedelta(hours=hours)) for hours in (-1, 9))
    with city.installation.server("operator").connect() as client:
        return try_rule(client, rule, city.installation.references, begin, end)


def present(trial: Trial) -> list[Episode]:
    """The alerts that are there about one of the two places."""
    return [one for pair in trial.pairs if (one := pair.present) is not None and one.entity in PLACES]


def test_backfill_equals_live(replayed: Replayed) -> None:
    """What each flush wrote of a window differs, and what is left of it does not."""
    assert [name for name, rows in replayed.live.items() if not rows] == ["raw.truth"], "nothing was staged"
    for name, rows in replayed.again.items():
        assert replayed.live[name] == rows, f"{name} differs"


@pytest.mark.parametrize("question", feeds.questions().values(), ids=lambda one: one.name)
def test_a_question_is_answered_of_what_is_simulated_in_its_declared_shape(
    replayed: Replayed, question: Question
) -> None:
    answer = replayed.answers[question.name]
    assert answer.columns == [(one.name, one.type) for one in question_columns(question, Settings().timezone)]
    if question.name.startswith(("parking_", "police_", "traffic_")):
        assert answer.rows, "something was staged for it"


def test_inside_an_event_the_stricter_limit_holds_and_a_replay_says_the_same(replayed: Replayed) -> None:
    quarter = timedelta(minutes=15)
    spans = {
        "parking_full": (EVENING, EVENING + timedelta(hours=4)),
        "congestion": (MATCH + quarter, MATCH + timedelta(hours=1) + 2 * quarter),
    }
    for rule, span in spans.items():
        trial = replayed.trials[rule]
        assert [(one.entity, one.onset, one.ended) for one in present(trial)] == [("in-the-area", *span)]
        assert {pair.raised_by for pair in trial.pairs} == {"both"}
    assert replayed.explained == [True]
    assert replayed.said
    assert replayed.said == replayed.said_again
    before, after = replayed.messages
    assert after == 2 * before, "the replay said all of it again"


UUID_TEXT = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
#: What differs from one run to another: ids, pseudonyms, times and the car park.
OWN = re.compile(
    rf"{UUID_TEXT.pattern}|[0-9a-f]{{32}}|\d{{4}}-\d\d-\d\dT[\d:]{{8}}\S*|in-the-area|xihu-p\d+|xihu-grid-\d+"
)


def cells(text: str) -> list[list[str]]:
    """What is printed, line by line, each cell of a table by itself; without what differs."""
    lines = (line for line in text.splitlines() if line.strip(" ─"))
    return [re.split(" {2,}", OWN.sub("…", line.strip())) for line in lines]


def test_a_case_is_followed_as_the_page_says(replayed: Replayed) -> None:
    """From the alert in the evening to its confirmation; a replay has it once."""
    city, page = replayed.city, (PROJECT / "docs" / "operator.md").read_text()
    assert replayed.cases == cases(city)
    (walk,) = re.findall(r"```console\n(.*?)```", page, re.DOTALL)
    with city.installation.server("analyst").connect() as client:
        find = "SELECT case_id, state, grid FROM city.case_now WHERE kind = 'parking_full' AND subject = 'in-the-area'"
        ((case_id, state, grid),) = client.execute(find)
        assert (state, grid) == ("open", "xihu-grid-09"), "on the border of four the first counts"

        def is_now(state: str) -> bool:
            return bool(client.execute(find)[0][1] == state)

        for part in walk.split("$ citystream ")[1:]:
            command, _, printed = part.partition("\n")
            done = city.command(*shlex.split(UUID_TEXT.sub(case_id, command)))
            shown = cells(done.stdout + done.stderr)
            if command.startswith("case list"):
                own = [line for line in done.stdout.splitlines() if "case_id" in line or case_id in line]
                shown = cells("\n".join(own))
            assert shown == cells(printed), command
            if done.returncode == 0 and (moved := re.search("and is ([a-z]+);", done.stdout)):
                city.wait(partial(is_now, moved[1]))
        assert is_now("closed")

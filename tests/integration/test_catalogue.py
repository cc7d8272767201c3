"""The catalogue in ClickHouse says of what arrived what plain Python says of it, at any time."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from citystream import cli
from citystream.installation import Installation
from citystream.settings import Settings
from schemas.feed import milliseconds
from sinks.catalogue import BAD, SLOW
from sinks.migrate import migrate
from sinks.tables import LEDGER_BLOCK, MINUTE_MS
from tests.reference.limits import REFERENCE
from tests.reference.toy import FEED, renamed

pytestmark = pytest.mark.integration

HOUR, DAY = 60 * MINUTE_MS, 24 * 60 * MINUTE_MS
#: Some 17 records a day, with pauses of two hours.
RATE, SILENCE = 0.0002, timedelta(hours=2)
LISTED = replace(renamed(FEED, "listed"), partitions=2, aggregates=(), batch=3, rate=RATE, silence=SILENCE)
ALERTS = replace(LISTED, name="listed_alerts", rate=None, silence=None)
TABLE = replace(REFERENCE, name="listed_table", batch=3)
#: The day before yesterday, at the beginning of a minute.
BASE = (time.time_ns() // 10**6 - 3 * DAY) // MINUTE_MS * MINUTE_MS
Kind = Literal["record", "bad", "tick"]
KINDS: tuple[Kind, ...] = ("record", "record", "record", "bad", "tick")


@dataclass(frozen=True)
class Arrival:
    """What one offset of a partition is, and when the broker stored it."""

    partition: int
    offset: int
    ms: int
    kind: Kind


def log(partition: int, first: int, steps: Sequence[tuple[int, Kind]]) -> list[Arrival]:
    """The log of a partition, from the time of each record since the one before."""
    found, ms = [], BASE
    for offset, (pause, kind) in enumerate(steps, first):
        ms += pause
        found.append(Arrival(partition, offset, ms, kind))
    return found


def logs() -> st.SearchStrategy[list[Arrival]]:
    """Those of two partitions, whose offsets may go over the end of a block."""
    pause = st.one_of(st.integers(0, 2000), st.integers(0, 90 * MINUTE_MS), st.integers(0, 2).map(lambda n: n * HOUR))
    steps = st.lists(st.tuples(pause, st.sampled_from(KINDS)), max_size=30)
    first = st.sampled_from([0, LEDGER_BLOCK - 3, 5 * LEDGER_BLOCK])
    one = st.tuples(first, steps)
    return st.tuples(one, one).map(lambda both: [a for n, (at, steps) in enumerate(both) for a in log(n, at, steps)])


def judged(arrivals: Sequence[Arrival], at: int) -> dict[str, Any]:
    """What the catalogue has to say of them at a time, in plain Python."""
    came = [one for one in arrivals if one.ms < at and one.kind != "tick"]
    counts = {
        f"{name}_{words}": sum(one.kind == kind and one.ms >= at - span for one in came)
        for name, kind in (("records", "record"), ("bad", "bad"))
        for words, span in (("1h", HOUR), ("1d", DAY))
    }
    if not came:
        return {"state": "never seen", "first": None, "last": None, **counts}
    first, last = min(one.ms for one in came), max(one.ms for one in came)
    records, bad = counts["records_1d"], counts["bad_1d"]
    span = min(DAY, at - first)
    if at - last > milliseconds(SILENCE):
        state = "silent"
    elif (bad and bad / (records + bad) > BAD) or (span >= HOUR and records < SLOW * RATE * span / 1000):
        state = "degraded"
    else:
        state = "connected"
    return {"state": state, "first": first, "last": last, **counts}


@pytest.fixture(scope="module")
def owner(settings: Settings, stack: object) -> Iterator[Any]:
    """The owner of a ClickHouse that has the tables and views."""
    city = Installation(settings)
    migrate(city.server("owner"), [LISTED, ALERTS], [TABLE], [], city.dialect, print)
    with city.server("owner").connect() as client:
        yield client
        for name in ("listed", "listed_alerts"):
            for table in (f"city.{name}", f"city.{name}_conflicts", f"raw.{name}_ledger", f"raw.{name}"):
                client.execute(f"DROP TABLE {table} SYNC")


def store(owner: Any, arrivals: Sequence[Arrival], topic: str = LISTED.name) -> None:
    """Insert what a sink would insert of them."""
    at = "fromUnixTimestamp64Milli(toInt64(part.3), 'UTC')"
    rows = [(one.partition, one.offset, one.ms) for one in arrivals if one.kind == "record"]
    if rows:
        owner.execute(
            f"INSERT INTO raw.{topic} (event_id, device_id, observed_at, source_partition, source_offset, arrived_at) "
            f"SELECT generateUUIDv4(), 'd', {at}, part.1, part.2, {at} FROM (SELECT arrayJoin({rows}) AS part)"
        )
    letters = [(one.partition, one.offset, one.ms) for one in arrivals if one.kind == "bad"]
    if letters:
        owner.execute(
            "INSERT INTO raw.quarantine (topic, source_partition, source_offset, last_offset, published_at, arrived_at)"
            f" SELECT '{topic}', part.1, part.2, part.2, {at}, now64(3) FROM (SELECT arrayJoin({letters}) AS part)"
        )
    ticks = [(topic, one.partition, one.offset, one.offset) for one in arrivals if one.kind == "tick"]
    if ticks:
        owner.execute("INSERT INTO raw.control (topic, source_partition, source_offset, last_offset) VALUES", ticks)


def said(owner: Any, name: str, view: str) -> dict[str, Any]:
    """What a view says of a feed or table."""
    counts = ("records_1h", "records_1d", "bad_1h", "bad_1d")
    (row,) = owner.execute(
        f"SELECT state, toUnixTimestamp64Milli(first_arrival), toUnixTimestamp64Milli(last_arrival), "
        f"{', '.join(counts)} FROM {view} WHERE name = '{name}'"
    )
    return dict(zip(("state", "first", "last", *counts), row, strict=True))


def empty(owner: Any) -> None:
    for table in (LISTED.name, ALERTS.name, TABLE.name, "quarantine", "control", "ledger"):
        owner.execute(f"TRUNCATE TABLE raw.{table}")


def at(ms: int) -> str:
    """The view of a time."""
    return f"city.catalogue_at(t=fromUnixTimestamp64Milli(toInt64({ms})))"


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(logs(), st.lists(st.integers(-60, 48 * 60), min_size=3, max_size=3), st.randoms())
def test_the_state_at_any_minute_is_what_arrived_before_it(
    owner: Any, arrivals: list[Arrival], minutes: list[int], random: Any
) -> None:
    """In whatever order it is stored, and some of it twice."""
    empty(owner)
    for part in (random.sample(arrivals, len(arrivals)), random.sample(arrivals, len(arrivals) // 3)):
        store(owner, part[: len(part) // 2])
        store(owner, part[len(part) // 2 :])
    for time_ms in (BASE + minute * MINUTE_MS for minute in minutes):
        expected = judged(arrivals, time_ms)
        assert said(owner, LISTED.name, at(time_ms)) == expected
        assert said(owner, LISTED.name, at(time_ms + MINUTE_MS - 1)) == expected, "its minute began then"
    now = judged(arrivals, time.time_ns() // 10**6)
    assert said(owner, LISTED.name, "city.catalogue") == now


def test_what_has_just_come_is_connected_and_counts_for_its_batch(owner: Any) -> None:
    """What promises nothing counts for none, and a table is there once it was published."""
    empty(owner)
    batches = "SELECT * FROM city.catalogue_batches"
    assert owner.execute(batches) == [(3, 2, 0, 0, 0, 2)]
    now = time.time_ns() // 10**6
    store(owner, [Arrival(0, 7, now - 5000, "record")])
    store(owner, [Arrival(0, 0, now - 40 * HOUR, "record")], ALERTS.name)
    owner.execute(f"INSERT INTO raw.{TABLE.name} (site_id, source_offset, arrived_at) SELECT 'a', 1, now64(3)")
    assert said(owner, LISTED.name, "city.catalogue")["state"] == "connected"
    assert said(owner, TABLE.name, "city.catalogue")["records_1h"] == 1
    assert said(owner, ALERTS.name, "city.catalogue")["state"] == "connected", "there may be none for long"
    assert owner.execute(batches) == [(3, 2, 2, 0, 0, 0)]


def test_the_command_shows_each_state_and_the_progress_of_batches(
    owner: Any, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty(owner)
    store(owner, [Arrival(0, 7, time.time_ns() // 10**6 - 5000, "record")])
    for name in ("home", "kafka_port", "clickhouse_port", "clickhouse_http_port", "registry_port"):
        monkeypatch.setenv(f"CITYSTREAM_{name.upper()}", str(getattr(settings, name)))
    run = partial(CliRunner().invoke, cli.build("catalogue"))
    found = json.loads(run(["catalogue", "show", "-o", "json"]).stdout)
    states = {row["name"]: (row["state"], row["batch"]) for row in found["catalogue"]}
    assert states == {
        LISTED.name: ("connected", 3), ALERTS.name: ("never seen", 3), TABLE.name: ("never seen", 3)
    }  # fmt: skip
    assert found["batches"] == [
        {"batch": 3, "declared": 2, "connected": 1, "degraded": 0, "silent": 0, "never_seen": 1}
    ]
    shown = run(["catalogue", "show"]).stdout
    assert re.search(rf"{LISTED.name} +Toys +3 +connected +arrives as declared", shown)


def test_the_reason_is_said_in_words(owner: Any) -> None:
    empty(owner)
    store(owner, [Arrival(0, n, BASE + n * HOUR, "record" if n < 7 else "bad") for n in range(8)])
    reasons = f"SELECT reason FROM {{}} WHERE name = '{LISTED.name}'"
    times = {
        0: "nothing ever arrived",
        1: "arrives as declared",
        6 * 60 + 1: "arrives as declared",
        7 * 60 + 1: "12% of the records of the last day are bad",
        12 * 60: "nothing for 5 hours; normal are 2 hours at most",
    }
    for minute, reason in times.items():
        assert owner.execute(reasons.format(at(BASE + minute * MINUTE_MS))) == [(reason,)]
    store(owner, [Arrival(1, n, BASE + (20 + n) * HOUR, "record") for n in range(2)])
    empty(owner)
    store(owner, [Arrival(1, n, BASE + 20 * n * HOUR, "record") for n in range(2)])
    (reason,) = owner.execute(reasons.format(at(BASE + 20 * HOUR + MINUTE_MS)))[0]
    assert reason == "0 records a second over the last 20 hours and 1 minute, of 0"

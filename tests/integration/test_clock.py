"""Clocks on a real stack: windows end though nothing comes; whatever is killed or runs twice, the log alone counts."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any, cast

import pytest

from citystream.stack.process import Launch
from schemas.alerts import FEED_NAME
from simulation.world import event_id
from sinks import queries
from streams.clock import standing_still
from streams.publisher import Producer, Publisher
from tests.city import City, made_up, own_city
from tests.reference.whole import compare

pytestmark = pytest.mark.integration

#: A feed that asks for ticks, and one that does not.
FEED, OTHER = "made_up_j", "made_up_p"
#: Windows of two seconds by zone, to which every partition may add, and an alert about a device that falls silent.
SHORT = f"""
from dataclasses import replace
from datetime import timedelta

from bench.made_up import FEEDS
from schemas.alerts import Category, Severity
from schemas.expressions import Column
from schemas.rules import Due, Level, Rule

SILENT = Rule(
    name="silent",
    headline="It is silent",
    category=Category.OTHER,
    levels=(Level(severity=Severity.MINOR, when=Due(at=Column("observed_at") + 4_000)),),
)
SECOND = timedelta(seconds=1)
BEFORE = FEEDS[{FEED!r}]
BY_ZONE, _ = BEFORE.aggregates
FEED = replace(
    BEFORE,
    disorder=SECOND,
    lateness=SECOND,
    delay=2 * SECOND,
    alerts=(SILENT,),
    aggregates=(replace(BY_ZONE, name="{FEED}_2s_zone", window=2 * SECOND),),
)
"""


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Iterator[City]:
    home = tmp_path_factory.mktemp("clock")
    with own_city(home, made_up(home / "sources", OTHER, departments=("alerts",), **{FEED: SHORT})) as opened:
        yield opened


def start(city: City, name: str) -> None:
    """Start a clock."""
    city.started.add(name)
    city.process(name).start(Launch((sys.executable, "-P", "-m", "citystream.cli", "clock", FEED), city.environment))


def publish(city: City, seed: int, devices: int, ago: timedelta = timedelta(0)) -> None:
    """A hundred events of some devices, over ten seconds until now, or until so long ago."""
    feed, random = city.installation.feeds[FEED], Random(seed)
    until, record = datetime.now(UTC) - ago, cast("Any", feed.record)
    with (
        closing(Producer(city.installation.cluster)) as producer,
        Publisher(producer, feed, city.installation.catalogue.latest(FEED), None) as publisher,
    ):
        for number in range(100):
            at = until - timedelta(seconds=10) * (100 - number) / 100
            values: dict[str, Any] = {"event_id": event_id(random), "zone": f"zone-{number % 3}"}
            values |= {"device_id": f"device-{number % devices}", "inward": random.randrange(20), "outward": 1}
            publisher.publish(record(**values, observed_at=at.replace(microsecond=0)))


def tick_comes(city: City) -> None:
    """Wait until every log has grown."""
    before = city.ends(FEED)
    city.wait(lambda: all(end > before[place] for place, end in city.ends(FEED).items()))


def windows(city: City) -> list[int]:
    """How many windows are not final, and how many are."""
    with city.installation.server("operator").connect() as client:
        found = client.execute(f"SELECT countIf(NOT final), countIf(final) FROM city.{FEED}_2s_zone")
    return [*map(int, found[0])]


def alerts(city: City) -> int:
    """How many have been raised."""
    with city.installation.server("operator").connect() as client:
        return int(client.execute(f"SELECT count() FROM city.{FEED_NAME} WHERE msg_type = 'Alert'")[0][0])


def all_final(city: City) -> None:
    """Wait until every window is."""
    city.wait(lambda: windows(city)[0] == 0)


def check(city: City) -> None:
    """Everything is as the reference has it, which knows the ticks that are in the log."""
    city.drain()
    assert [str(one) for one in compare(city.installation, city.feeds).differences] == []


def test_windows_end_though_nothing_comes_to_some_partitions_or_to_none(city: City) -> None:
    """Events of one device are in one partition of four, and then come no more. What comes all the same is late, and
    counts, and how far the ticks had come is found in its rows."""
    feed = city.installation.feeds[FEED]
    publish(city, 1, devices=1)
    city.drain()
    still, final = windows(city)
    assert (still > 10, final) == (True, 0), "without a clock no window ends: three partitions never moved"
    assert alerts(city) == 0, "nobody has heard that time passed"
    assert standing_still(city.installation.cluster, [feed], time.time_ns() // 1_000_000) == [FEED]
    start(city, "clock")
    all_final(city)
    city.wait(lambda: alerts(city) == 1)
    assert standing_still(city.installation.cluster, [feed], time.time_ns() // 1_000_000) == []
    city.process("clock").stop()
    assert sum(city.ends(OTHER).values()) == 0
    check(city)
    publish(city, 2, devices=1, ago=timedelta(minutes=1))
    check(city)
    with city.installation.server("operator").connect() as client:
        rows, late, seen, number = client.execute(
            f"SELECT count(), sum(late), max(seen_before), any(source_partition) FROM raw.{FEED} FINAL"
        )[0]
        assert (rows, late) == (200, 100)
        beyond = max(city.ends(FEED).values())
        for maximum in (queries.newest_before, queries.seen_before):
            assert maximum(client, feed, number, beyond) == seen


def test_kills_a_second_clock_and_a_replay_change_nothing(city: City) -> None:
    """Each clock is killed, and the processor; what is shown at the end is what one reading of the logs shows.

    That says each alert again, as a repeat, which the ledger counts.
    """
    for name in ("clock", "clock-too"):
        start(city, name)
    for number, name in enumerate(("clock", "processor", "clock-too")):
        publish(city, number, devices=7)
        tick_comes(city)
        city.kill(name)
        (start if name.startswith("clock") else City.start)(city, name)
    all_final(city)
    for name in ("clock", "clock-too"):
        city.process(name).stop()
    check(city)
    shown, again = city.snapshot(), city.undisturbed()
    assert {**shown, "ledger": []} == {**again, "ledger": []}
    assert all(balances for _, balances in again["ledger"])

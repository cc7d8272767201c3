"""Aggregates and lateness changed on a real city: built beside what is shown, and never shown half-built.

Two feeds are built from the raw rows, one from the log.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

from schemas.catalogue import freeze
from tests.city import START, WORKERS, City, copy_sources, feed_file, own_city
from tests.integration.test_lost_positions import NO_REPEATS, alter

pytestmark = pytest.mark.integration

SPAN = timedelta(minutes=8)
EVENTS = 1_500

CHANGED, WINDOWED, EXTENDED = "made_up_j", "made_up_f", "made_up_g"
#: The declarations that follow. The first feed closes its windows later, and has one more measure and one aggregate
#: less; the second gets another window and one more measure, the third one more aggregate beside those it has.
NEXT = {
    CHANGED: """
from dataclasses import replace
from datetime import timedelta

from bench.made_up import FEEDS
from schemas.expressions import Column
from schemas.measures import total

BEFORE = FEEDS["made_up_j"]
ZONES, _ = BEFORE.aggregates
BOTH = total("both", Column("inward") + Column("outward"), unit="{passage}", description="Passages")
FEED = replace(
    BEFORE,
    lateness=timedelta(seconds=90),
    ahead=BEFORE.allowance,
    aggregates=(replace(ZONES, measures=(*ZONES.measures, BOTH), version=2),),
)
""",
    WINDOWED: """
from dataclasses import replace
from datetime import timedelta

from bench.made_up import FEEDS
from schemas.expressions import Column
from schemas.measures import count_where

BEFORE = FEEDS["made_up_f"]
ZONES, DEVICES = BEFORE.aggregates
HIGH = count_where("high", Column("value") >= 20, description="High ones")
DEVICES = replace(DEVICES, window=timedelta(minutes=2), measures=(HIGH, *DEVICES.measures), version=2)
FEED = replace(BEFORE, aggregates=(ZONES, DEVICES))
""",
    EXTENDED: """
from dataclasses import replace
from datetime import timedelta

from bench.made_up import FEEDS
from schemas.expressions import Column
from schemas.feed import Aggregate
from schemas.measures import quantiles, spread

BEFORE = FEEDS["made_up_g"]
WAITED = Column("waited")
FEED = replace(
    BEFORE,
    aggregates=(
        Aggregate(
            name="made_up_g_2m",
            by=("device_id",),
            window=timedelta(minutes=2),
            measures=(
                spread("wait", WAITED, unit="ms", scale=1, description="how long calls waited"),
                quantiles("waited", WAITED, (0.9,), unit="ms", description="how long calls waited"),
            ),
            description="Calls by device_id in 2 min",
        ),
        *BEFORE.aggregates,
    ),
)
""",
}
GONE, ADDED = "made_up_j_5m", "made_up_g_2m"

#: Rebuilds a feed, and dies when it hears of a step: that it begins, or of something that is done.
DIES = """
import os, signal, sys
from citystream.installation import Installation
from operations.rebuild import rebuild
name, moment = sys.argv[1:]
def hear(step, done, total):
    if f"{step} {'done' if done else 'begins'}" == moment:
        os.kill(os.getpid(), signal.SIGKILL)
city = Installation.load()
with city.server("owner").connect() as client:
    rebuild(city.cluster, client, city.catalogue, city.feeds[name], city.dialect, hear)
"""
MOMENTS = ("made_up_j_1m_zone_v2 done", "positions begins", "positions done")

Answers = dict[str, list[tuple[Any, ...]]]


def deploy(city: City, folder: Path, *feeds: str) -> None:
    """Let a city go on from sources with the declarations of these feeds that follow, and with their schemas frozen."""
    copy_sources(folder, "feeds", "schemas", origin=city.sources)
    for name in feeds:
        feed_file(folder, name).write_text(NEXT[name])
    city.deploy(folder)
    freeze(city.installation.feeds, folder / "schemas/frozen")


def views(city: City) -> Answers:
    """What every view of windows shows now."""
    client = city.installation.server("operator").connect()
    names = [name for (name,) in client.execute("SHOW TABLES FROM city") if re.search(r"_[0-9]+m(_|$)", name)]
    found = {name: client.execute(f"SELECT * FROM city.{name} ORDER BY ALL") for name in names}
    client.disconnect()
    return found


def shows(city: City, view: str, column: str) -> int:
    """Whether a view has a column."""
    client = city.installation.server("operator").connect()
    return [name for name, *_ in client.execute(f"DESCRIBE city.{view}")].count(column)


@contextmanager
def watched(city: City, names: list[str]) -> Iterator[dict[str, list[Any]]]:
    """Ask views again and again meanwhile, and keep each answer that is another one than the answer before."""
    answers: dict[str, list[Any]] = {name: [] for name in names}
    ended = Event()

    def ask() -> None:
        client = city.installation.server("analyst").connect()
        while not ended.is_set():
            for name, seen in answers.items():
                answer = client.execute(f"SELECT * FROM city.{name} ORDER BY ALL")
                if not seen or seen[-1] != answer:
                    seen.append(answer)

    asking = Thread(target=ask)
    asking.start()
    try:
        yield answers
    finally:
        ended.set()
        asking.join()


def publish(city: City, number: int, **more: Any) -> None:
    for name in city.feeds:
        city.publish([name], START + number * SPAN, number, EVENTS, **more)


def done(city: City, *words: str) -> str:
    """Run a command that has to succeed; what it prints."""
    ended = city.command(*words)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def refused(city: City, *words: str) -> str:
    """Run a command that has to stop with a message; the message."""
    ended = city.command(*words)
    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr
    return ended.stderr


def test_changed_aggregates_are_built_beside_the_old_and_then_shown(tmp_path: Path) -> None:
    with own_city(tmp_path / "city") as city:
        publish(city, 0)
        publish(city, 1)
        city.drain()
        for name in WORKERS:
            city.process(name).stop()
        old = views(city)
        deploy(city, tmp_path / "next", *NEXT)
        assert f"run: citystream rebuild {CHANGED}" in done(city, "init")
        for name in WORKERS:
            city.dismiss(name)
        city.refuses("processor", "citystream rebuild")
        city.refuses("sink", "works by another definition")
        assert views(city) == old

        with watched(city, [name for name in old if name != GONE]) as answers:
            for moment in MOMENTS:
                ended = city.python("-c", DIES, CHANGED, moment)
                assert ended.returncode == -9, ended.stderr
                assert views(city) == old
            for name in (CHANGED, EXTENDED):
                done(city, "rebuild", name)
            assert "show what is declared" in done(city, "rebuild", CHANGED)
            new = views(city)
            city.wait(lambda: all(seen[-1] == new[name] for name, seen in answers.items()))
        for name, seen in answers.items():
            assert seen == ([old[name]] if old[name] == new[name] else [old[name], new[name]]), name
        assert new.keys() == old.keys() - {GONE} | {ADDED}
        assert all((old[name] != new[name]) == name.startswith(CHANGED) for name in answers)

        done(city, "positions", "reset", "processor", WINDOWED)
        assert "has not come as far as" in refused(city, "rebuild", WINDOWED)
        for name in WORKERS:
            city.start(name)
        publish(city, 2)
        city.drain()
        assert shows(city, f"{WINDOWED}_5m", "high") == 0
        done(city, "rebuild", WINDOWED)
        assert shows(city, f"{WINDOWED}_5m", "high") == 1
        changed, parts = city.snapshot(), city.parts()
        fresh, fresh_parts = city.undisturbed(), city.parts()

    assert all(changed.values())
    for name, rows in (fresh | fresh_parts).items():
        assert (changed | parts)[name] == rows, f"{name} differs"


def test_windows_of_a_frozen_feed_are_built_of_all_its_lives(tmp_path: Path) -> None:
    with own_city(tmp_path / "city") as city:
        publish(city, 0, faults=NO_REPEATS)
        city.drain()
        city.process("processor").stop()
        alter(city, "processor", lambda _: "")
        city.choose("freeze", "processor")
        city.start("processor")
        publish(city, 1, faults=NO_REPEATS)
        city.drain()
        for name in WORKERS:
            city.process(name).stop()

        deploy(city, tmp_path / "next", EXTENDED)
        city.dismiss("processor")
        done(city, "rebuild", EXTENDED)
        assert all(city.parts().values())
        lives = city.installation.server("operator").connect().execute(f"SELECT uniqExact(since) > 1 FROM raw.{ADDED}")
        assert lives == [(1,)]
        for name in WORKERS:
            city.start(name)
        publish(city, 2, faults=NO_REPEATS)
        city.drain()
        disturbed = city.snapshot()
        assert disturbed == city.undisturbed()

"""Aggregates and lateness changed on a real city: built beside what is shown, and never shown half-built.

Traffic and incidents are built from the raw rows, car parks from the log.
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

from citystream.settings import PROJECT
from schemas.catalogue import freeze
from tests.city import START, WORKERS, City, copy_sources, feed_file, own_city
from tests.integration.test_lost_positions import NO_REPEATS, alter

pytestmark = pytest.mark.integration

SPAN = timedelta(minutes=8)
EVENTS = 1_500

#: Replacements in the declarations. Traffic closes its windows later, has one more measure and one aggregate less; car
#: parks get another window and one more measure; incidents one more aggregate beside the one they have.
EDITS = {
    "traffic_flow": {
        "MEASURES: tuple[Measure, ...] = (\n": """MEASURES: tuple[Measure, ...] = (
    total("lanes", Column("lane"), unit="1", description="Sum of lanes"),
""",
        'description=f"Traffic by {by} in {minutes} min",': 'description="Traffic", version=2,',
        '        _aggregate(15, "district", "_district"),\n': "",
        "lateness=timedelta(seconds=30),": "lateness=timedelta(seconds=90), ahead=timedelta(seconds=40),",
    },
    "parking_site": {
        "import share, spread": "import share, spread, total",
        "window=timedelta(minutes=15),": "window=timedelta(minutes=5), version=2,",
        "            measures=(\n": """            measures=(
                total("out", Column("vehicle_exit_count"), unit="1", description="Vehicles that went out"),
""",
    },
    "police_incident": {
        "import count_where, quantiles": "import count_where, quantiles, spread",
        "    aggregates=(\n": """    aggregates=(
        Aggregate(
            name="police_incident_1m",
            by=("beat_id",),
            window=timedelta(minutes=1),
            measures=(
                spread("response", RESPONSE_TIME, unit="s", scale=1, description="time to arrival"),
                quantiles("response_time", RESPONSE_TIME, (0.5,), unit="s", description="time to arrival"),
            ),
            description="Response times by beat_id in 1 min",
        ),
""",
    },
}
GONE, ADDED = "traffic_flow_15m_district", "police_incident_1m"

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
MOMENTS = ("traffic_flow_1m_v2 done", "positions begins", "positions done")

Answers = dict[str, list[tuple[Any, ...]]]


def edited(folder: Path, *feeds: str) -> Path:
    """A copy of the sources with other declarations of these feeds."""
    copy_sources(folder)
    for name, changes in ((name, EDITS[name]) for name in feeds):
        path = feed_file(folder, name)
        text = path.read_text()
        for old, new in changes.items():
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        path.write_text(text)
    return folder


def deploy(city: City, folder: Path, *feeds: str) -> None:
    """Let a city go on from such sources, with their schemas frozen."""
    city.deploy(edited(folder, *feeds))
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
    with own_city(tmp_path / "city", PROJECT) as city:
        publish(city, 0)
        publish(city, 1)
        city.drain()
        for name in WORKERS:
            city.process(name).stop()
        old = views(city)
        deploy(city, tmp_path / "next", *EDITS)
        assert "run: citystream rebuild traffic_flow" in done(city, "init")
        for name in WORKERS:
            city.dismiss(name)
        city.refuses("processor", "citystream rebuild")
        city.refuses("sink", "works by another definition")
        assert views(city) == old

        with watched(city, [name for name in old if name != GONE]) as answers:
            for moment in MOMENTS:
                ended = city.python("-c", DIES, "traffic_flow", moment)
                assert ended.returncode == -9, ended.stderr
                assert views(city) == old
            for name in ("traffic_flow", "police_incident"):
                done(city, "rebuild", name)
            assert "show what is declared" in done(city, "rebuild", "traffic_flow")
            new = views(city)
            city.wait(lambda: all(seen[-1] == new[name] for name, seen in answers.items()))
        for name, seen in answers.items():
            assert seen == ([old[name]] if old[name] == new[name] else [old[name], new[name]]), name
        assert new.keys() == old.keys() - {GONE} | {ADDED}
        assert all((old[name] != new[name]) == name.startswith("traffic_flow") for name in answers)

        done(city, "positions", "reset", "processor", "parking_site")
        assert "has not come as far as" in refused(city, "rebuild", "parking_site")
        for name in WORKERS:
            city.start(name)
        publish(city, 2)
        city.drain()
        assert shows(city, "parking_site_15m", "out") == 0
        done(city, "rebuild", "parking_site")
        assert shows(city, "parking_site_15m", "out") == 1
        changed, parts = city.snapshot(), city.parts()
        fresh, fresh_parts = city.undisturbed(), city.parts()

    assert all(changed.values())
    for name, rows in (fresh | fresh_parts).items():
        assert (changed | parts)[name] == rows, f"{name} differs"


def test_windows_of_a_frozen_feed_are_built_of_all_its_lives(tmp_path: Path) -> None:
    with own_city(tmp_path / "city", PROJECT) as city:
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

        deploy(city, tmp_path / "next", "police_incident")
        city.dismiss("processor")
        done(city, "rebuild", "police_incident")
        assert all(city.parts().values())
        lives = city.installation.server("operator").connect().execute(f"SELECT uniqExact(since) > 1 FROM raw.{ADDED}")
        assert lives == [(1,)]
        for name in WORKERS:
            city.start(name)
        publish(city, 2, faults=NO_REPEATS)
        city.drain()
        disturbed = city.snapshot()
        assert disturbed == city.undisturbed()

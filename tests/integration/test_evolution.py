"""A new version of a record while workers run and old producers go on: nothing is lost, nothing doubled."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from itertools import count, islice
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

from citystream.secrets import load_secrets
from schemas.catalogue import FrozenSchema, freeze
from schemas.feed import Feed
from schemas.fields import Record
from simulation import simulator
from simulation.world import World
from streams.publisher import Producer, Publisher
from tests.city import START, WORKERS, City, copy_sources, declare_only, feed_file, feed_in, feeds_in, own_city

pytestmark = pytest.mark.integration

FEED = "machine"
DECLARATION = '''"""Machines that change their state."""

from datetime import timedelta
from enum import StrEnum
from typing import Annotated

from pydantic import Field

from schemas.department import Department
from schemas.expressions import Column
from schemas.feed import Aggregate, Feed
from schemas.fields import Coarse, EventId, Instant, Location, Personal, Record, Text
from schemas.measures import count_where


class State(StrEnum):
    """What a machine says of itself."""

    WORKS = "works"
    BROKEN = "broken"
    UNKNOWN = "unknown"


class Machine(Record):
    """A machine that changed its state."""

    event_id: EventId
    machine_id: Annotated[Text, Field(description="Machine")]
    zone: Annotated[Text, Field(description="Zone of the city")]
    status: Annotated[State, Field(description="State from now on")]
    keeper: Annotated[Text, Field(description="Who looks after it, as a pseudonym"), Personal()]
    changed_at: Annotated[Instant, Field(description="When it changed: the event time")]
    place: Annotated[Location, Coarse(decimals=2)]


FEED = Feed(
    name="machine",
    description="Machines that change their state",
    record=Machine,
    key="machine_id",
    event_time="changed_at",
    department=Department(name="Machines", contact="machines@city.example", purpose="Tests"),
    batch=1,
    rate=1,
    silence=timedelta(minutes=5),
    disorder=timedelta(seconds=30),
    lateness=timedelta(minutes=2),
    aggregates=(
        Aggregate(
            name="machine_15m",
            by=("zone",),
            window=timedelta(minutes=15),
            measures=(count_where("broken", Column("status").equals("broken"), description="That broke"),),
            description="Machines by zone in 15 min",
        ),
    ),
)
'''
AT_ONCE = 40
TOO_LARGE = 1000


def deployed(folder: Path) -> Path:
    """A copy of the sources to run workers from, whose patience a busy machine does not exhaust; of one feed."""
    replace(copy_sources(folder) / "streams" / "missing_schemas.py", "PATIENCE = 10.0", "PATIENCE = 60.0")
    shutil.rmtree(folder / "schemas" / "frozen")
    declare_only(folder, **{FEED: DECLARATION})
    freeze(feeds_in(folder), folder / "schemas" / "frozen")
    return folder


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


def newer_declaration(folder: Path) -> Path:
    """The feed's file with one more symbol and one more field that may be null."""
    path = folder / f"{FEED}.py"
    path.write_text(DECLARATION)
    replace(path, '    UNKNOWN = "unknown"\n', '    CANCELLED = "cancelled"\n    UNKNOWN = "unknown"\n')
    crew = 'crew: Annotated[int | None, Field(ge=1, le=99, description="People sent")] = None'
    place = "    place: Annotated[Location, Coarse(decimals=2)]\n"
    replace(path, place, f"{place}    {crew}\n")
    return path


def install(frozen: FrozenSchema, files: Path, folder: Path) -> None:
    """Bring a frozen version to where workers run."""
    shutil.copy(files / frozen.subject / f"{frozen.version}.avsc", folder / frozen.subject)
    shutil.copy(files / "ids.json", folder / "ids.new")
    (folder / "ids.new").replace(folder / "ids.json")


class Load:
    """Two producers that go on until they are told to end: one of the old version, and from ``join`` on one of the new.

    ``sent`` has status and crew of each event by its id; of the new ones some are broken, in a field that is new.
    """

    def __init__(self, city: City, newer: Feed, frozen: FrozenSchema) -> None:
        self.sent: dict[str, tuple[str, int | None]] = {}
        self.broken = 0
        self.join = Event()
        self._end = Event()
        self._city, self._newer, self._frozen = city, newer, frozen

    @contextmanager
    def running(self) -> Iterator[None]:
        thread = Thread(target=self._run)
        thread.start()
        try:
            yield
        finally:
            self._end.set()
            thread.join()

    def _run(self) -> None:
        feed, old = self._city.installation.feeds[FEED], self._city.installation.catalogue.latest(FEED)
        key = load_secrets(self._city.settings).pseudonym_key.get_secret_value().encode()
        with closing(Producer(self._city.installation.cluster)) as producer:
            olds, news = (Publisher(producer, f, v, key) for f, v in ((feed, old), (self._newer, self._frozen)))
            ordinary, changed = simulator(feed)(World(START, 1)), self._changed()
            while not self._end.wait(0.1):
                for record in islice(ordinary, AT_ONCE):
                    olds.publish(record)
                    self._note(record, None)
                for record, crew in islice(changed, AT_ONCE * self.join.is_set()):
                    news.publish(record)
                    self._note(record, crew)
                producer.flush()
            assert olds.failed == news.failed == 0

    def _changed(self) -> Iterator[tuple[Record, int | None]]:
        for number, record in zip(count(), simulator(self._newer)(World(START, 2)), strict=False):
            crew = TOO_LARGE if number % 50 == 0 else number % 99 + 1 if number % 3 else None
            status = {"status": self._newer.record.model_fields["status"].annotation("cancelled")}  # type: ignore[misc]
            yield record.model_copy(update={"crew": crew} | (status if number % 7 == 0 else {})), crew

    def _note(self, record: Any, crew: int | None) -> None:
        if crew == TOO_LARGE:
            self.broken += 1
        else:
            self.sent[record.event_id] = record.status.value, crew


def test_a_new_version_is_published_while_workers_run_and_old_producers_go_on(tmp_path: Path) -> None:
    sources = deployed(tmp_path / "deployment")
    frozen_there = sources / "schemas" / "frozen"
    staging = tmp_path / "staging"
    shutil.copytree(frozen_there, staging)
    declaration = newer_declaration(tmp_path)
    newer = feed_in(declaration, "newer_machine")
    (frozen,) = freeze({FEED: newer}, staging)
    assert (frozen.subject, frozen.version) == (FEED, 2)

    with own_city(tmp_path / "home", sources) as city:
        client = city.installation.server("operator").connect()

        def number(asked: str) -> int:
            ((found,),) = client.execute(f"SELECT toInt64({asked}) FROM raw.{FEED}")
            return int(found)

        def process_ids() -> dict[str, int]:
            found = {name: city.process(name).running() for name in WORKERS}
            return {name: running.pid for name, running in found.items() if running}

        def restart(name: str) -> None:
            city.process(name).stop()
            city.start(name)
            city.wait(partial(city.logged, name, f"{name} works"))

        load = Load(city, newer, frozen)
        with load.running():
            city.wait(lambda: number("count()") > 0)
            began = process_ids()
            load.join.set()
            for name in WORKERS:
                city.wait(partial(city.logged, name, f"names the schema id {frozen.id}"))
            install(frozen, staging, frozen_there)
            city.wait(lambda: number("countIf(undeclared != '')") > 10 * AT_ONCE)
            assert process_ids() == began

            shutil.copy(declaration, feed_file(sources, FEED))
            restart("processor")
            city.process("sink").stop()
            city.start("sink")
            city.wait(partial(city.logged, "sink", f"{FEED} is stopped"))
            assert city.logged("sink", "run: citystream init")
            city.prepare()
            restart("sink")
            city.wait(lambda: number("countIf(crew IS NOT NULL AND undeclared = '')") > 10 * AT_ONCE)
        city.drain()

        seen = client.execute(f"SELECT toString(event_id), status, crew FROM city.{FEED}")
        assert {event: values for event, *values in seen} == {e: list(values) for e, values in load.sent.items()}
        causes = client.execute("SELECT cause, count() FROM raw.quarantine FINAL GROUP BY cause")
        assert causes == [("crew: above 99", load.broken)]
        disturbed = city.snapshot()
        assert all(balances for _, balances in disturbed["ledger"])
        assert disturbed == city.undisturbed()

"""A city of a test's own: a real stack with its two workers, to be disturbed at will."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kafka import KafkaAdminClient

from citystream.faults import Fault
from citystream.installation import Installation
from citystream.secrets import load_secrets
from citystream.simulation import Simulation, SystemClock
from citystream.stack.process import Launch, Process
from citystream.stack.stack import Stack
from sinks.ledger import accounts
from streams import checkpoints, deadletters
from streams.lag import LagMeter, measure
from streams.publisher import Publisher, new_producer
from tests.conftest import settings_in

FEEDS = ("traffic_flow", "parking_site", "police_incident")
START = datetime(2024, 5, 6, 7, tzinfo=UTC)
WORKERS = {"processor": "process", "sink": "sink"}

Snapshot = dict[str, list[tuple[Any, ...]]]


class City:
    """A stack of its own with its two workers."""

    def __init__(self, home: Path) -> None:
        self.settings = settings_in(home)
        self.installation = Installation(self.settings)
        names = ("home", "packages", "kafka_port", "clickhouse_port", "clickhouse_http_port", "registry_port")
        self._environment = {f"CITYSTREAM_{n.upper()}": str(getattr(self.settings, n)) for n in names}

    def process(self, name: str) -> Process:
        """A worker."""
        return Process(name, self.settings.home)

    def start(self, name: str) -> None:
        """Start a worker that comes back under its old name."""
        self.process(name).start(Launch(self._command(*self.worker(name)), self._environment))

    def worker(self, name: str) -> list[str]:
        """The words of a worker's command."""
        return [WORKERS[name], "--instance", f"{name}-1", *(word for feed in FEEDS for word in ("--feeds", feed))]

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command that ends by itself."""
        environment = {**os.environ, **self._environment}
        return subprocess.run(
            self._command(*words), env=environment, capture_output=True, text=True, check=False, timeout=60
        )

    @staticmethod
    def _command(*words: str) -> tuple[str, ...]:
        return sys.executable, "-m", "citystream.cli", *words

    def kill(self, name: str) -> None:
        """SIGKILL."""
        running = self.process(name).running()
        assert running is not None, self.process(name).log.read_text()
        subprocess.run(["/bin/kill", "-9", str(running.pid)], check=True)
        while self.process(name).running() is not None:
            time.sleep(0.01)

    def publish(
        self, names: Sequence[str], start: datetime, seed: int, events: int, faults: Iterable[Fault] = Fault
    ) -> None:
        """Publish simulated records with these faults mixed in, and wait until the brokers have them."""
        feeds = [self.installation.feeds[name] for name in names]
        key = load_secrets(self.settings).pseudonym_key.get_secret_value().encode()
        with closing(new_producer(self.installation.bootstrap)) as producer:
            publishers = {
                f.name: Publisher(producer, f, self.installation.catalogue.latest(f.name), key) for f in feeds
            }
            simulation = Simulation(
                feeds, publishers, start=start, rate=None, seed=seed,
                faults=dict.fromkeys(faults, 0.02), clock=SystemClock(),
            )  # fmt: skip
            simulation.run(events, lambda: False)

    def wait(self, until: Callable[[], bool], seconds: float = 60) -> None:
        """Wait for something that can be observed."""
        deadline = time.monotonic() + seconds
        while not until():
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def drain(self) -> None:
        """Wait until both workers have committed all there is."""
        aggregates = [a.name for name in FEEDS for a in self.installation.feeds[name].aggregates]
        until = time.monotonic() + 90
        with LagMeter(self.installation.bootstrap) as meter:
            for group, topics in (("processor", FEEDS), ("sink", (*FEEDS, *aggregates, deadletters.TOPIC))):
                while any(p.records for p in meter.measure(group, topics, waiting=False)):
                    for name in WORKERS:
                        assert self.process(name).running() is not None, self.process(name).log.read_text()
                    assert time.monotonic() < until, f"the {group} does not catch up"
                    time.sleep(0.1)

    def forget(self) -> None:
        """Remove every result and every position; keep the feeds' topics."""
        names = [a.name for name in FEEDS for a in self.installation.feeds[name].aggregates]
        with closing(KafkaAdminClient(bootstrap_servers=self.installation.bootstrap)) as admin:
            left = set(WORKERS)
            while left:  # a member with a name stays in its group until its session ends
                left = {group for group, answer in admin.delete_groups(list(left)).items() if answer != "OK"}
            names += [deadletters.TOPIC, checkpoints.TOPIC]
            admin.delete_topics(names)
            while set(names) & set(admin.list_topics()):
                time.sleep(0.05)
        owner = self.installation.server("owner").connect()
        for database in ("city", "raw"):
            owner.execute(f"DROP DATABASE {database} SYNC")
        self.installation.prepare(lambda _: None)

    def undisturbed(self) -> Snapshot:
        """What a run from the beginning of the same topics shows."""
        for name in WORKERS:
            self.process(name).stop()
        self.forget()
        for name in WORKERS:
            self.start(name)
        self.drain()
        return self.snapshot()

    def snapshot(self) -> Snapshot:
        """Everything an analyst or operator can see."""
        client = self.installation.server("operator").connect()
        found = {}
        for name in FEEDS:
            feed = self.installation.feeds[name]
            found[f"raw.{name}"] = client.execute(f"SELECT *, late FROM raw.{name} FINAL ORDER BY ALL")
            for aggregate in feed.aggregates:
                found[aggregate.name] = client.execute(f"SELECT * FROM city.{aggregate.name} ORDER BY ALL")
        found["quarantine"] = client.execute(
            "SELECT * EXCEPT arrived_at FROM raw.quarantine FINAL ORDER BY topic, source_partition, source_offset"
        )
        chosen = {name: self.installation.feeds[name] for name in FEEDS}
        log = measure(self.installation.bootstrap, "sink", FEEDS)
        found["ledger"] = [(a, a.balances) for a in accounts(client, chosen, log)]
        return found


@contextmanager
def own_city(home: Path) -> Iterator[City]:
    """A city with nothing in it, both workers running."""
    city = City(home)
    stack = Stack(city.settings)
    try:
        stack.up(lambda _: None)
        city.installation.prepare(lambda _: None)
        for name in WORKERS:
            city.start(name)
        yield city
    finally:
        for name in WORKERS:
            city.process(name).stop()
        stack.down()

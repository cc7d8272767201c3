"""A city of made-up feeds, published in real time, and how fresh those are that nothing is done to."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any

from kafka import KafkaProducer

from citystream.settings import PROJECT
from citystream.stack.stack import Stack
from schemas.rowcodec import encode
from sinks.ledger import Account, accounts
from streams.lag import measure
from streams.publisher import new_producer
from tests.city import WORKERS, City, copy_sources
from tests.isolation.made import FEEDS, OTHERS, RATE, Report, report

#: How often records are published of each feed, and how often it is looked which of them are shown (s).
PUBLISH_EVERY, LOOK_EVERY = 0.25, 0.2
BROKEN = "tests.isolation.broken"


@dataclass(frozen=True)
class Age:
    """How old a record was when its row and its window could be seen, or is while they cannot; in s."""

    feed: str
    sent: float
    seconds: float


class Probe:
    """Follows records from their publisher into row and window; ``Traffic`` hands them over."""

    def __init__(self, connect: Callable[[], Any]) -> None:
        self._connect = connect
        self._pending: dict[str, dict[str, float]] = {name: {} for name in OTHERS}
        self._seen: list[Age] = []

    def follow(self, feed: str, device: str) -> None:
        """A record was just given to its publisher, the only one of a device."""
        if feed in self._pending:
            self._pending[feed][device] = time.monotonic()

    def look(self, stop: threading.Event) -> None:
        """Look until it is stopped; in a thread."""
        client = self._connect()
        while not stop.wait(LOOK_EVERY):
            for feed, pending in self._pending.items():
                if not (devices := [*pending]):
                    continue
                query = (
                    f"SELECT device_id FROM city.{feed} WHERE device_id IN %(devices)s INTERSECT "
                    f"SELECT device_id FROM city.{feed}_10s WHERE device_id IN %(devices)s"
                )
                for (device,) in client.execute(query, {"devices": devices}):
                    sent = pending.pop(device)
                    self._seen.append(Age(feed, sent, time.monotonic() - sent))
        client.disconnect()

    def ages(self, since: float) -> list[Age]:
        """Of all records sent since a moment of the monotonic clock, those that are not to be seen yet among them."""
        now = time.monotonic()
        waiting = [Age(feed, sent, now - sent) for feed, all_of in self._pending.items() for sent in [*all_of.values()]]
        return [age for age in [*self._seen, *waiting] if age.sent >= since]

    def worst(self, since: float) -> float:
        """The age of the oldest of them when it was shown (s)."""
        return max((age.seconds for age in self.ages(since)), default=0.0)


class Traffic:
    """Publishes all feeds at their rate, each record as it happens."""

    def __init__(self, district: District, probe: Probe) -> None:
        self._district = district
        self._probe = probe
        self._random = Random(1)
        self.feeds = set(FEEDS)

    def publish(self, stop: threading.Event) -> None:
        """Publish until it is stopped; in a thread."""
        number = 0
        with closing(new_producer(self._district.installation.bootstrap)) as producer:
            while not stop.wait(PUBLISH_EVERY):
                number += 1
                for feed in sorted(self.feeds):
                    at = datetime.now(UTC)
                    for _ in range(int(RATE * PUBLISH_EVERY) - 1):
                        self._district.send(producer, feed, report(self._random, f"device-{number % 10}", at))
                    device = f"followed-{number}"
                    self._probe.follow(feed, device)
                    self._district.send(producer, feed, report(self._random, device, at))


class District(City):
    """A stack and two workers for the made-up feeds alone."""

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self.feeds = tuple(FEEDS)
        self.deploy(_sources(home / "sources"))
        self.probe = Probe(lambda: self.installation.server("operator").connect())
        self.traffic = Traffic(self, self.probe)
        self.random = Random(2)
        self._stop, self._threads = threading.Event(), list[threading.Thread]()

    def send(self, producer: KafkaProducer, feed: str, record: Report, **wrong: Any) -> Any:
        """Hand a record to a producer, with values that its model would refuse."""
        value = encode(self.frozen[feed], record.model_dump() | wrong)
        return producer.send(feed, key=record.device_id.encode(), value=value)

    @cached_property
    def frozen(self) -> Mapping[str, Any]:
        """The schema of each feed."""
        return {name: self.installation.catalogue.latest(name) for name in FEEDS}

    @contextmanager
    def producer(self) -> Iterator[KafkaProducer]:
        """A producer of another program; in the end the brokers have what it sent."""
        with closing(KafkaProducer(bootstrap_servers=self.installation.bootstrap, acks="all")) as producer:
            yield producer
            producer.flush()

    def begin(self, run: Callable[[threading.Event], None]) -> Callable[[], None]:
        """Run something until it is ended by what this returns, or the district ends."""
        stop = threading.Event()

        def work() -> None:
            run(stop)

        thread = threading.Thread(target=work)
        thread.start()

        def end() -> None:
            stop.set()
            thread.join()

        self._ends.append(end)
        return end

    @cached_property
    def _ends(self) -> list[Callable[[], None]]:
        return []

    def end(self) -> None:
        """End what runs."""
        for end in self._ends:
            end()

    def ask(self, query: str, user: str = "owner") -> Any:
        """A statement."""
        client = self.installation.server(user).connect()
        try:
            return client.execute(query)
        finally:
            client.disconnect()

    def restart(self, workers: Iterable[str], options: Mapping[str, list[str]]) -> None:
        """Start workers again from code that is not broken, with these options."""
        for name in workers:
            self.process(name).stop()
            self.options[name] = options.get(name, [])
            self.start(name)

    def status(self) -> list[str]:
        """What ``citystream status`` says is to be done."""
        found: list[str] = json.loads(self.command("status", "--output", "json").stdout)["problems"]
        return found

    def lag(self) -> list[dict[str, Any]]:
        """What ``citystream lag`` shows."""
        found: list[dict[str, Any]] = json.loads(self.command("lag", "--output", "json").stdout)
        return found

    def accounts(self, feeds: Iterable[str]) -> dict[str, Account]:
        """The ledger of some feeds."""
        chosen = {name: self.installation.feeds[name] for name in feeds}
        client = self.installation.server("operator").connect()
        log = measure(self.installation.bootstrap, "sink", chosen)
        found = accounts(client, chosen, log)
        client.disconnect()
        return {account.feed: account for account in found}


def _sources(folder: Path) -> Path:
    """The platform with these feeds and no others."""
    copy_sources(folder)
    for path in (folder / "feeds").glob("[!_]*.py"):
        path.unlink()
    for name in FEEDS:
        (folder / "feeds" / f"{name}.py").write_text(
            f"from tests.isolation.made import FEEDS\n\nFEED = FEEDS[{name!r}]\n"
        )
    shutil.rmtree(folder / "schemas" / "frozen")
    shutil.copytree(PROJECT / "tests" / "isolation", folder / "tests" / "isolation")
    return folder


@contextmanager
def district(home: Path) -> Iterator[District]:
    """A city of made-up feeds whose workers run broken code, with records of all feeds coming in."""
    opened = District(home)
    stack = Stack(opened.settings)
    try:
        frozen = opened.command("schemas", "freeze")
        assert frozen.returncode == 0, frozen.stderr
        stack.up(lambda _: None)
        opened.prepare()
        for name in WORKERS:
            opened.start(name, BROKEN)
        yield opened
    finally:
        opened.end()
        for name in opened.started:
            opened.process(name).stop()
        stack.down()

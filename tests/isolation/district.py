"""A city of made-up feeds, published in real time, and how fresh those are that nothing is done to."""

from __future__ import annotations

import json
import shutil
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any

from kafka import KafkaProducer

from bench.made_up import declarations
from citystream.settings import PROJECT
from schemas.record_codec import encode
from streams.publisher import Producer
from tests.city import WORKERS, City, copy_sources, declare_only, servers
from tests.isolation.made import FEEDS, OTHERS, RATE, TABLELESS, Report, report

#: How often records are published of each feed, and how often it is looked which of them are shown (s).
PUBLISH_EVERY, LOOK_EVERY = 0.25, 0.2
#: How long the workers here wait for a schema (s): so long that both commands are asked meanwhile on a busy machine.
PATIENCE = 60.0
#: Workers whose code raises at a record, and those of this project.
BROKEN, MENDED = "tests.isolation.broken", "citystream.cli"


@dataclass(frozen=True)
class Age:
    """How old a record was when its row and its window could be seen, or is while they cannot; in s."""

    sent: float
    seconds: float


@dataclass(frozen=True)
class Freshness:
    """Ages of the records of a time: half of them were shown by the median, all by the longest (s)."""

    median: float
    longest: float

    @property
    def twice(self) -> Freshness:
        """Twice as long as this, or as what is usual by what the workers wait for."""
        return Freshness(2 * max(self.median, USUAL.median), 2 * max(self.longest, USUAL.longest))


#: How fresh a record is on an idle machine: the publisher waits 0.1 s, each worker's fetch up to 0.4 s, and a pass
#: comes within a second of the last record, or two while more come; a record goes through both workers into its window.
USUAL = Freshness(1.5, 3.0)


class Probe:
    """Follows records from their publisher into row and window; ``Traffic`` hands them over."""

    def __init__(self, connect: Callable[[], Any]) -> None:
        self._connect = connect
        self._pending: dict[str, dict[str, float]] = {name: {} for name in OTHERS}
        self._seen: list[Age] = []
        self._shown: set[str] = set()

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
                    self._shown.add(feed)
                    self._seen.append(Age(sent, time.monotonic() - sent))
        client.disconnect()

    def ages(self, since: float) -> list[Age]:
        """Of all records sent since a moment of the monotonic clock, those that are not to be seen yet among them."""
        now = time.monotonic()
        waiting = [Age(sent, now - sent) for pending in self._pending.values() for sent in [*pending.values()]]
        return [age for age in [*self._seen, *waiting] if age.sent >= since]

    @property
    def is_seen(self) -> bool:
        """Whether a record of each feed was shown."""
        return self._shown == self._pending.keys()

    def is_shown_up_to(self, until: float) -> bool:
        """Whether all is shown that was sent up to a moment."""
        return all(sent > until for pending in self._pending.values() for sent in [*pending.values()])

    def freshness(self, since: float, until: float) -> Freshness:
        """Of all records sent from one moment to another."""
        seconds = [age.seconds for age in self.ages(since) if age.sent <= until]
        return Freshness(round(statistics.median(seconds), 2), round(max(seconds), 2))


class Traffic:
    """Publishes all feeds at their rate, each record as it happens."""

    def __init__(self, district: District, probe: Probe) -> None:
        self._district = district
        self._probe = probe
        self._random = Random(1)
        #: Of these; a feed without a table waits for its fault, or rows would go with the table.
        self.feeds = set(FEEDS) - {TABLELESS}

    def publish(self, stop: threading.Event) -> None:
        """Publish until it is stopped; in a thread."""
        number = 0
        with closing(Producer(self._district.installation.cluster)) as producer:
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
        self.deploy(_sources(home / "sources"))
        # ClickHouse lets queries of other users pause for a second at a time while the sink inserts.
        self.probe = Probe(lambda: self.installation.server("sink").connect())
        self.traffic = Traffic(self, self.probe)
        self.random = Random(2)
        #: What workers run.
        self.code = BROKEN
        self._calmed, self._quiet, self._ended = threading.Event(), threading.Event(), threading.Event()
        self._threads = list[tuple[threading.Thread, threading.Event]]()

    @property
    def feeds(self) -> Sequence[str]:
        """Those made up."""
        return tuple(FEEDS)

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
        with closing(KafkaProducer(**self.installation.cluster.kafka_python(), acks="all")) as producer:
            yield producer
            producer.flush()

    def open(self) -> None:
        """Publish all feeds, and follow records."""
        self._beside(self.probe.look, self._ended)
        self._beside(self.traffic.publish, self._quiet)

    def disturb(self, run: Callable[[threading.Event], None]) -> None:
        """Run something beside that until it is calmed."""
        self._beside(run, self._calmed)

    def calm(self) -> None:
        """End what disturbs."""
        self._join(self._calmed)
        self._calmed.clear()

    def hush(self) -> None:
        """Publish no more."""
        self._join(self._quiet)

    def end(self) -> None:
        """End all that runs beside."""
        for event in (self._calmed, self._quiet, self._ended):
            self._join(event)

    def _beside(self, run: Callable[[threading.Event], None], until: threading.Event) -> None:
        thread = threading.Thread(target=run, args=[until])
        self._threads.append((thread, until))
        thread.start()

    def _join(self, event: threading.Event) -> None:
        event.set()
        for thread, until in self._threads:
            if until is event:
                thread.join()
        self._threads = [(thread, until) for thread, until in self._threads if until is not event]

    def ask(self, query: str, user: str = "owner") -> Any:
        """A statement."""
        client = self.installation.server(user).connect()
        try:
            return client.execute(query)
        finally:
            client.disconnect()

    def status(self) -> list[str]:
        """What ``citystream status`` says is to be done."""
        return self.command("status").stderr.splitlines()

    def lag(self) -> list[dict[str, Any]]:
        """What ``citystream lag`` shows."""
        found: list[dict[str, Any]] = json.loads(self.command("lag", "--output", "json").stdout)
        return found


def _sources(folder: Path) -> Path:
    """The platform with these feeds and no others."""
    copy_sources(folder)
    declare_only(folder, **declarations(FEEDS, "tests.isolation.made"))
    awaited = folder / "streams" / "missing_schemas.py"
    awaited.write_text(awaited.read_text().replace("PATIENCE = 10.0", f"PATIENCE = {PATIENCE}"))
    shutil.rmtree(folder / "schemas" / "frozen")
    shutil.copytree(PROJECT / "tests" / "isolation", folder / "tests" / "isolation")
    return folder


@contextmanager
def district(home: Path) -> Iterator[District]:
    """A city of made-up feeds whose workers run broken code, with records of all feeds coming in."""
    with servers(District(home)) as opened:
        frozen = opened.command("schemas", "freeze")
        assert frozen.returncode == 0, frozen.stderr
        opened.prepare()
        for name in WORKERS:
            opened.start(name, opened.code)
        try:
            yield opened
        finally:
            opened.end()

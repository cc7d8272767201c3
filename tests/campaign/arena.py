"""A city whose every part can be killed, stopped, cut off and slowed down on its own."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
from kafka import OffsetAndMetadata
from kafka.errors import NoError

from bench.process import resident_mib
from citystream.installation import Installation
from citystream.settings import LOCALHOST, PROJECT, Settings
from citystream.stack import clickhouse, kafka
from citystream.stack.ports import free_ports
from citystream.stack.process import Launch
from citystream.stack.stack import Stack
from streams import checkpoints, topics
from streams.clients import records_of
from streams.lag import LagMeter
from streams.publisher import Producer
from tests.campaign import before
from tests.campaign.proxy import Proxy
from tests.campaign.worker import DYING
from tests.city import WORKERS, City

#: Who reaches Kafka over a network of its own.
PARTS = ("processor", "sink", "publisher")
CLOCK = "clock"
#: The network between the sink and ClickHouse.
TO_CLICKHOUSE = "clickhouse"
SAMPLE_SECONDS = 1.0
#: How long a publisher may take to end.
ENDING_SECONDS = 120.0
#: Times the real rate, at which publishers publish: about a thousand records a second.
RATE = "4"

Offsets = dict[tuple[str, int], int]


class Stuck(Exception):
    """The campaign cannot go on, and has compared nothing."""


class Arena(City):
    """A stack of its own with proxies between its parts; the arena itself speaks to the servers directly."""

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        direct, *listeners, native, http, registry = free_ports(4 + len(PARTS))
        self.settings = Settings(
            home=home, kafka_bootstrap=f"{LOCALHOST}:{direct}", clickhouse_port=native, clickhouse_http_port=http,
            registry_port=registry,
        )  # fmt: skip
        self.installation = Installation(self.settings)
        self._broker = Settings(home=home, kafka_port=direct, registry_port=registry)
        self._listeners = dict(zip(PARTS, listeners, strict=True))
        self.networks = {part: Proxy(port) for part, port in self._listeners.items()} | {TO_CLICKHOUSE: Proxy(native)}
        self._environment = self.environment_of("publisher")
        self.wanted: set[str] = set()
        self.broken: str | None = None
        self.published: list[tuple[datetime, int]] = []
        self.publishing: subprocess.Popen[bytes] | None = None
        self._publisher: tuple[str, ...] = ()
        self.ended: list[str] = []
        self.kills = 0
        self._memory: list[int] = []
        self._done = threading.Event()

    def environment_of(self, part: str) -> dict[str, str]:
        """Settings of a process that reaches the servers over its own network."""
        return {
            "PYTHONPATH": str(PROJECT),
            "CITYSTREAM_HOME": str(self.settings.home),
            "CITYSTREAM_KAFKA_BOOTSTRAP": f"{LOCALHOST}:{self.networks[part].port}",
            "CITYSTREAM_CLICKHOUSE_PORT": str(self.networks[TO_CLICKHOUSE].port),
            "CITYSTREAM_CLICKHOUSE_HTTP_PORT": str(self.settings.clickhouse_http_port),
            "CITYSTREAM_REGISTRY_PORT": str(self.settings.registry_port),
        }

    @property
    def feeds(self) -> list[str]:
        """All feeds."""
        return list(self.installation.feeds)

    def up(self) -> None:
        """Start the servers and create what they hold."""
        kafka.prepare(self._broker)
        self.start_kafka()
        Stack(self.settings).up(lambda _: None)
        self.installation.prepare(lambda _: None)
        threading.Thread(target=self._watch_memory, daemon=True).start()

    def start_kafka(self) -> None:
        """Start the broker with a listener for each part, which answers with the address of the part's proxy."""
        written = (self.settings.data_of(kafka.NAME) / "server.properties").read_text().splitlines()
        plain = dict(line.split("=", 1) for line in written)
        own = {
            "listeners": [f"{part.upper()}://{LOCALHOST}:{port}" for part, port in self._listeners.items()],
            "advertised.listeners": [f"{p.upper()}://{LOCALHOST}:{self.networks[p].port}" for p in PARTS],
            "listener.security.protocol.map": [f"{part.upper()}:PLAINTEXT" for part in PARTS],
        }
        command = kafka.launch(self._broker).command
        words = [
            word for name, more in own.items() for word in ("--override", f"{name}={','.join([plain[name], *more])}")
        ]
        process = self.process(kafka.NAME)
        process.start(Launch((*command, *words)))
        process.wait_until(lambda: kafka.ready(self._broker))

    def start_clickhouse(self) -> None:
        """Start ClickHouse."""
        Stack(self.settings).up(lambda _: None)

    def worker(self, name: str) -> list[str]:
        """The words of a worker's command; its name is its kind and a number."""
        return [WORKERS[self.kind(name)], "--instance", name]

    @staticmethod
    def kind(name: str) -> str:
        """Processor or sink."""
        return name.partition("-")[0]

    def start(self, name: str, moment: str | None = None, count: int = 1) -> None:
        """Start a worker; one that is given a moment dies there by itself."""
        words = [] if moment is None else ["--moment", moment, "--count", str(count)]
        words += [] if self.broken is None else ["--broken", self.broken]
        command = (sys.executable, "-P", "-m", "tests.campaign.worker", *words, *self.worker(name))
        self.process(name).start(Launch(command, self.environment_of(self.kind(name))))
        self.wanted.add(name)

    def kill(self, name: str) -> None:
        """SIGKILL, unless it has ended, which is noted."""
        self._release(name)
        if self.alive(name):
            super().kill(name)
            self.kills += 1

    def leave(self, name: str) -> None:
        """SIGTERM, unless it has ended, which is noted."""
        self._release(name)
        self.process(name).stop()

    def died(self, name: str) -> None:
        """Count a worker that killed itself at its moment; any other end is noted."""
        if self.logged(name, DYING):
            self.wanted.discard(name)
            self.kills += 1
        self._release(name)

    def _release(self, name: str) -> None:
        if name in self.wanted and not self.alive(name):
            self.ended.append(f"{name}: {self.process(name).last_words()}")
        self.wanted.discard(name)

    def alive(self, name: str) -> bool:
        """Whether a process runs."""
        return self.process(name).running() is not None

    def start_clock(self, time: datetime) -> None:
        """Let a clock go on from this time of the feeds; the one before is killed."""
        self.kill_clock()
        words = ("tests.campaign.clock", str((datetime.now(UTC) - time).total_seconds()))
        self.process(CLOCK).start(Launch((sys.executable, "-P", "-m", *words), self.environment_of("publisher")))

    def kill_clock(self) -> None:
        """SIGKILL, if one runs."""
        if self.alive(CLOCK):
            super().kill(CLOCK)

    def kill_server(self, name: str) -> None:
        """SIGKILL to Kafka or ClickHouse."""
        super().kill(name)
        self.kills += 1

    @contextmanager
    def owner(self) -> Iterator[Any]:
        """ClickHouse as its owner."""
        client = self.installation.server("owner").connect()
        try:
            yield client
        finally:
            client.disconnect()

    def leave_as_before(self) -> int:
        """Make of what both workers left, which have ended, what the release before would have left; gives how many
        positions there are."""
        feeds, count = {topic: one.feed for topic, one in self.installation.feed_topics.items()}, 0
        with self.admin() as admin:
            for kind in WORKERS:
                left = {
                    tp: OffsetAndMetadata(c.offset, before.metadata(c.metadata, feeds.get(tp.topic)), -1)
                    for tp, c in self.commits(kind).items()
                }
                assert set(admin.alter_group_offsets(kind, left).values()) == {NoError}
                count += len(left)
        kept = {record.key: record.value for record in records_of(self.installation.cluster, checkpoints.TOPIC)}
        with closing(Producer(self.installation.cluster)) as producer:
            for key, value in kept.items():
                _, topic, _ = checkpoints.place_of(key)
                producer.send(checkpoints.TOPIC, key=key, value=before.checkpoint(value, feeds.get(topic)))
            producer.flush()
        with self.owner() as owner:
            for table in before.TABLES:
                owner.execute(f"DROP TABLE {table} SYNC")
        return count

    def last_words(self) -> list[str]:
        """What each worker said last."""
        return [f"{name}: {self.process(name).last_words()}" for name in sorted(self.wanted)]

    def log_size(self, name: str) -> int:
        """How much a worker has said (bytes)."""
        return self.process(name).log.stat().st_size

    def said_since(self, name: str, size: int, words: str) -> bool:
        """Whether a worker has said something since its log had this size."""
        return words in self.process(name).log.read_bytes()[size:].decode(errors="replace")

    def works(self, name: str) -> bool:
        """Whether a worker has said that it works."""
        return f"{self.kind(name)} works" in self.process(name).log.read_text()

    def tend(self) -> None:
        """Start again what ended by itself, as a supervisor does."""
        for name in sorted(self.wanted):
            if not self.alive(name):
                self._release(name)
                self.start(name)

    def publish_all(self, seed: int, start: datetime, dirt: str) -> None:
        """Let a publisher of all feeds at once begin; it goes on until it is told to end."""
        words = ("simulate", *self.feeds, "--rate", RATE, "--seed", str(seed), "--start", start.isoformat())
        self._publisher = self._command(*words, "--faults", dirt)
        self._begin_publishing()

    def kill_publisher(self) -> None:
        """SIGKILL to the publisher; the next one publishes everything again."""
        assert self.publishing is not None
        self.publishing.kill()
        self.publishing.wait()
        self.kills += 1
        self._begin_publishing()

    def tend_publisher(self) -> None:
        """Begin again if the publisher has failed: Kafka did not take everything."""
        assert self.publishing is not None
        if self.publishing.poll() is not None:
            self._begin_publishing()

    def end_publishing(self) -> None:
        """Let the publisher end when the brokers have acknowledged what it sent."""
        assert self.publishing is not None
        self.publishing.terminate()
        try:
            self.publishing.wait(ENDING_SECONDS)
        except subprocess.TimeoutExpired as late:
            raise Stuck(f"the publisher does not end within {ENDING_SECONDS:.0f} s") from late

    def _begin_publishing(self) -> None:
        environment = {**os.environ, **self.environment_of("publisher")}
        with (self.settings.home / "log" / "publisher.log").open("ab") as log:
            self.publishing = subprocess.Popen(
                self._publisher, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def published_since(self, before: Offsets) -> int:
        """How many records of all feeds there are beyond these ends."""
        return sum(self.ends(*self.feeds).values()) - sum(before.values())

    def state(self, group: str) -> str:
        """What the brokers say a group is doing."""
        with self.admin() as admin:
            return str(admin.describe_groups([group])[group]["group_state"])

    def inserted(self) -> int:
        """How many rows ClickHouse has inserted since it started."""
        with self.owner() as owner:
            return int(owner.execute("SELECT sum(value) FROM system.events WHERE event = 'InsertedRows'")[0][0])

    def stored_topics(self) -> list[str]:
        """Every topic the sink reads."""
        return [topic.name for topic in topics.stored(self.installation.feeds.values())]

    def behind(self, meter: LagMeter, ends: Offsets) -> int:
        """How many records before these ends either worker has not yet taken; parts and dead letters count, too."""
        found = 0
        for group, names in (("processor", self.feeds), ("sink", self.stored_topics())):
            for lag in meter.measure(group, names, waiting=False):
                found += max(0, ends.get((lag.topic, lag.partition), lag.end) - lag.committed)
        return found

    def memory(self) -> list[int]:
        """The memory of the largest worker (MiB), sampled evenly since this was asked last."""
        memory, self._memory = self._memory, []
        return memory

    def _watch_memory(self) -> None:
        while not self._done.wait(SAMPLE_SECONDS):
            self._memory.append(max((self._resident(name) for name in sorted(self.wanted)), default=0))

    def _resident(self, name: str) -> int:
        with suppress(psutil.Error):
            running = self.process(name).running()
            if running is not None:
                return resident_mib(running.pid)
        return 0

    def down(self) -> None:
        """End everything."""
        self._done.set()
        if self.publishing is not None:
            self.publishing.kill()
            self.publishing.wait()
        for network in self.networks.values():
            network.mend()
        self.kill_clock()
        for name in sorted(self.wanted):
            with suppress(AssertionError):
                self.kill(name)
        for name in (kafka.NAME, clickhouse.NAME):
            self.process(name).stop()
        Stack(self.settings).down()
        for network in self.networks.values():
            network.close()


@contextmanager
def arena(home: Path) -> Iterator[Arena]:
    """Servers with nothing in them, and no worker yet."""
    opened = Arena(home)
    try:
        opened.up()
        yield opened
    finally:
        opened.down()

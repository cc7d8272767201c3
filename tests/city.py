"""A city of a test's own: a real stack with its two workers, to be disturbed at will."""

from __future__ import annotations

import importlib.util
import io
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

from kafka import KafkaAdminClient, OffsetAndMetadata, TopicPartition
from kafka.admin import MemberToRemove

from bench.city import PACKAGES
from bench.made_up import add_department, declarations
from citystream import cli
from citystream.installation import Installation
from citystream.secrets import load_secrets
from citystream.settings import PROJECT, Settings, load_settings
from citystream.stack.process import Launch, Process
from citystream.stack.stack import Stack
from schemas.catalogue import Catalogue, freeze
from schemas.feed import Feed
from schemas.question import Question
from schemas.reference import Reference
from simulation.faults import Fault
from simulation.running import Simulation, SystemClock
from simulation.world import Kind, World
from sinks.ledger import accounts
from streams import checkpoints, deadletters
from streams.clients import new_admin
from streams.gathered import gathered_topics
from streams.lag import LagMeter, committed_offsets
from streams.publisher import Producer, Publisher
from tests.conftest import settings_in

#: The feeds of a city: some of those made up for the bench, of which each merges other kinds of measures.
FEEDS = ("made_up_f", "made_up_g", "made_up_j")
START = datetime(2024, 5, 6, 7, tzinfo=UTC)
WORKERS = {"processor": "process", "sink": "sink"}

Commits = Mapping[TopicPartition, OffsetAndMetadata]
C = TypeVar("C", bound="City")
Snapshot = dict[str, list[tuple[Any, ...]]]


def copy_sources(folder: Path, *packages: str, origin: Path = PROJECT) -> Path:
    """A folder from which workers and commands can run, with these packages or all, to be changed at will."""
    for package in packages or PACKAGES:
        shutil.copytree(origin / package, folder / package)
    return folder


def feed_file(sources: Path, name: str) -> Path:
    """Where a folder of sources declares a feed."""
    (path,) = (sources / "feeds").glob(f"*/{name}.py")
    return path


def declare_only(sources: Path, **texts: str) -> Path:
    """Let a folder of sources declare these feeds and no others, those of one department; gives its folder."""
    shutil.rmtree(sources / "feeds", ignore_errors=True)
    department = add_department(sources, texts)
    shutil.copy(PROJECT / "feeds" / "__init__.py", sources / "feeds")
    return department


def made_up(folder: Path, *names: str, departments: Iterable[str] = (), **texts: str) -> Path:
    """A folder of sources that declares made-up feeds and no others; the code is this project's.

    They are the tests' unless others are named, those that the texts declare, and those of these departments of the
    project's.
    """
    copy_sources(folder, "schemas")
    declare_only(folder, **declarations(names or FEEDS), **texts)
    for name in departments:
        shutil.copytree(PROJECT / "feeds" / name, folder / "feeds" / name)
    freeze(feeds_in(folder), folder / "schemas" / "frozen", references_in(folder))
    return folder


def feeds_in(sources: Path) -> dict[str, Feed]:
    """The feeds that a folder of sources declares, by name."""
    return {name: one.FEED for name, one in _modules_in(sources).items() if hasattr(one, "FEED")}


def references_in(sources: Path) -> dict[str, Reference]:
    """The tables of reference data that a folder of sources declares, by name."""
    return {name: one.REFERENCE for name, one in _modules_in(sources).items() if hasattr(one, "REFERENCE")}


def questions_in(sources: Path) -> dict[str, Question]:
    """The questions that a folder of sources declares, by name."""
    asked = (getattr(one, "QUESTIONS", ()) for one in _modules_in(sources).values())
    return {question.name: question for questions in asked for question in questions}


def _modules_in(sources: Path) -> dict[str, Any]:
    paths = sorted((sources / "feeds").glob("*/[!_]*.py"))
    return {path.stem: _module_in(path, f"deployed_{path.stem}") for path in paths}


def feed_in(path: Path, module: str) -> Feed:
    """What a file declares that is no part of this project's packages, loaded under the name of a module."""
    feed: Feed = _module_in(path, module).FEED
    return feed


def _module_in(path: Path, module: str) -> Any:
    spec = importlib.util.spec_from_file_location(module, path)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = loaded
    spec.loader.exec_module(loaded)
    return loaded


@dataclass(frozen=True)
class Deployed(Installation):
    """An installation whose feeds and frozen schemas are those of a folder of sources."""

    sources: Path = PROJECT

    @cached_property
    def feeds(self) -> dict[str, Feed]:
        return feeds_in(self.sources)

    @cached_property
    def references(self) -> dict[str, Reference]:
        return references_in(self.sources)

    @cached_property
    def questions(self) -> dict[str, Question]:
        return questions_in(self.sources)

    @cached_property
    def catalogue(self) -> Catalogue:
        return Catalogue.load(self.sources / "schemas/frozen")


class City:
    """A stack of its own with its two workers and the feeds of a folder of sources, whose code they run, if it has any.

    Otherwise, and where it lacks a package, they run this project's.
    """

    def __init__(self, home: Path, sources: Path = PROJECT) -> None:
        self.settings = settings_in(home)
        self.deploy(sources)
        names = ("home", "packages", "kafka_port", "clickhouse_port", "clickhouse_http_port", "registry_port")
        self.started: set[str] = set()
        self._environment = {f"CITYSTREAM_{n.upper()}": str(getattr(self.settings, n)) for n in names}
        #: More words for the command of a worker.
        self.options: dict[str, Sequence[str]] = {}

    @property
    def feeds(self) -> Sequence[str]:
        """The feeds its workers work on."""
        return tuple(self.installation.feeds)

    def deploy(self, sources: Path) -> None:
        """From now on, start workers and commands from a folder of sources, and know their feeds."""
        self.sources = sources
        self.installation = self._installed(self.settings)

    def _installed(self, settings: Settings) -> Installation:
        return Installation(settings) if self.sources == PROJECT else Deployed(settings, self.sources)

    def reach_clickhouse_at(self, port: int) -> None:
        """Let workers that start from now on reach ClickHouse at another port."""
        self._environment["CITYSTREAM_CLICKHOUSE_PORT"] = str(port)

    def process(self, name: str) -> Process:
        """A worker."""
        return Process(name, self.settings.home)

    def start(self, name: str, module: str = "citystream.cli") -> None:
        """Start a worker that comes back under its old name; ``module`` may be one that disturbs it."""
        self.started.add(name)
        command = sys.executable, "-P", "-m", module, *self.worker(name)
        self.process(name).start(Launch(command, self.environment))

    def worker(self, name: str) -> list[str]:
        """The words of a worker's command; another one beside it has a name like ``sink-too``."""
        return [
            WORKERS[name.partition("-")[0]],
            "--instance",
            f"{name}-1",
            *self.feeds,
            *self.options.get(name, ()),
        ]

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command that ends by itself: in this process if it is no worker, as most of its time is its start."""
        other_code = self.sources != PROJECT and (self.sources / "citystream").exists()
        if other_code or words[0] in WORKERS.values():
            return self._run(self._command(*words))
        code, out, err = 0, io.StringIO(), io.StringIO()
        with (
            patch.dict(os.environ, self._environment),
            patch.object(Installation, "load", lambda: self._installed(load_settings())),
            patch.object(sys, "argv", ["citystream", *words]),
            redirect_stdout(out),
            redirect_stderr(err),
        ):
            try:
                cli.main()
            except SystemExit as ended:
                code = int(ended.code or 0)
        return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())

    def python(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run Python with these words as the platform's commands run."""
        return self._run((sys.executable, "-P", *words))

    def _run(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    def begin(self, *words: str, code: str = "") -> subprocess.Popen[bytes]:
        """Start a command, to be killed or waited for; by this code instead, if it is given."""
        environment = {**os.environ, **self.environment}
        command = (sys.executable, "-P", "-c", code, *words) if code else self._command(*words)
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    @property
    def environment(self) -> dict[str, str]:
        """What the processes of this city find in their environment."""
        return self._environment | {"PYTHONPATH": f"{self.sources}{os.pathsep}{PROJECT}"}

    @staticmethod
    def _command(*words: str) -> tuple[str, ...]:
        return sys.executable, "-P", "-m", "citystream.cli", *words

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal."""
        running = self.process(name).running()
        assert running is not None, self.process(name).log.read_text()
        os.kill(running.pid, number)

    def kill(self, name: str) -> None:
        """SIGKILL."""
        self.signal(name, signal.SIGKILL)
        while self.process(name).running() is not None:
            time.sleep(0.01)

    @contextmanager
    def admin(self) -> Iterator[KafkaAdminClient]:
        """Kafka's administration."""
        with closing(new_admin(self.installation.cluster)) as admin:
            yield admin

    def commits(self, group: str) -> Commits:
        """What a group has committed."""
        with self.admin() as admin:
            return committed_offsets(admin, group)

    def members(self, group: str) -> set[str]:
        """The names of a group's workers, without what they read."""
        with self.admin() as admin:
            found = admin.describe_groups([group])[group]["members"]
        return {member["group_instance_id"].partition(".")[0] for member in found}

    def dismiss(self, group: str) -> None:
        """Let a group go on without its workers, which have ended: Kafka would wait for the end of their sessions."""
        assert not [name for name in self.started if name.startswith(group) and self.process(name).running()]
        with self.admin() as admin:
            while members := admin.describe_groups([group])[group]["members"]:
                names = [MemberToRemove(group_instance_id=member["group_instance_id"]) for member in members]
                admin.remove_group_members(group, names)

    def stops(self, name: str, message: str) -> None:
        """Start a worker that has to stop a feed by itself, say why, and change nothing."""
        before = self.digest()
        self.refuses(name, message)
        assert self.digest() == before

    def refuses(self, name: str, message: str) -> None:
        """Start a worker that has to stop a feed by itself and say why; end it then."""
        self.start(name)
        self.stops_for(name, message)
        self.dismiss(name)

    def stops_for(self, name: str, message: str) -> None:
        """Wait until a worker has said why it stops a feed; end it, if it has not ended with the last one."""
        self.wait(lambda: self.logged(name, message))
        self.process(name).stop()

    def choose(self, choice: str, *words: str) -> None:
        """Make a choice about positions, as ``citystream positions`` names it."""
        for group in WORKERS:
            if self.process(group).running() is None:
                self.dismiss(group)
        done = self.command("positions", choice, *words)
        assert done.returncode == 0, done.stderr

    def refused(self, choice: str, *words: str, reason: str) -> None:
        """Make a choice that is refused."""
        done = self.command("positions", choice, *words)
        assert done.returncode == 1, done.stdout
        assert reason in done.stderr

    def logged(self, name: str, words: str) -> bool:
        """Whether a worker has said something."""
        return words in self.process(name).log.read_text()

    def publish(
        self,
        names: Sequence[str],
        start: datetime,
        seed: int,
        events: int,
        faults: Iterable[Fault] = Fault,
        incidents: Mapping[Kind, float] | None = None,
    ) -> None:
        """Publish simulated records with these faults and incidents, and wait until the brokers have them."""
        feeds = [self.installation.feeds[name] for name in names]
        key = load_secrets(self.settings).pseudonym_key.get_secret_value().encode()
        with closing(Producer(self.installation.cluster)) as producer:
            publishers = {
                f.name: Publisher(producer, f, self.installation.catalogue.latest(f.name), key) for f in feeds
            }
            simulation = Simulation(
                feeds, publishers, world=World(start, seed, incidents or {}), rate=None,
                faults=dict.fromkeys(faults, 0.02), clock=SystemClock(),
            )  # fmt: skip
            simulation.run(events, lambda: False)

    def wait(self, until: Callable[[], bool], seconds: float = 180) -> None:
        """Wait for something that can be observed."""
        deadline = time.monotonic() + seconds
        while not until():
            assert time.monotonic() < deadline, f"it does not come; {self._last_words()}"
            time.sleep(0.05)

    def _last_words(self) -> str:
        """Which workers run, and what each said last."""
        found = ((name, self.process(name)) for name in sorted(self.started))
        return "; ".join(f"{name} {'runs' if one.running() else 'ended'}: {one.last_words()}" for name, one in found)

    def drain(self, *groups: str) -> None:
        """Wait until these workers, or both, have committed all there is, and all that they wrote of it themselves.

        What a worker writes is in the log before its position is. So nothing is left once all was committed up to ends
        that are still the same when they are looked at again.
        """
        aggregates = [a.topic for name in self.feeds for a in self.installation.feeds[name].aggregates]
        read = {"processor": self.installation.processed_topics, "sink": (*self.feeds, *aggregates, deadletters.TOPIC)}
        until = time.monotonic() + 180
        with LagMeter(self.installation.cluster) as meter:
            for group in groups or WORKERS:
                before: Mapping[tuple[str, int], int] | None = None
                while (ends := _committed(meter, group, read[group])) is None or ends != before:
                    before = ends
                    for name in groups or WORKERS:
                        assert self.process(name).running() is not None, self.process(name).log.read_text()
                    assert time.monotonic() < until, f"the {group} does not catch up"
                    time.sleep(0.1)

    def forget(self) -> None:
        """Remove every result and every position; keep the feeds' topics."""
        names = [a.topic for name in self.feeds for a in self.installation.feeds[name].aggregates]
        for group in WORKERS:
            self.dismiss(group)
        with self.admin() as admin:
            assert set(admin.delete_groups(list(WORKERS)).values()) == {"OK"}
            names += [*gathered_topics(*self.installation.feeds.values()), deadletters.TOPIC, checkpoints.TOPIC]
            admin.delete_topics(names)
            while set(names) & set(admin.list_topics()):
                time.sleep(0.05)
        owner = self.installation.server("owner").connect()
        for database in ("city", "raw"):
            owner.execute(f"DROP DATABASE {database} SYNC")
        self.prepare()

    def prepare(self) -> None:
        """Create what is missing, as the workers' sources declare it."""
        done = self.command("init")
        assert done.returncode == 0, done.stderr

    def undisturbed(self) -> Snapshot:
        """What a run from the beginning of the same topics shows."""
        for name in self.started:
            self.process(name).stop()
        self.forget()
        for name in WORKERS:
            self.start(name)
        self.drain()
        return self.snapshot()

    def ends(self, *topics: str) -> dict[TopicPartition, int]:
        """Where the logs of topics end."""
        with LagMeter(self.installation.cluster) as meter:
            return {TopicPartition(p.topic, p.partition): p.end for p in meter.measure("sink", topics, waiting=False)}

    def snapshot(self) -> Snapshot:
        """Everything that is stored and shown."""
        return self._ask("SELECT * FROM ({}) ORDER BY ALL")

    def digest(self) -> Snapshot:
        """Of everything that is stored and shown as much as tells whether it changed."""
        return self._ask("SELECT count(), sum(cityHash64(toString(tuple(*)))) FROM ({})")

    def _ask(self, question: str) -> Snapshot:
        client = self.installation.server("owner").connect()
        asked = {"quarantine": "SELECT * EXCEPT arrived_at FROM raw.quarantine FINAL"}
        for name in self.feeds:
            asked[f"raw.{name}"] = f"SELECT * EXCEPT (undeclared, late) FROM raw.{name} FINAL"
            for aggregate in self.installation.feeds[name].aggregates:
                asked[aggregate.name] = f"SELECT * FROM city.{aggregate.name}"
        found = {name: client.execute(question.format(query)) for name, query in asked.items()}
        chosen = {name: self.installation.feeds[name] for name in self.feeds}
        with LagMeter(self.installation.cluster) as meter:
            log = meter.look("sink", self.feeds, waiting=False).partitions
        found["ledger"] = [(a, a.balances) for a in accounts(client, chosen, log)]
        client.disconnect()
        return found

    def parts(self) -> Snapshot:
        """What the windows are made of, and how far; which part of a flush says so depends on the flush alone."""
        client = self.installation.server("operator").connect()
        topics = [a.topic for name in self.feeds for a in self.installation.feeds[name].aggregates]
        found = {t: client.execute(f"SELECT * EXCEPT watermark FROM raw.{t} FINAL ORDER BY ALL") for t in topics}
        found["progress"] = client.execute(
            "SELECT aggregate, source_partition, max(watermark) FROM raw.progress WHERE aggregate IN %(topics)s "
            "GROUP BY ALL ORDER BY ALL",
            {"topics": topics},
        )
        return found


@contextmanager
def servers(city: C) -> Iterator[C]:
    """The servers of a city, and whatever is started in it, until the end."""
    stack = Stack(city.settings)
    try:
        stack.up(lambda _: None)
        yield city
    finally:
        for name in city.started:
            city.process(name).stop()
        stack.down()


def _committed(meter: LagMeter, group: str, names: Sequence[str]) -> Mapping[tuple[str, int], int] | None:
    """Where topics end, or None if a group has not committed all there is."""
    lags = meter.measure(group, names, waiting=False)
    return None if any(one.records for one in lags) else {(one.topic, one.partition): one.end for one in lags}


@contextmanager
def own_city(home: Path, sources: Path | None = None) -> Iterator[City]:
    """A city with nothing in it, both workers running; its feeds are made up unless there are sources."""
    with servers(City(home, sources or made_up(home / "sources"))) as city:
        city.installation.prepare(lambda _: None)
        for name in WORKERS:
            city.start(name)
        yield city

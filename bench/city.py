"""The city at its real rate: what each part of the platform costs when there is no backlog.

The feeds of the city and those made up for the bench, about 2,000 records a second together, the same bytes for every
contender. It runs from a copy of the platform, in which the schemas of the made-up feeds are frozen; so it can also
measure another checkout.

Each contender works alone beside broker and ClickHouse. Cores are CPU seconds a second, of whole processes.
"""

from __future__ import annotations

import math
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from kafka import KafkaConsumer, TopicPartition
from rich.console import Console
from rich.table import Table

from bench import engine, rules
from bench.load import Marked
from bench.made_up import add_department, declarations
from bench.process import FEED, PLAIN, cpu_seconds, environment, machine, resident_mib
from citystream.installation import Installation
from citystream.settings import LOCALHOST, PROJECT, Settings
from citystream.stack import clickhouse, kafka
from citystream.stack.process import Launch, Process
from citystream.stack.stack import Stack
from processors import GROUP as PROCESSOR
from schemas.alerts import FEED_NAME, Kind
from schemas.feed import Feed
from schemas.record_codec import decode
from sinks import GROUP as SINK
from streams import topics
from streams.clients import new_consumer
from streams.lag import measure

#: What the platform is made of, copied to be run with more feeds.
PACKAGES = ("citystream", "deploy", "feeds", "operations", "processors", "schemas", "simulation", "sinks", "streams")
BROKER, CLICKHOUSE = "broker", "clickhouse"
#: The names of the servers' processes.
SERVERS = {BROKER: kafka.NAME, CLICKHOUSE: clickhouse.NAME}
WORKERS = {PROCESSOR: "process", SINK: "sink"}
#: The Kafka engine takes a thread for each of its tables while it waits for records, and has few unless it is told.
THREADS = "<background_message_broker_schedule_pool_size>32</background_message_broker_schedule_pool_size>"
#: Marked records that are looked for at once, how often, and for how long at most (s).
AT_ONCE, LOOK_EVERY_SECONDS, LONGEST_WAIT = 4, 0.02, 60.0
#: A mark is taken when it is no older than this (s): nothing is visible so soon.
FRESH_SECONDS = 0.05
#: How long a worker may take to start, and to drain its topics (s).
PATIENCE = 120.0
#: At the end of a file that declares a feed, so that nobody watches it.
UNWATCHED = "\nfrom bench.rules import without_rules\n\nFEED = without_rules(FEED)\n"
#: Records of lag with which a worker goes on as it did before.
GOES_ON = 8000
#: Records a second of feeds whose watermark never waits for the next record.
OFTEN = 50


class Unmeasured(Exception):
    """The row cannot be measured; the message says why."""


@dataclass(frozen=True)
class Lengths:
    """How long what is measured, in s, and that of all records every ``every``-th is sent."""

    starting: float = 60
    warm_up: float = 20
    measured: float = 60
    latency: float = 60
    unwatched: float = 120
    alone: float = 20
    every: int = 1

    @property
    def records(self) -> float:
        """How many seconds of records are needed."""
        return self.starting + self.warm_up + self.measured + self.latency + self.unwatched


@dataclass(frozen=True)
class ManyFeeds(Installation):
    """The city with feeds made up for the bench."""

    made_up: Mapping[str, Feed]

    @cached_property
    def feeds(self) -> dict[str, Feed]:
        return {**super().feeds, **self.made_up}


class Sender:
    """A process that sends the records at their moments, from the first one on; use as a context manager."""

    def __init__(self, command: Iterable[str], more: Mapping[str, str]) -> None:
        self._process = subprocess.Popen([*command], stdout=subprocess.PIPE, text=True, env={**os.environ, **more})
        #: The newest records that a view has to show.
        self.marked: deque[Marked] = deque(maxlen=AT_ONCE)
        #: From event time to the machine's clock (s): by how much what is sent without a delay is later.
        self.shift = math.inf
        self._reader = threading.Thread(target=self._read)

    def _read(self) -> None:
        assert self._process.stdout is not None
        monotonic = time.time() - time.monotonic()
        for line in self._process.stdout:
            mark = Marked.read(line)
            self.shift = min(self.shift, mark.sent + monotonic - mark.event_ms / 1000)
            self.marked.append(mark)

    @property
    def pid(self) -> int:
        """Its process id."""
        if self._process.poll() is not None:
            raise Unmeasured("there are no more records to send: everything took longer than it may")
        return self._process.pid

    def __enter__(self) -> Self:
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()
        self._reader.join()
        assert self._process.stdout is not None
        self._process.stdout.close()


class RealRate:
    """One run from a copy of a checkout, on servers of its own; what was in the home of the settings is removed.

    With other ``lengths`` and fewer feeds ``made_up`` it is short, and says nothing about the platform.
    """

    def __init__(
        self,
        settings: Settings,
        lengths: Lengths = Lengths(),
        made_up: Mapping[str, Feed] = rules.FEEDS,
        origin: Path = PROJECT,
    ) -> None:
        self.settings, self.lengths, self._origin = settings, lengths, origin
        self.city = ManyFeeds(settings, made_up)
        self.sources = settings.home / "sources"
        self.file = settings.home / "records"
        self._python = str(python) if (python := origin / ".venv" / "bin" / "python").exists() else sys.executable
        self._environment = {**environment(settings), "PYTHONPATH": str(self.sources)}
        self._console = Console(stderr=True)

    def run(self, *, peers: bool = True) -> dict[str, dict[str, float]]:
        """The row under ``city``, and what else was measured under ``city_details``; the platform alone without
        ``peers``."""
        Stack(self.settings).down()
        shutil.rmtree(self.settings.home, ignore_errors=True)
        try:
            self._set_up()
            found = self._platform()
            if peers:
                self._plain_faust(found)
                self._kafka_engine(found)
        finally:
            Stack(self.settings).down()
        rounded = {name: round(value, 4) for name, value in found.items()}
        return {
            "city": {name: rounded[name] for name in ROW if name in rounded},
            "city_details": {name: value for name, value in rounded.items() if name not in ROW},
        }

    def _set_up(self) -> None:
        print("copying the platform, freezing the schemas of the made-up feeds", flush=True)
        for package in PACKAGES:
            shutil.copytree(self._origin / package, self.sources / package)
        shutil.copytree(Path(__file__).parent, self.sources / "bench", ignore=shutil.ignore_patterns("out"))
        add_department(self.sources, declarations(self.city.made_up, rules.__name__))
        config = self.sources / "deploy" / "clickhouse" / "config.xml"
        config.write_text(config.read_text().replace("</clickhouse>", f"{THREADS}</clickhouse>"))
        self._command("-m", "citystream.cli", "schemas", "freeze")
        self._command(str(self.sources / "deploy" / "docker" / "compile.py"))
        print("starting the servers", flush=True)
        self._command("-m", "citystream.cli", "up")
        print(f"making {self.lengths.records:.0f} s of records", flush=True)
        self._command("-m", "bench.load", "make", str(self.file), str(self.lengths.records), str(self.lengths.every))

    def _command(self, *words: str) -> None:
        done = subprocess.run(
            [self._python, "-P", *words],
            env={**os.environ, **self._environment},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise Unmeasured(f"{' '.join(words)} failed:\n{done.stdout}{done.stderr}")

    def _platform(self) -> dict[str, float]:
        lengths, found = self.lengths, dict[str, float]()
        with self._sender() as sender:
            starts = {
                PROCESSOR: self._start(PROCESSOR, self._has_window),
                SINK: self._start(SINK, self._has_row),
            }
            for name, (cpu, wall) in starts.items():
                found |= {f"{name}_start_cpu_s": cpu, f"{name}_start_wall_s": wall}
            found["start_cpu_s"] = max(cpu for cpu, _ in starts.values())
            self._wait(lengths.warm_up, "warming up")
            before, began, told = self._records(), time.monotonic(), self._told()
            cores = self._cores({**self._pids(*SERVERS, *WORKERS), "sender": sender.pid}, "the platform")
            found["events_per_second"] = round((self._records() - before) / (time.monotonic() - began))
            found |= {f"{name}_cores": value for name, value in cores.items()}
            for name in WORKERS:
                found[f"{name}_mib"] = resident_mib(self._pid(name))
                found[f"{name}_lag"] = self._worker_lag(name)
            waits = self._waits(sender)
            found |= _percentiles("alert", self._once_told(told, sender.shift))
            found |= self._unwatched()
        found |= _percentiles("view", waits)
        self._until("the rest to be worked off", lambda: not any(map(self._worker_lag, WORKERS)))
        idle = self._cores(self._pids(*SERVERS, *WORKERS), "the platform without events")
        found |= {f"idle_{name}_cores": value for name, value in idle.items()}
        for name in WORKERS:
            self._process(name).stop()
        return found

    def _unwatched(self) -> dict[str, float]:
        """What the workers take without a rule; those with rules go on afterwards."""
        folder = self.settings.home / "unwatched"
        shutil.copytree(self.sources, folder)
        for file in (folder / "feeds").glob("*/*.py"):
            if file.stem in self.city.feeds:
                file.write_text(file.read_text() + UNWATCHED)
        self._restart(folder)
        self._wait(self.lengths.warm_up, "warming up without rules")
        cores = self._cores(self._pids(*SERVERS, *WORKERS), "the platform without rules")
        self._restart(self.sources)
        return {f"unwatched_{name}_cores": value for name, value in cores.items()}

    def _restart(self, sources: Path) -> None:
        """Go on with the workers of a folder of sources."""
        for worker, command in WORKERS.items():
            self._process(worker).stop()
            self._launch(worker, command, sources)
        self._until("the workers to go on", lambda: all(self._worker_lag(name) < GOES_ON for name in WORKERS))

    def _launch(self, worker: str, command: str, sources: Path) -> None:
        more = {**self._environment, "PYTHONPATH": str(sources)}
        self._process(worker).start(Launch((self._python, "-P", "-m", "citystream.cli", command), more))

    def _start(self, worker: str, done: Callable[[], bool]) -> tuple[float, float]:
        """CPU and wall seconds from a worker's start to the first thing that can be seen of it."""
        began = time.monotonic()
        self._launch(worker, WORKERS[worker], self.sources)
        self._until(f"the {worker} to start", done)
        return cpu_seconds(self._pid(worker)), time.monotonic() - began

    def _has_window(self) -> bool:
        return self._ends(aggregate.topic for aggregate in self.city.feeds[FEED].aggregates) > 0

    def _has_row(self) -> bool:
        with self._owner() as owner:
            return bool(owner.execute(f"SELECT count() FROM raw.{FEED}")[0][0])

    def _waits(self, sender: Sender) -> list[float]:
        """Seconds from giving a record to a producer until it was found in its feed's view, ascending."""
        begun, pending, waits = time.monotonic(), list[Marked](), list[float]()
        with self._owner() as owner, self._console.status("from publishing to the view"):
            while (going := time.monotonic() - begun < self.lengths.latency) or pending:
                while going and sender.marked and len(pending) < AT_ONCE:
                    mark = sender.marked.popleft()
                    if time.monotonic() - mark.sent < FRESH_SECONDS:
                        pending.append(mark)
                for mark in [*pending]:
                    if self._is_shown(owner, mark):
                        waits.append(time.monotonic() - mark.sent)
                        pending.remove(mark)
                    elif time.monotonic() - mark.sent > LONGEST_WAIT:
                        raise Unmeasured(f"a record of {mark.feed} is in no view after {LONGEST_WAIT:.0f} s")
                time.sleep(LOOK_EVERY_SECONDS)
        if not waits:
            raise Unmeasured("no record was followed into its view")
        return sorted(waits)

    def _told(self) -> dict[TopicPartition, int]:
        """Where the topic of alerts ends."""
        partitions = [TopicPartition(FEED_NAME, number) for number in self._partitions(FEED_NAME)]
        return dict(self._consumer.end_offsets(partitions))

    def _once_told(self, told: Mapping[TopicPartition, int], shift: float) -> list[float]:
        """``_alert_waits`` in ascending order, once there is an alert."""
        waits: list[float] = []

        def came() -> bool:
            waits.extend(self._alert_waits(told, shift))
            return bool(waits)

        self._until("an alert", came)
        return sorted(waits)

    def _alert_waits(self, told: Mapping[TopicPartition, int], shift: float) -> Iterator[float]:
        """Seconds from when an observation's disorder has passed until the alert that it begins is in its topic.

        It takes those by records of feeds of which each partition has several records a second: of others the next
        record may be long in coming.
        """
        with closing(new_consumer(self.city.cluster)) as consumer:
            consumer.assign(list(told))
            for partition, offset in told.items():
                consumer.seek(partition, offset)
            ends = self._told()
            while any(consumer.position(partition) < end for partition, end in ends.items()):
                for message in (one for found in consumer.poll(timeout_ms=1000).values() for one in found):
                    alert = decode(self.city.catalogue, message.value)
                    feed = self.city.feeds[alert["feed"]]
                    if (alert["series"], alert["msg_type"]) == (feed.name, Kind.ALERT) and (feed.rate or 0) >= OFTEN:
                        passed = alert["sent"].timestamp() + feed.disorder.total_seconds() + shift
                        yield message.timestamp / 1000 - passed

    def _is_shown(self, owner: Any, mark: Marked) -> bool:
        feed = self.city.feeds[mark.feed]
        query = (
            f"SELECT count() FROM city.{feed.name} WHERE {feed.key} = %(key)s "
            f"AND {feed.event_time} = fromUnixTimestamp64Milli(%(ms)s) AND event_id = %(id)s"
        )
        return bool(owner.execute(query, {"key": mark.key, "ms": mark.event_ms, "id": mark.event_id})[0][0])

    def _plain_faust(self, found: dict[str, float]) -> None:
        process = self._process(PLAIN)
        process.start(Launch((self._python, "-P", "-m", "bench.plain_faust", "live"), self._environment))
        topic = [self.city.feeds[FEED].aggregates[0].topic]
        before = self._ends(topic)
        with self._sender():
            self._until("the plain agent to start", lambda: self._ends(topic) > before)
            self._wait(self.lengths.warm_up, "warming up")
            cores = self._cores(self._pids(BROKER, process.name), "a plain Faust agent")
            found |= {"plain_faust_cores": cores[process.name], "plain_faust_broker_cores": cores[BROKER]}
            found["plain_faust_lag"] = self._lag(PLAIN, self.city.feeds)
        process.stop()

    def _kafka_engine(self, found: dict[str, float]) -> None:
        registry = f"http://{LOCALHOST}:{self.settings.registry_port}"
        with self._owner() as owner:
            engine.clear(owner)
            alone = self._cores(self._pids(*SERVERS), "the servers alone", self.lengths.alone)
            found |= {f"alone_{name}_cores": value for name, value in alone.items()}
            for feed in self.city.feeds.values():
                engine.from_now_on(self.city.cluster, feed, f"engine-{feed.name}")
                engine.attach(owner, self.city.cluster, registry, feed, f"engine-{feed.name}")
            with self._sender():
                counted = f"SELECT count() FROM raw.{FEED}"
                self._until("the Kafka engine to start", lambda: owner.execute(counted)[0][0] > 0)
                self._wait(self.lengths.warm_up, "warming up")
                cores = self._cores(self._pids(*SERVERS), "ClickHouse's Kafka engine")
            found["kafka_engine_lag"] = sum(self._lag(f"engine-{name}", [name]) for name in self.city.feeds)
        found["kafka_engine_cores"] = max(0.0, cores[CLICKHOUSE] - alone[CLICKHOUSE])
        found["kafka_engine_broker_cores"] = cores[BROKER]

    def _cores(self, pids: Mapping[str, int], what: str, seconds: float | None = None) -> Mapping[str, float]:
        before, began = {name: cpu_seconds(pid) for name, pid in pids.items()}, time.monotonic()
        self._wait(seconds or self.lengths.measured, what)
        took = time.monotonic() - began
        cores = {name: (cpu_seconds(pid) - before[name]) / took for name, pid in pids.items()}
        said = ", ".join(f"{name} {value:.3f}" for name, value in cores.items())
        print(f"{what}: {said} cores", flush=True)
        return cores

    def _wait(self, seconds: float, what: str) -> None:
        until = time.monotonic() + seconds
        with self._console.status("") as status:
            while (left := until - time.monotonic()) > 0:
                status.update(f"{what}: {left:.0f} s")
                time.sleep(min(left, 1))

    def _until(self, what: str, done: Callable[[], bool]) -> None:
        until = time.monotonic() + PATIENCE
        with self._console.status(f"waiting for {what}"):
            while not done():
                if time.monotonic() > until:
                    raise Unmeasured(f"waited {PATIENCE:.0f} s in vain for {what}")
                time.sleep(LOOK_EVERY_SECONDS)

    def _sender(self) -> Sender:
        command = (self._python, "-P", "-m", "bench.load", "send", str(self.file))
        return Sender(command, self._environment)

    def _process(self, name: str) -> Process:
        return Process(SERVERS.get(name, name), self.settings.home)

    def _pid(self, name: str) -> int:
        running = self._process(name).running()
        if running is None:
            raise Unmeasured(f"the {name} has ended: {self._process(name).last_words()}")
        return running.pid

    def _pids(self, *names: str) -> dict[str, int]:
        return {name: self._pid(name) for name in names}

    def _records(self) -> int:
        return self._ends(self.city.feeds)

    def _ends(self, names: Iterable[str]) -> int:
        """The offsets at the ends of topics together."""
        partitions = [TopicPartition(name, number) for name in names for number in self._partitions(name)]
        return sum(self._consumer.end_offsets(partitions).values())

    def _partitions(self, topic: str) -> Iterable[int]:
        return self._consumer.partitions_for_topic(topic) or ()

    @cached_property
    def _consumer(self) -> KafkaConsumer:
        return new_consumer(self.city.cluster)

    def _worker_lag(self, worker: str) -> int:
        stored = [topic.name for topic in topics.stored(self.city.feeds.values())]
        return self._lag(worker, stored if worker == SINK else self.city.feeds)

    def _lag(self, group: str, names: Iterable[str]) -> int:
        """Records of topics that a group has not committed yet."""
        return sum(partition.records for partition in measure(self.city.cluster, group, names))

    @contextmanager
    def _owner(self) -> Iterator[Any]:
        client = self.city.server("owner").connect()
        try:
            yield client
        finally:
            client.disconnect()


#: The row, in the order it is shown, and what each value is.
ROW = {
    "events_per_second": "records a second",
    "processor_cores": "processor, cores",
    "sink_cores": "sink, cores",
    "clickhouse_cores": "ClickHouse, cores",
    "broker_cores": "broker, cores",
    "plain_faust_cores": "a plain Faust agent for the same windows, cores",
    "kafka_engine_cores": "ClickHouse's Kafka engine for the same tables, cores more than without",
    "idle_processor_cores": "processor without events, cores",
    "idle_sink_cores": "sink without events, cores",
    "view_p50_s": "publish to view, p50 s",
    "view_p99_s": "publish to view, p99 s",
    "alert_p50_s": "passing of an observation's disorder to its alert, p50 s",
    "alert_p99_s": "passing of an observation's disorder to its alert, p99 s",
    "unwatched_processor_cores": "processor without rules, cores",
    "unwatched_sink_cores": "sink without rules, cores",
    "start_cpu_s": "start of a worker until its first result, CPU s",
    "processor_mib": "processor, MiB",
    "sink_mib": "sink, MiB",
}


def ratios(row: Mapping[str, float]) -> dict[str, float]:
    """What the platform takes over what the others take."""
    workers, peers = row["processor_cores"] + row["sink_cores"], row["plain_faust_cores"] + row["kafka_engine_cores"]
    unwatched = row["unwatched_processor_cores"] + row["unwatched_sink_cores"]
    return {
        "processor over a plain Faust agent": round(row["processor_cores"] / row["plain_faust_cores"], 2),
        "processor and sink over a plain Faust agent and the Kafka engine": round(workers / peers, 2),
        "processor and sink with rules over without": round(workers / unwatched, 2),
    }


def _percentiles(what: str, waits: Sequence[float]) -> dict[str, float]:
    """Of seconds in ascending order."""
    return {
        f"{what}_p50_s": statistics.median(waits),
        f"{what}_p99_s": waits[int(len(waits) * 0.99)],
        f"{what}s_seen": len(waits),
    }


def report(found: Mapping[str, Mapping[str, float]]) -> None:
    """Print a row."""
    row, more = found["city"], ratios(found["city"])
    show({"": {**row, **more}}, ROW | {name: name for name in more})
    print(", ".join(f"{name} {value:g}" for name, value in found["city_details"].items()))


def show(rows: Mapping[str, Mapping[str, float]], names: Mapping[str, str]) -> None:
    """Print rows side by side, a column each."""
    table = Table(title=f"the city at its real rate, on {machine()}")
    table.add_column("what")
    for title in rows:
        table.add_column(title, justify="right")
    for name, words in names.items():
        if all(name in row for row in rows.values()):
            table.add_row(words, *(f"{row[name]:g}" for row in rows.values()))
    Console().print(table)


def compare(settings: Settings, other: Path) -> None:
    """Measure the platform of another checkout, then that of this one, and print both."""
    if not (other / ".venv" / "bin" / "python").exists():
        sys.exit(f"{other} is not set up; run make setup in it")
    found = {}
    for title, origin in ("before", other.resolve()), ("after", PROJECT):
        print(f"{title}: {origin}", flush=True)
        found[title] = RealRate(settings, origin=origin).run(peers=False)["city"]
    show(found, ROW)

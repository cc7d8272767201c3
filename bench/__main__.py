"""Measurements on the local stack: python -m bench [ONLY [BEFORE]]

Each contender works off the same topic of a million traffic events in a process of its own, several times; medians
and ratios are printed and written to bench/out/latest.json. The topic is filled at the first run and kept. Then the
city is measured at its real rate (``bench.city``), or that alone. BEFORE is another checkout: then both are measured.
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kafka import KafkaAdminClient
from kafka.errors import GroupIdNotFoundError, NonEmptyGroupError
from rich.console import Console
from rich.table import Table
from tenacity import retry, retry_if_exception_type, stop_after_delay, wait_fixed

from bench import city as real_rate
from bench import compare, engine, latency
from bench.process import FEED, PLAIN, Timing, cpu_seconds, environment, finish, machine, rss_mb, start
from citystream.installation import Installation
from citystream.settings import PROJECT, Settings
from citystream.stack.clickhouse import NAME as CLICKHOUSE
from citystream.stack.process import Launch, Process
from citystream.stack.stack import Stack
from streams import checkpoints
from streams.clients import new_admin
from streams.lag import measure

EVENTS = 1_000_000
PLAIN_EVENTS = 50_000
REPEATS = 3
PROBES = 40
HOME = PROJECT / ".citystream" / "bench"
LIVE_HOME = PROJECT / ".citystream" / "bench-live"
CITY_HOME = PROJECT / ".citystream" / "bench-city"
OUT = Path(__file__).parent / "out" / "latest.json"


@dataclass
class Bench:
    """The installation measured, and what was measured so far."""

    city: Installation
    timings: dict[str, list[tuple[int, Timing]]] = field(default_factory=dict)

    @property
    def environment(self) -> Mapping[str, str]:
        """For children: this installation's settings."""
        return environment(self.city.settings)

    @property
    def clickhouse_pid(self) -> int:
        """Process id of the local ClickHouse."""
        running = Process(CLICKHOUSE, self.city.settings.home).running()
        assert running is not None
        return running.pid

    def owner(self) -> Any:
        """ClickHouse as its owner."""
        return self.city.server("owner").connect()

    def fill(self) -> None:
        """Publish the events, unless they are there."""
        there = sum(p.end for p in measure(self.city.cluster, "none", [FEED]))
        if there == EVENTS:
            return
        if there:
            sys.exit(f"{FEED} holds {there} events instead of {EVENTS}; remove {self.city.settings.home} and try again")
        process = Process("filler", self.city.settings.home)
        command = (sys.executable, "-m", "citystream.cli", "simulate", FEED, "--rate", "flat-out", "--seed", "1",
                   "--events", str(EVENTS), "--start", "2026-03-02T06:00:00+08:00")  # fmt: skip
        process.start(Launch(command, self.environment))
        with Console().status("") as status:
            while process.running():
                status.update(f"filling the topic: {sum(p.end for p in measure(self.city.cluster, 'none', [FEED])):,}")

    def fresh(self) -> None:
        """Forget every result and position; keep the feed's topic."""
        names = [checkpoints.TOPIC, *(a.topic for a in self.city.feeds[FEED].aggregates)]
        with closing(new_admin(self.city.cluster)) as admin:
            for group in ("processor", "sink", PLAIN):
                _delete_group(admin, group)
            admin.delete_topics([n for n in names if n in admin.list_topics()])
        owner = self.owner()
        for database in ("city", "raw"):
            owner.execute(f"DROP DATABASE IF EXISTS {database} SYNC")
        self.city.prepare(lambda _: None)

    def note(self, name: str, events: int, timing: Timing) -> None:
        """Keep a measurement and say it."""
        self.timings.setdefault(name, []).append((events, timing))
        seconds = timing.ended - timing.began
        print(f"{name}: {events / seconds:,.0f} events/s, {timing.cpu_seconds:.2f} CPU s", flush=True)


@retry(retry=retry_if_exception_type(NonEmptyGroupError), wait=wait_fixed(1), stop=stop_after_delay(60), reraise=True)
def _delete_group(admin: KafkaAdminClient, group: str) -> None:
    (answer,) = admin.delete_groups([group]).values()
    if answer == NonEmptyGroupError.__name__:
        raise NonEmptyGroupError(group)
    if answer not in ("OK", GroupIdNotFoundError.__name__):
        raise RuntimeError(f"group {group}: {answer}")


def processors(bench: Bench, workers: int) -> None:
    """The processor alone, or several of them."""
    bench.fresh()
    children = [start("bench.child", "processor", str(workers), environment=bench.environment) for _ in range(workers)]
    found = [finish(child) for child in children]
    bench.note(f"processor x{workers}", EVENTS, _together(found, 0.0))


def end_to_end(bench: Bench) -> None:
    """Processor and sink until windows and raw rows are in ClickHouse; CPU of both and of ClickHouse."""
    bench.fresh()
    pid = bench.clickhouse_pid
    before = cpu_seconds(pid)
    children = [start("bench.child", role, "1", environment=bench.environment) for role in ("processor", "sink")]
    found = [finish(child) for child in children]
    bench.note("end to end", EVENTS, _together(found, cpu_seconds(pid) - before))


def _together(found: list[Timing], more_cpu: float) -> Timing:
    return Timing(
        min(t.began for t in found),
        max(t.ended for t in found),
        sum(t.cpu_seconds for t in found) + more_cpu,
        max(t.peak_rss_mb for t in found),
    )


def plain_faust(bench: Bench) -> None:
    """A plain Faust agent, on the first events only: it is slow."""
    bench.fresh()
    timing = finish(start("bench.plain_faust", str(PLAIN_EVENTS), environment=bench.environment))
    bench.note("plain Faust agent", PLAIN_EVENTS, timing)


def kafka_engine(bench: Bench, *, raw_rows: bool) -> None:
    """ClickHouse's Kafka engine."""
    bench.fresh()
    registry = f"http://127.0.0.1:{bench.city.settings.registry_port}"
    owner, feed = bench.owner(), bench.city.feeds[FEED]
    timing = engine.run(owner, bench.clickhouse_pid, bench.city.cluster, registry, feed, EVENTS, raw_rows=raw_rows)
    bench.note("Kafka engine, windows and rows" if raw_rows else "Kafka engine, windows only", EVENTS, timing)


def latencies() -> dict[str, float]:
    """Latency at the real rate, in seconds, with the memory of the live workers in MiB; on a stack of its own."""
    settings = _settings(LIVE_HOME)
    shutil.rmtree(settings.home, ignore_errors=True)
    city, stack = Installation(settings), Stack(settings)
    stack.up(print)
    words = {"processor": ("process",), "sink": ("sink",), "simulator": ("simulate", FEED, "--rate", "1")}
    children = {name: Process(f"live-{name}", settings.home) for name in words}
    try:
        city.prepare(print)
        for name, process in children.items():
            process.start(Launch((sys.executable, "-m", "citystream.cli", *words[name]), Bench(city).environment))
        waits = latency.probe(city, PROBES)
        memory = {f"live {n}, peak MiB": rss_mb(r.pid) for n, p in children.items() if (r := p.running()) is not None}
    finally:
        for process in children.values():
            process.stop()
        stack.down(print)
    return {
        "publish to view, p50 s": round(statistics.median(waits), 3),
        "publish to view, p99 s": round(waits[int(len(waits) * 0.99)], 3),
        **memory,
    }


def summary(bench: Bench, live: dict[str, float]) -> dict[str, Any]:
    """Medians and ratios."""
    rows: list[dict[str, Any]] = []
    for name, found in bench.timings.items():
        events = found[0][0]
        rows.append(
            {
                "name": name,
                "events": events,
                "events_per_second": round(statistics.median(events / (t.ended - t.began) for _, t in found)),
                "cpu_seconds": round(statistics.median(t.cpu_seconds for _, t in found), 2),
                "peak_rss_mb": round(statistics.median(t.peak_rss_mb for _, t in found)),
            }
        )
    by_name = {row["name"]: row for row in rows}

    def speed(name: str) -> float:
        return float(by_name[name]["events_per_second"])

    def per_cpu(name: str) -> float:
        return float(by_name[name]["events"]) / float(by_name[name]["cpu_seconds"])

    ratios = {
        "processor over plain Faust agent": speed("processor x1") / speed("plain Faust agent"),
        "processor over Kafka engine, windows only": speed("processor x1") / speed("Kafka engine, windows only"),
        "end to end over Kafka engine": speed("end to end") / speed("Kafka engine, windows and rows"),
        "end to end over Kafka engine, per CPU second": per_cpu("end to end")
        / per_cpu("Kafka engine, windows and rows"),
        "two processors over one": speed("processor x2") / speed("processor x1"),
    }
    return {
        "machine": machine(),
        "measurements": rows,
        "ratios": {name: round(ratio, 2) for name, ratio in ratios.items()},
        "live": live,
    }


def report(found: dict[str, Any]) -> None:
    """Print a summary."""
    table = Table(title=found["machine"])
    for title in ("what", "events", "events/s", "CPU s", "peak MiB"):
        table.add_column(title, justify="left" if title == "what" else "right")
    for row in found["measurements"]:
        table.add_row(row["name"], f"{row['events']:,}", f"{row['events_per_second']:,}", f"{row['cpu_seconds']:.2f}",
                      str(row["peak_rss_mb"]))  # fmt: skip
    console = Console()
    console.print(table)
    for name, value in {**found["ratios"], **found["live"]}.items():
        console.print(f"{name}: {value}")


def keep(found: dict[str, Any]) -> None:
    """Write what was measured beside what was measured before."""
    before = json.loads(OUT.read_text()) if OUT.exists() else {}
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps({**before, **found}, indent=2) + "\n")


def _settings(home: Path) -> Settings:
    return Settings(home=home, kafka_port=29192, clickhouse_port=29190, clickhouse_http_port=29123, registry_port=29181)


def backlogs() -> dict[str, Any]:
    """Every contender on the topic, and the latency of one feed."""
    settings = _settings(HOME)
    bench, stack = Bench(Installation(settings)), Stack(settings)
    stack.up(print)
    try:
        bench.city.prepare(print)
        bench.fill()
        contenders: list[Callable[[], None]] = [
            lambda: processors(bench, 1),
            lambda: processors(bench, 2),
            lambda: end_to_end(bench),
            lambda: plain_faust(bench),
            lambda: kafka_engine(bench, raw_rows=False),
            lambda: kafka_engine(bench, raw_rows=True),
        ]
        for _ in range(REPEATS):
            for contender in contenders:
                contender()
    finally:
        stack.down(print)
    return summary(bench, latencies())


def main(only: str, before: str) -> None:
    """Measure everything, or the city at its real rate alone; or another checkout before and this one."""
    if only not in ("", "city"):
        sys.exit(f"ONLY={only}: there is ONLY=city; without it all is measured")
    try:
        if before and only:
            real_rate.compare(_settings(CITY_HOME), Path(before))
        elif before:
            compare.main(before)
        else:
            if not only:
                found = backlogs()
                report(found)
                keep(found)
            row = real_rate.RealRate(_settings(CITY_HOME)).run()
            real_rate.report(row)
            keep({"machine": machine(), **row})
    except real_rate.Unmeasured as why:
        sys.exit(f"the city cannot be measured: {why}")


if __name__ == "__main__":
    main(*(*sys.argv[1:], "", "")[:2])

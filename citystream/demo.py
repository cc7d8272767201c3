"""The whole platform on simulated feeds, watched on a terminal until it is ended."""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from random import SystemRandom
from types import FrameType

from rich.console import Console, ConsoleDimensions
from rich.live import Live

from citystream.installation import Installation
from citystream.monitor import Monitor, Snapshot, render
from citystream.settings import variable
from citystream.stack.process import Launch, Process, StackError
from citystream.stack.stack import Stack, State
from processors import GROUP as PROCESSOR
from schemas.feed import milliseconds
from sinks import GROUP as SINK
from sinks.ledger import Account, accounts
from sinks.queries import newest_event_ms
from streams import topics
from streams.lag import measure

REFRESH_SECONDS = 1.0
DRAIN_SECONDS = 60
#: History simulated before the first live event, so that there are closed windows to see at once.
HEAD_START = timedelta(minutes=20)
CLOCK = "clock"
RATE = 120


@dataclass
class Crew:
    """The workers and simulators of the demo, started again when one ends by itself; they end with it.

    ``ended`` keeps the last words of each that did, one for each time. The clock begins when all simulators have come
    to the present: history would be late.
    """

    city: Installation
    ended: dict[str, list[str]] = field(default_factory=dict)
    live: bool = False

    def _launch(self, name: str) -> Launch:
        if name == CLOCK:
            words, needed = [CLOCK], "kafka_password"
        elif name in self.workers:
            words = ["process" if name == "processor" else name, "--instance", f"demo-{name}"]
            needed = f"{name}_password"
        else:
            feed = self.city.feeds[name.removeprefix("simulator-")]
            words, needed = ["simulate", feed.name, "--rate", str(RATE), *self._world], "pseudonym_key"
        given = {name: os.environ[name] for name in map(variable, (needed, "kafka_password")) if name in os.environ}
        return Launch((sys.executable, "-m", "citystream.stack.tethered", str(os.getpid()), *words), given)

    @property
    def workers(self) -> list[str]:
        """Names of the workers."""
        return ["processor", "sink"]

    @property
    def simulators(self) -> list[str]:
        """Names of the simulators."""
        return [f"simulator-{name}" for name, feed in self.city.feeds.items() if feed.is_source]

    def start(self, names: list[str]) -> None:
        """Start those that do not run."""
        for name in names:
            process = Process(name, self.city.settings.home)
            if process.running() is None:
                process.start(self._launch(name))

    def watch(self) -> None:
        """Start again what ended by itself, and remember it."""
        if not self.live and self._has_caught_up():
            self.live = True
            self.start([CLOCK])
        for name in [*self.workers, *self.simulators, *([CLOCK] if self.live else [])]:
            process = Process(name, self.city.settings.home)
            process.bound_log()
            if process.running() is None:
                self.ended.setdefault(name, []).append(process.last_words())
                self.start([name])

    def stop(self, names: list[str]) -> None:
        """End those that run."""
        for name in names:
            Process(name, self.city.settings.home).stop()

    def _has_caught_up(self) -> bool:
        """Whether what is stored of every feed that asks for ticks is of the present."""
        now_ms = time.time_ns() // 1_000_000
        asking = [(feed, feed.delay) for feed in self.city.feeds.values() if feed.delay is not None]
        with self.city.server("operator").connect() as client:
            newest = [(newest_event_ms(client, feed), delay) for feed, delay in asking]
        return bool(asking) and all(ms is not None and now_ms - milliseconds(delay) <= ms for ms, delay in newest)

    @cached_property
    def _world(self) -> list[str]:
        """The world that all simulators tell of, as words of their commands.

        It begins after the newest event that is stored, at most ``HEAD_START`` ago.
        """
        with self.city.server("operator").connect() as client:
            newest = [newest_event_ms(client, feed) for feed in self.city.feeds.values() if feed.is_source]
        stored = [datetime.fromtimestamp(ms / 1000, UTC) + timedelta(seconds=1) for ms in newest if ms is not None]
        start = max([datetime.now(UTC) - HEAD_START, *stored])
        return ["--seed", str(SystemRandom().randrange(2**32)), "--start", start.isoformat(), "--incidents", "all"]


def run(city: Installation, seconds: float | None, say: Callable[[str], None]) -> bool:
    """Run the demo for some seconds or until Ctrl-C; true if events arrived, lag drained and the ledger balances.

    Told to end, by SIGTERM or a closed terminal, it ends all at once.

    Raises
    ------
    StackError
        Another demo runs here.
    """
    with _alone(city.settings.home), _ended_by_signals():
        return _run(city, seconds, say)


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    """Two demos would start again what the other one ends."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (home / "demo.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StackError(
                f"a demo runs in {home} already: end it, or set CITYSTREAM_HOME and the ports of another one"
            ) from None
        yield


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    numbers = (signal.SIGTERM, signal.SIGHUP)

    def end(number: int, _frame: FrameType | None) -> None:
        for one in numbers:
            signal.signal(one, signal.SIG_IGN)
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run(city: Installation, seconds: float | None, say: Callable[[str], None]) -> bool:
    stack, crew = Stack(city.settings), Crew(city)
    was_up = all(service.state is State.UP for service in stack.status())
    try:
        stack.up(say)
        city.prepare(say)
        crew.stop([CLOCK, *crew.workers, *crew.simulators])
        crew.start([*crew.workers, *crew.simulators])
        say("simulators, processor and sink are starting; Ctrl-C ends all and keeps the data")
        with closing(Monitor(city)) as monitor:
            _watch(crew, monitor, seconds)
        say("\nending: the simulators first, then what is still on its way")
        crew.stop([CLOCK, *crew.simulators])
        drained = _drain(city, say)
        with city.server("operator").connect() as client:
            found = accounts(client, city.feeds, measure(city.cluster, SINK, city.feed_topics))
    finally:
        crew.stop([CLOCK, *crew.workers, *crew.simulators])
        if was_up:
            say("the stack was up before and stays up; to end it: citystream down")
        else:
            stack.down(say)
    return _summary(found, drained, say)


def _watch(crew: Crew, monitor: Monitor, seconds: float | None) -> None:
    began = time.monotonic()
    with suppress(KeyboardInterrupt), Live(console=Console(), refresh_per_second=4, transient=False) as live:
        while seconds is None or time.monotonic() - began < seconds:
            crew.watch()
            snapshot = monitor.take(time.time_ns() // 1_000_000)
            fit(live.console)
            live.update(render(snapshot, _note(crew, time.monotonic() - began, seconds, snapshot)))
            time.sleep(REFRESH_SECONDS)


def fit(console: Console) -> None:
    """Take the size the terminal has now: rich believes COLUMNS, which is what it had when a shell exported it."""
    with suppress(OSError):
        console.size = ConsoleDimensions(*os.get_terminal_size())


def _note(crew: Crew, elapsed: float, seconds: float | None, snapshot: Snapshot) -> str:
    total = sum(feed.per_second for feed in snapshot.feeds)
    left = "Ctrl-C ends it" if seconds is None else f"{max(0, seconds - elapsed):.0f} s left"
    again = "".join(
        f"\n{name} ended {len(words)} times by itself and was started again; it said: {words[-1] or 'nothing'}"
        for name, words in crew.ended.items()
    )
    return f"{total:,.0f} records/s in all; {elapsed:.0f} s; {left}{again}"


def _drain(city: Installation, say: Callable[[str], None]) -> bool:
    """Wait until both workers have nothing left to do."""
    processed = city.processed_topics
    stored = [topic.name for topic in topics.stored(city.feeds.values())]
    until = time.monotonic() + DRAIN_SECONDS
    quiet = 0
    while time.monotonic() < until:
        behind = sum(p.records for p in measure(city.cluster, PROCESSOR, processed))
        behind += sum(p.records for p in measure(city.cluster, SINK, stored))
        quiet = quiet + 1 if behind == 0 else 0
        if quiet == 2:
            return True
        if behind:
            say(f"waiting for {behind:,} records to be stored")
        time.sleep(REFRESH_SECONDS)
    return False


def _summary(found: list[Account], drained: bool, say: Callable[[str], None]) -> bool:
    for account in found:
        say(
            f"{account.feed}: published {account.published:,} = stored {account.stored:,} + duplicate "
            f"{account.duplicate:,} + withdrawn {account.withdrawn:,} "
            f"+ quarantined {account.quarantined:,} + control {account.control:,} "
            f"+ on its way {account.on_its_way:,} + lost {account.lost:,} + missing {account.missing:,}"
        )
    arrived = any(account.stored for account in found)
    say(f"events arrived: {_yes(arrived)}; lag drained: {_yes(drained)}; ledger balances: "
        f"{_yes(all(account.balances for account in found))}")  # fmt: skip
    return arrived and drained and all(account.balances for account in found)


def _yes(value: bool) -> str:
    return "yes" if value else "NO"

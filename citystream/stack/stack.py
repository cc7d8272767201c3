"""The local stack as a whole: up, down, status."""

from __future__ import annotations

import fcntl
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from functools import partial

from citystream.secrets import load_secrets, make_secrets
from citystream.settings import LOCALHOST, Settings
from citystream.stack import clickhouse, kafka, registry
from citystream.stack.ports import explain, still_busy
from citystream.stack.process import Launch, Process, StackError


class State(StrEnum):
    """UP: it answers. UNRESPONSIVE: it runs here and does not. DOWN: it does not run. UNREACHABLE: it is elsewhere."""

    UP = "up"
    UNRESPONSIVE = "unresponsive"
    DOWN = "down"
    UNREACHABLE = "unreachable"


@dataclass(frozen=True)
class ProcessStatus:
    """One service of the stack, or a worker with what it ``reads``.

    ``pid`` and ``uptime`` (seconds) are known for local services only.
    """

    name: str
    state: State
    address: str
    pid: int | None = None
    uptime: float | None = None
    reads: str | None = None


@dataclass(frozen=True)
class _Service:
    """A program of the stack; ``ports`` are the settings of those it listens on, that of its address first."""

    name: str
    ports: tuple[str, ...]
    launch: Callable[[Settings], Launch]
    ready: Callable[[Settings], bool]
    prepare: Callable[[Settings], None] = lambda _: None


SERVICES = (
    _Service(kafka.NAME, ("kafka_port",), kafka.launch, kafka.ready, kafka.prepare),
    _Service(
        clickhouse.NAME,
        ("clickhouse_port", "clickhouse_http_port"),
        lambda settings: clickhouse.launch(settings, load_secrets(settings)),
        clickhouse.ready,
        clickhouse.prepare,
    ),
    _Service(registry.NAME, ("registry_port",), registry.launch, registry.ready),
)


class Stack:
    """Kafka and ClickHouse on this machine, except those that the settings place elsewhere, and the registry."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def up(self, report: Callable[[str], None]) -> None:
        """Start what does not run yet and wait until it answers; ``StackError`` says what is in the way."""
        with self._locked():
            if self.settings.clickhouse_host is None:
                make_secrets(self.settings)
            waiting: dict[_Service, bool] = {}
            for service in self._here():
                found = self._process(service).running()
                if found and found.fingerprint != service.launch(self.settings).fingerprint:
                    raise StackError(f"{service.name} runs with other settings: citystream down first")
                if found and service.ready(self.settings):
                    report(f"{service.name} is already up at {self._address(service)}")
                else:
                    waiting[service] = found is not None
            ports = self.settings.ports()
            wanted = {name: ports[name] for service, runs in waiting.items() if not runs for name in service.ports}
            if taken := still_busy(wanted):
                raise StackError(explain(taken))
            with ThreadPoolExecutor(max_workers=3) as pool:
                list(pool.map(partial(self._start, report), waiting, waiting.values()))

    def down(self, report: Callable[[str], None] = lambda _: None) -> None:
        """End what runs here, also workers and simulators that a demo left; the data stay."""
        services = [self._process(service) for service in self._here()]
        with self._locked(), ThreadPoolExecutor(max_workers=8) as pool:
            noted = [Process(path.stem, self.settings.home) for path in self.settings.home.glob("run/*.json")]
            left = [process for process in noted if process not in services and process.running()]
            for line in [*pool.map(_stop, left), *pool.map(_stop, services)]:
                report(line)

    def status(self) -> list[ProcessStatus]:
        """What runs, where, since when."""
        here = self._here()
        return [self._local_status(one) if one in here else self._remote_status(one) for one in SERVICES]

    def _here(self) -> list[_Service]:
        """Those that run on this machine."""
        return [service for service in SERVICES if service.ports[0] in self.settings.ports()]

    def _process(self, service: _Service) -> Process:
        return Process(service.name, self.settings.home)

    def _address(self, service: _Service) -> str:
        if service.name == kafka.NAME:
            return self.settings.cluster.servers[0]
        host = self.settings.clickhouse_hosts[0] if service.name == clickhouse.NAME else LOCALHOST
        return f"{host}:{getattr(self.settings, service.ports[0])}"

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Let one command at a time change the stack of one home."""
        self.settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self.settings.home / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _start(self, report: Callable[[str], None], service: _Service, runs: bool) -> None:
        begin, process = time.monotonic(), self._process(service)
        if not runs:
            service.prepare(self.settings)
            process.start(service.launch(self.settings))
        process.wait_until(lambda: service.ready(self.settings))
        report(f"{service.name} is up at {self._address(service)} ({time.monotonic() - begin:.1f} s)")

    def _local_status(self, service: _Service) -> ProcessStatus:
        found, address = self._process(service).running(), self._address(service)
        if found is None:
            return ProcessStatus(service.name, State.DOWN, address)
        state = State.UP if service.ready(self.settings) else State.UNRESPONSIVE
        return ProcessStatus(service.name, state, address, found.pid, found.uptime)

    def _remote_status(self, service: _Service) -> ProcessStatus:
        address = self._address(service)
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=3).close()
        except OSError:
            return ProcessStatus(service.name, State.UNREACHABLE, address)
        return ProcessStatus(service.name, State.UP, address)


def _stop(process: Process) -> str:
    return f"{process.name} is down" if process.stop() else f"{process.name} was not running"

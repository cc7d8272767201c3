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

from citystream.secrets import load_secrets, make_secrets
from citystream.settings import LOCALHOST, Settings
from citystream.stack import clickhouse, kafka, registry
from citystream.stack.ports import explain, still_busy
from citystream.stack.process import Launch, Process, StackError

CLICKHOUSE_PORTS = ("clickhouse_port", "clickhouse_http_port")


class State(StrEnum):
    """UP: it answers. UNRESPONSIVE: it runs here and does not. DOWN: it does not run. UNREACHABLE: it is elsewhere."""

    UP = "up"
    UNRESPONSIVE = "unresponsive"
    DOWN = "down"
    UNREACHABLE = "unreachable"


@dataclass(frozen=True)
class Status:
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
    name: str
    address: str
    ports: tuple[str, ...]
    process: Process
    launch: Callable[[], Launch]
    prepare: Callable[[], None]
    ready: Callable[[], bool]


class Stack:
    """Kafka and ClickHouse on this machine, except those that the settings place elsewhere, and the registry."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def up(self, report: Callable[[str], None]) -> None:
        """Start what does not run yet and wait until it answers; ``StackError`` says what is in the way."""
        with self._locked():
            if self.settings.clickhouse_host is None:
                make_secrets(self.settings)
            waiting = []
            for service in self._services():
                found = service.process.running()
                if found and found.fingerprint != service.launch().fingerprint:
                    raise StackError(f"{service.name} runs with other settings: citystream down first")
                if found and service.ready():
                    report(f"{service.name} is already up at {service.address}")
                else:
                    waiting.append((service, found is not None))
            taken = still_busy(self._ports([service for service, running in waiting if not running]))
            if taken:
                raise StackError(explain(taken))
            with ThreadPoolExecutor(max_workers=3) as pool:
                for _ in pool.map(lambda one: _start(one[0], one[1], report), waiting):
                    pass

    def down(self, report: Callable[[str], None] = lambda _: None) -> None:
        """End what runs here, also workers and simulators that a demo left; the data stay."""
        services = [service.process for service in self._services()]
        with self._locked(), ThreadPoolExecutor(max_workers=8) as pool:
            noted = [Process(path.stem, self.settings.home) for path in self.settings.home.glob("run/*.json")]
            left = [process for process in noted if process not in services and process.running()]
            for line in [*pool.map(_stop, left), *pool.map(_stop, services)]:
                report(line)

    def status(self) -> list[Status]:
        """What runs, where, since when."""
        local = {service.name: _local_status(service) for service in self._services()}
        addresses = {
            kafka.NAME: self.settings.cluster.servers[0],
            clickhouse.NAME: f"{self.settings.clickhouse_hosts[0]}:{self.settings.clickhouse_port}",
            registry.NAME: f"{LOCALHOST}:{self.settings.registry_port}",
        }
        return [local.get(name) or _remote_status(name, address) for name, address in addresses.items()]

    def _services(self) -> list[_Service]:
        settings, services = self.settings, []
        if settings.kafka_bootstrap is None:
            services.append(
                _Service(
                    kafka.NAME,
                    str(settings.cluster),
                    ("kafka_port",),
                    Process(kafka.NAME, settings.home),
                    lambda: kafka.launch(settings),
                    lambda: kafka.prepare(settings),
                    lambda: kafka.ready(settings),
                )
            )
        if settings.clickhouse_host is None:
            services.append(
                _Service(
                    clickhouse.NAME,
                    f"{LOCALHOST}:{settings.clickhouse_port}",
                    CLICKHOUSE_PORTS,
                    Process(clickhouse.NAME, settings.home),
                    lambda: clickhouse.launch(settings, load_secrets(settings)),
                    lambda: clickhouse.prepare(settings),
                    lambda: clickhouse.ready(settings),
                )
            )
        services.append(
            _Service(
                registry.NAME,
                f"{LOCALHOST}:{settings.registry_port}",
                ("registry_port",),
                Process(registry.NAME, settings.home),
                lambda: registry.launch(settings),
                lambda: None,
                lambda: registry.ready(settings),
            )
        )
        return services

    def _ports(self, services: list[_Service]) -> dict[str, int]:
        ports = self.settings.ports()
        return {name: ports[name] for service in services for name in service.ports}

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Let one command at a time change the stack of one home."""
        self.settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self.settings.home / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _start(service: _Service, running: bool, report: Callable[[str], None]) -> None:
    begin = time.monotonic()
    if not running:
        service.prepare()
        service.process.start(service.launch())
    service.process.wait_until(service.ready)
    report(f"{service.name} is up at {service.address} ({time.monotonic() - begin:.1f} s)")


def _stop(process: Process) -> str:
    return f"{process.name} is down" if process.stop() else f"{process.name} was not running"


def _local_status(service: _Service) -> Status:
    found = service.process.running()
    if found is None:
        return Status(service.name, State.DOWN, service.address)
    state = State.UP if service.ready() else State.UNRESPONSIVE
    return Status(service.name, state, service.address, found.pid, found.uptime)


def _remote_status(name: str, address: str) -> Status:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=3).close()
    except OSError:
        return Status(name, State.UNREACHABLE, address)
    return Status(name, State.UP, address)

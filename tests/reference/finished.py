"""Windows that are final: what an analyst has read of them may get more by late events, and never less."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from clickhouse_driver import Client
from clickhouse_driver.errors import Error

from schemas.feed import Aggregate
from sinks.clickhouse import Server

#: Seconds between two looks.
PAUSE = 2.0


@dataclass
class Finished:
    """The windows of some aggregates that were final at a look, with their events; of all keys one in ``share``."""

    aggregates: Iterable[Aggregate]
    share: int = 1
    worse: list[str] = field(default_factory=list)
    _seen: dict[str, dict[tuple[Any, ...], int]] = field(default_factory=dict)

    @property
    def windows(self) -> int:
        """How many were final."""
        return sum(map(len, self._seen.values()))

    def look(self, client: Client) -> None:
        """Ask every view, and note in ``worse`` what is less than it was."""
        for aggregate in self.aggregates:
            self.compare(aggregate.name, client.execute(self._query(aggregate)))

    def compare(self, name: str, rows: Iterable[tuple[Any, ...]]) -> None:
        """Hold the windows of a view (keys, events, final) to what was seen before."""
        seen = self._seen.setdefault(name, {})
        now = {tuple(key): (events, final) for *key, events, final in rows}
        for key, before in seen.items():
            events, final = now.get(key, (0, False))
            if not final or events < before:
                self.worse.append(f"{name} {key}: final with {before} events, then {events}, final: {bool(final)}")
        seen.update({key: events for key, (events, final) in now.items() if final})

    def _query(self, aggregate: Aggregate) -> str:
        key = ", ".join([*aggregate.by, "toUnixTimestamp64Milli(window_start)"])
        return f"SELECT {key}, events, final FROM city.{aggregate.name} WHERE cityHash64({key}) % {self.share} = 0"


@contextmanager
def watched(server: Server, aggregates: Iterable[Aggregate], share: int = 1) -> Iterator[Finished]:
    """Look again and again meanwhile; a server that is away is asked again."""
    finished, ended = Finished(list(aggregates), share), threading.Event()

    def watch() -> None:
        while not ended.wait(PAUSE):
            try:
                with _connected(server) as client:
                    finished.look(client)
            except (Error, EOFError, OSError):
                continue

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    try:
        yield finished
    finally:
        ended.set()
        watching.join()


@contextmanager
def _connected(server: Server) -> Iterator[Client]:
    """A connection for one look."""
    client = server.connect()
    try:
        yield client
    finally:
        client.disconnect()

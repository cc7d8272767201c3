"""Windows that are final: what an analyst has read of them may get more by late events, and nothing else."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
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
    """The windows of some aggregates that were final at a look, with their events and measures, and the number of looks
    that were answered; of all keys one in ``share``."""

    aggregates: Iterable[Aggregate]
    share: int = 1
    looks: int = 0
    worse: list[str] = field(default_factory=list)
    _seen: dict[str, dict[tuple[Any, ...], tuple[int, str]]] = field(default_factory=dict)

    @property
    def windows(self) -> int:
        """How many were final."""
        return sum(map(len, self._seen.values()))

    def look(self, client: Client) -> None:
        """Ask every view, and note in ``worse`` what is less than it was."""
        for aggregate in self.aggregates:
            self.compare(aggregate.name, client.execute(self._query(aggregate)))
        self.looks += 1

    def compare(self, name: str, rows: Iterable[tuple[Any, ...]]) -> None:
        """Hold the windows of a view (keys, events, final, measures) to what was seen before."""
        seen = self._seen.setdefault(name, {})
        now = {tuple(key): (events, final, measures) for *key, events, final, measures in rows}
        for key, (before, measured) in seen.items():
            events, final, measures = now.get(key, (0, False, ""))
            if not final or events < before:
                self.worse.append(f"{name} {key}: final with {before} events, then {events}, final: {bool(final)}")
            elif events == before and measures != measured:
                self.worse.append(f"{name} {key}: final with {measured}, then {measures} of the same {events} events")
        seen.update({key: (events, measures) for key, (events, final, measures) in now.items() if final})

    def _query(self, aggregate: Aggregate) -> str:
        key = ", ".join([*aggregate.by, "toUnixTimestamp64Milli(window_start)"])
        measures = ", ".join(result.name for measure in aggregate.measures for result in measure.results)
        return (
            f"SELECT {key}, events, final, toString(tuple({measures})) FROM city.{aggregate.name} "
            f"WHERE cityHash64({key}) % {self.share} = 0"
        )


@contextmanager
def watched(server: Server, aggregates: Iterable[Aggregate], share: int = 1) -> Iterator[Finished]:
    """Look again and again meanwhile, and once at the end; a server that is away is asked again."""
    finished, ended = Finished(list(aggregates), share), threading.Event()

    def watch() -> None:
        while not ended.wait(PAUSE):
            try:
                with _connected(server) as client:
                    finished.look(client)
            except (Error, EOFError, OSError):
                continue

    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(watch)
        try:
            yield finished
        finally:
            ended.set()
        watching.result()
    with _connected(server) as client:
        finished.look(client)


@contextmanager
def _connected(server: Server) -> Iterator[Client]:
    """A connection for one look."""
    client = server.connect()
    try:
        yield client
    finally:
        client.disconnect()

"""The sink: a Faust worker that moves topics into ClickHouse."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta

import polars as pl
from faust.types import TP

from schemas.catalogue import Catalogue
from schemas.feed import Feed
from sinks.clickhouse import Server, Writer
from sinks.lanes import Lane, lanes
from streams.positions import LogGap, Position
from streams.transport import Run
from streams.worker import BatchApp, run

log = logging.getLogger("citystream")

GROUP = "sink"
FLUSH_EVERY = timedelta(seconds=1)
#: Rows waiting for ClickHouse, over all tables; beyond it reading waits.
MAX_WAITING = 400_000


@dataclass
class _Waiting:
    """Rows of one table, and where each of their partitions stands behind them."""

    frames: list[pl.DataFrame] = field(default_factory=list)
    positions: dict[TP, tuple[Position, Position]] = field(default_factory=dict)


class Sink:
    """Collects rows and inserts them about once a second, a block a table; commits after the acknowledgement."""

    def __init__(self, app: BatchApp, ways: list[Lane], writer: Writer) -> None:
        self._app = app
        self._lanes = {lane.topic: lane for lane in ways}
        self._writer = writer
        self._read: dict[TP, tuple[Position, Position]] = {}
        self._waiting: dict[str, _Waiting] = {}
        self._rows = 0
        self._flushing = asyncio.Lock()
        for lane in ways:
            app.each_run(lane.topic, self.take)
        app.every(FLUSH_EVERY, self.flush)

    async def take(self, tp: TP, run: Run) -> None:
        """Read a run and let its rows wait for the next flush."""
        start = self._app.batch_consumer.resumed[tp]
        known = self._read.get(tp)
        position = known[1] if known is not None and known[0] is start else start
        if run.start > position.processed:
            raise LogGap(f"{tp.topic}/{tp.partition}: offsets {position.processed} to {run.start - 1} are missing")
        if run.next <= position.processed:
            return
        lane = self._lanes[tp.topic]
        rows, newest = await asyncio.to_thread(lane.read, run, position.processed, position.max_event_ms)
        position = replace(position, processed=run.next, rewind=run.next, max_event_ms=newest, max_processed_ms=newest)
        self._read[tp] = (start, position)
        waiting = self._waiting.setdefault(tp.topic, _Waiting())
        waiting.frames.append(rows)
        waiting.positions[tp] = (start, position)
        self._rows += rows.height
        if self._rows >= MAX_WAITING:
            await self.flush()

    async def flush(self) -> None:
        """Insert what waits, wait for the acknowledgement, then let the positions be committed."""
        async with self._flushing:
            taken, self._waiting, self._rows = self._waiting, {}, 0
            for topic, waiting in taken.items():
                lane = self._lanes[topic]
                rows = pl.concat(waiting.frames)
                if rows.height:
                    await asyncio.to_thread(self._writer.insert, lane.table, lane.columns, rows)
                consumer = self._app.batch_consumer
                for tp, (start, position) in waiting.positions.items():
                    if consumer.resumed.get(tp) is start:
                        consumer.flushed[tp] = position


def main(
    feeds: Mapping[str, Feed],
    catalogue: Catalogue,
    bootstrap: str,
    server: Server,
    timezone: str,
    instance: str | None = None,
    agrees_with: str | None = None,
) -> None:
    """Move these feeds, their aggregates and the dead letters until a signal ends it.

    ``agrees_with`` is the group of the worker whose definition of a feed has to be the same.
    """
    ways = lanes(feeds, catalogue, timezone)
    definitions = {lane.topic: lane.definition for lane in ways}
    app = BatchApp(GROUP, bootstrap, definitions, instance=instance, agrees_with=agrees_with)
    Sink(app, ways, Writer(server, log.warning))
    run(app, [lane.topic for lane in ways])

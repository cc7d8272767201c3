"""The sink: a Faust worker that moves topics into ClickHouse."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

import polars as pl
from faust.types import TP

from schemas.catalogue import Catalogue
from schemas.feed import Feed
from sinks.clickhouse import Server, Writer
from sinks.lanes import AggregateLane, Lane, lanes
from sinks.tables import CONTROL, PROGRESS, TableColumn
from streams.batchworker import BatchWorker, Held
from streams.decode import gaps
from streams.positions import LogGap, Position
from streams.transport import Run
from streams.worker import BatchApp, run

log = logging.getLogger("citystream")

GROUP = "sink"
#: Bytes of rows waiting for ClickHouse, over all tables, with which it is time for an insert, and beyond which reading
#: waits. As much again may be on its way.
ENOUGH, MOST = 32 * 2**20, 64 * 2**20


class Reading:
    """Rows of one partition that wait for ClickHouse, the offsets without any, and where reading stands behind them."""

    def __init__(self, lane: Lane, start: Position) -> None:
        self.lane = lane
        self.position = start
        self.frames: list[pl.DataFrame] = []
        self.gaps: list[tuple[str, int, int, int]] = []

    def take(self, run: Run) -> None:
        """Read a run.

        Raises
        ------
        LogGap
            The run does not follow the one before.
        """
        before = self.position
        if run.start > before.processed:
            raise LogGap(f"{run.topic}/{run.partition}: offsets {before.processed} to {run.start - 1} are missing")
        if run.next <= before.processed:
            return
        rows, newest = self.lane.read(run, before.processed, before.max_event_ms)
        self.position = replace(
            before, processed=run.next, rewind=run.next, max_event_ms=newest, max_processed_ms=newest
        )
        self.frames.append(rows)
        self.gaps += [(run.topic, run.partition, *gap) for gap in gaps(run, before.processed)]


class Sink(BatchWorker[Reading]):
    """Collects rows and inserts them, a block a table; commits after the acknowledgement."""

    def __init__(self, app: BatchApp, ways: list[Lane], writer: Writer) -> None:
        self._lanes = {lane.topic: lane for lane in ways}
        self._writer = writer
        self._taken = asyncio.Event()
        super().__init__(app, self._lanes)

    def begin(self, tp: TP, start: Position) -> Reading:
        """A partition of which nothing waits."""
        return Reading(self._lanes[tp.topic], start)

    def take(self, state: Reading, run: Run) -> None:
        """Let the rows of a run wait for the next flush."""
        state.take(run)

    async def room(self) -> None:
        """Wait for a flush if too much waits for it."""
        while (waiting := sum(f.estimated_size() for held in self.held.values() for f in held.state.frames)) >= ENOUGH:
            self._taken.clear()
            self.flush_soon()
            if waiting < MOST:
                return
            await self._taken.wait()

    async def flush(self, held: Mapping[TP, Held[Reading]]) -> None:
        """Insert what waits, wait for the acknowledgement, then let the positions be committed."""
        frames: dict[Lane, list[pl.DataFrame]] = {}
        without: list[tuple[str, int, int, int]] = []
        positions = {}
        for tp, reading in held.items():
            async with reading.lock:
                waiting, reading.state.frames = reading.state.frames, []
                without, reading.state.gaps = without + reading.state.gaps, []
                positions[tp] = reading.state.position
            if waiting:
                frames.setdefault(reading.state.lane, []).extend(waiting)
        self._taken.set()
        progress = []
        for lane, waiting in frames.items():
            rows = pl.concat(waiting)
            await self._insert(lane.table, lane.columns, rows)
            if isinstance(lane, AggregateLane):
                progress.append(lane.progress(rows))
        if progress:
            await self._insert("raw.progress", PROGRESS, pl.concat(progress))
        if without:
            frame = pl.DataFrame(without, [column.name for column in CONTROL], orient="row")
            await self._insert("raw.control", CONTROL, frame)
        for tp, position in positions.items():
            if self.keeps(tp, held[tp]):
                self.app.batch_consumer.flushed[tp] = position

    async def _insert(self, table: str, columns: Sequence[TableColumn], rows: pl.DataFrame) -> None:
        if rows.height:
            await asyncio.to_thread(self._writer.insert, table, columns, rows)


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

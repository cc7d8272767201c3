"""The sink: a Faust worker that moves topics into ClickHouse."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import polars as pl

from schemas.catalogue import Catalogue
from schemas.feed import Feed
from schemas.reference import Reference
from sinks import GROUP
from sinks.clickhouse import Abandoned, Server
from sinks.definitions import definitions
from sinks.processor_verdicts import ProcessorVerdicts
from sinks.row_reader import RowReader
from sinks.tables import CONTROL, PROGRESS, UNDECLARED, TableColumn
from sinks.topic_rows import PartReader, Read, TopicReader, Unread, readers
from sinks.writer import Writer
from streams.assignment import Assigned
from streams.batchworker import BatchWorker, Transport
from streams.cluster import Cluster
from streams.decode import gaps
from streams.feed_topics import FeedPartition, feed_definitions
from streams.group_positions import GroupPositions
from streams.lifecycle import Moment, Stage, tell
from streams.positions import LogGap, Position
from streams.topics import of_references, topics
from streams.transport.app import BatchApp
from streams.wire.fetched_batches import Run

log = logging.getLogger("citystream")

#: Rows up to which frames that wait are joined. A frame of 20 rows was seen to take 27 KiB for 4 KiB of values, and one
#: comes of each partition every second while ClickHouse is away.
SMALL = 10_000
#: Seconds for which rows of few are gathered: all topics are flushed about the same time.
GATHERED_SECONDS = 0.05

#: Inserts rows into the columns of a table and returns when they are stored, or no longer wanted.
Insert = Callable[[str, Sequence[TableColumn], pl.DataFrame, Callable[[], bool]], Awaitable[None]]


class WaitingRows:
    """Rows of one partition that wait for ClickHouse, the offsets without any, and where reading stands behind them."""

    def __init__(self, reader: TopicReader, start: Position) -> None:
        self.reader = reader
        self.position = start
        self.frames: list[pl.DataFrame] = []
        self.gaps: list[tuple[str, int, int, int]] = []
        #: Bytes of the rows that wait.
        self.unwritten = 0
        self._changing = threading.Lock()

    def take(self, run: Run, read: Read) -> None:
        """Let what was read of a run wait.

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
        rows, newest, ticks = read
        control = stretches([*gaps(run, before.processed), *((offset, offset) for offset in ticks)])
        without = [(*FeedPartition.of(run.topic, run.partition), *stretch) for stretch in control]
        with self._changing:
            self.position = replace(
                before, processed=run.next, rewind=run.next, max_event_ms=newest, max_processed_ms=newest
            )
            self.frames.append(rows)
            _join(self.frames)
            self.unwritten += int(rows.estimated_size())
            self.gaps += without

    def give(self) -> tuple[list[pl.DataFrame], list[tuple[str, int, int, int]], Position]:
        """All that waits, and the position behind it; never waits for a run, which may be waiting for its schema."""
        with self._changing:
            (frames, self.frames), (without, self.gaps), self.unwritten = (self.frames, []), (self.gaps, []), 0
            return frames, without, self.position


def stretches(found: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """First and last offsets of stretches that do not overlap, in order, those that follow each other as one."""
    joined: list[tuple[int, int]] = []
    for first, last in sorted(found):
        if joined and joined[-1][1] + 1 == first:
            joined[-1] = joined[-1][0], last
        else:
            joined.append((first, last))
    return joined


def _join(frames: list[pl.DataFrame]) -> None:
    """Join the last ones while they are alike in size and small: few are left, and no row is copied often."""
    while len(frames) > 1:
        before, last = frames[-2:]
        if before.height > 2 * last.height or before.height + last.height > SMALL:
            return
        frames[-2:] = [pl.concat([before, last], how="diagonal", rechunk=True)]


class Gathered:
    """Rows of one table that come from many topics about the same time, a few each: one insert takes them all.

    What an insert costs hardly depends on how few rows it has.
    """

    def __init__(self, insert: Insert, table: str, columns: Sequence[TableColumn]) -> None:
        self._insert = insert
        self._table, self._columns = table, columns
        self._rows: list[tuple[Any, ...]] = []
        self._wanted: list[Callable[[], bool]] = []
        self._next: asyncio.Task[None] | None = None

    async def add(self, rows: Iterable[tuple[Any, ...]], wanted: Callable[[], bool]) -> None:
        """Return when these rows are stored; errors are those of the insert that took them."""
        self._rows += rows
        self._wanted.append(wanted)
        if self._next is None:
            self._next = asyncio.create_task(self._store())
        await asyncio.shield(self._next)

    async def _store(self) -> None:
        await asyncio.sleep(GATHERED_SECONDS)
        rows, wanted = self._rows, self._wanted
        self._rows, self._wanted, self._next = [], [], None
        await self._insert(self._table, self._columns, frame(self._columns, rows), lambda: any(one() for one in wanted))


def frame(columns: Sequence[TableColumn], rows: Sequence[tuple[Any, ...]]) -> pl.DataFrame:
    """Rows with a value for each of these columns."""
    return pl.DataFrame(rows, [column.name for column in columns], orient="row")


class Sink(BatchWorker[WaitingRows, Read]):
    """Collects rows and inserts them, a block a table; commits after the acknowledgement."""

    command = "citystream sink"

    def __init__(self, transport: Transport, readers: list[TopicReader], writer: Writer) -> None:
        self._readers = {reader.topic: reader for reader in readers}
        self._writer = writer
        self._threads = ThreadPoolExecutor(len(readers), "insert")
        self._progress = Gathered(self._insert, "raw.progress", PROGRESS)
        self._control = Gathered(self._insert, "raw.control", CONTROL)
        super().__init__(transport, {topic: topic for topic in self._readers})

    def begin(self, one: Assigned[WaitingRows]) -> WaitingRows:
        """A partition of which nothing waits."""
        return WaitingRows(self._readers[one.place.topic], one.start)

    def read(self, waiting: Sequence[tuple[WaitingRows, Run]]) -> list[Read]:
        """Decode."""
        reader, standing = waiting[0][0].reader, [(run, state.position) for state, run in waiting]
        return reader.read([Unread(run, position.processed, position.max_event_ms) for run, position in standing])

    def take(self, state: WaitingRows, run: Run, read: Read) -> None:
        """Let the rows of a run wait for the next flush."""
        state.take(run, read)

    def unwritten(self, state: WaitingRows) -> int:
        """Bytes of its rows."""
        return state.unwritten

    async def flush(self, assigned: Sequence[Assigned[WaitingRows]]) -> None:
        """Insert what waits, wait for the acknowledgement, then let the positions be committed.

        It is given up when all partitions of the topic have been taken away.
        """
        frames: list[pl.DataFrame] = []
        without: list[tuple[str, int, int, int]] = []
        positions = {}
        for one in assigned:
            if one.begun:
                waiting, empty, positions[one] = one.state.give()
                without += empty
                frames += waiting
        self.taken()
        if positions:
            reader = self._readers[assigned[0].place.topic]
            if frames or without:
                await self.transport.unchanged([reader.topic])
            storing = self._store(reader, frames, without, positions)
            await self.write_patiently([*positions], storing, lambda: self._refusal(reader))

    def _refusal(self, reader: TopicReader) -> str:
        """What is known of why the rows of a reader are not taken."""
        said = (self._writer.refusals.get(table) for table in (reader.table, "raw.progress", "raw.control"))
        slow = f"{reader.table} takes them slowly; see why: citystream sql --user operator 'SHOW PROCESSLIST'"
        return f"{reader.topic}: ClickHouse has not taken rows yet ({next(filter(None, said), slow)})"

    async def _store(
        self,
        reader: TopicReader,
        frames: list[pl.DataFrame],
        without: list[tuple[str, int, int, int]],
        positions: Mapping[Assigned[WaitingRows], Position],
    ) -> None:
        def wanted() -> bool:
            return any(one.current for one in positions)

        insert = partial(self._insert, wanted=wanted)
        with suppress(Abandoned):
            if frames:
                rows, columns = pl.concat(frames, how="diagonal"), [*reader.columns]
                if UNDECLARED.name in rows.columns:
                    rows = rows.with_columns(pl.col(UNDECLARED.name).fill_null(""))
                    columns.append(UNDECLARED)
                if isinstance(reader, PartReader):
                    await insert(reader.table, columns, reader.counting(rows))
                    await self._progress.add(reader.progress(rows), wanted)
                else:
                    await insert(reader.table, columns, rows)
            if without:
                await self._control.add(without, wanted)
            for one, position in positions.items():
                self.flushed(one, position)

    async def _insert(
        self, table: str, columns: Sequence[TableColumn], rows: pl.DataFrame, wanted: Callable[[], bool]
    ) -> None:
        if rows.height:
            loop = asyncio.get_running_loop()
            tell(Moment(Stage.INSERTING, table=table, rows=rows.height))
            await loop.run_in_executor(self._threads, self._writer.insert, table, columns, rows, wanted)
            tell(Moment(Stage.INSERTED, table=table, rows=rows.height))


def main(
    feeds: Mapping[str, Feed],
    catalogue: Catalogue,
    cluster: Cluster,
    server: Server,
    timezone: str,
    instance: str | None = None,
    *,
    processor: str,
    references: Collection[Reference] = (),
) -> None:
    """Move these feeds, their aggregates, the dead letters and the reference data until a signal ends it.

    ``processor`` is the group whose definitions of the feeds have to be the same, and whose verdicts are followed.
    """
    other = GroupPositions(cluster, processor, feed_definitions(*feeds.values()))
    tables = [RowReader(reference, catalogue, timezone) for reference in references]
    own_definitions = definitions(feeds.values()) | {table.topic: "1" for table in tables}
    own = GroupPositions(cluster, GROUP, own_definitions, agrees_with=other)
    app = BatchApp(own, [*topics(feeds.values()), *of_references(references, feeds.values())], instance=instance)
    verdicts = ProcessorVerdicts(catalogue, other.committed)
    found = [*readers(feeds, catalogue, timezone, verdicts), *tables]
    app.run(Sink(app, found, Writer(server, log.warning)))

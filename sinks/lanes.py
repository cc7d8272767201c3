"""From a topic into its table: how the runs of one topic become rows."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import polars as pl
from aiokafka.errors import CorruptRecordException

from schemas.catalogue import Catalogue
from schemas.feed import Aggregate, Feed
from schemas.model import PARTS
from schemas.verdict import part_rules
from sinks.following import Following
from sinks.tables import UNDECLARED, TableColumn, aggregate_columns, feed_columns, quarantine_columns
from streams import deadletters
from streams.awaited import PATIENCE, Awaited
from streams.deadletters import DeadLetter, NotADeadLetter
from streams.decode import Decoder
from streams.generations import Generation, generations, source
from streams.recordbatch import NotOpened, RecordBatch
from streams.runs import Run
from streams.unknown import Unknown
from streams.watermark import SEEN_BEFORE, advance, running_maximum

log = logging.getLogger("citystream")


class Read(NamedTuple):
    """What a lane has of a run: rows, the new maximum of event time (ms), and the offsets of ticks."""

    rows: pl.DataFrame
    max_event_ms: int
    ticks: Sequence[int] = ()


class Lane(Protocol):
    """What the sink does with a topic."""

    @property
    def topic(self) -> str: ...
    @property
    def table(self) -> str: ...
    @property
    def columns(self) -> Sequence[TableColumn]: ...

    def read(self, run: Run, from_offset: int, max_event_ms: int) -> Read:
        """Read a run from an offset on; the rows have a column for each name the columns send."""
        ...

    def read_together(self, wanted: Sequence[tuple[Run, int, int]], /) -> list[Read] | None:
        """The same of several partitions at once; None if they have to be read one by one."""
        ...


class FeedLane:
    """Valid records of a feed's topic into its raw table; what is not valid comes by the dead letters.

    The processor decides which schema ids are known, and of those it knows the sink waits for the files.
    """

    def __init__(
        self, generation: Generation, catalogue: Catalogue, timezone: str, following: Following | None = None
    ) -> None:
        feed = generation.feed
        self.topic = generation.topic
        self.table = f"raw.{feed.name}"
        self.columns = feed_columns(feed, timezone)
        self._feed = feed
        self._first, self._counts = generation.first, generation.counts
        self._following = following
        self._decoder = Decoder(catalogue, feed.name, feed, Awaited(catalogue, math.inf), generation.topic)
        self._parts = [(field.name, part) for field in feed.fields for part in PARTS.get(field.kind, ())]

    def read(self, run: Run, from_offset: int, max_event_ms: int) -> Read:
        read = self._decoder.read(run, from_offset, self._unknown(run))
        rows, max_event_ms = advance(self._feed, read.rows, max_event_ms, self._counts, read.ticks)
        rows = rows.with_columns(pl.lit(self._first + run.partition, pl.Int64).alias("source_partition"))
        return Read(self._stored(rows), max_event_ms, [offset for offset, _ in read.ticks])

    def read_together(self, wanted: Sequence[tuple[Run, int, int]]) -> list[Read] | None:
        if self._counts is not None:
            return None
        found = self._decoder.read_together([(run, start, self._unknown(run)) for run, start, _ in wanted])
        if found is None:
            return None
        rows, lengths = found
        events = np.split(rows[self._feed.event_time].to_numpy(), np.cumsum(lengths)[:-1])
        seen, newest = zip(*map(running_maximum, events, (before for _, _, before in wanted)), strict=True)
        numbers = np.repeat([self._first + run.partition for run, _, _ in wanted], lengths)
        rows = self._stored(
            rows.with_columns(
                pl.Series("source_partition", numbers), pl.Series(SEEN_BEFORE, np.concatenate(seen), dtype=pl.Int64)
            )
        )
        return [Read(part, at) for part, at in zip(_parts(rows, lengths), newest, strict=True)]

    def _unknown(self, run: Run) -> Unknown | None:
        return self._following.of(run) if self._following else None

    def _stored(self, rows: pl.DataFrame) -> pl.DataFrame:
        return rows.rename({"_undeclared": UNDECLARED.name}, strict=False).with_columns(
            pl.col("_offset").alias("source_offset"),
            pl.col("_arrived").alias("arrived_at"),
            pl.col(SEEN_BEFORE).alias("seen_before"),
            *(pl.col(name).struct.field(part).alias(f"{name}_{part}") for name, part in self._parts),
        )


class AggregateLane:
    """Parts of windows into the aggregate's table.

    What another program wrote to their topic is left out and said; it stays in the log.
    """

    def __init__(
        self,
        feed: Feed,
        aggregate: Aggregate,
        catalogue: Catalogue,
        timezone: str,
        following: Following | None = None,
        patience: float = PATIENCE,
    ) -> None:
        """``patience`` in seconds is for schema ids that nobody knows."""
        self._following = following
        self.topic = aggregate.topic
        self.table = f"raw.{aggregate.topic}"
        self.columns = aggregate_columns(aggregate, timezone)
        rules = part_rules(feed, aggregate)
        self._decoder = Decoder(catalogue, aggregate.topic, awaited=Awaited(catalogue, patience), rules=rules)

    def read(self, run: Run, from_offset: int, max_event_ms: int) -> Read:
        read = self._decoder.read(run, from_offset, self._unknown(run))
        if read.dead:
            first = read.dead[0]
            log.warning(
                "%s/%d: %d records from offset %d on are no parts of windows (%s) and are left out. Only the processor "
                "may write there; if a schema was missing, bring its files, then: citystream positions reset sink %s",
                *(run.topic, run.partition, sum(d.last_offset - d.offset + 1 for d in read.dead)),
                *(first.offset, first.cause, self.topic),
            )
        return Read(read.rows, max_event_ms)

    def read_together(self, wanted: Sequence[tuple[Run, int, int]]) -> list[Read] | None:
        """Not if there is anything to be said of a part."""
        found = self._decoder.read_together([(run, start, self._unknown(run)) for run, start, _ in wanted])
        if found is None or found[0].height < sum(batch.count for run, _, _ in wanted for batch in run.batches):
            return None
        return [Read(part, before) for part, (_, _, before) in zip(_parts(*found), wanted, strict=True)]

    def _unknown(self, run: Run) -> Unknown | None:
        return self._following.of_parts(run) if self._following else None

    def progress(self, parts: pl.DataFrame) -> pl.DataFrame:
        """Rows of ``raw.progress`` to be inserted once these parts are stored."""
        newest = parts.drop_nulls("watermark").group_by("source_partition").agg(pl.col("watermark").max())
        return newest.with_columns(aggregate=pl.lit(self.topic))


class QuarantineLane:
    """Dead letters into the quarantine, and what another program wrote to their topic beside them."""

    topic = deadletters.TOPIC
    table = "raw.quarantine"

    def __init__(self, timezone: str) -> None:
        self.columns = quarantine_columns(timezone)

    def read_together(self, _: Sequence[tuple[Run, int, int]], /) -> list[Read] | None:
        """They are few."""
        return None

    def read(self, run: Run, from_offset: int, max_event_ms: int) -> Read:
        rows = [
            {
                "topic": topic,
                "source_partition": number,
                "source_offset": letter.offset,
                "last_offset": letter.last_offset,
                "stage": letter.stage,
                "cause": letter.cause,
                "key": letter.key.hex() if letter.key is not None else None,
                "value": letter.value.hex() if letter.value is not None else None,
                "published_at": letter.arrived_ms,
                "arrived_at": batch.arrived_ms,
            }
            for batch in run.batches
            for letter in _letters(batch, from_offset)
            for topic, number in [source(letter.topic, letter.partition)]
        ]
        names = [name for column in self.columns for name, _ in column.sent]
        text = {"topic", "stage", "cause", "key", "value"}
        return Read(pl.DataFrame(rows, {name: pl.String if name in text else pl.Int64 for name in names}), max_event_ms)


def _parts(rows: pl.DataFrame, lengths: Sequence[int]) -> Iterator[pl.DataFrame]:
    """Rows in parts of these lengths."""
    begin = 0
    for length in lengths:
        yield rows.slice(begin, length)
        begin += length


def _letters(batch: RecordBatch, from_offset: int) -> Iterator[DeadLetter]:
    """Dead letters of a batch; a record that is none is one itself, of this topic."""
    topic, partition, arrived_ms = deadletters.TOPIC, batch.partition, batch.arrived_ms
    try:
        records = batch.records()
    except (NotOpened, CorruptRecordException) as error:
        cause = f"no dead letters: the batch cannot be read: {error}"
        yield from deadletters.of_batch(topic, partition, batch.base_offset, batch.last_offset, cause, arrived_ms)
        return
    for offset, key, value, headers in records:
        if offset >= from_offset:
            try:
                yield deadletters.parse(headers, key, value)
            except NotADeadLetter as error:
                yield DeadLetter(topic, partition, offset, offset, "DECODE", str(error), key, value, arrived_ms)


def lanes(
    feeds: Mapping[str, Feed], catalogue: Catalogue, timezone: str, following: Following | None = None
) -> list[Lane]:
    """All lanes of these feeds; without ``following`` a schema id is known whose files are there."""
    found: list[Lane] = [QuarantineLane(timezone)]
    for feed in feeds.values():
        found += [FeedLane(generation, catalogue, timezone, following) for generation in generations(feed)]
        found += [AggregateLane(feed, aggregate, catalogue, timezone, following) for aggregate in feed.aggregates]
    return found

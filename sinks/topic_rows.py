"""From a topic into its table: how the runs of one topic become rows."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import polars as pl

from schemas.catalogue import Catalogue
from schemas.feed import Aggregate, Feed
from schemas.model import COMPONENTS
from schemas.verdict import part_rules
from sinks.processor_verdicts import ProcessorVerdicts
from sinks.tables import UNDECLARED, TableColumn, aggregate_columns, feed_columns, quarantine_columns
from streams import deadletters
from streams.deadletters import DeadLetter, NotADeadLetter
from streams.decode import Decoder, Wanted, places
from streams.feed_topics import FeedPartition, FeedTopic, feed_topics
from streams.missing_schemas import PATIENCE, Awaited, SchemaVerdicts
from streams.watermark import advance
from streams.wire.fetched_batches import Run
from streams.wire.record_batch import MalformedBatch, NotOpened, RecordBatch

log = logging.getLogger("citystream")


class Read(NamedTuple):
    """What a reader has of a run: rows, the new maximum of event time (ms), and the offsets of ticks."""

    rows: pl.DataFrame
    max_event_ms: int
    ticks: Sequence[int] = ()


class Unread(NamedTuple):
    """A run to be read from an offset on, and the maximum of event time before that (ms)."""

    run: Run
    from_offset: int
    max_event_ms: int


class TopicReader(Protocol):
    """What the sink does with a topic."""

    @property
    def topic(self) -> str: ...
    @property
    def table(self) -> str: ...
    @property
    def columns(self) -> Sequence[TableColumn]: ...

    def read(self, wanted: Sequence[Unread], /) -> list[Read]:
        """Read runs of partitions; the rows have a column for each name the columns send."""
        ...


class FeedReader:
    """Valid records of a feed's topic into its raw table; what is not valid comes by the dead letters.

    The processor decides which schema ids are known, and of those it knows the sink waits for the files.
    """

    def __init__(
        self, topic: FeedTopic, catalogue: Catalogue, timezone: str, verdicts: ProcessorVerdicts | None = None
    ) -> None:
        feed = topic.feed
        self.topic = topic.name
        self.table = f"raw.{feed.name}"
        self.columns = feed_columns(feed, timezone)
        self._feed = feed
        self._first, self._counts = topic.first, topic.counts
        self._processor = verdicts
        self._decoder = Decoder(catalogue, feed.name, feed, Awaited(catalogue, math.inf), topic.name)
        self._composed = [field.name for field in feed.fields if field.kind in COMPONENTS]

    def read(self, wanted: Sequence[Unread]) -> list[Read]:
        rows, found = self._decoder.read_together([Wanted(run, start, self._verdicts(run)) for run, start, _ in wanted])
        seen, read = [], []
        for decoded, (_, _, before) in zip(found, wanted, strict=True):
            offsets, events = (decoded.rows[name].to_numpy() for name in ("_offset", self._feed.event_time))
            counted = None if self._counts is None else decoded.rows.select(self._counts).to_series().to_numpy()
            seen_before, newest = advance(offsets, events, counted, before, decoded.ticks)
            seen.append(seen_before)
            read.append((newest, [offset for offset, _ in decoded.ticks]))
        stored = self._stored(rows, np.concatenate(seen))
        return [Read(stored[place], *more) for place, more in zip(places(found), read, strict=True)]

    def _verdicts(self, run: Run) -> SchemaVerdicts | None:
        return self._processor.of(run) if self._processor else None

    def _stored(self, rows: pl.DataFrame, seen_before: npt.NDArray[np.int64]) -> pl.DataFrame:
        """The columns of the table beside those of the feed; a query of Polars would take longer."""
        stored = rows.hstack(
            [
                rows["_offset"].alias("source_offset"),
                rows["_arrived"].alias("arrived_at"),
                (rows["_partition"] + self._first).alias("source_partition"),
                pl.Series("seen_before", seen_before),
                *(
                    values.alias(f"{name}_{values.name}")
                    for name in self._composed
                    for values in rows[name].struct.unnest()
                ),
            ]
        )
        return stored.rename({"_undeclared": UNDECLARED.name}) if "_undeclared" in stored.columns else stored


class PartReader:
    """Parts of windows into the aggregate's table.

    What another program wrote to their topic is left out and said; it stays in the log.
    """

    def __init__(
        self,
        feed: Feed,
        aggregate: Aggregate,
        catalogue: Catalogue,
        timezone: str,
        verdicts: ProcessorVerdicts | None = None,
        patience: float = PATIENCE,
    ) -> None:
        """``patience`` in seconds is for schema ids that nobody knows."""
        self._processor = verdicts
        self.topic = aggregate.topic
        self.table = f"raw.{aggregate.topic}"
        self.columns = aggregate_columns(feed, aggregate, timezone)
        rules = part_rules(feed, aggregate)
        self._decoder = Decoder(catalogue, aggregate.topic, awaited=Awaited(catalogue, patience), rules=rules)

    def read(self, wanted: Sequence[Unread]) -> list[Read]:
        _, found = self._decoder.read_together([Wanted(run, start, self._verdicts(run)) for run, start, _ in wanted])
        for first, dead in [(decoded.dead[0], decoded.dead) for decoded in found if decoded.dead]:
            log.warning(
                "%s/%d: %d records from offset %d on are no parts of windows (%s) and are left out. Only the processor "
                "may write there; if a schema was missing, bring its files, then: citystream positions reset sink %s",
                *(first.topic, first.partition, sum(d.last_offset - d.offset + 1 for d in dead)),
                *(first.offset, first.cause, self.topic),
            )
        return [Read(decoded.rows, before) for decoded, (_, _, before) in zip(found, wanted, strict=True)]

    def _verdicts(self, run: Run) -> SchemaVerdicts | None:
        return self._processor.of_parts(run) if self._processor else None

    def counting(self, parts: pl.DataFrame) -> pl.DataFrame:
        """The parts that count events; the others only say how far their partition is."""
        counts = parts["events"] > 0
        return parts if counts.all() else parts.filter(counts)

    def progress(self, parts: pl.DataFrame) -> list[tuple[str, int, int]]:
        """Rows of ``raw.progress`` to be inserted once these parts are stored."""
        found: dict[int, int] = {}
        known = parts["watermark"].is_not_null()
        numbers, watermarks = (parts[name].filter(known) for name in ("source_partition", "watermark"))
        for number, watermark in zip(numbers, watermarks, strict=True):
            found[number] = max(watermark, found.get(number, watermark))
        return [(self.topic, number, watermark) for number, watermark in found.items()]


class QuarantineReader:
    """Dead letters into the quarantine, and what another program wrote to their topic beside them."""

    topic = deadletters.TOPIC
    table = "raw.quarantine"

    def __init__(self, timezone: str) -> None:
        self.columns = quarantine_columns(timezone)

    def read(self, wanted: Sequence[Unread]) -> list[Read]:
        return [self._read(*one) for one in wanted]

    def _read(self, run: Run, from_offset: int, max_event_ms: int) -> Read:
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
            for topic, number in [FeedPartition.of(letter.topic, letter.partition)]
        ]
        names = [name for column in self.columns for name in column.sent]
        text = {"topic", "stage", "cause", "key", "value"}
        return Read(pl.DataFrame(rows, {name: pl.String if name in text else pl.Int64 for name in names}), max_event_ms)


def _letters(batch: RecordBatch, from_offset: int) -> Iterator[DeadLetter]:
    """Dead letters of a batch; a record that is none is one itself, of this topic."""
    topic, partition, arrived_ms = deadletters.TOPIC, batch.partition, batch.arrived_ms
    try:
        records = batch.records()
    except (NotOpened, MalformedBatch) as error:
        cause = f"no dead letters: the batch cannot be read: {error}"
        yield from deadletters.of_batch(topic, partition, batch.base_offset, batch.last_offset, cause, arrived_ms)
        return
    for offset, key, value, headers in records:
        if offset >= from_offset:
            try:
                yield deadletters.parse(headers, key, value)
            except NotADeadLetter as error:
                yield DeadLetter(topic, partition, offset, offset, "DECODE", str(error), key, value, arrived_ms)


def readers(
    feeds: Mapping[str, Feed], catalogue: Catalogue, timezone: str, verdicts: ProcessorVerdicts | None = None
) -> list[TopicReader]:
    """All readers of these feeds, records before windows, as they are waited for; without ``verdicts`` a schema id is
    known whose files are there."""
    return [
        *(FeedReader(topic, catalogue, timezone, verdicts) for topic in feed_topics(*feeds.values()).values()),
        QuarantineReader(timezone),
        *(
            PartReader(feed, aggregate, catalogue, timezone, verdicts)
            for feed in feeds.values()
            for aggregate in feed.aggregates
        ),
    ]

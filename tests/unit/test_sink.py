"""What the sink inserts, and in which order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any
from unittest.mock import MagicMock, create_autospec

import polars as pl
import pytest

from sinks.blocks import block
from sinks.clickhouse import Abandoned
from sinks.tables import PROGRESS, TableColumn
from sinks.topic_rows import FeedReader, PartReader, Read, Unread
from sinks.worker import SMALL, Gathered, Sink, WaitingRows, stretches
from sinks.writer import Writer
from streams.assignment import TopicPartition
from streams.feed_topics import topic_of
from streams.positions import NO_EVENT_TIME, Position
from streams.waiting import always
from streams.wire.column_writer import encode_bodies
from streams.wire.fetched_batches import Run
from streams.wire.record_batch import packed, split
from tests.columns import columns_of
from tests.reference.batches import batch, run, stamped
from tests.reference.toy import CATALOGUE, FEED, value
from tests.transport import Here, begun

AGGREGATE = FEED.aggregates[0]


class Recording:
    """A ClickHouse that takes everything and remembers which table got how many rows."""

    def __init__(self, transport: Here) -> None:
        self.inserts: list[tuple[str, int]] = []
        self._transport = transport

    def insert(
        self, table: str, columns: Sequence[TableColumn], rows: pl.DataFrame, wanted: Callable[[], bool]
    ) -> None:
        assert wanted()
        assert not self._transport.flushed, "nothing is committed before it is stored"
        assert {name for column in columns for name in column.sent} <= set(rows.columns)
        self.inserts.append((table, rows.height))


def test_progress_is_inserted_after_the_parts_and_the_position_moves_last() -> None:
    place = TopicPartition(AGGREGATE.name, 0)
    transport = Here(place)
    reader = PartReader(FEED, AGGREGATE, CATALOGUE, "UTC")
    server = Recording(transport)
    sink = Sink(transport, [reader], server)  # type: ignore[arg-type]
    frozen = CATALOGUE.latest(AGGREGATE.name)
    part: dict[str, Any] = {
        field["name"]: {"watermark": None, "window_start": 0, "source_partition": 0}.get(
            field["name"], "calm" if field["name"] in AGGREGATE.by else [] if isinstance(field["type"], dict) else 1
        )
        for field in frozen.schema["fields"]
    }
    without_events = {"events": 0, "watermark": 2}
    rows = [part, part | {"watermark": 1}, part | without_events]
    (body,) = encode_bodies(frozen, AGGREGATE.by, columns_of(rows, part), 2**20)
    one = transport.assigned[place]
    one.begin(sink.begin(one))
    sink._read_and_take([(one.state, run(stamped(packed(body.data, body.count), 0), topic=AGGREGATE.name))])
    asyncio.run(sink.flush([one]))
    assert server.inserts == [(f"raw.{AGGREGATE.name}", 2), ("raw.progress", 1)]
    assert transport.flushed == {place: 3}


def test_what_many_topics_say_of_their_progress_is_one_insert() -> None:
    inserted: list[list[int]] = []

    async def insert(
        table: str, columns: Sequence[TableColumn], rows: pl.DataFrame, wanted: Callable[[], bool]
    ) -> None:
        assert (table, wanted()) == ("raw.progress", True)
        inserted.append(rows["watermark"].to_list())
        if len(inserted) == 2:
            raise Abandoned

    async def work() -> None:
        gathered = Gathered(insert, "raw.progress", PROGRESS)
        several = [[("toy_4s", number, 5 * number)] for number in range(3)]
        await asyncio.gather(*(gathered.add(rows, always) for rows in several))
        assert inserted == [[0, 5, 10]]
        with pytest.raises(Abandoned):
            await gathered.add(several[0], always)

    asyncio.run(work())


def test_ticks_that_follow_each_other_are_one_stretch_of_offsets() -> None:
    """The log of a silent partition holds nothing else."""
    assert stretches([(7, 9), (3, 3), (4, 4), (5, 6), (11, 11), (12, 20)]) == [(3, 9), (11, 20)]
    assert stretches([]) == []


def rows_of(run: Run) -> Read:
    """A row for each offset, some with a column more."""
    rows = pl.DataFrame({"offset": range(run.start, run.next)}, {"offset": pl.Int64})
    return Read(rows.with_columns(more=pl.lit("x")) if run.next % 7 == 0 else rows, 0)


@pytest.mark.parametrize("size", [0, 1, 20, 300, 3 * SMALL])
def test_few_frames_wait_however_many_runs_bring_them(size: int) -> None:
    """While ClickHouse is away small runs come every second, and a frame takes much more memory than its rows."""
    reading = WaitingRows(MagicMock(spec=FeedReader), Position(0, 0, 0, "", ""))
    runs = 400 if size <= SMALL else 5
    for number in range(runs):
        one = Run("toy", 0, number * size, (number + 1) * size, ())
        reading.take(one, rows_of(one))
    large = size * runs // SMALL + 1
    assert len(reading.frames) <= (runs if size > SMALL else 2 * large + 14)
    frames, _, position = reading.give()
    assert [*pl.concat(frames, how="diagonal")["offset"]] == [*range(size * runs)] if size else not frames
    assert position.processed == size * runs
    assert (reading.frames, reading.unwritten) == ([], 0)


def test_a_pass_reads_all_partitions_of_a_topic_at_once_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = FeedReader(topic_of(replace(FEED, partitions=2), 0), CATALOGUE, "UTC")
    raw = batch([(b"d-1", value(), [])] * 3, 0)
    runs = [Run("toy", number, 0, 3, tuple(split(number, raw))) for number in range(2)]
    expected = [reader.read([Unread(one, 0, NO_EVENT_TIME)])[0].rows for one in runs]
    reading = create_autospec(reader.read, side_effect=reader.read)
    monkeypatch.setattr(reader, "read", reading)

    sink = Sink(Here(), [reader], MagicMock(spec=Writer))
    start = Position(0, 0, NO_EVENT_TIME, "", "")
    assigned = [begun(sink, TopicPartition("toy", number), start) for number in range(2)]
    for one in runs:
        assigned[one.partition].receive(one)
    asyncio.run(sink._pass(assigned))
    reading.assert_called_once_with([Unread(one, 0, NO_EVENT_TIME) for one in runs])
    for number, rows in enumerate(expected):
        there = assigned[number]
        (frame,), _, position = there.state.give()
        assert frame.select(sorted(frame.columns)).equals(rows.select(sorted(rows.columns)))
        assert (position.processed, len(there.runs)) == (3, 0)


def test_a_null_for_a_column_that_takes_none_is_not_sent_as_something_else() -> None:
    rows = pl.DataFrame(
        {"aggregate": ["toy_4s"], "source_partition": [0], "watermark": pl.Series([None], dtype=pl.Int64)}
    )
    with pytest.raises(ValueError, match="nulls in watermark"):
        block(PROGRESS, rows)

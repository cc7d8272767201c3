"""What the sink inserts, and in which order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock, MagicMock

import polars as pl
from faust.types import TP

from schemas.writing import encode_bodies
from sinks.lanes import AggregateLane
from sinks.tables import TableColumn
from sinks.worker import Sink
from streams.batchworker import Held
from streams.positions import Position
from streams.recordbatch import packed
from tests.reference.batches import batch, run, stamped
from tests.reference.toy import CATALOGUE, FEED

AGGREGATE = FEED.aggregates[0]


class Recording:
    """A ClickHouse that takes everything and remembers which table got how many rows."""

    def __init__(self, flushed: dict[TP, Position]) -> None:
        self.inserts: list[tuple[str, int]] = []
        self._flushed = flushed

    def insert(
        self, table: str, columns: Sequence[TableColumn], rows: pl.DataFrame, wanted: Callable[[], bool]
    ) -> None:
        assert wanted()
        assert not self._flushed, "nothing is committed before it is stored"
        assert {name for column in columns for name, _ in column.sent} <= set(rows.columns)
        self.inserts.append((table, rows.height))


def test_progress_is_inserted_after_the_parts_and_the_position_moves_last() -> None:
    tp = TP(AGGREGATE.name, 0)
    consumer = SimpleNamespace(resumed={tp: Position(0, 0, 0, "", "")}, flushed={}, assignment=lambda: {tp})
    app: Any = MagicMock(batch_consumer=consumer, unchanged=AsyncMock())
    lane = AggregateLane(FEED, AGGREGATE, CATALOGUE, "UTC")
    server = Recording(consumer.flushed)
    sink = Sink(app, [lane], server)  # type: ignore[arg-type]
    empty = lane.read(run(batch([], 0), topic=AGGREGATE.name), 0, 0)[0]
    part: dict[str, Any] = {
        name: [] if dtype.is_nested() else None if name == "watermark" else "calm" if dtype == pl.String else 1
        for name, dtype in empty.schema.items()
        if not name.startswith("_")
    }
    parts = pl.DataFrame([part, part | {"watermark": 1}], {name: empty.schema[name] for name in part})
    (body,) = encode_bodies(CATALOGUE.latest(AGGREGATE.name), pl.Series(["calm", "calm"]), parts, 2**20)
    held = Held(consumer.resumed[tp], sink.begin(tp, consumer.resumed[tp]))
    sink.take(held.state, run(stamped(packed(body.data, body.count), 0), topic=AGGREGATE.name))
    asyncio.run(sink.flush({tp: held}))
    assert server.inserts == [(f"raw.{AGGREGATE.name}", 2), ("raw.progress", 1)]
    assert consumer.flushed[tp].processed == 2

"""Late, closed and final are one predicate, and what a window holds is what was counted in."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from processors.events import OFFSET, EventColumns, Events
from processors.repeats import Repeats
from processors.tables import Texts
from processors.windows import TooManyGroups, Windows
from schemas.avro import aggregate_schema
from schemas.measures import BEYOND
from schemas.model import UUID_HALVES
from streams.decode import Decoder, Tick
from streams.positions import NO_EVENT_TIME
from streams.watermark import advance, closes_at, window_start
from streams.wire.fetched_batches import Run
from streams.wire.record_batch import split
from tests.columns import frame_of
from tests.reference import partition as reference
from tests.reference.streams import Log, logs
from tests.reference.streams import cuts as cuts_of
from tests.reference.toy import CATALOGUE, FEED, NOON, event_id, halves

OLD = replace(FEED, earliest=datetime(1900, 1, 1, tzinfo=UTC))
BY_DEVICE, BY_MOOD = FEED.aggregates
COLUMNS = EventColumns(FEED)


def decoded(log: Log) -> tuple[Events, list[Tick]]:
    """Numbered events and ticks of a log."""
    run = Run("toy", 0, 0, log.end, tuple(split(0, b"".join(log.batches()))))
    found = Decoder(CATALOGUE, "toy", OLD).read(run, 0)
    return COLUMNS.numbered(COLUMNS.of(found.rows), Texts()), found.ticks


def between(events: Events, start: int, end: int) -> Events:
    """Those of the offsets from one up to another."""
    offsets = events.cells[:, OFFSET]
    return events.where((offsets >= start) & (offsets < end))


@pytest.mark.parametrize("base", [NOON, -NOON], ids=["now", "before 1970"])
@settings(max_examples=60)
@given(st.data())
def test_late_records_are_those_of_the_reference_however_the_log_is_cut(base: int, data: st.DataObject) -> None:
    log = data.draw(logs(base))
    events, ticks = decoded(log)
    offsets = events.cells[:, OFFSET]
    expected = reference.truth(OLD, log.records)
    assert offsets.tolist() == expected.valid
    cuts = data.draw(cuts_of(log.end))
    newest, parts = NO_EVENT_TIME, []
    for start, end in zip(cuts, (*cuts[1:], log.end), strict=True):
        here = between(events, start, end)
        ticks_here = [tick for tick in ticks if start <= tick[0] < end]
        part, newest = advance(here.cells[:, OFFSET], here.event_ms, None, newest, ticks_here)
        parts.append(part)
        reached = expected.watermarks[end - 1]
        assert newest == (NO_EVENT_TIME if reached is None else reached)
    seen = np.concatenate(parts)
    for aggregate in OLD.aggregates:
        late = window_start(aggregate, events.event_ms) + closes_at(OLD, aggregate) <= seen
        assert offsets[late].tolist() == expected.late[aggregate.name]


@pytest.mark.parametrize("base", [NOON, -NOON], ids=["now", "before 1970"])
@settings(max_examples=60)
@given(st.data())
def test_repeats_are_dropped_wherever_it_matters_for_a_window(base: int, data: st.DataObject) -> None:
    log = data.draw(logs(base))
    events, ticks = decoded(log)
    expected = reference.truth(OLD, log.records)
    repeats, newest, kept = Repeats(OLD, COLUMNS), NO_EVENT_TIME, []
    cuts = data.draw(cuts_of(log.end))
    for start, end in zip(cuts, (*cuts[1:], log.end), strict=True):
        here = between(events, start, end)
        ticks_here = [tick for tick in ticks if start <= tick[0] < end]
        _, newest = advance(here.cells[:, OFFSET], here.event_ms, None, newest, ticks_here)
        kept += here.where(repeats.fresh(here, newest)).cells[:, OFFSET].tolist()
    late_for_all = set.intersection(*(set(expected.late[a.name]) for a in OLD.aggregates))
    assert set(kept) >= set(expected.valid) - set(expected.repeats)
    assert set(kept) - (set(expected.valid) - set(expected.repeats)) <= late_for_all


def test_repeats_keep_no_more_than_the_windows_that_may_be_open() -> None:
    repeats = Repeats(FEED, COLUMNS)
    for second in range(0, 600, 5):
        at = NOON + second * 1000
        events = events_at(*[second] * 3, offset=3 * second)
        assert len(events.where(repeats.fresh(events, at))) == 3
        assert not len(events.where(repeats.fresh(events, at)))
    assert len(repeats.texts) <= 3 * (5 + 5) // 5 + 3


@pytest.mark.parametrize(
    ("event_ms", "start"),
    [(0, 0), (3999, 0), (4000, 4000), (-1, -4000), (-4000, -4000), (-4001, -8000), (NOON + 1, NOON)],
)
def test_windows_are_aligned_to_1970_before_it_too(event_ms: int, start: int) -> None:
    assert pl.select(window_start(BY_DEVICE, pl.lit(event_ms, pl.Int64))).item() == start


TEXTS = Texts()


def events_at(*seconds: float, offset: int = 0, **values: list[int]) -> Events:
    """Numbered events of one device at these seconds, all different, some with other values than usual."""
    size = len(seconds)
    ids = [halves(event_id(offset + n)) for n in range(size)]
    frame = pl.DataFrame(
        {
            "device_id": ["d"] * size,
            "mood": ["calm"] * size,
            "observed_at": [NOON + round(at * 1000) for at in seconds],
            "event_id": pl.Series(ids, dtype=pl.Struct(dict.fromkeys(UUID_HALVES, pl.UInt64))),
            "began_at": [None] * size,
            "level": [1] * size,
            "wait": [10 * (n + 1) for n in range(size)],
            "load": [0.5] * size,
            "_offset": list(range(offset, offset + size)),
            **values,
        },
        schema_overrides={"began_at": pl.Int64},
    )
    return COLUMNS.numbered(COLUMNS.of(frame), TEXTS)


def add(windows: Windows, events: Events, seen: int = NO_EVENT_TIME) -> None:
    """Count events in, before which event time had come that far."""
    windows.add(events, advance(events.cells[:, OFFSET], events.event_ms, None, seen)[0])


def taken(windows: Windows, max_event_ms: int) -> pl.DataFrame:
    """Parts, without what the partition adds."""
    parts = windows.take(max_event_ms, TEXTS)
    rest = dict.fromkeys(("source_partition", "since", "watermark"), np.zeros(parts.height, np.int64))
    return frame_of(aggregate_schema(FEED, windows.aggregate), replace(parts, cells={**parts.cells, **rest}))


def test_only_what_changed_is_taken_and_what_is_final_is_taken_once_more() -> None:
    windows = Windows(FEED, BY_DEVICE, COLUMNS)
    add(windows, events_at(0, 1, 4))
    assert set(taken(windows, NOON + 4000).select("window_start", "version", "events").rows()) == {
        (NOON, 2, 2),
        (NOON + 4000, 4, 1),
    }
    assert taken(windows, NOON + 4000).is_empty()
    assert taken(windows, NOON + 8999).is_empty()
    assert taken(windows, NOON + 9000)["version"].to_list() == [3]
    assert taken(windows, NOON + 9000).is_empty()
    assert taken(windows, NOON + 13000)["version"].to_list() == [5]
    assert windows.oldest() is None


def test_a_closed_window_takes_no_record_and_gives_no_part() -> None:
    windows = Windows(FEED, BY_DEVICE, COLUMNS)
    add(windows, events_at(0, 8.999))
    windows.close(NOON + 9000)
    assert taken(windows, NOON + 9000)["window_start"].to_list() == [NOON + 8000]
    add(windows, events_at(1, offset=7), NOON + 9000)
    assert taken(windows, NOON + 9000).is_empty()


def test_the_oldest_open_window_gives_its_first_offset_and_the_maximum_before_it() -> None:
    windows = Windows(FEED, BY_DEVICE, COLUMNS)
    assert windows.oldest() is None
    add(windows, events_at(5, offset=10), NOON - 5)
    add(windows, events_at(3, 6, offset=11), NOON + 5000)
    assert windows.oldest() == (10, NOON - 5)
    windows.close(NOON + 9000)
    assert windows.oldest() == (10, NOON - 5)
    windows.close(NOON + 13_000)
    assert windows.oldest() is None


def test_a_histogram_has_ascending_buckets_and_is_empty_where_nothing_is_known() -> None:
    """Of the integers around every edge of a bucket."""
    windows = Windows(FEED, BY_MOOD, COLUMNS)
    waits = reference.EDGES
    add(windows, events_at(*[1] * len(waits), wait=waits))
    (part,) = taken(windows, NOON).to_dicts()
    expected = Counter(reference.bucket(wait) for wait in waits)
    assert part["wait_histogram_buckets"] == sorted(expected)
    assert part["wait_histogram_counts"] == [expected[bucket] for bucket in sorted(expected)]
    assert part["delay_histogram_buckets"] == part["delay_histogram_counts"] == []


@pytest.mark.parametrize("sign", [1, -1])
def test_a_sum_is_exact_up_to_the_ends_of_64_bits_and_not_known_behind_them(sign: int) -> None:
    """Whatever comes first, and also if all of it comes at once; it stops nothing, and what comes back is exact."""
    windows = Windows(FEED, BY_DEVICE, COLUMNS)
    largest = 2**52

    def total(levels: list[int], offset: int) -> int:
        add(windows, events_at(*[0] * len(levels), offset=offset, level=levels))
        (found,) = taken(windows, NOON)["level_sum"]
        assert isinstance(found, int)
        return found

    assert total([sign * largest] * 2047 + [sign * (largest - 1)], 0) == sign * (2**63 - 1)
    assert total([sign], 2048) == BEYOND
    assert total([sign * largest] * 5000, 2049) == BEYOND
    assert total([-sign * largest] * 5000, 7049) == BEYOND
    assert total([-sign], 12_049) == sign * (2**63 - 1)


def test_more_open_groups_than_declared_stop_the_feed_and_closed_ones_count_no_more() -> None:
    windows = Windows(replace(FEED, open_groups=2), BY_DEVICE, COLUMNS)
    add(windows, events_at(0, 4))
    windows.check(NOON)
    add(windows, events_at(8, offset=2))
    windows.check(NOON + 9000)
    with pytest.raises(TooManyGroups, match="toy_4s: 3 groups by device_id are open in one partition, more than the 2"):
        windows.check(NOON + 8999)

"""What a partition writes is a function of its log, however it is cut into batches, runs, flushes and restarts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise, product
from typing import Any, cast

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from operations.positions import freeze, rebuilt, rebuilt_from
from processors import partition as module
from processors.badshare import BadShare, TooManyBad, block_size, most_bad
from processors.partition import Output
from processors.tables import FEW_TEXTS
from schemas.feed import Aggregate, Feed
from schemas.verdict import ahead_of_arrival
from streams.deadletters import DeadLetter
from streams.decode import Decoded, Decoder, Wanted
from streams.group_partition import GroupPartition
from streams.positions import (
    NO_EVENT_TIME,
    LogGap,
    Position,
    PositionProblem,
    first,
)
from streams.wire.fetched_batches import Run
from streams.wire.record_batch import RecordBatch, split
from tests.columns import Staged, parts_of, process
from tests.reference.partition import Key, Logged, Truth, truth
from tests.reference.streams import ARRIVED_AFTER, Log, logs, wire
from tests.reference.toy import CATALOGUE, FEED, GROUPED, NOON

BY_DEVICE, BY_MOOD = FEED.aggregates
OLD = replace(FEED, earliest=datetime(1900, 1, 1, tzinfo=UTC))
BEFORE_1970 = -NOON
TOPIC_ID = "topic-id"


class Decoding:
    """A decoder of one log that decoded it already."""

    def __init__(self, feed: Feed, log: Log) -> None:
        batches = tuple(split(0, b"".join(log.batches())))
        self._all = Decoder(CATALOGUE, feed.name, feed).read(Run(feed.name, 0, 0, log.end, batches), 0)

    newest_schema = 1

    def knows(self, schema_id: int) -> bool:
        return schema_id <= self.newest_schema

    def read_together(self, wanted: Sequence[Wanted]) -> tuple[pl.DataFrame, list[Decoded]]:
        ((run, from_offset, _),) = wanted
        rows = self._all.rows.filter(pl.col("_offset").is_between(from_offset, run.next - 1))
        dead = [d for d in self._all.dead if from_offset <= d.offset < run.next]
        ticks = [tick for tick in self._all.ticks if from_offset <= tick[0] < run.next]
        return rows, [Decoded(rows, dead, ticks)]


@dataclass
class World:
    """A log, a consumer group's commit, and what was ever written."""

    feed: Feed
    log: Log
    expected: Truth
    decoder: Any
    committed: int | None = None
    metadata: str = ""
    since: int = 0
    #: Where the log began when the position was frozen; before the processed offset the maximum is not exact then.
    cut_at: int = 0
    rewinds: list[int] = field(default_factory=list)
    written: list[tuple[str, Key, int, dict[str, Any]]] = field(default_factory=list)
    dead: set[int] = field(default_factory=set)

    def position(self) -> Position:
        """Where a worker goes on after an assignment."""
        return self.partition().start()

    def partition(self, log_start: int = 0) -> GroupPartition:
        """What a worker finds after an assignment."""
        return GroupPartition(
            group="processor", topic="toy", partition=0, committed=self.committed, metadata=self.metadata,
            kept=None, topic_id=TOPIC_ID, definition=self.feed.definition, log_start=log_start,
            log_end=self.log.end,
        )  # fmt: skip

    def commit(self, position: Position) -> None:
        assert position.processed >= (self.committed or 0)
        assert position.rewind <= position.processed
        assert position.rewind >= max(self.rewinds, default=0)
        seen = self.expected.watermarks[position.rewind - 1] if position.rewind else None
        if not self.cut_at or position.rewind >= self.since:
            assert position.max_event_ms == (NO_EVENT_TIME if seen is None else seen)
        seen = self.expected.watermarks[position.processed - 1]
        assert position.max_processed_ms == (NO_EVENT_TIME if seen is None else seen)
        self.rewinds.append(position.rewind)
        self.committed, self.metadata = position.processed, position.metadata()

    def write(self, output: Output, rows: int | None = None, taken: int | None = None) -> None:
        """Write the first ``rows`` rows of every aggregate, or all; ``taken`` is how far the log was, if further."""
        watermark = self.expected.watermarks[(taken or output.position.processed) - 1]
        for aggregate in (a for a in self.feed.aggregates if a.name in output.parts):
            name, parts = aggregate.name, parts_of(output, self.feed, aggregate).to_dicts()
            assert [part["watermark"] for part in parts] == ([None] * (len(parts) - 1) + [watermark])[: len(parts)]
            if [part["events"] for part in parts] != [0]:
                self.written += [self._part(name, part) for part in parts[:rows]]
        if rows is None:
            self.dead |= {letter.offset for letter in output.dead}

    def _part(self, name: str, part: dict[str, Any]) -> tuple[str, Key, int, dict[str, Any]]:
        aggregate = next(a for a in self.feed.aggregates if a.name == name)
        assert (part["source_partition"], part["since"]) == (0, self.since)
        content = {"events": part["events"]}
        for partial in (p for measure in aggregate.measures for p in measure.partials):
            if partial.merge == "histogram":
                buckets, counts = part[f"{partial.name}_buckets"], part[f"{partial.name}_counts"]
                assert buckets == sorted(set(buckets))
                content[partial.name] = dict(zip(buckets, counts, strict=True))
            else:
                content[partial.name] = part[partial.name]
        return name, (*(part[by] for by in aggregate.by), part["window_start"]), part["version"], content

    def check_writings(self) -> None:
        """Every part ever written is what the window held after the last record counted into it."""
        for name, key, version, content in self.written:
            assert content == self.expected.history[name][key, version // 2], (name, key, version)
            if version % 2:
                assert key in self.expected.final[name]
                assert version == self.expected.versions(name)[key]

    def check_end(self) -> None:
        """The highest versions are the whole truth."""
        self.check_writings()
        assert self.dead == set(self.expected.invalid)
        for aggregate in self.feed.aggregates:
            highest: dict[Key, int] = {}
            for name, key, version, _ in self.written:
                if name == aggregate.name:
                    highest[key] = max(version, highest.get(key, -1))
            assert highest == self.expected.versions(aggregate.name)


def world(feed: Feed, log: Log) -> World:
    return World(feed, log, truth(feed, log.records), Decoding(feed, log))


def next_run(log: Log, at: int, batches: int) -> Run:
    """The next so many batches from an offset on, whole ones, though the offset may lie inside the first."""
    ends = [end for end in (*log.cuts[1:], log.end) if end > at]
    return Run("toy", 0, at, ends[min(batches, len(ends)) - 1], ())


#: Batches to fetch, whether to flush after them (all there is, or by a clock so many seconds on), whether the flush
#: gets as far as its commit.
Step = tuple[int, bool | float, bool]


def live(world: World, steps: list[Step], dies_after: int | None = None) -> None:
    """One life of a worker, which may end when its last flush got ``dies_after`` rows of each aggregate out."""
    partition = Staged(world.feed, 0, world.decoder, world.position())
    at = partition.start.rewind
    since, now = len(world.written), 0.0
    for batches, flushes, commits in steps:
        if at < world.log.end:
            run = next_run(world.log, at, batches)
            process(partition, run)
            at = run.next
        now += flushes
        if flushes and (output := partition.flush(None if flushes is True else now)) is not None:
            assert output.position.processed == at or (flushes is not True and partition.owes)
            world.write(output, taken=at)
            if commits:
                world.commit(output.position)
    if dies_after is not None and (output := partition.flush()) is not None:
        world.write(output, dies_after, taken=at)
    versions: dict[tuple[str, Key], int] = {}
    for name, key, version, _ in world.written[since:]:
        assert version >= versions.get((name, key), -1)
        versions[name, key] = version


def live_to_the_end(world: World) -> None:
    live(world, [(len(world.log.cuts), True, True)])


steps = st.tuples(st.integers(1, 4), st.sampled_from([False, True, 0.1, 0.7]), st.booleans())


@pytest.mark.parametrize(
    ("feed", "base"), [(FEED, NOON), (OLD, BEFORE_1970), (GROUPED, NOON)], ids=["now", "before 1970", "grouped"]
)
@settings(max_examples=60)
@given(st.data())
def test_any_cut_into_batches_runs_and_flushes_gives_the_windows_of_the_reference(
    feed: Feed, base: int, data: st.DataObject
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "FEW_TEXTS", data.draw(st.sampled_from([0, FEW_TEXTS])))
        here = world(feed, data.draw(logs(base)))
        live(here, data.draw(st.lists(steps, max_size=10)))
        here.committed = None
        here.rewinds.clear()
        live_to_the_end(here)
        here.check_end()


def test_texts_that_no_window_has_any_more_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is held of devices that come once, for a window each, does not grow."""
    monkeypatch.setattr(module, "FEW_TEXTS", 20)
    records = tuple(
        Logged(n, (key := f"d-{n}").encode(), wire(n, key, at, ("calm", 1, None, None, None)), at + ARRIVED_AFTER)
        for n, at in enumerate(range(NOON, NOON + 400_000, 1000))
    )
    log = Log(records, tuple(range(len(records))))
    here = fresh(log)
    for at in range(len(records)):
        process(here, next_run(log, at, 1))
        assert here.flush() is not None
    assert len(here._texts) <= 40


@pytest.mark.parametrize("feed", [FEED, GROUPED], ids=["now", "grouped"])
@settings(max_examples=60)
@given(st.data())
def test_any_kills_and_restarts_give_the_windows_of_the_reference(feed: Feed, data: st.DataObject) -> None:
    """Lives end at any point: in the replay, before a flush, in the middle of one, or between it and its commit."""
    here = world(feed, data.draw(logs(NOON)))
    for life, dies_after in data.draw(
        st.lists(st.tuples(st.lists(steps, max_size=6), st.none() | st.integers(0, 3)), max_size=5)
    ):
        live(here, life, dies_after)
        here.check_writings()
    live_to_the_end(here)
    here.check_end()
    live_to_the_end(here)
    here.check_end()


@settings(max_examples=15)
@given(st.data())
def test_restarts_from_every_committed_position_end_alike(data: st.DataObject) -> None:
    here = world(FEED, data.draw(logs(NOON, 25)))
    positions: list[Position] = []
    partition = Staged(FEED, 0, here.decoder, here.position())
    for at in here.log.cuts:
        process(partition, next_run(here.log, at, 1))
        output = partition.flush()
        assert output is not None
        here.write(output)
        positions.append(output.position)
    for position in positions:
        again = world(FEED, here.log)
        again.committed, again.metadata = position.processed, position.metadata()
        again.written = [part for part in here.written if part[2] // 2 < position.processed]
        again.dead = {offset for offset in here.dead if offset < position.processed}
        live_to_the_end(again)
        again.check_end()


@pytest.mark.parametrize("feed", [FEED, GROUPED], ids=["now", "grouped"])
@settings(max_examples=60)
@given(st.data())
def test_parts_of_a_frozen_life_and_the_next_add_up_to_the_windows_of_the_reference(
    feed: Feed, data: st.DataObject
) -> None:
    """The first life ends after a flush that it did not commit, or in the middle of it, and the log may have lost its
    beginning.

    No event is repeated of which the log has lost every occurrence before the commit. What a flush did not get out is
    missing in its windows, and nothing is counted twice.
    """
    log = data.draw(logs(NOON))
    committed, flushed = sorted(data.draw(st.tuples(*[st.sampled_from([*log.cuts[1:], log.end])] * 2)))
    log_start = data.draw(st.sampled_from([cut for cut in (*log.cuts, log.end) if cut <= committed]))
    torn = data.draw(st.none() | st.integers(0, 3))
    log = without_repeats_of(log, log_start, committed)
    before = world(feed, log)
    partition = Staged(feed, 0, before.decoder, before.position())
    for at, until in ((0, committed), (committed, flushed)):
        if at < until:
            process(partition, Run("toy", 0, at, until, ()))
            output = partition.flush()
            assert output is not None
            before.write(output, None if until == committed else torn)
            if until == committed:
                before.commit(output.position)

    counted = max((version // 2 + 1 for _, _, version, _ in before.written), default=0)
    frozen = freeze(before.partition(log_start=log_start), counted, lambda _: pytest.fail("the position says it"))
    after = world(feed, log)
    after.committed, after.metadata, after.since = frozen.processed, frozen.metadata(), frozen.since
    after.cut_at = log_start
    for life, dies_after in data.draw(
        st.lists(st.tuples(st.lists(steps, max_size=6), st.none() | st.integers(0, 3)), max_size=3)
    ):
        live(after, life, dies_after)
    live_to_the_end(after)

    for aggregate in feed.aggregates:
        lives = [newest(one, aggregate.name) for one in (before, after)]
        found = {
            key: added(aggregate, [life[key] for life in lives if key in life]) for key in {**lives[0], **lives[1]}
        }
        expected = {key: window.snapshot() for key, window in before.expected.windows[aggregate.name].items()}
        missing = Counter(key for key, at in before.expected.history[aggregate.name] if committed <= at < frozen.since)
        for key, window in expected.items():
            if torn is None or not missing[key]:
                assert found.pop(key) == window
            else:
                events = found.pop(key, {"events": 0})["events"]
                assert window["events"] - missing[key] <= events <= window["events"]
        assert not found


#: Other windows, one aggregate less, and windows that close later, while the same records are valid.
CHANGED = replace(
    FEED,
    disorder=timedelta(seconds=1),
    lateness=timedelta(seconds=7),
    ahead=FEED.allowance,
    aggregates=(replace(FEED.aggregates[1], window=timedelta(seconds=6), version=2),),
)


@settings(max_examples=80)
@given(st.data())
def test_windows_of_another_definition_go_on_where_those_of_the_last_ended(data: st.DataObject) -> None:
    """What was processed by then is built from it as a whole; the stream goes on behind it as after a restart."""
    log = data.draw(logs(NOON))
    processed = data.draw(st.sampled_from([*log.cuts[1:], log.end]))
    before = world(FEED, log)
    partition = Staged(FEED, 0, before.decoder, before.position())
    process(partition, Run("toy", 0, 0, processed, ()))
    output = partition.flush()
    assert output is not None
    before.commit(output.position)

    after, built = world(CHANGED, log), truth(CHANGED, log.records[:processed])
    there = replace(before.partition(), definition=CHANGED.definition)
    with pytest.raises(PositionProblem, match="citystream rebuild toy"):
        there.start()
    last = rebuilt_from(there)
    assert last is not None
    (aggregate,) = CHANGED.aggregates
    still_open = [offset for key, offset in built.history[aggregate.name] if key not in built.final[aggregate.name]]
    seen = built.watermarks.get(min(still_open, default=0) - 1)
    oldest = (min(still_open), NO_EVENT_TIME if seen is None else seen) if still_open else None
    position = rebuilt(there, last, oldest)
    after.committed, after.metadata = position.processed, position.metadata()
    after.written = [
        (aggregate.name, key, version, built.windows[aggregate.name][key].snapshot())
        for key, version in built.versions(aggregate.name).items()
    ]
    after.dead = {offset for offset in after.expected.invalid if offset < processed}
    for life, dies_after in data.draw(
        st.lists(st.tuples(st.lists(steps, max_size=6), st.none() | st.integers(0, 3)), max_size=3)
    ):
        live(after, life, dies_after)
    live_to_the_end(after)
    after.check_end()


def without_repeats_of(log: Log, log_start: int, cut: int) -> Log:
    """The log with noise in the place of what repeats, from the cut on, an event that is only before its start."""

    def identity(logged: Logged) -> Any:
        return logged.values and tuple(logged.values[name] for name in ("device_id", "observed_at", "event_id"))

    known = {identity(logged) for logged in log.records[:log_start]}
    known -= {identity(logged) for logged in log.records[log_start:cut]}
    later = [replace(r, values=None) if identity(r) in known else r for r in log.records[cut:]]
    return replace(log, records=(*log.records[:cut], *later))


def newest(world: World, aggregate: str) -> dict[Key, dict[str, Any]]:
    """The content of the highest version of each part."""
    parts = sorted((part for part in world.written if part[0] == aggregate), key=lambda part: part[2])
    return {key: content for _, key, _, content in parts}


def added(aggregate: Aggregate, parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Parts of one window merged as the views do it."""
    merged = {"events": sum(part["events"] for part in parts)}
    for partial in (p for measure in aggregate.measures for p in measure.partials):
        values = [part[partial.name] for part in parts if part[partial.name] is not None]
        match partial.merge:
            case "histogram":
                merged[partial.name] = dict(sum(map(Counter, values), Counter()))
            case "sum":
                merged[partial.name] = sum(values)
            case "first" | "last" as end:
                merged[partial.name] = (min if end == "first" else max)(filter(None, values), default=[])
            case kind:
                merged[partial.name] = {"min": min, "max": max}[kind](values, default=None)
    return merged


@settings(max_examples=25)
@given(st.data())
def test_the_bytes_of_the_broker_give_the_windows_of_the_reference(data: st.DataObject) -> None:
    log = data.draw(logs(NOON, 30))
    here = World(FEED, log, truth(FEED, log.records), Decoder(CATALOGUE, "toy", FEED))
    batches: list[RecordBatch] = list(split(0, b"".join(log.batches())))
    for life in data.draw(st.lists(st.lists(steps, max_size=4), max_size=2)):
        _live_on_bytes(here, batches, life)
    _live_on_bytes(here, batches, [(len(batches), True, True)])
    here.check_end()


def _live_on_bytes(here: World, batches: list[RecordBatch], life: list[Step]) -> None:
    partition = Staged(FEED, 0, here.decoder, here.position())
    at = partition.start.rewind
    for count, flushes, commits in life:
        fetched = [b for b in batches if b.last_offset >= at][:count]
        if fetched:
            run = Run("toy", 0, at, fetched[-1].last_offset + 1, tuple(fetched))
            process(partition, run)
            at = run.next
        if flushes and (output := partition.flush(None if flushes is True else 0.0)) is not None:
            here.write(output, taken=at)
            if commits:
                here.commit(output.position)


def _log(*seconds: float) -> Log:
    """Events of one device at these seconds, each in a batch of its own."""
    records = tuple(
        Logged(n, b"d-1", wire(n, "d-1", NOON + round(at * 1000), ("calm", 1, None, None, None)), NOON + ARRIVED_AFTER)
        for n, at in enumerate(seconds)
    )
    return Log(records, tuple(range(len(records))))


def fresh(log: Log, feed: Feed = FEED) -> Staged:
    return Staged(feed, 0, cast("Decoder", Decoding(feed, log)), first(TOPIC_ID, feed.definition, 0))


def test_a_window_is_final_exactly_when_the_watermark_passes_its_end_and_lateness() -> None:
    """Windows of 4 s, 2 s of disorder, 3 s of lateness: the first one closes at the event of second 9."""
    log = _log(1, 8.999, 9)
    partition = fresh(log)
    versions = []
    for at in range(3):
        process(partition, next_run(log, at, 1))
        output = partition.flush()
        assert output is not None
        parts = parts_of(output, FEED, BY_DEVICE)
        versions.append(dict(zip((parts["window_start"] - NOON).to_list(), parts["version"].to_list(), strict=True)))
    assert versions == [{0: 0}, {8000: 2}, {0: 1, 8000: 4}]


def test_a_tick_makes_windows_final_and_says_so_where_there_are_none() -> None:
    """As the event of second 10 would; a partition without a window says how far it is by a part without events."""
    said = Logged(1, None, None, NOON + ARRIVED_AFTER, tick_ms=NOON + 10_000)
    clock = Logged(1, None, None, NOON + ARRIVED_AFTER, delay_ms=ARRIVED_AFTER - 10_000)
    for tick, (begin, expected) in product([said, clock], [(0, (NOON, 1, 1)), (1, (0, 0, 0))]):
        log = Log((*_log(1).records, tick), (0, 1))
        start = replace(world(FEED, log).position(), rewind=begin, processed=begin)
        partition = Staged(FEED, 0, cast("Decoder", Decoding(FEED, log)), start)
        process(partition, Run("toy", 0, begin, 2, ()))
        output = partition.flush()
        assert output is not None
        parts = parts_of(output, FEED, BY_DEVICE).select("window_start", "version", "events", "watermark")
        assert parts.rows() == [(*expected, NOON + 10_000)]
        assert output.position.rewind == 2


def test_a_window_is_written_as_often_as_anybody_can_see_it_change_and_at_once_when_it_is_final() -> None:
    """By the clock that the flush is told; the position moves when all there is was written. A tenth of a second after
    a flush nothing is due but what is final, and what is left when nothing more comes."""
    log = _log(1, 2, 3, 8.5, 9, 9)
    here = fresh(log)

    def flushed(at: int, now: float) -> tuple[dict[str, list[int]], int]:
        if at >= 0:
            process(here, next_run(log, at, 1))
        output = here.flush(now)
        assert output is not None
        return {
            name: parts.cells["version"].tolist() for name, parts in output.parts.items()
        }, output.position.processed

    assert flushed(0, 100.0) == ({"toy_4s": [0], "toy_5s_mood": [0]}, 1)
    assert flushed(1, 100.1) == ({}, 1)
    assert flushed(2, 100.2) == ({}, 1)
    assert flushed(3, 100.3) == ({}, 1)
    assert flushed(4, 100.4) == ({"toy_4s": [5, 8]}, 1), "the window of seconds 0 to 4 is final at second 9"
    assert flushed(-1, 100.5) == ({"toy_4s": [], "toy_5s_mood": [4, 8]}, 5), "nothing more came"
    assert here.flush(200.0) is None
    assert flushed(5, 200.0)[1] == 6


def test_the_position_moves_every_few_seconds_whenever_the_aggregates_are_due() -> None:
    """Windows may be due at different times, as one became final in between: now and then all are written together."""
    log = _log(*(n / 2 for n in range(200)))
    here = fresh(log, replace(FEED, aggregates=tuple(replace(a, window=60 * a.window) for a in FEED.aggregates)))
    moved, last = [0.0], 0
    for at in range(200):
        process(here, next_run(log, at, 1))
        here._shown_at["toy_4s"] -= at % 2
        output = here.flush(float(at))
        assert output is not None
        if output.position.processed > last:
            moved.append(float(at))
            last = output.position.processed
    assert max(b - a for a, b in pairwise(moved)) <= 6


def test_a_window_closed_before_the_processed_offset_is_not_written_again_from_its_middle() -> None:
    """The window from 8 to 12 s is final when second 17 comes; the one from 10 to 15 s is still open then."""
    log = _log(8.5, 10.5, 17.5, 18)
    partition = fresh(log)
    process(partition, next_run(log, 0, 3))
    output = partition.flush()
    assert output is not None
    assert (output.position.processed, output.position.rewind) == (3, 1)
    for runs in ([next_run(log, 1, 3)], [next_run(log, 1, 2), next_run(log, 3, 1)]):
        again = Staged(FEED, 0, cast("Decoder", Decoding(FEED, log)), output.position)
        for run in runs:
            process(again, run)
        written = again.flush()
        assert written is not None
        assert (written.parts["toy_4s"].cells["window_start"] - NOON).tolist() == [16_000]


def test_a_gap_the_log_does_not_explain_ends_it() -> None:
    log = _log(1, 2, 3)
    partition = fresh(log)
    with pytest.raises(LogGap, match="toy/0: offsets 0 to 1 were not delivered"):
        process(partition, Run("toy", 0, 2, 3, ()))


def test_a_stale_run_changes_nothing() -> None:
    log = _log(1, 2, 3)
    partition = fresh(log)
    assert process(partition, next_run(log, 0, 2)) == 2
    assert process(partition, next_run(log, 0, 1)) == 0
    assert process(partition, next_run(log, 0, 3)) == 1
    output = partition.flush()
    assert output is not None
    assert output.parts["toy_4s"].cells["events"].tolist() == [3]
    assert process(partition, next_run(log, 0, 3)) == 0
    assert partition.flush() is None


def test_nothing_is_written_until_the_processed_offset_is_reached_again() -> None:
    log = _log(1, 2, 3, 4)
    start = Position(3, 0, NO_EVENT_TIME, TOPIC_ID, FEED.definition)
    partition = Staged(FEED, 0, cast("Decoder", Decoding(FEED, log)), start)
    assert process(partition, next_run(log, 0, 2)) == 0
    assert partition.flush() is None
    assert process(partition, next_run(log, 2, 1)) == 0
    assert partition.flush() is None
    assert process(partition, next_run(log, 3, 1)) == 1
    output = partition.flush()
    assert output is not None
    assert output.position.processed == 4


def test_a_run_without_any_record_moves_the_position() -> None:
    """Control and aborted batches have offsets and no records."""
    log = _log(1)
    partition = fresh(log)
    process(partition, next_run(log, 0, 1))
    partition.flush()
    assert process(partition, Run("toy", 0, 1, 7, ())) == 6
    output = partition.flush()
    assert output is not None
    assert (output.position.processed, output.position.rewind) == (7, 0)
    assert not any(parts.height for parts in output.parts.values())


def test_a_repeat_of_an_earlier_life_is_known_after_a_restart_as_before_it() -> None:
    """Its window is open, so the rewind of the new life has to reach back behind the freeze."""
    log = _log(1, 2, 3, 1)
    log = replace(log, records=(*log.records[:3], replace(log.records[0], offset=3)))
    decoder = cast("Decoder", Decoding(FEED, log))
    partition = fresh(log)
    process(partition, next_run(log, 0, 1))
    output = partition.flush()
    assert output is not None
    here = world(FEED, log)
    here.committed, here.metadata = output.position.processed, output.position.metadata()
    position = freeze(here.partition(), 1, lambda _: pytest.fail("the position says it"))
    for until, events in ((2, 1), (3, 2), (4, 2)):
        partition = Staged(FEED, 0, decoder, position)
        process(partition, Run("toy", 0, position.rewind, until, ()))
        output = partition.flush()
        assert output is not None
        assert output.parts["toy_4s"].cells["events"].tolist() == [events]
        position = output.position
        assert (position.rewind, position.since) == (0, 1)


BAD_LOG = Log(tuple(Logged(n, b"d-1", None, NOON) for n in range(10)), tuple(range(10)))


@pytest.fixture
def blocks_of_ten(monkeypatch: pytest.MonkeyPatch) -> None:
    """The share of bad records is taken over ten offsets."""
    for limit in ("FEWEST", "MOST"):
        monkeypatch.setattr(f"processors.badshare.{limit}", 10)


@pytest.mark.parametrize(
    ("rate", "partitions", "size"), [(0.01, 4, 1000), (1, 1, 1000), (34, 4, 5100), (170, 4, 10_000)]
)
def test_a_block_is_ten_minutes_of_a_partition_within_limits(rate: float, partitions: int, size: int) -> None:
    assert block_size(replace(FEED, rate=rate, partitions=partitions)) == size


@pytest.mark.parametrize("percent", [1, 29, 57, 58, 99, 100])
def test_a_share_is_that_of_whole_numbers(percent: int) -> None:
    feed = replace(FEED, bad_ratio=percent / 100)
    assert [most_bad(feed, size) for size in range(1_000, 10_000)] == [percent * n // 100 for n in range(1_000, 10_000)]


@pytest.mark.usefixtures("blocks_of_ten")
@pytest.mark.parametrize(("ratio", "allowed"), [(0.5, 5), (0.2, 2), (0.28, 2)])
def test_too_many_bad_records_stop_the_worker_at_the_one_that_decides_it(ratio: float, allowed: int) -> None:
    """If half of a block of ten may be bad, the sixth decides, whatever follows."""
    partition = fresh(BAD_LOG, replace(FEED, bad_ratio=ratio))
    assert process(partition, next_run(BAD_LOG, 0, allowed)) == allowed
    said = f"toy/0: {allowed + 1} of the records up to offset {allowed} are bad, more than {ratio:.0%} of a block"
    with pytest.raises(TooManyBad, match=said) as stopped:
        process(partition, next_run(BAD_LOG, allowed, 1))
    assert "Have Toys mend the publisher" in str(stopped.value)
    assert "citystream process --accept-bad toy," in str(stopped.value)


@pytest.mark.usefixtures("blocks_of_ten")
def test_a_fast_clock_is_said_to_its_department() -> None:
    """Its records lie after their arrival, more than the feed allows."""
    bad = BadShare(FEED, 0, first(TOPIC_ID, FEED.definition, 0), accept=False)
    letters = [DeadLetter("toy", 0, n, n, "VALIDATE", ahead_of_arrival(FEED), b"", b"", NOON) for n in range(6)]
    with pytest.raises(TooManyBad, match="The clock of Toys is probably fast: have it set by the network's time"):
        bad.add(letters, [], 0)


@pytest.mark.usefixtures("blocks_of_ten")
def test_ticks_neither_hide_bad_records_nor_make_few_of_them_many() -> None:
    """Nine ticks after each record: the sixth bad one of ten decides, and one is not many."""
    letters = [DeadLetter("toy", 0, 10 * n, 10 * n, "DECODE", "broken", b"", b"", NOON) for n in range(6)]
    ticks = [(offset, NOON) for offset in range(60) if offset % 10]
    bad = BadShare(FEED, 0, first(TOPIC_ID, FEED.definition, 0), accept=False)
    bad.add(letters[:5], ticks[:45], 0)
    assert bad.before(50) == (5, 45)
    with pytest.raises(TooManyBad, match="6 of the records up to offset 50 are bad"):
        bad.add(letters[5:], ticks[45:], 50)


@pytest.mark.usefixtures("blocks_of_ten")
def test_no_share_stops_a_worker_that_was_told_to_accept_it_or_whose_feed_allows_all() -> None:
    assert process(fresh(BAD_LOG, replace(FEED, bad_ratio=1.0)), next_run(BAD_LOG, 0, 10)) == 10
    told = Staged(
        FEED, 0, cast("Decoder", Decoding(FEED, BAD_LOG)), first(TOPIC_ID, FEED.definition, 0), accept_bad=True
    )
    assert process(told, next_run(BAD_LOG, 0, 10)) == 10


@pytest.mark.usefixtures("blocks_of_ten")
def test_too_many_bad_records_stop_the_worker_again_after_a_restart() -> None:
    partition = fresh(BAD_LOG)
    process(partition, next_run(BAD_LOG, 0, 5))
    output = partition.flush()
    assert output is not None
    again = Staged(FEED, 0, cast("Decoder", Decoding(FEED, BAD_LOG)), output.position)
    with pytest.raises(TooManyBad):
        process(again, next_run(BAD_LOG, output.position.rewind, 10))


@pytest.mark.usefixtures("blocks_of_ten")
def test_one_bad_record_at_the_end_of_a_block_does_not_stop_a_worker_that_starts_there() -> None:
    """Nothing would be committed, so every start of the worker would meet it again."""
    start = Position(9, 9, NO_EVENT_TIME, TOPIC_ID, FEED.definition)
    partition = Staged(FEED, 0, cast("Decoder", Decoding(FEED, BAD_LOG)), start)
    assert process(partition, next_run(BAD_LOG, 9, 1)) == 1


def decides(log: Log, allowed: int, from_offset: int) -> int | None:
    """The first offset from there on at which more than so many of a block of ten are known to be bad; ticks are no
    part of a block."""
    records = [record for record in log.records if not record.is_tick]
    for start in range(0, len(records), 10):
        bad = [r.offset for r in records[start : start + 10] if r.values is None]
        if len(bad) > allowed and bad[allowed] >= from_offset:
            return bad[allowed]
    return None


@pytest.mark.parametrize(("ratio", "allowed"), [(0.5, 5), (0.2, 2)])
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.usefixtures("blocks_of_ten")
@given(st.data())
def test_any_cuts_and_restarts_stop_at_the_same_record(ratio: float, allowed: int, data: st.DataObject) -> None:
    """Blocks that a worker was told to accept do not stop the next one, though its open windows reach back to them."""
    feed, log = replace(FEED, bad_ratio=ratio), bad_log(data)
    here = world(feed, log)
    accepting = data.draw(st.integers(0, log.end))
    accepted = 0
    for life in data.draw(st.lists(st.lists(steps, min_size=1, max_size=6), max_size=4)):
        told = accepted < accepting
        partition = Staged(feed, 0, here.decoder, here.position(), accept_bad=told)
        expected = None if told else decides(log, allowed, partition.start.processed)
        at = partition.start.rewind
        for count, flushes, commits in life:
            if at == log.end:
                break
            run = next_run(log, at, count)
            if expected is not None and run.next > expected:
                with pytest.raises(TooManyBad, match=f" up to offset {expected} are bad"):
                    process(partition, run)
                break
            process(partition, run)
            at = run.next
            output = partition.flush() if flushes else None
            if output is not None and commits:
                here.commit(output.position)
        if told:
            accepted = here.committed or 0
    partition = Staged(feed, 0, here.decoder, here.position())
    if partition.start.rewind == log.end:
        return
    expected = decides(log, allowed, partition.start.processed)
    with (
        pytest.raises(TooManyBad, match=f" up to offset {expected} are bad") if expected is not None else nullcontext()
    ):
        process(partition, next_run(log, partition.start.rewind, log.end))


def bad_log(data: st.DataObject) -> Log:
    """Stretches of good and of bad records of one device, and of ticks, a second apart."""
    kinds = st.sampled_from(["good", "bad", "tick"])
    stretches = data.draw(st.lists(st.tuples(kinds, st.integers(1, 12)), min_size=1, max_size=8))
    kind = [one for one, length in stretches for _ in range(length)]

    def record(n: int) -> Logged:
        if kind[n] == "tick":
            return Logged(n, None, None, NOON + ARRIVED_AFTER, delay_ms=ARRIVED_AFTER - 1000 * n)
        values = wire(n, "d-1", NOON + 1000 * n, ("calm", 1, None, None, None)) if kind[n] == "good" else None
        return Logged(n, b"d-1", values, NOON + ARRIVED_AFTER)

    cuts = sorted({0, *data.draw(st.lists(st.integers(0, len(kind) - 1), max_size=20))})
    return Log(tuple(map(record, range(len(kind)))), tuple(cuts))


def test_waiting_dead_letters_are_counted_in_bytes() -> None:
    partition = fresh(BAD_LOG)
    process(partition, next_run(BAD_LOG, 0, 4))
    waiting = partition.unwritten
    output = partition.flush()
    assert output is not None
    assert waiting == sum(letter.memory for letter in output.dead)
    assert waiting > 4 * len(b"d-1" + b"noise")
    assert partition.unwritten == 0

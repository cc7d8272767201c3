"""Windows as ClickHouse shows them are those of the plain reference: of parts, late rows, and built from raw rows."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from citystream.installation import Installation
from citystream.settings import Settings
from processors.partition import Output
from schemas.expressions import Column
from schemas.feed import Aggregate, Latest, RollUp, Spans
from sinks.migrate import migrate
from sinks.rebuild import DAY_MS, Rebuild
from sinks.shown import hide
from sinks.topic_rows import FeedReader, PartReader, Unread
from sinks.writer import Writer
from streams.decode import Decoder
from streams.feed_topics import topic_of
from streams.positions import NO_EVENT_TIME, Position, first
from streams.wire.column_writer import encode_bodies
from streams.wire.fetched_batches import Run
from streams.wire.record_batch import packed, split
from tests.columns import Staged, process
from tests.reference import found
from tests.reference.batches import stamped
from tests.reference.city import Read, Shown, Truth, latest, rolled, states, truth
from tests.reference.found import FoundWindow
from tests.reference.partition import Key, Logged
from tests.reference.streams import ARRIVED_AFTER, Log, logs, wire
from tests.reference.toy import GROUPED, frozen_catalogue, renamed

pytestmark = pytest.mark.integration

#: Yesterday at noon: raw rows that are too old are not kept.
BASE = (time.time_ns() // 10**6 // DAY_MS * 2 - 1) * DAY_MS // 2
ROLLUPS = (RollUp(name="toy_1h", to="hour", capture=0.003), RollUp(name="toy_1d", to="day"))
BY_NOTE, BY_WAIT = GROUPED.aggregates
FEED = renamed(
    replace(
        GROUPED,
        partitions=2,
        latest=Latest(by="mood", active=Column("level") >= 3),
        spans=Spans(of="mood"),
        aggregates=(BY_NOTE, replace(BY_WAIT, rollups=ROLLUPS, expected=2)),
    ),
    "words",
)
CATALOGUE = frozen_catalogue(FEED)


@pytest.fixture(scope="module")
def city(settings: Settings, stack: object) -> Iterator[Installation]:
    """A ClickHouse with the tables and views of the feed."""
    made = Installation(settings)
    migrate(made.server("owner"), [FEED], [], [], made.dialect, print)
    yield made
    with made.server("owner").connect() as owner:
        for aggregate in FEED.aggregates:
            hide(owner.execute, FEED, aggregate.name, made.dialect)
            owner.execute(f"DROP TABLE raw.{aggregate.topic} SYNC")
        assert owner.execute("SELECT name FROM system.tables WHERE name IN ('words_1h', 'words_1d')") == []
        for ending in ("now", "at", "active", "spans"):
            owner.execute(f"DROP VIEW city.words_{ending} SYNC")
        for table in ("city.words", "city.words_conflicts", "raw.words_ledger", "raw.words"):
            owner.execute(f"DROP TABLE {table} SYNC")


@dataclass
class Stored:
    """What a processor and a sink make of a partition's log, in ClickHouse."""

    city: Installation
    number: int
    log: Log

    def __post_init__(self) -> None:
        self._writer = Writer(self.city.server("sink"), pytest.fail)
        self._batches = tuple(split(self.number, b"".join(self.log.batches(CATALOGUE, FEED.name))))

    def process(self, flushes: Sequence[int]) -> Position:
        """Store rows and parts of windows, flushed after so many batches each; where the processor is then."""
        start = first("id", FEED.definition, 0)
        partition, at = Staged(FEED, self.number, Decoder(CATALOGUE, FEED.name, FEED), start, accept_bad=True), 0
        for count in (*flushes, len(self._batches)):
            left = [one for one in self._batches if one.base_offset >= at][:count]
            if left:
                process(partition, Run(FEED.name, self.number, at, left[-1].last_offset + 1, tuple(left)))
                at = left[-1].last_offset + 1
                output = partition.flush()
                assert output is not None
                self._store_parts(output)
        rows = FeedReader(topic_of(FEED, self.number), CATALOGUE, self.city.settings.timezone)
        self._insert(rows, Run(FEED.name, self.number, 0, self.log.end, self._batches), NO_EVENT_TIME)
        assert output is not None
        return output.position

    def _store_parts(self, output: Output) -> None:
        for aggregate in FEED.aggregates:
            frozen, parts = CATALOGUE.latest(aggregate.topic), output.parts[aggregate.name]
            reader = PartReader(FEED, aggregate, CATALOGUE, self.city.settings.timezone)
            for body in encode_bodies(frozen, aggregate.by, parts, 2**20):
                (came,) = split(self.number, stamped(packed(body.data, body.count), 0, self.log.records[0].arrived_ms))
                found = self._insert(reader, Run(aggregate.topic, self.number, 0, body.count, (came,)), 0)
                with self.city.server("sink").connect() as client:
                    told = reader.progress(found)
                    client.execute("INSERT INTO raw.progress (aggregate, source_partition, watermark) VALUES", told)

    def _insert(self, reader: FeedReader | PartReader, run: Run, before: int) -> Any:
        ((rows, *_),) = reader.read([Unread(run, 0, before)])
        counting = reader.counting(rows) if isinstance(reader, PartReader) else rows
        if counting.height:
            self._writer.insert(reader.table, reader.columns, counting, lambda: True)
        return rows


def emptied(city: Installation) -> None:
    """Let nothing of the feed be stored."""
    with city.server("owner").connect() as owner:
        for name in ("words", *(a.topic for a in FEED.aggregates)):
            owner.execute(f"TRUNCATE TABLE raw.{name}")
        owner.execute("ALTER TABLE raw.progress DELETE WHERE startsWith(aggregate, 'words') SETTINGS mutations_sync=2")


def elsewhere(log: Log, device: str) -> Log:
    """The same of other devices."""

    def moved(one: Logged) -> Logged:
        if one.values is None:
            return one
        values = {**one.values, "device_id": one.values["device_id"] + device}
        key = one.key if one.key == b"other" else values["device_id"].encode()
        return replace(one, values=values, key=key)

    return replace(log, records=tuple(map(moved, log.records)))


def expected(stored: Sequence[Stored]) -> Truth:
    """What has to be shown."""

    def read(one: Logged) -> Read:
        return Read(**vars(one), value=b"")

    return truth(FEED, [(one.number, one.log.end, [*map(read, one.log.records)]) for one in stored])


def check(city: Installation, wanted: Truth) -> None:
    """Hold every view to the reference, the states at some times of the last seconds."""
    with city.server("analyst").connect() as client:
        for aggregate in FEED.aggregates:
            compare(found.windows(client, aggregate), wanted.windows[aggregate.name])
            for rollup in aggregate.rollups:
                zone = ZoneInfo(city.settings.timezone)
                compare(found.windows(client, aggregate, rollup), rolled(FEED, aggregate, rollup, zone, wanted))
        for until in (BASE - 1, BASE, BASE + 1500, BASE + 20_000, None):
            at = "words_now" if until is None else f"words_at(t=fromUnixTimestamp64Milli({until}))"
            newest = {mood: row[:-2] for mood, row in latest(FEED, "mood", wanted, until).items()}
            assert found.latest(client, FEED, at, "mood") == newest, at
        for since, until in ((BASE - 5000, BASE + 1500), (BASE, BASE + 60_000), (BASE + 1500, BASE + 3000)):
            there = found.spans(client, FEED, "mood", since, until)
            assert there == states(FEED, "mood", "device_id", wanted, since, until), (since, until)
        level = [one.name for one in FEED.fields].index("level")
        active = {mood: row for mood, row in newest.items() if row[level] >= 3}
        assert found.latest(client, FEED, "words_active", "mood") == active


def compare(there: Iterable[FoundWindow], wanted: Mapping[Key, Shown]) -> None:
    shown = {window.key: window for window in there}
    assert shown.keys() == wanted.keys()
    for key, window in wanted.items():
        found = shown[key]
        assert (found.events, found.final, found.as_of_ms) == (window.events, window.final, window.as_of_ms), key
        assert dict(found.results) == window.results, key


def test_windows_of_parts_and_late_rows_and_windows_built_anew_are_those_of_the_reference(city: Installation) -> None:
    @settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
    @given(st.data())
    def holds(data: st.DataObject) -> None:
        emptied(city)
        drawn = data.draw(logs(BASE)), elsewhere(data.draw(logs(BASE)), " too")
        stored = [Stored(city, number, log) for number, log in enumerate(drawn)]
        flushes = st.lists(st.integers(1, 3), max_size=3)
        positions = {one.number: one.process(data.draw(flushes)) for one in stored}
        wanted = expected(stored)
        check(city, wanted)
        with city.server("owner").connect() as owner:
            work = Rebuild(owner, FEED, positions, city.dialect)
            for aggregate in FEED.aggregates:
                before = parts_of(owner, aggregate)
                work.begin(aggregate)
                for span in work.spans():
                    work.build(aggregate, span)
                assert parts_of(owner, aggregate) == before, "bit for bit and version for version"
        check(city, wanted)

    holds()


def parts_of(client: Any, aggregate: Aggregate) -> list[Any]:
    """The parts that count."""
    rows: list[Any] = client.execute(f"SELECT * EXCEPT watermark FROM raw.{aggregate.topic} FINAL ORDER BY ALL")
    return rows


@pytest.mark.parametrize("withdrawn", [{1}, {0, 1, 2, 3}], ids=str)
def test_windows_without_withdrawn_rows_are_built_anew_whatever_their_groups(
    city: Installation, withdrawn: set[int]
) -> None:
    emptied(city)
    groups = [("calm", 1, None, None, None, None, None), ("calm", 1, None, 5, None, "", True)]
    records = [Logged(n, b"d", wire(n, "d", BASE + 100 * n, groups[n % 2]), BASE + ARRIVED_AFTER) for n in range(6)] + [
        Logged(6, None, None, BASE + ARRIVED_AFTER, tick_ms=BASE + ARRIVED_AFTER)
    ]
    stored = Stored(city, 0, Log(tuple(records), (0,)))
    positions = {0: stored.process([])}
    rows = f"source_offset IN {sorted(withdrawn)}"
    with city.server("owner").connect() as owner:
        work = Rebuild(owner, FEED, positions, city.dialect)
        for aggregate in FEED.aggregates:
            windows, still_open, _ = work.touched(aggregate, rows)
            assert (windows, still_open) == (len({n % 2 for n in withdrawn}), 0)
            for span in work.spans(rows):
                work.build_without(aggregate, span, rows)
        owner.execute(f"ALTER TABLE raw.words DELETE WHERE {rows} SETTINGS mutations_sync = 2")
    left = [replace(one, values=None) if one.offset in withdrawn else one for one in records]
    shown = expected([replace(stored, log=Log(tuple(left), (0,)))])
    with city.server("analyst").connect() as client:
        for aggregate in FEED.aggregates:
            assert {w.key: (w.events, dict(w.results)) for w in found.windows(client, aggregate)} == {
                key: (w.events, w.results) for key, w in shown.windows[aggregate.name].items()
            }

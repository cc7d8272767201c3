"""Rules on windows that lie in several partitions say what the reference says, whoever is killed and started again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from processors.gathering import FinalPartReader, Gathering
from processors.partition import Output
from schemas.alerts import Category, Severity, Status
from schemas.expressions import Column
from schemas.feed import Feed
from schemas.rules import Due, Held, Level, Rule, above, while_true
from streams.gathered import gathered_topics
from streams.positions import Position, Snapshot, first
from streams.wire.column_writer import encode_bodies
from streams.wire.record_batch import packed
from tests.columns import Staged, process
from tests.reference.batches import run, stamped
from tests.reference.partition import truth
from tests.reference.rules import Told, alerts_of_groups
from tests.reference.streams import ARRIVED_AFTER, Log, logs
from tests.reference.toy import FEED, NOON, frozen_catalogue
from tests.unit.test_partition import Decoding, next_run
from tests.unit.test_rules import told


def rule(name: str, when: Any, **more: Any) -> Rule:
    levels = (Level(severity=Severity.MINOR, when=when, **more),)
    return Rule(name=name, headline="Moods", category=Category.OTHER, levels=levels)


_, BY_MOOD = FEED.aggregates
GROUPED = replace(
    FEED,
    partitions=2,
    aggregates=(
        replace(
            BY_MOOD,
            name="toy_5s_moods",
            by=("mood",),
            alerts=(
                rule("many", above(Column("events"), 3, release=1)),
                rule("busy", above(Column("busy"), 1), held=Held(times=2), clear=Held(lasting=timedelta(seconds=5))),
                rule("high", while_true(Column("high") > 0.3)),
                rule("none", Due(at=Column("window_start") + 12_000)),
            ),
        ),
    ),
)
CATALOGUE = frozen_catalogue(GROUPED)
(TOPIC,) = gathered_topics(GROUPED).values()


@dataclass
class Come:
    """A partition in which groups come together: its batches by offset, and where its worker stands."""

    position: Position
    batches: list[bytes] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    end: int = 0
    snapshots: list[bytes] = field(default_factory=list)
    said: dict[str, Told] = field(default_factory=dict)

    def append(self, data: bytes, count: int) -> None:
        self.batches.append(stamped(packed(data, count), self.end, NOON + ARRIVED_AFTER))
        self.starts.append(self.end)
        self.end += count


def send(come: Sequence[Come], output: Output) -> None:
    for (name, partition), columns in output.gathered.items():
        assert name == TOPIC.name
        frozen = CATALOGUE.latest(TOPIC.aggregate.topic)
        for body in encode_bodies(frozen, TOPIC.aggregate.by, columns, 2**20):
            come[partition].append(body.data, body.count)


#: Batches to take, whether to flush then, and whether it is committed.
steps = st.tuples(st.integers(1, 4), st.sampled_from([False, True, 0.7, 40.0]), st.booleans())


def live_apart(feed: Feed, number: int, log: Log, position: Position, life: Any, come: Sequence[Come]) -> Position:
    """One life of a partition of the feed; gives where the next one begins."""
    partition, now = Staged(feed, number, Decoding(feed, log), position), 0.0  # type: ignore[arg-type]
    at = position.rewind
    for batches, flushes, commits in life:
        if at < log.end:
            taken = next_run(log, at, batches)
            process(partition, taken)
            at = taken.next
        now += flushes
        if flushes and (output := partition.flush(None if flushes is True else now)) is not None:
            send(come, output)
            position = output.position if commits else position
    return position


def live_together(come: Come, life: Any) -> None:
    """One life of a partition in which groups come together."""
    named = come.position.snapshot
    state = Gathering(
        TOPIC, come.position, Status.TEST, lambda: None if named is None else come.snapshots[named.offset]
    )
    reader, now, at = FinalPartReader(TOPIC, CATALOGUE), 0.0, come.position.rewind
    for batches, flushes, commits in life:
        there = [n for n, start in enumerate(come.starts) if start >= at][:batches]
        if there:
            found = run(*(come.batches[n] for n in there), start=at, topic=TOPIC.name)
            (parts,) = reader.read([(state, found)])
            state.take(parts)
            at = found.next
        now += flushes
        if flushes and (output := state.flush(None if flushes is True else now)) is not None:
            for message in output.alerts:
                said = told(message)
                assert come.said.setdefault(message["event_id"], said) == said
            if output.snapshot is not None:
                come.snapshots.append(output.snapshot)
                named = Snapshot(len(come.snapshots) - 1, output.position.processed)
            if commits:
                come.position = replace(output.position, snapshot=named)


@settings(max_examples=80)
@given(st.data())
def test_any_kills_on_both_sides_say_what_the_reference_says(data: st.DataObject) -> None:
    begins = [first("topic-id", GROUPED.definition, 0)] * 2
    apart = [data.draw(logs(NOON)) for _ in begins]
    come = [Come(first("groups", TOPIC.definition, 0)) for _ in range(TOPIC.partitions)]
    lives = st.lists(steps, max_size=6)
    for _ in range(data.draw(st.integers(0, 3))):
        for number, log in enumerate(apart):
            begins[number] = live_apart(GROUPED, number, log, begins[number], data.draw(lives), come)
        for one in come:
            live_together(one, data.draw(lives))
    for number, log in enumerate(apart):
        live_apart(GROUPED, number, log, begins[number], [(len(log.cuts), True, True)], come)
    for one in come:
        live_together(one, [(len(one.starts) or 1, True, True)])
    expected = alerts_of_groups(GROUPED, [truth(GROUPED, log.records) for log in apart])
    assert sorted(one for each in come for one in each.said.values()) == expected

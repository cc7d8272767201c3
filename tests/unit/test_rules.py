"""What a rule says is a function of its log, however it is cut, killed and restarted."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Annotated, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field

from processors import partition as module
from processors.partition import Output
from processors.tables import FEW_TEXTS
from schemas.alerts import Category, Severity
from schemas.expressions import Absolute, Column, Present, When
from schemas.feed import Feed
from schemas.fields import Instant, Record, Text, Unit
from schemas.reference import Reference
from schemas.reference_rows import Row
from schemas.rules import (
    Due,
    Held,
    Level,
    Rule,
    above,
    below,
    lookup,
    previous,
    rate,
    running_total,
    while_true,
)
from schemas.verdict import instant_ms
from streams.history import GRACE_MS, History
from streams.positions import Position, Snapshot, first
from tests.columns import Staged, process
from tests.reference.partition import truth
from tests.reference.rules import Told, Version, alerts_of, known_of
from tests.reference.streams import ARRIVED_AFTER, Log, logs
from tests.reference.toy import DEPARTMENT, FEED, NOON, Mood, instant
from tests.unit.test_partition import Decoding, next_run

SECOND = timedelta(seconds=1)
LEVEL, LOAD, MOOD, AT = Column("level"), Column("load"), Column("mood"), Column("observed_at")


def rule(name: str, *levels: Level, **more: Any) -> Rule:
    return Rule(name=name, headline="Toys", category=Category.OTHER, levels=levels, **more)


def minor(when: Any, **more: Any) -> Level:
    return Level(severity=Severity.MINOR, when=when, **more)


class Limit(Record):
    """How much a device may."""

    device_id: Annotated[Text, Field(description="Device")]
    high: Annotated[int, Field(ge=-(10**6), le=10**6, description="Level"), Unit("1")]
    mood: Annotated[Mood, Field(description="Mood it should be in")]
    valid_from: Annotated[Instant | None, Field(description="From when")]
    valid_to: Annotated[Instant | None, Field(description="Until when")]


LIMITS = Reference(
    name="limits", description="Limits", record=Limit, key=("device_id",), department=DEPARTMENT,
    valid_from="valid_from", valid_to="valid_to",
)  # fmt: skip
LIMIT, OF_MOOD = lookup(LIMITS, Column("device_id")), lookup(LIMITS, MOOD)

RULES = (
    rule("high", minor(above(LEVEL, 3, release=2))),
    rule("limited", minor(above(LEVEL, LIMIT.column("high"), release=2))),
    rule("wrong_mood", minor(while_true(~MOOD.equals(LIMIT.column("mood")) & ~LIMIT.column("mood").equals("unknown")))),
    rule("loaded", minor(above(LOAD, 0.01), held=Held(lasting=2 * SECOND), clear=Held(times=2))),
    rule(
        "often",
        minor(while_true(MOOD.equals("busy"), until=MOOD.equals("calm")), held=Held(times=2, within=3 * SECOND)),
    ),
    rule("low", minor(below(LEVEL, -1), held=Held(times=2), clear=Held(lasting=SECOND))),
    rule(
        "graver",
        minor(above(LEVEL, 0)),
        Level(severity=Severity.SEVERE, when=above(LEVEL, 5), held=Held(times=2)),
        shows={"level": LEVEL, "double": LEVEL * 2},
    ),
    rule("silent", minor(Due(at=AT + 1500)), shows={"level": LEVEL}),
    rule("overdue", minor(Due(at=AT + Column("wait") * 20, start=MOOD.equals("busy"), done=MOOD.equals("calm")))),
    rule(
        "turned",
        minor(while_true(Column("before").equals("busy") & MOOD.equals("calm"))),
        keep={"before": previous(MOOD)},
    ),
    rule("jumped", minor(above(Absolute(LEVEL - Column("was")), 100)), keep={"was": previous(LEVEL)}),
    rule(
        "much",
        minor(above(Column("net"), 10, release=5)),
        keep={"net": running_total(LEVEL, reset=MOOD.equals("calm"))},
        shows={"net": Column("net")},
    ),
    rule("steep", minor(while_true(Column("slope") > 1)), keep={"slope": rate(LEVEL, per=SECOND)}),
    rule(
        "back",
        minor(while_true(Column("before_that").equals(MOOD) & ~Column("before").equals(MOOD))),
        keep={"before": previous(When(LEVEL < 8, MOOD)), "before_that": previous(Column("before"))},
    ),
    rule(
        "drifted",
        minor(above(Absolute(Column("drift")), 6, release=2)),
        keep={
            "was": previous(LEVEL),
            "was_at": previous(AT),
            "before": previous(MOOD),
            "drift": running_total(
                When(AT - Column("was_at") <= 1500, LEVEL - Column("was")), reset=~MOOD.equals(Column("before"))
            ),
            "speed": rate(Column("drift"), per=SECOND),
        },
        shows={"drift": Column("drift"), "speed": Column("speed")},
    ),
    rule("unknown", minor(while_true(~Present(LOAD))), remembers=2 * SECOND),
    rule("short", minor(above(LEVEL, 3), held=Held(times=3)), remembers=SECOND),
)
ON_WINDOWS = (
    rule("levels", minor(above(Column("level"), 5), held=Held(times=2))),
    rule("gains", minor(while_true((Column("gain") > 0) | (Column("events") > 1)), clear=Held(lasting=4 * SECOND))),
    rule("no_windows", minor(Due(at=Column("window_start") + 9000))),
    rule("over", minor(above(Column("level"), LIMIT.column("high"), release=1)), shows={"high": LIMIT.column("high")}),
    rule("over_mood", minor(above(Column("level"), OF_MOOD.column("high")))),
)
BY_DEVICE, BY_MOOD = FEED.aggregates
RULED = replace(FEED, alerts=RULES, aggregates=(replace(BY_DEVICE, alerts=ON_WINDOWS), BY_MOOD))
ONLY_RULES = replace(FEED, alerts=RULES, aggregates=())


@dataclass
class World:
    """A log, what is committed, and everything that was ever said."""

    feed: Feed
    log: Log
    decoder: Any
    position: Position
    expected: list[Told]
    versions: list[Version]
    snapshots: list[bytes] = field(default_factory=list)
    said: dict[str, Told] = field(default_factory=dict)

    def partition(self) -> Staged:
        at = self.position.snapshot
        return Staged(
            self.feed, 0, self.decoder, self.position,
            recall=lambda: None if at is None else self.snapshots[at.offset],
            histories=lambda *_: history(self.versions),
        )  # fmt: skip

    def hear(self, output: Output) -> None:
        """Take what was said; what is said again is the same."""
        for message in output.alerts:
            said = told(message)
            assert self.said.setdefault(message["event_id"], said) == said

    def reached(self, output: Output, named: Snapshot | None) -> Position:
        """The position a flush leads to, which names its snapshot or the one before."""
        if output.snapshot is not None:
            self.snapshots.append(output.snapshot)
            named = Snapshot(len(self.snapshots) - 1, output.position.processed)
        return replace(output.position, snapshot=named)

    def check(self, *, whole: bool) -> None:
        found = sorted(self.said.values())
        assert set(found) <= set(self.expected)
        assert not whole or found == self.expected


def told(message: dict[str, Any]) -> Told:
    numbers = tuple(None if one is None else float(one) for one in json.loads(message["numbers"]).values())
    return Told(
        message["rule"], tuple(message["entity"].split(", ")), instant_ms(message["sent"]), message["msg_type"],
        message["severity"], instant_ms(message["onset"]), numbers,
    )  # fmt: skip


def history(versions: Sequence[Version]) -> History:
    rows = [(at, Row(key, begins, values)) for at, key, begins, _, values in versions]
    return History(LIMITS, rows)


@st.composite
def versions_of_limits(draw: st.DrawFn) -> list[Version]:
    """What is known of devices, some of it only when their records have arrived."""
    times = st.sampled_from([None, NOON - 60_000, NOON + 4000, NOON + 15_000])
    found: list[Version] = []
    for _ in range(draw(st.integers(0, 9))):
        at = NOON + ARRIVED_AFTER + draw(st.sampled_from([-(10**6), -20_000, -10_000, -9_999, 0]))
        begins, ends = draw(times), draw(times)
        ends = None if begins is not None and ends is not None and ends <= begins else ends
        key, removed = (
            (draw(st.sampled_from(["d-1", "湖", "busy", "calm"])),),
            draw(st.sampled_from([False, False, True])),
        )
        values = {
            "device_id": key[0],
            "high": draw(st.sampled_from([-5, 0, 3, 8])),
            "mood": draw(st.sampled_from(Mood)).value,
            "valid_from": None if begins is None else instant(begins),
            "valid_to": None if ends is None else instant(ends),
        }
        found.append((at, key, begins, ends, None if removed else values))
    return found


def world(feed: Feed, log: Log, versions: list[Version]) -> World:
    expected = alerts_of(
        feed, log.records, truth(feed, log.records),
        lambda _, key, arrived, event: known_of(versions, GRACE_MS, key, arrived, event),
    )  # fmt: skip
    return World(feed, log, Decoding(feed, log), first("topic-id", feed.definition, 0), expected, versions)


#: Batches to take, whether to flush then (all, or by a clock so many seconds on), and whether it is committed.
steps = st.tuples(st.integers(1, 4), st.sampled_from([False, True, 0.1, 0.7, 40.0]), st.booleans())


def live(here: World, life: Sequence[tuple[int, bool | float, bool]]) -> None:
    partition, now = here.partition(), 0.0
    at, reached = partition.start.rewind, here.position
    for batches, flushes, commits in life:
        if at < here.log.end:
            run = next_run(here.log, at, batches)
            process(partition, run)
            at = run.next
        now += flushes
        if flushes and (output := partition.flush(None if flushes is True else now)) is not None:
            here.hear(output)
            reached = here.reached(output, reached.snapshot)
            if commits:
                here.position = reached


@pytest.mark.parametrize("feed", [RULED, ONLY_RULES], ids=["with windows", "without"])
@settings(max_examples=100)
@given(st.data())
def test_any_cut_kill_and_restart_says_what_the_reference_says(feed: Feed, data: st.DataObject) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "FEW_TEXTS", data.draw(st.sampled_from([0, FEW_TEXTS])))
        here = world(feed, data.draw(logs(NOON)), data.draw(versions_of_limits()))
        for life in data.draw(st.lists(st.lists(steps, max_size=8), max_size=4)):
            live(here, life)
            here.check(whole=False)
        live(here, [(len(here.log.cuts), True, True)])
        here.check(whole=True)

"""Rules for the feeds made up for the bench: what rules cost a city, and how soon they say something.

There are some for each kind of record, and for windows of groups that lie in all partitions. They raise about an alert
a second.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta

from bench import made_up
from bench.made_up import Call, Change, Passage, Reading, State
from schemas.alerts import Category, Severity
from schemas.expressions import Absolute, Column
from schemas.feed import Aggregate, Feed
from schemas.rules import Condition, Due, Held, Level, Memory, Rule, above, previous, running_total, while_true

SEVERITIES = (Severity.MINOR, Severity.SEVERE)
SILENCE_MS = 300_000
VALUE = Column("value")
BROKEN = Column("state").equals(State.BROKEN.value)
CHANGE = Absolute(VALUE - Column("was"))


def _rule(name: str, *levels: tuple[Condition | Due, Held], keep: Mapping[str, Memory] | None = None) -> Rule:
    return Rule(
        name=name,
        headline=f"Made up: {name}",
        category=Category.OTHER,
        keep=keep or {},
        levels=tuple(
            Level(severity=one, when=when, held=held) for one, (when, held) in zip(SEVERITIES, levels, strict=False)
        ),
    )


AT_ONCE = Held()
SILENT = _rule("silent", (Due(at=Column("observed_at") + SILENCE_MS), AT_ONCE))
#: By the record of a feed: its rules, and those on each of its aggregates.
RULES: Mapping[type, tuple[Rule, ...]] = {
    Reading: (
        SILENT,
        _rule("high", (above(VALUE, 46, release=10), AT_ONCE), (above(VALUE, 50), AT_ONCE)),
        _rule(
            "jump",
            (while_true(CHANGE > 50), AT_ONCE),
            keep={"was": previous(VALUE)},
        ),
    ),
    Passage: (
        _rule(
            "inside",
            (above(Column("net"), 400, release=100), AT_ONCE),
            keep={"net": running_total(Column("inward") - Column("outward"))},
        ),
    ),
    Change: (_rule("broken", (while_true(BROKEN), Held(lasting=timedelta(minutes=2)))),),
    Call: (_rule("waits_long", (above(Column("waited"), 40_000), AT_ONCE)),),
}
CROWDED = _rule("crowded", (above(Column("inward"), 20_000, release=1_000), AT_ONCE))


def _named(rule: Rule, feed: Feed) -> Rule:
    return replace(rule, name=f"{feed.name}_{rule.name}")


def _watched(aggregate: Aggregate, feed: Feed) -> Aggregate:
    by_zone = feed.record is Passage and aggregate.by == ("zone",)
    return replace(aggregate, alerts=(_named(CROWDED, feed),)) if by_zone else aggregate


def with_rules(feed: Feed) -> Feed:
    """A feed that is made up for the bench, watched by the rules for its records."""
    alerts = tuple(_named(rule, feed) for rule in RULES[feed.record])
    return replace(feed, alerts=alerts, aggregates=tuple(_watched(one, feed) for one in feed.aggregates))


def without_rules(feed: Feed) -> Feed:
    """Any feed, watched by nobody."""
    return replace(feed, alerts=(), aggregates=tuple(replace(one, alerts=()) for one in feed.aggregates))


FEEDS = {name: with_rules(feed) for name, feed in made_up.FEEDS.items()}

"""Which windows the view of each aggregate shows: a row of ``raw.shown``, written once the view is made of them.

Ended between view and row, it is done again: until then the row says what the view showed before, which nobody builds
on.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from schemas.feed import Aggregate, Feed
from schemas.sql import literal
from sinks.dialect import Dialect
from sinks.views import aggregate_view

#: Asks ClickHouse: a statement and its parameters.
Ask = Callable[..., Any]


def shown(ask: Ask, feed: Feed) -> dict[str, str]:
    """The aggregates of a feed that have a view, declared or not, and the topic, and table, of what each shows."""
    return dict(ask("SELECT aggregate, topic FROM raw.shown FINAL WHERE feed = %(feed)s", {"feed": feed.name}))


def show(ask: Ask, feed: Feed, aggregate: Aggregate, dialect: Dialect) -> None:
    """Let the view of an aggregate, and its roll-ups, show what is declared, which has to be built."""
    for rollup in (None, *aggregate.rollups):
        ask(aggregate_view(feed, aggregate, dialect, rollup))
    for topic in {aggregate.topic, shown(ask, feed).get(aggregate.name, aggregate.topic)}:
        _drop(ask, topic, aggregate.views, dialect)
    note(ask, feed, aggregate.name, aggregate.topic)


def note(ask: Ask, feed: Feed, aggregate: str, topic: str) -> None:
    """Write down what a view shows."""
    row = ", ".join(map(literal, (feed.name, aggregate, topic)))
    ask(f"INSERT INTO raw.shown (feed, aggregate, topic) VALUES ({row})")


def hide(ask: Ask, feed: Feed, aggregate: str, dialect: Dialect) -> None:
    """Drop the view of an aggregate that is declared no longer, and its roll-ups."""
    _drop(ask, shown(ask, feed)[aggregate], [], dialect)
    ask(
        f"ALTER TABLE raw.shown DELETE WHERE feed = {literal(feed.name)} AND aggregate = {literal(aggregate)} "
        "SETTINGS mutations_sync = 2"
    )


def _drop(ask: Ask, topic: str, but: Collection[str], dialect: Dialect) -> None:
    """Drop the views that show windows of a topic, but for some."""
    pattern = literal(rf"\braw\.{topic}\b")
    for (name,) in ask(f"SELECT name FROM system.tables WHERE database = 'city' AND match(as_select, {pattern})"):
        if name not in but:
            ask(f"DROP VIEW IF EXISTS city.{name}{dialect.everywhere}")

"""Bringing a ClickHouse to what the declarations say."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from schemas.feed import Feed
from sinks.clickhouse import Server, patiently
from sinks.tables import feed_tables, shared_tables
from sinks.views import aggregate_view, conflict_view, feed_view


def statements(feeds: Iterable[Feed], timezone: str) -> list[str]:
    """Everything there has to be, in an order that works; running it again changes nothing."""
    found = ["CREATE DATABASE IF NOT EXISTS raw", "CREATE DATABASE IF NOT EXISTS city", *shared_tables(timezone)]
    for feed in feeds:
        found += [*feed_tables(feed, timezone), feed_view(feed, timezone), conflict_view(feed, timezone)]
        found += [aggregate_view(feed, aggregate, timezone) for aggregate in feed.aggregates]
    return found


def migrate(owner: Server, feeds: Iterable[Feed], timezone: str, say: Callable[[str], None]) -> None:
    """Create what is missing; waits for a server that is away."""
    client = owner.connect()
    for statement in statements(feeds, timezone):
        patiently(lambda text=statement: client.execute(text), say)  # type: ignore[misc]
    client.disconnect()

"""Bringing a ClickHouse to what the declarations say, without showing windows that are not built."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from schemas.feed import Feed
from schemas.question import Question
from schemas.reference import Reference
from schemas.sql import literal
from sinks import before, references
from sinks.catalogue import catalogue_views
from sinks.clickhouse import Server, patiently, waiting
from sinks.dialect import Dialect
from sinks.ledger_views import ledger_views
from sinks.questions import ask_all
from sinks.shown import Ask, show, shown
from sinks.tables import feed_columns, feed_tables, shared_tables
from sinks.views import conflict_view, feed_view, latest_views, masked_view, span_views
from streams.feed_topics import FeedTopic

#: Of all tables and views together: raised with every change that a release before does not understand.
LAYOUT = 1


def statements(feed: Feed, dialect: Dialect) -> list[str]:
    """What there has to be of a feed, but for the views of its aggregates; running it again changes nothing."""
    return [
        *feed_tables(feed, dialect),
        feed_view(feed, dialect),
        conflict_view(feed, dialect),
        *latest_views(feed, dialect),
        *span_views(feed, dialect),
    ]


def widened(ask: Ask, feed: Feed, timezone: str) -> list[str]:
    """What lets a feed's columns be null that were made when they never were; each is written anew."""
    kinds = ask(
        "SELECT name, type FROM system.columns WHERE database = 'raw' AND table = %(table)s", {"table": feed.name}
    )
    return [
        f"ALTER TABLE raw.{feed.name} MODIFY COLUMN {column.declaration}"
        for column in feed_columns(feed, timezone)
        if column.type == f"Nullable({dict(kinds).get(column.name)})"
    ]


def settle(owner: Server, topics: Iterable[FeedTopic]) -> None:
    """Note of outgrown topics that all they count is stored."""
    with owner.connect() as client:
        for topic in topics:
            for aggregate in topic.feed.aggregates:
                client.execute(
                    f"INSERT INTO raw.progress SELECT {literal(aggregate.topic)}, number, {topic.beyond} "
                    f"FROM numbers({topic.first}, {topic.partitions})"
                )


@contextmanager
def _asking(owner: Server, say: Callable[[str], None]) -> Iterator[Ask]:
    waits = waiting(say)
    with owner.connect() as client:
        yield lambda *statement: patiently(lambda: client.execute(*statement), waits)


def made_for(owner: Server, say: Callable[[str], None]) -> str | None:
    """The time zone the tables were made for, or None if there are none; waits for a server that is away."""
    with _asking(owner, say) as ask:
        rows = ask(
            "SELECT extract(type, '\\'(.+)\\'') FROM system.columns "
            "WHERE database = 'raw' AND table = 'quarantine' AND name = 'published_at'"
        )
    return str(rows[0][0]) if rows else None


def layout(owner: Server, say: Callable[[str], None]) -> int:
    """The highest layout that tables and views were brought to; 1 where nobody noted it. Waits for a server that is
    away."""
    with _asking(owner, say) as ask:
        noted = ask("EXISTS TABLE raw.layout")[0][0]
        return max(1, int(ask("SELECT max(version) FROM raw.layout")[0][0])) if noted else 1


def migrate(
    owner: Server,
    feeds: Iterable[Feed],
    tables: Iterable[Reference],
    questions: Iterable[Question],
    dialect: Dialect,
    say: Callable[[str], None],
) -> None:
    """Create what is missing of all that is declared; waits for a server that is away.

    The views of questions that are asked no more go.

    A view goes on showing the version it shows, because another one has to be built first; and a new one of a feed
    that has rows waits until its windows are built of them.
    """
    feeds, tables = list(feeds), list(tables)
    with _asking(owner, say) as ask:
        for database in ("raw", "city"):
            ask(f"CREATE DATABASE IF NOT EXISTS {database}{dialect.everywhere}")
        before.note_published(ask, feeds)
        for statement in shared_tables(dialect):
            ask(statement)
        for feed in feeds:
            _migrate(ask, feed, dialect, say)
        for statement in (statement for table in tables for statement in references.statements(table, dialect)):
            ask(statement)
        for statement in [masked_view(feeds, dialect), *ledger_views(feeds, dialect)]:
            ask(statement)
        for statement in catalogue_views(feeds, tables, dialect):
            ask(statement)
        ask_all(ask, questions, dialect)
        ask(f"INSERT INTO raw.layout (version) VALUES ({LAYOUT})")


def _migrate(ask: Ask, feed: Feed, dialect: Dialect, say: Callable[[str], None]) -> None:
    for statement in statements(feed, dialect):
        ask(statement)
    for aggregate in feed.aggregates:
        before.partition(ask, feed, aggregate, dialect)
    before.note_shown(ask, feed)
    for statement in widened(ask, feed, dialect.timezone):
        ask(statement)
    now, ((rows,),) = shown(ask, feed), ask(f"SELECT count() FROM raw.{feed.name}")
    unbuilt = [a for a in feed.aggregates if now.get(a.name, "" if rows else a.topic) != a.topic]
    for aggregate in feed.aggregates:
        if aggregate not in unbuilt:
            show(ask, feed, aggregate, dialect)
    if unbuilt:
        names = ", ".join(f"city.{aggregate.name}" for aggregate in unbuilt)
        say(f"not shown as declared: {names}; run: citystream rebuild {feed.name}")


def empty(owner: Server, feed: Feed, say: Callable[[str], None]) -> None:
    """Drop everything that is stored of a feed; its tables stay. Waits for a server that is away."""
    names = [feed.name, *(aggregate.topic for aggregate in feed.aggregates)]
    of_topic = f"WHERE topic = {literal(feed.name)}"
    shared = dict.fromkeys(("quarantine", "redriven", "control", "ledger", "withdrawn"), of_topic)
    shared["progress"] = f"WHERE aggregate IN ({', '.join(map(literal, names))})"
    with _asking(owner, say) as ask:
        for name in names:
            ask(f"TRUNCATE TABLE raw.{name}")
        for table, where in shared.items():
            ask(f"ALTER TABLE raw.{table} DELETE {where} SETTINGS mutations_sync = 2")

"""What the release before left otherwise in ClickHouse, and how it becomes what it is now.

With the next release this module goes, and what calls it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from schemas.feed import Aggregate, Feed
from sinks.dialect import Dialect
from sinks.shown import Ask, note, shown
from sinks.tables import LEDGER, PARTS_PARTITION, PUBLISHED, aggregate_table, feed_ledger, quarantined_ledger

#: Behind the name of a table while it is made anew; no declared name has capitals.
OTHER = "_OTHER"


def partition(ask: Ask, feed: Feed, aggregate: Aggregate, dialect: Dialect) -> None:
    """Move parts that had no partitions into a table with them, which none that is there can be given.

    The two change places in one step. Ended at any moment, it begins anew, or goes on where they have.
    """
    table, other = f"raw.{aggregate.topic}", f"raw.{aggregate.topic}{OTHER}"
    keys = dict(ask("SELECT concat('raw.', name), partition_key FROM system.tables WHERE database = 'raw'"))
    if keys[table] != PARTS_PARTITION:
        ask(f"DROP TABLE IF EXISTS {other}{dialect.everywhere} SYNC")
        ask(aggregate_table(feed, aggregate, dialect, OTHER))
        ask(f"INSERT INTO {other} SELECT * FROM {table}")
        ask(f"EXCHANGE TABLES {table} AND {other}{dialect.everywhere}")
    elif other not in keys:
        return
    ask(f"INSERT INTO {table} SELECT * FROM {other}")  # what came since is there as well
    ask(f"DROP TABLE {other}{dialect.everywhere} SYNC")


def note_published(ask: Ask, feeds: Iterable[Feed]) -> None:
    """Let a ledger that only says which offsets arrived say when they were published, as far as rows are kept.

    What adds to it notes nothing twice. What comes until it is changed counts for the minute that is noted next. A
    month of a feed is read at a time, so that however much is stored takes no more memory.
    """
    views = "SELECT name, as_select FROM system.tables WHERE database = 'raw' AND endsWith(name, '_ledger')"
    made = dict(ask(views))
    if made:
        ask("ALTER TABLE raw.ledger " + ", ".join(f"ADD COLUMN IF NOT EXISTS {c.declaration}" for c in PUBLISHED))
    into = f"INSERT INTO raw.ledger ({', '.join(column.name for column in LEDGER)}) "
    silent = {name.removesuffix("_ledger") for name, select in made.items() if " minutes" not in select}
    if "quarantine" in silent:
        ask(f"{into}{quarantined_ledger()}")
    parts = "SELECT DISTINCT partition FROM system.parts WHERE active AND database = 'raw' AND table = %(table)s"
    for feed in (feed for feed in feeds if feed.name in silent):
        for (month,) in sorted(ask(parts, {"table": feed.name})):
            ask(f"{into}{feed_ledger(feed, f' WHERE toYYYYMM(arrived_at) = {month}')}")


def note_shown(ask: Ask, feed: Feed) -> None:
    """Write down what the views of a feed show, of which only their SQL says it."""
    noted = shown(ask, feed)
    views = "SELECT name, as_select FROM system.tables WHERE database = 'city' AND startsWith(name, %(prefix)s)"
    for name, select in ask(views, {"prefix": f"{feed.name}_"}):
        topic = re.search(rf"\braw\.({name}(_v[0-9]+)?)\b", select)
        if topic and name not in noted and re.search(rf"\braw\.{feed.name}\b", select):
            note(ask, feed, name, topic[1])

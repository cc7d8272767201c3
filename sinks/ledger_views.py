"""The accounting as SQL: views on the ledger, which say what arrived of each partition and what did not.

They go by what arrived alone. How far a log reaches, the brokers know (``sinks/ledger.py``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from schemas.feed import Feed
from schemas.sql import literal
from sinks.dialect import Dialect
from sinks.tables import LEDGER_BLOCK


def ledger_views(feeds: Iterable[Feed], dialect: Dialect) -> list[str]:
    """Statements creating the views, in an order that works."""
    about = "Ranges of offsets that did not arrive, below the highest that did"
    return [_blocks(dialect), _accounts(feeds, dialect), _view(dialect, "holes", about, holes("raw.ledger_blocks"))]


def blocks(looked: Mapping[tuple[str, int], Iterable[range]]) -> str:
    """Where to read the blocks of these offsets of partitions from; or all blocks."""
    wanted = " OR ".join(
        f"(topic = {literal(topic)} AND source_partition = {partition} "
        f"AND block BETWEEN {part.start // LEDGER_BLOCK} AND {(part.stop - 1) // LEDGER_BLOCK})"
        for (topic, partition), parts in looked.items()
        for part in parts
    )
    return f"(SELECT * FROM raw.ledger_blocks WHERE {wanted})" if wanted else "raw.ledger_blocks"


def _blocks(dialect: Dialect) -> str:
    """An offset that arrived in several ways counts once: as received, else as quarantined, else as control."""
    kinds = ", ".join(
        f"groupBitmapMergeStateIf(offsets, kind = {literal(kind)}) AS {name}"
        for kind, name in (("received", "r"), ("quarantined", "q"), ("control", "c"))
    )
    select = (
        "WITH bitmapOr(bitmapOr(r, q), c) AS offsets SELECT topic, source_partition, block, "
        "bitmapCardinality(r) AS received, bitmapAndnotCardinality(q, r) AS quarantined, "
        "bitmapAndnotCardinality(c, bitmapOr(r, q)) AS control, "
        "bitmapCardinality(r) + bitmapCardinality(q) + bitmapCardinality(c) - bitmapCardinality(offsets) AS disputed, "
        f"block * {LEDGER_BLOCK} + bitmapMax(offsets) AS highest, offsets "
        f"FROM (SELECT topic, source_partition, block, {kinds} FROM raw.ledger "
        "GROUP BY topic, source_partition, block SETTINGS optimize_aggregation_in_order = 1)"
    )
    return _view(dialect, "ledger_blocks", f"What arrived of each block of {LEDGER_BLOCK} offsets", select)


def _accounts(feeds: Iterable[Feed], dialect: Dialect) -> str:
    """Stored rows stand to the left of the ledger, so they are read first (see ``sinks/views.py``)."""
    stored = " UNION ALL ".join(
        f"SELECT {literal(feed.name)} AS topic, source_partition, count() AS rows, sum(late) AS late "
        f"FROM raw.{feed.name} FINAL GROUP BY source_partition"
        for feed in feeds
    )
    blocks = (
        "SELECT topic, source_partition, max(highest) + 1 AS offsets, sum(received) AS received, "
        "sum(quarantined) AS quarantined, sum(control) AS control, sum(disputed) AS disputed "
        "FROM raw.ledger_blocks GROUP BY topic, source_partition"
    )
    gone = (
        "SELECT topic, source_partition, groupBitmapMerge(offsets) AS taken FROM raw.withdrawn "
        "GROUP BY topic, source_partition"
    )
    select = (
        "SELECT topic, source_partition, blocks.offsets AS offsets, stored.rows AS stored, "
        "toInt64(received) - stored - taken AS duplicate, taken AS withdrawn, quarantined, control, "
        "offsets - received - quarantined - control AS holes, disputed, stored.late AS late "
        f"FROM ({stored}) AS stored RIGHT JOIN ({blocks}) AS blocks USING (topic, source_partition) "
        f"LEFT JOIN ({gone}) AS gone USING (topic, source_partition)"
    )
    return _view(
        dialect,
        "accounts",
        "Of each partition: offsets = stored + duplicate + withdrawn + quarantined + control + holes",
        select,
    )


def holes(source: str) -> str:
    """A query for what lies between the runs of offsets that arrived; a full block is not written out.

    ClickHouse keeps the offsets of a small set in the order they came in.
    """
    runs = (
        f"WITH bitmapCardinality(offsets) = {LEDGER_BLOCK} AS full, "
        f"if(full, [0, {LEDGER_BLOCK - 1}], arraySort(bitmapToArray(offsets))) AS held "
        "SELECT topic, source_partition, arrayJoin(arrayMap("
        f"run -> (block * {LEDGER_BLOCK} + run[1], block * {LEDGER_BLOCK} + run[-1]), "
        "arraySplit((offset, step) -> step > 1 AND NOT full, held, arrayDifference(held)))) AS run "
        f"FROM {source}"
    )
    neighbours = (
        "SELECT topic, source_partition, toInt64(run.1) AS start, lagInFrame(toInt64(run.2), 1, -1) OVER (PARTITION BY "
        "topic, source_partition ORDER BY run.1 ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS before "
        f"FROM ({runs})"
    )
    return (
        "SELECT topic, source_partition, before + 1 AS first, start - 1 AS last "
        f"FROM ({neighbours}) WHERE start > before + 1 ORDER BY topic, source_partition, first"
    )


def _view(dialect: Dialect, name: str, about: str, select: str) -> str:
    return f"CREATE OR REPLACE VIEW raw.{name}{dialect.everywhere} AS {select} COMMENT {literal(about)}"

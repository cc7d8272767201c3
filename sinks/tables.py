"""The physical tables of ClickHouse, derived from feeds: ``raw.*``.

Whatever order rows arrive in and however often, the same rows survive: a feed's table keeps the first occurrence of
an identity (the order: ``FIRST``), an aggregate's the highest version of each part of each
life of its partition, and the quarantine the letter that was written last.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import timedelta

from schemas.feed import Aggregate, Feed
from schemas.measures import ORDERED_BY
from schemas.model import COMPONENTS, Field
from schemas.sql import literal
from sinks.dialect import Dialect
from sinks.sql import behind_ms, is_late
from streams.watermark import ASIDE

#: Dead letters as they came, and without the bytes that may name a person, for those who may not read ``BYTES``.
QUARANTINE, MASKED, BYTES = "raw.quarantine", "raw.quarantine_masked", ("key", "value")
#: Offsets a ledger row covers.
LEDGER_BLOCK = 65_536
#: A minute in ms, and what an offset is multiplied by beside its place in the minute.
MINUTE_MS, MINUTE_STEP = 60_000, 65_536
RAW_KEPT = timedelta(days=400)
#: Of a table of parts; those of other releases are made anew.
PARTS_PARTITION = "toYear(window_start)"
#: Orders the occurrences of an event, the highest one counts: what its topic counts, then the lowest partition, those
#: of the oldest topic first, then the lowest offset. Those in one topic are in one partition, that of the key.
FIRST = (
    f"bitNot(bitOr(bitShiftLeft(toUInt64(seen_before = {ASIDE}), 63), "
    "bitOr(bitShiftLeft(toUInt64(source_partition), 47), source_offset)))"
)

_TYPES = {
    "string": "String",
    "enum": "String",
    "int": "Int32",
    "float": "Float64",
    "bool": "Bool",
    "date": "Date32",
}


@dataclass(frozen=True)
class TableColumn:
    """A column of a table and what an analyst reads about it.

    ``parts`` names what the sink's rows have for it, where that is not a column of its name. ``absent`` is the SQL of
    its value in rows it was not sent for.
    """

    name: str
    type: str
    comment: str
    parts: tuple[str, ...] = ()
    absent: str = ""

    @property
    def sent(self) -> tuple[str, ...]:
        """The columns of the sink's rows of which it is made."""
        return self.parts or (self.name,)

    @property
    def declaration(self) -> str:
        """What stands for it in the statement that makes its table."""
        default = f"DEFAULT {self.absent} " if self.absent else ""
        return f"{self.name} {self.type} {default}COMMENT {literal(self.comment)}"


#: What a feed's table has beside what the sink declares: values of fields that it does not.
UNDECLARED = TableColumn("undeclared", "String", "Fields of another schema version than the sink's, as JSON")


def _undeclared(name: str, kind: str) -> str:
    """SQL of what a row has under a name without a column of its own; ``kind`` is nullable."""
    return f"JSONExtract({UNDECLARED.name}, {literal(name)}, {literal(kind)})"


def instant(name: str, comment: str, timezone: str, *, nullable: bool = False) -> TableColumn:
    """A time; the sink's rows have it in ms since 1970, so that no client's time zone takes part."""
    kind = f"DateTime64(3, {literal(timezone)})"
    if not nullable:
        return TableColumn(name, kind, comment)
    absent = f"fromUnixTimestamp64Milli({_undeclared(name, 'Nullable(Int64)')}, {literal(timezone)})"
    return TableColumn(name, f"Nullable({kind})", comment, absent=absent)


def field_columns(field: Field, timezone: str) -> list[TableColumn]:
    """Columns of one field of a record; a place has two."""
    name = field.name
    comment = field.description + (f" [{field.unit}]" if field.unit and field.kind != "instant" else "")
    if field.kind == "instant":
        return [instant(name, comment, timezone, nullable=field.nullable)]
    if field.kind == "place":
        kind = "Nullable(Float64)"
        return [
            TableColumn(part, kind, f"{comment}: {axis}, WGS 84 [deg]", absent=_undeclared(part, kind))
            for axis, part in ((axis, f"{name}_{axis}") for axis in COMPONENTS["place"])
        ]
    if field.kind == "uuid":
        return [TableColumn(name, "UUID", comment, tuple(f"{name}_{part}" for part in COMPONENTS["uuid"]))]
    if field.kind == "date":
        if not field.nullable:
            return [TableColumn(name, "Date32", comment)]
        absent = f"toDate32({_undeclared(name, 'Nullable(Int32)')})"
        return [TableColumn(name, "Nullable(Date32)", comment, absent=absent)]
    kind = _TYPES[field.kind]
    found = _undeclared(name, f"Nullable({kind})")
    if field.nullable:
        return [TableColumn(name, f"Nullable({kind})", comment, absent=found)]
    absent = f"ifNull({found}, {literal(field.default)})" if field.has_default else ""
    return [TableColumn(name, kind, comment, absent=absent)]


def source_columns(timezone: str) -> list[TableColumn]:
    """Where a raw row came from."""
    return [
        TableColumn("source_partition", "UInt16", "Partition, numbered through all topics the feed had"),
        TableColumn("source_offset", "UInt64", "Offset in the partition"),
        instant("arrived_at", "When the broker stored the record", timezone),
        TableColumn(
            "seen_before",
            "Int64",
            f"Maximum of event time in the partition before this record [ms]; {ASIDE} if its topic does not count it",
        ),
    ]


def feed_columns(feed: Feed, timezone: str) -> list[TableColumn]:
    """Columns the sink writes of a feed; ``UNDECLARED`` comes to them where there is any."""
    return [c for field in feed.fields for c in field_columns(field, timezone)] + source_columns(timezone)


def key_columns(feed: Feed, aggregate: Aggregate) -> list[TableColumn]:
    """What an aggregate groups by, as its table and its view have it."""
    return [
        TableColumn(f.name, f"Nullable({_TYPES[f.kind]})" if f.nullable else _TYPES[f.kind], f.description)
        for f in feed.grouped_by(aggregate)
    ]


def aggregate_columns(feed: Feed, aggregate: Aggregate, timezone: str) -> list[TableColumn]:
    """Columns the sink writes of an aggregate."""
    columns = [replace(column, comment="Group key") for column in key_columns(feed, aggregate)]
    columns += [
        instant("window_start", "Start of the window", timezone),
        TableColumn("source_partition", "UInt16", "Partition the part comes from"),
        TableColumn("since", "UInt64", "Offset from which on the part counts; parts of several add up"),
        TableColumn("version", "UInt64", "2 x last offset counted in, + 1 if final"),
        TableColumn("events", "Int64", "Events counted"),
    ]
    for partial in (p for measure in aggregate.measures for p in measure.partials):
        if partial.merge == "histogram":
            columns.append(
                TableColumn(
                    partial.name,
                    "Tuple(Array(Int32), Array(Int64))",
                    "Buckets and counts",
                    (f"{partial.name}_buckets", f"{partial.name}_counts"),
                )
            )
        elif partial.merge in ("first", "last"):
            about = f"The {partial.merge} one: {', '.join(ORDERED_BY)} and value"
            columns.append(TableColumn(partial.name, "Array(Int64)", about))
        elif partial.merge == "sum":
            columns.append(TableColumn(partial.name, "Int64", "Partial sum"))
        else:
            columns.append(TableColumn(partial.name, "Nullable(Int64)", f"Partial {partial.merge}"))
    return columns


def quarantine_columns(timezone: str) -> list[TableColumn]:
    """Columns the sink writes of a dead letter."""
    return [
        TableColumn("topic", "String", "Topic of the record"),
        TableColumn("source_partition", "UInt16", "Partition of the record"),
        TableColumn("source_offset", "UInt64", "Offset of the record"),
        TableColumn("last_offset", "UInt64", "Last offset, if a whole batch could not be opened"),
        TableColumn("stage", "String", "DECODE or VALIDATE"),
        TableColumn("cause", "String", "What is wrong with it"),
        TableColumn("key", "Nullable(String)", "Key, hexadecimal"),
        TableColumn("value", "Nullable(String)", "Value, hexadecimal"),
        instant("published_at", "When the broker stored the record", timezone),
        instant("arrived_at", "When the dead letter was stored", timezone),
    ]


PROGRESS = [
    TableColumn("aggregate", "String", "Aggregate"),
    TableColumn("source_partition", "UInt16", "Partition the parts come from"),
    TableColumn("watermark", "Int64", "Maximum of event time whose parts are stored [ms]"),
]

SHOWN = [
    TableColumn("feed", "String", "Feed"),
    TableColumn("aggregate", "String", "Aggregate, and view in city"),
    TableColumn("topic", "String", "Topic, and table in raw, of the version it shows"),
]

REDRIVEN = [
    TableColumn("topic", "String", "Topic of the record"),
    TableColumn("source_partition", "UInt16", "Partition of the record"),
    TableColumn("source_offset", "UInt64", "Offset of the record"),
    TableColumn("to_partition", "UInt16", "Partition where it is now"),
    TableColumn("to_offset", "UInt64", "Offset where it is now"),
    TableColumn("corrected", "Bool", "Its values were corrected; else its bytes are the same"),
]

#: Of a table that was there before ticks were.
CONTROL_COMMENT = "Offsets without an event: markers of transactions, aborted and compacted records, ticks"

CONTROL = [
    TableColumn("topic", "String", "Topic of the offsets"),
    TableColumn("source_partition", "UInt16", "Partition of the offsets"),
    TableColumn("source_offset", "UInt64", "First offset without a record that counts"),
    TableColumn("last_offset", "UInt64", "Last offset without a record that counts"),
]

WITHDRAWN = [
    TableColumn("publication", "String", "Which publication"),
    TableColumn("topic", "String", "Its feed"),
    TableColumn("source_partition", "UInt16", "Partition of the offsets"),
    TableColumn("withdrawn_by", "SimpleAggregateFunction(any, String)", "Who withdrew it"),
    TableColumn("offsets", "AggregateFunction(groupBitmap, UInt64)", "Offsets whose rows were taken away, as a set"),
]

#: When the offsets of a row of the ledger were published; nothing of those without a record.
PUBLISHED = [
    TableColumn(
        "minutes",
        "SimpleAggregateFunction(maxMap, Map(UInt32, UInt64))",
        f"Of minutes since 1970: the offset behind the last one * {MINUTE_STEP} + the ms in the minute",
    ),
    TableColumn("since", "SimpleAggregateFunction(min, Nullable(Int64))", "When the first was published [ms]"),
    TableColumn("until", "SimpleAggregateFunction(max, Nullable(Int64))", "When the last was published [ms]"),
]

LEDGER = [
    TableColumn("topic", "String", "Topic of the offsets"),
    TableColumn("source_partition", "UInt16", "Partition of the offsets"),
    TableColumn(
        "kind",
        "Enum8('received' = 1, 'quarantined' = 2, 'control' = 3)",
        "As rows of the feed, as dead letters, or as offsets of the log itself",
    ),
    TableColumn("block", "UInt64", f"The first offset of the block / {LEDGER_BLOCK}"),
    TableColumn("offsets", "AggregateFunction(groupBitmap, UInt32)", f"Set of offsets, less block * {LEDGER_BLOCK}"),
    *PUBLISHED,
]


def published(at: str, behind: str) -> str:
    """SQL of when rows were published, of their time and of the offset behind them."""
    ms = f"toUnixTimestamp64Milli({at})"
    last = f"toUInt64(({behind}) * {MINUTE_STEP} + {ms} % {MINUTE_MS})"
    return (
        f"maxMap(map(toUInt32(intDiv({ms}, {MINUTE_MS})), {last})) AS minutes, min({ms}) AS since, max({ms}) AS until"
    )


def shared_tables(dialect: Dialect) -> list[str]:
    """Statements creating what belongs to no single feed."""
    zone = literal(dialect.timezone)
    return [
        dialect.table(
            "raw.quarantine",
            body(quarantine_columns(dialect.timezone)),
            "ReplacingMergeTree(arrived_at)",
            "topic, source_partition, source_offset",
            "Records that could not be processed",
        ),
        dialect.table(
            "raw.redriven",
            f"{body(REDRIVEN)}, redriven_at DateTime64(3, {zone}) DEFAULT now64(3) COMMENT 'When'",
            "ReplacingMergeTree",
            "topic, source_partition, source_offset",
            "Quarantined records that were published again",
        ),
        dialect.table(
            "raw.control",
            body(CONTROL),
            "ReplacingMergeTree",
            "topic, source_partition, source_offset, last_offset",
            CONTROL_COMMENT,
        ),
        f"ALTER TABLE raw.control MODIFY COMMENT {literal(CONTROL_COMMENT)}",
        dialect.table(
            "raw.withdrawn",
            f"{body(WITHDRAWN)}, withdrawn_at SimpleAggregateFunction(min, DateTime64(3, {zone})) DEFAULT now64(3) "
            "COMMENT 'When'",
            "AggregatingMergeTree",
            "topic, source_partition, publication",
            "Rows of publications that were withdrawn",
        ),
        dialect.table(
            "raw.layout",
            f"version UInt32, noted_at DateTime64(3, {zone}) DEFAULT now64(3)",
            "ReplacingMergeTree",
            "version",
            "Versions of the tables and views, as citystream init brought them to",
        ),
        dialect.table(
            "raw.shown",
            f"{body(SHOWN)}, noted_at DateTime64(3, {zone}) DEFAULT now64(3) COMMENT 'When'",
            "ReplacingMergeTree",
            "feed, aggregate",
            "Which windows the view of each aggregate shows; the row that came last counts",
        ),
        dialect.table(
            "raw.progress",
            "aggregate String, source_partition UInt16, watermark SimpleAggregateFunction(max, Int64)",
            "AggregatingMergeTree",
            "aggregate, source_partition",
            "Maximum of event time whose windows are stored [ms]",
        ),
        dialect.table(
            "raw.ledger",
            body(LEDGER),
            "AggregatingMergeTree",
            "topic, source_partition, block, kind",
            f"Which offsets arrived, as a set for each block of {LEDGER_BLOCK} offsets",
        ),
        *_into_ledger("quarantine", quarantined_ledger(), dialect),
        *_into_ledger("control", _ranges_ledger("control", "control"), dialect),
    ]


def _into_ledger(table: str, select: str, dialect: Dialect) -> list[str]:
    """Statements creating what adds a table's rows to the ledger, or making it of what a release before made."""
    view = f"raw.{table}_ledger{dialect.everywhere}"
    return [
        f"CREATE MATERIALIZED VIEW IF NOT EXISTS {view} TO raw.ledger AS {select}",
        f"ALTER TABLE {view} MODIFY QUERY {select}",
    ]


def feed_ledger(feed: Feed, where: str = "") -> str:
    """SQL of what the ledger notes of a feed's rows, or of some of them."""
    return (
        f"SELECT {literal(feed.name)} AS topic, source_partition, 'received' AS kind, "
        f"intDiv(source_offset, {LEDGER_BLOCK}) AS block, "
        f"groupBitmapState(toUInt32(source_offset % {LEDGER_BLOCK})) AS offsets, "
        f"{published('arrived_at', 'source_offset + 1')} FROM raw.{feed.name}{where} "
        "GROUP BY source_partition, block"
    )


def quarantined_ledger() -> str:
    """SQL of what the ledger notes of dead letters."""
    behind = f"least(last_offset + 1, (block + 1) * {LEDGER_BLOCK})"
    return _ranges_ledger("quarantine", "quarantined", f", {published('published_at', behind)}")


def _ranges_ledger(table: str, kind: str, more: str = "") -> str:
    """Ranges as sets; a range is never written out but for its ends, or a long one would take gigabytes."""
    first = f"greatest(source_offset, block * {LEDGER_BLOCK}) - block * {LEDGER_BLOCK}"
    end = f"least(last_offset + 1, (block + 1) * {LEDGER_BLOCK}) - block * {LEDGER_BLOCK}"
    return (
        f"WITH bitmapBuild(range(toUInt32({LEDGER_BLOCK}))) AS whole_block, {first} AS first, {end} AS end, "
        f"end - first = {LEDGER_BLOCK} AS whole "
        f"SELECT topic, source_partition, {literal(kind)} AS kind, block, groupBitmapMergeState("
        "if(whole, whole_block, bitmapBuild(range(toUInt32(first), toUInt32(if(whole, first, end)))))) AS offsets"
        f"{more} FROM raw.{table} ARRAY JOIN range(intDiv(source_offset, {LEDGER_BLOCK}), "
        f"intDiv(last_offset, {LEDGER_BLOCK}) + 1) AS block GROUP BY topic, source_partition, block"
    )


def feed_tables(feed: Feed, dialect: Dialect) -> list[str]:
    """Statements creating a feed's raw table and those of its aggregates, and adding columns of new fields."""
    columns = [*feed_columns(feed, dialect.timezone), UNDECLARED]
    places = zip(columns, ["FIRST", *(f"AFTER {column.name}" for column in columns)], strict=False)
    statements = [
        dialect.table(
            f"raw.{feed.name}",
            f"{body(columns)}, {late_column(feed)}, version UInt64 MATERIALIZED {FIRST}, "
            f"INDEX late_rows {behind_ms(feed)} TYPE minmax GRANULARITY 1",
            "ReplacingMergeTree(version)",
            f"{feed.key}, {feed.event_time}, event_id",
            feed.description,
            f"PARTITION BY toYYYYMM(arrived_at) TTL toDateTime(arrived_at) + INTERVAL {RAW_KEPT.days} DAY",
        ),
        f"ALTER TABLE raw.{feed.name} "
        + ", ".join(f"ADD COLUMN IF NOT EXISTS {column.declaration} {place}" for column, place in places),
        *_into_ledger(feed.name, feed_ledger(feed), dialect),
    ]
    return statements + [aggregate_table(feed, aggregate, dialect) for aggregate in feed.aggregates]


def late_column(feed: Feed) -> str:
    """Worked out when it is read: it is the only thing in a feed's table that depends on its aggregates."""
    late = " OR ".join(is_late(feed, aggregate) for aggregate in feed.aggregates) or "0"
    return f"late UInt8 ALIAS {late} COMMENT 'Came after a window it belongs to was closed'"


def aggregate_table(feed: Feed, aggregate: Aggregate, dialect: Dialect, suffix: str = "") -> str:
    """Statement creating an aggregate's table of parts, under its topic's name and a suffix.

    All versions of a part are in the partition of its window's year. So a block has rows of few partitions, however old
    the history is that it comes from. Windows are kept for ever: those of events that are as old as raw rows get are
    only packed tighter.
    """
    return dialect.table(
        f"raw.{aggregate.topic}{suffix}",
        body(aggregate_columns(feed, aggregate, dialect.timezone)),
        "ReplacingMergeTree(version)",
        ", ".join([*aggregate.by, "window_start", "source_partition", "since"]),
        aggregate.description,
        f"PARTITION BY {PARTS_PARTITION} TTL toDateTime(window_start) + INTERVAL {RAW_KEPT.days} DAY "
        "RECOMPRESS CODEC(ZSTD(3))",
        {"allow_nullable_key": 1} if any(f.nullable for f in feed.grouped_by(aggregate)) else {},
    )


def body(columns: Iterable[TableColumn]) -> str:
    """Columns as they stand in the statement that makes their table."""
    return ", ".join(column.declaration for column in columns)

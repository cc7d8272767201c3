"""The physical tables of ClickHouse, derived from feeds: ``raw.*``.

Whatever order rows arrive in and however often, the same rows survive: a feed's table keeps the first occurrence of
an identity, an aggregate's the highest version of each part of each life of its partition.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta

from schemas.columnar import UUID_PARTS
from schemas.feed import Aggregate, Feed
from schemas.model import Field, Kind
from sinks.sql import is_late, literal

#: Offsets a ledger row covers.
LEDGER_BLOCK = 65_536
RAW_KEPT = timedelta(days=400)

#: What a field of several numbers is made of.
PARTS: Mapping[Kind, tuple[str, str]] = {"place": ("longitude", "latitude"), "uuid": UUID_PARTS}

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

    ``wires`` names the columns the sink sends for it, with their types, and ``value`` is the SQL that makes one of
    the other; by default the column is sent as it is.
    """

    name: str
    type: str
    comment: str
    wires: tuple[tuple[str, str], ...] = ()
    value: str = ""

    @property
    def sent(self) -> tuple[tuple[str, str], ...]:
        """Name and type of what is sent for this column."""
        return self.wires or ((self.name, self.type),)


def instant(name: str, comment: str, timezone: str, *, nullable: bool = False) -> TableColumn:
    """A time, sent as integer ms so that no client's time zone takes part."""
    kind, wire = f"DateTime64(3, {literal(timezone)})", "Int64"
    if nullable:
        kind, wire = f"Nullable({kind})", "Nullable(Int64)"
    return TableColumn(name, kind, comment, ((name, wire),), f"fromUnixTimestamp64Milli({name}, {literal(timezone)})")


def field_columns(field: Field, timezone: str) -> list[TableColumn]:
    """Columns of one field of a record; a place has two."""
    comment = field.description + (f" [{field.unit}]" if field.unit and field.kind != "instant" else "")
    if field.kind == "instant":
        return [instant(field.name, comment, timezone, nullable=field.nullable)]
    if field.kind == "place":
        return [
            TableColumn(f"{field.name}_{part}", "Nullable(Float64)", f"{comment}: {part}, WGS 84 [deg]")
            for part in PARTS["place"]
        ]
    if field.kind == "uuid":
        high, low = (f"{field.name}_{part}" for part in PARTS["uuid"])
        value = f"reinterpret(bitOr(bitShiftLeft(toUInt128({low}), 64), {high}), 'UUID')"
        return [TableColumn(field.name, "UUID", comment, ((high, "UInt64"), (low, "UInt64")), value)]
    kind = _TYPES[field.kind]
    if field.kind == "date":
        return [TableColumn(field.name, kind, comment, ((field.name, "Int32"),), f"toDate32({field.name})")]
    return [TableColumn(field.name, f"Nullable({kind})" if field.nullable else kind, comment)]


def source_columns(timezone: str) -> list[TableColumn]:
    """Where a raw row came from."""
    return [
        TableColumn("source_partition", "UInt16", "Partition of the topic"),
        TableColumn("source_offset", "UInt64", "Offset in the partition"),
        instant("arrived_at", "When the broker stored the record", timezone),
        TableColumn("seen_before", "Int64", "Maximum of event time in the partition before this record [ms]"),
    ]


def feed_columns(feed: Feed, timezone: str) -> list[TableColumn]:
    """Columns the sink writes of a feed."""
    return [c for field in feed.fields for c in field_columns(field, timezone)] + source_columns(timezone)


def aggregate_columns(aggregate: Aggregate, timezone: str) -> list[TableColumn]:
    """Columns the sink writes of an aggregate."""
    columns = [TableColumn(name, "String", "Group key") for name in aggregate.by]
    columns += [
        instant("window_start", "Start of the window", timezone),
        TableColumn("source_partition", "UInt16", "Partition the part comes from"),
        TableColumn("since", "UInt64", "Offset from which on the part counts; parts of several add up"),
        TableColumn("version", "UInt64", "2 x last offset counted in, + 1 if final"),
        TableColumn("watermark", "Nullable(Int64)", "Maximum of event time in the partition [ms], once a flush"),
        TableColumn("events", "Int64", "Events counted"),
    ]
    for partial in (p for measure in aggregate.measures for p in measure.partials):
        if partial.merge == "histogram":
            columns.append(
                TableColumn(
                    partial.name,
                    "Tuple(Array(Int32), Array(Int64))",
                    "Buckets and counts",
                    ((f"{partial.name}_buckets", "Array(Int32)"), (f"{partial.name}_counts", "Array(Int64)")),
                    f"tuple({partial.name}_buckets, {partial.name}_counts)",
                )
            )
        elif partial.merge == "sum":
            columns.append(TableColumn(partial.name, "Int64", "Partial sum"))
        else:
            columns.append(TableColumn(partial.name, "Nullable(Int64)", f"Partial {partial.merge}"))
    return columns


QUARANTINE = [
    TableColumn("topic", "String", "Topic of the record"),
    TableColumn("source_partition", "UInt16", "Partition of the record"),
    TableColumn("source_offset", "UInt64", "Offset of the record"),
    TableColumn("last_offset", "UInt64", "Last offset, if a whole batch could not be opened"),
    TableColumn("stage", "String", "DECODE or VALIDATE"),
    TableColumn("cause", "String", "What is wrong with it"),
    TableColumn("key", "Nullable(String)", "Key, hexadecimal"),
    TableColumn("value", "Nullable(String)", "Value, hexadecimal"),
]

PROGRESS = [
    TableColumn("aggregate", "String", "Aggregate"),
    TableColumn("source_partition", "UInt16", "Partition the parts come from"),
    TableColumn("watermark", "Int64", "Maximum of event time whose parts are stored [ms]"),
]

CONTROL = [
    TableColumn("topic", "String", "Topic of the offsets"),
    TableColumn("source_partition", "UInt16", "Partition of the offsets"),
    TableColumn("source_offset", "UInt64", "First offset without a record that counts"),
    TableColumn("last_offset", "UInt64", "Last offset without a record that counts"),
]


def shared_tables(timezone: str) -> list[str]:
    """Statements creating what belongs to no single feed."""
    quarantine = _body([*QUARANTINE, instant("arrived_at", "When the dead letter was stored", timezone)])
    return [
        f"CREATE TABLE IF NOT EXISTS raw.quarantine ({quarantine}) ENGINE = ReplacingMergeTree "
        "ORDER BY (topic, source_partition, source_offset) COMMENT 'Records that could not be processed'",
        f"CREATE TABLE IF NOT EXISTS raw.control ({_body(CONTROL)}) ENGINE = ReplacingMergeTree "
        "ORDER BY (topic, source_partition, source_offset, last_offset) "
        "COMMENT 'Offsets of the log itself: markers of transactions, aborted and compacted records'",
        "CREATE TABLE IF NOT EXISTS raw.progress (aggregate String, source_partition UInt16, "
        "watermark SimpleAggregateFunction(max, Int64)) ENGINE = AggregatingMergeTree "
        "ORDER BY (aggregate, source_partition) COMMENT 'Maximum of event time whose windows are stored [ms]'",
        "CREATE TABLE IF NOT EXISTS raw.ledger (topic String, source_partition UInt16, kind Enum8('received' = 1, "
        "'quarantined' = 2, 'control' = 3), block UInt64, offsets AggregateFunction(groupBitmap, UInt64)) "
        "ENGINE = AggregatingMergeTree ORDER BY (topic, source_partition, kind, block) "
        f"COMMENT 'Which offsets arrived, as a set, per block of {LEDGER_BLOCK} offsets'",
        _ranges_ledger("quarantine", "quarantined"),
        _ranges_ledger("control", "control"),
    ]


def _ranges_ledger(table: str, kind: str) -> str:
    return (
        f"CREATE MATERIALIZED VIEW IF NOT EXISTS raw.{table}_ledger TO raw.ledger AS "
        f"SELECT topic, source_partition, {literal(kind)} AS kind, "
        f"intDiv(o, {LEDGER_BLOCK}) AS block, groupBitmapState(o) AS offsets "
        f"FROM raw.{table} ARRAY JOIN range(source_offset, last_offset + 1) AS o "
        "GROUP BY topic, source_partition, block"
    )


def feed_tables(feed: Feed, timezone: str) -> list[str]:
    """Statements creating a feed's raw table and those of its aggregates."""
    columns = feed_columns(feed, timezone)
    late = " OR ".join(is_late(feed, aggregate) for aggregate in feed.aggregates) or "0"
    statements = [
        f"CREATE TABLE IF NOT EXISTS raw.{feed.name} ({_body(columns)}, "
        f"late UInt8 MATERIALIZED {late} COMMENT 'Came after a window it belongs to was closed', "
        "version UInt64 MATERIALIZED bitNot(source_offset), INDEX late_rows late TYPE minmax GRANULARITY 1) "
        f"ENGINE = ReplacingMergeTree(version) ORDER BY ({feed.key}, {feed.event_time}, event_id) "
        f"PARTITION BY toYYYYMM(arrived_at) TTL toDateTime(arrived_at) + INTERVAL {RAW_KEPT.days} DAY "
        f"COMMENT {literal(feed.description)}",
        f"CREATE MATERIALIZED VIEW IF NOT EXISTS raw.{feed.name}_ledger TO raw.ledger AS "
        f"SELECT {literal(feed.name)} AS topic, source_partition, 'received' AS kind, "
        f"intDiv(source_offset, {LEDGER_BLOCK}) AS block, groupBitmapState(source_offset) AS offsets "
        f"FROM raw.{feed.name} GROUP BY source_partition, block",
    ]
    for aggregate in feed.aggregates:
        order = ", ".join([*aggregate.by, "window_start", "source_partition", "since"])
        statements.append(
            f"CREATE TABLE IF NOT EXISTS raw.{aggregate.name} ({_body(aggregate_columns(aggregate, timezone))}) "
            f"ENGINE = ReplacingMergeTree(version) ORDER BY ({order}) COMMENT {literal(aggregate.description)}"
        )
    return statements


def _body(columns: Iterable[TableColumn]) -> str:
    return ", ".join(f"{c.name} {c.type} COMMENT {literal(c.comment)}" for c in columns)

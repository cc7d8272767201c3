"""The catalogue: what departments declare of their feeds and tables, and what is seen of it by what arrived.

``city.catalogue`` says it as of now, ``city.catalogue_at(t=...)`` as of the beginning of any minute, both by the times
that brokers gave to what is stored. The ledger has those of feeds: a repeat is a record that arrived, a replay is none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import timedelta

from schemas.feed import Feed, milliseconds
from schemas.reference import Reference
from schemas.sql import literal
from sinks.dialect import Dialect
from sinks.tables import LEDGER_BLOCK, MINUTE_MS, MINUTE_STEP, TableColumn, instant
from sinks.views import view

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
#: Of the declared rate: a feed with less of it over the last day is degraded.
SLOW = 0.5
#: Of all records of the last day: with a larger share of bad ones a feed is degraded.
BAD = 0.1
#: What a feed is judged by at least: people's day has quiet minutes.
JUDGED = HOUR


def catalogue_columns(timezone: str) -> list[TableColumn]:
    """Columns of its views."""
    return [
        TableColumn("name", "String", "Feed, or table of reference data"),
        TableColumn("kind", "String", "feed or table"),
        TableColumn("department", "String", "Who publishes it"),
        TableColumn("batch", "UInt16", "Batch it is connected in"),
        TableColumn("state", "String", "never seen, connected, silent or degraded"),
        TableColumn("reason", "String", "Why"),
        TableColumn("rate", "Nullable(Float64)", "Records a second that are expected; null if none are promised [1/s]"),
        TableColumn("silence", "Nullable(Float64)", "Longest pause that is normal; null if any is [s]"),
        instant("first_arrival", "When the first record was published", timezone, nullable=True),
        instant("last_arrival", "When the last record was published", timezone, nullable=True),
        TableColumn("records_1h", "UInt64", "Records of the last hour, repeats among them"),
        TableColumn("records_1d", "UInt64", "Records of the last day, repeats among them"),
        TableColumn("bad_1h", "UInt64", "Dead letters of the last hour"),
        TableColumn("bad_1d", "UInt64", "Dead letters of the last day"),
    ]


BATCHES = [
    TableColumn("batch", "UInt16", "Batch"),
    TableColumn("declared", "UInt64", "Tables, and feeds that promise a rate"),
    TableColumn("connected", "UInt64", "Those of them that are connected"),
    TableColumn("degraded", "UInt64", "Those that are degraded"),
    TableColumn("silent", "UInt64", "Those that are silent"),
    TableColumn("never_seen", "UInt64", "Those of which nothing ever arrived"),
]


def catalogue_views(feeds: Iterable[Feed], tables: Iterable[Reference], dialect: Dialect) -> list[str]:
    """Statements creating the views, in an order that works."""
    feeds, tables = list(feeds), list(tables)
    columns = catalogue_columns(dialect.timezone)
    moment = f"toUnixTimestamp64Milli({{t:DateTime64(3, {literal(dialect.timezone)})}})"
    minute = f"intDiv({moment}, {MINUTE_MS}) * {MINUTE_MS}"
    states = [("", "toUnixTimestamp64Milli(now64(3))", "now"), ("_at", minute, "as the minute of t began")]
    found = [
        view(
            dialect,
            f"city.catalogue{ending}",
            columns,
            f"What is declared, and whether it is connected, by what arrived; {about}",
            _states(feeds, tables, at, dialect),
        )
        for ending, at, about in states
    ]
    counts = ", ".join(
        f"countIf(state = {literal(column.name.replace('_', ' '))}) AS {column.name}" for column in BATCHES[2:]
    )
    about = "How far each batch is connected; feeds that promise no rate, and may be quiet for ever, do not count"
    judged = "kind = 'table' OR rate IS NOT NULL"
    select = f"SELECT batch, count() AS declared, {counts} FROM city.catalogue WHERE {judged} GROUP BY batch"
    return [*found, view(dialect, "city.catalogue_batches", BATCHES, about, select)]


def _states(feeds: Iterable[Feed], tables: Iterable[Reference], at: str, dialect: Dialect) -> str:
    """What is judged of what is declared and what arrived before a time in ms."""
    zone = literal(dialect.timezone)
    arrived = " UNION ALL ".join([_of_feeds(at), *(_of_table(table, at) for table in tables)])
    share, pause = "bad_1d / (records_1d + bad_1d)", f"({at} - last_ms) / 1000"
    span = f"least({milliseconds(DAY)}, {at} - first_ms) / 1000"
    slow = f"{span} >= {JUDGED / timedelta(seconds=1):.0f} AND records_1d < {SLOW} * rate * {span}"
    judged = {
        "isNull(first_ms)": ("never seen", "'nothing ever arrived'"),
        f"{pause} > silence": (
            "silent",
            f"concat('nothing for ', formatReadableTimeDelta({pause}), '; normal are ', "
            "formatReadableTimeDelta(silence), ' at most')",
        ),
        f"bad_1d > 0 AND {share} > {BAD}": (
            "degraded",
            f"concat(toString(round({share} * 100)), '% of the records of the last day are bad')",
        ),
        slow: (
            "degraded",
            f"concat(toString(round(records_1d / ({span}), 3)), ' records a second over the last ', "
            f"formatReadableTimeDelta({span}), ', of ', toString(round(rate, 3)))",
        ),
    }
    state = ", ".join(f"{condition}, {literal(word)}" for condition, (word, _) in judged.items())
    reason = ", ".join(f"{condition}, {why}" for condition, (_, why) in judged.items())
    times = ", ".join(f"fromUnixTimestamp64Milli({name}_ms, {zone}) AS {name}_arrival" for name in ("first", "last"))
    return (
        "SELECT name, kind, department, batch, "
        f"multiIf({state}, 'connected') AS state, ifNull(multiIf({reason}, 'arrives as declared'), '') AS reason, "
        f"rate, silence, {times}, records_1h, records_1d, bad_1h, bad_1d FROM "
        f"({_declared(feeds, tables)}) AS declared "
        f"LEFT JOIN ({arrived}) AS arrived ON declared.name = arrived.topic ORDER BY batch, department, name "
    )


def _declared(feeds: Iterable[Feed], tables: Iterable[Reference]) -> str:
    """What is declared, a row each. Of tables nobody says how often something comes."""
    rows = [
        *(_row("feed", one, one.rate, one.silence) for one in feeds),
        *(_row("table", one, None, None) for one in tables),
    ]
    return " UNION ALL ".join(f"SELECT {row}" for row in rows)


def _row(kind: str, one: Feed | Reference, rate: float | None, silence: timedelta | None) -> str:
    pause = None if silence is None else silence.total_seconds()
    return (
        f"{literal(one.name)} AS name, {literal(kind)} AS kind, {literal(one.department.name)} AS department, "
        f"toUInt16({one.batch}) AS batch, {_promised(rate)} AS rate, "
        f"{_promised(pause)} AS silence"
    )


def _promised(number: float | None) -> str:
    return f"CAST({'NULL' if number is None else number} AS Nullable(Float64))"


def _of_feeds(at: str) -> str:
    """What the ledger has of every topic before a time: when records came, and how many of the last hour and day."""
    blocks = "SELECT topic, source_partition, block FROM raw.ledger WHERE kind != 'control' GROUP BY ALL"
    recent = (
        f"kind != 'control' AND (topic, source_partition, block) IN ({blocks} HAVING max(until) >= {_ago(at, DAY)})"
    )
    marks = (
        f"SELECT topic, source_partition, min(block) * {LEDGER_BLOCK} AS lowest, maxMap(minutes) AS minutes, "
        + ", ".join(
            f"greatest(lowest, intDiv(arrayMax(mapValues({_until(time)})), {MINUTE_STEP})) AS {name}"
            for name, time in {"end": at, "hour": _ago(at, HOUR), "day": _ago(at, DAY)}.items()
        )
        + f", arrayMax((minute, last) -> minute * {MINUTE_MS} + last % {MINUTE_STEP}, "
        f"mapKeys({_until(at)}), mapValues({_until(at)})) AS newest "
        f"FROM raw.ledger WHERE {recent} GROUP BY topic, source_partition"
    )
    held = (
        "SELECT topic, source_partition, block, kind, groupBitmapMergeState(offsets) AS held "
        f"FROM raw.ledger WHERE {recent} GROUP BY topic, source_partition, block, kind"
    )
    counts = ", ".join(
        f"sumIf({_counted(start)}, kind = {literal(kind)}) AS {name}" for name, (start, kind) in _COUNTS.items()
    )
    counted = (
        f"SELECT topic, {counts} FROM ({held}) AS held INNER JOIN ({marks}) AS marks USING (topic, source_partition) "
        "GROUP BY topic"
    )
    newest = f"SELECT topic, max(newest) AS newest FROM ({marks}) GROUP BY topic"
    spans = (
        f"SELECT topic, minIf(since, since < {at}) AS first_ms, maxIf(until, until < {at}) AS whole_ms FROM "
        "(SELECT topic, source_partition, block, min(since) AS since, max(until) AS until FROM raw.ledger "
        "WHERE kind != 'control' GROUP BY topic, source_partition, block) GROUP BY topic"
    )
    return (
        "SELECT topic, first_ms, nullIf(greatest(ifNull(whole_ms, 0), toInt64(newest)), 0) AS last_ms, "
        f"{', '.join(_COUNTS)} FROM ({spans}) AS spans LEFT JOIN ({counted}) AS counted USING topic "
        f"LEFT JOIN ({newest}) AS newest USING topic"
    )


#: Numbers of records: from which offset on, and of which kind.
_COUNTS: Mapping[str, tuple[str, str]] = {
    "records_1h": ("hour", "received"),
    "records_1d": ("day", "received"),
    "bad_1h": ("hour", "quarantined"),
    "bad_1d": ("day", "quarantined"),
}


def _ago(at: str, span: timedelta) -> str:
    return f"({at} - {milliseconds(span)})"


def _until(time: str) -> str:
    """The minutes that begin before a time in ms."""
    return f"mapFilter((minute, last) -> minute * {MINUTE_MS} < {time}, minutes)"


def _counted(start: str) -> str:
    """How many offsets of a block are held from one on."""
    low, high = (
        f"toUInt32(greatest(0, least({LEDGER_BLOCK}, toInt64({offset}) - toInt64(block * {LEDGER_BLOCK}))))"
        for offset in (start, "end")
    )
    return f"bitmapCardinality(bitmapSubsetInRange(held, {low}, {high}))"


def _of_table(table: Reference, at: str) -> str:
    """When rows of a table were published, and how many of the last hour and day."""
    ms = "toUnixTimestamp64Milli(arrived_at)"
    counts = ", ".join(f"countIf({ms} >= {_ago(at, span)})" for span in (HOUR, DAY))
    return (
        f"SELECT {literal(table.name)} AS topic, minOrNull({ms}), maxOrNull({ms}), {counts}, 0, 0 "
        f"FROM raw.{table.name} FINAL WHERE {ms} < {at}"
    )

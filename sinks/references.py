"""Tables of reference data in ClickHouse: every version that was known, what holds now, and what held at any time."""

from __future__ import annotations

from schemas.reference import Reference
from schemas.sql import literal
from sinks.dialect import Dialect
from sinks.tables import TableColumn, body, field_columns, instant
from sinks.views import FIXED, view


def columns_of(reference: Reference, timezone: str) -> list[TableColumn]:
    """Columns of what a row says; all may be null but the key's, as in rows that say that one was taken away."""
    found = []
    for field in reference.fields:
        for column in field_columns(field, timezone):
            kind = "String" if field.kind == "uuid" else bare(column.type)
            nullable = field.name not in reference.key
            found.append(TableColumn(column.name, f"Nullable({kind})" if nullable else kind, column.comment))
    return found


def bare(kind: str) -> str:
    """A type that is never null."""
    return kind.removeprefix("Nullable(")[:-1] if kind.startswith("Nullable(") else kind


def stored_columns(reference: Reference, timezone: str) -> list[TableColumn]:
    """Columns the sink writes."""
    return [
        *columns_of(reference, timezone),
        TableColumn("removed", "Bool", "The row was taken away"),
        TableColumn("source_offset", "UInt64", "Offset in the topic"),
        instant("arrived_at", "When the broker stored it: from ten seconds later on it counts for records", timezone),
    ]


def statements(reference: Reference, dialect: Dialect) -> list[str]:
    """What there has to be of a table; running it again changes nothing."""
    columns, keys = stored_columns(reference, dialect.timezone), ", ".join(reference.key)
    moment = f"{{t:DateTime64(3, {literal(dialect.timezone)})}}"
    views = [("", "now64(3)", "as it holds now"), ("_at", moment, "as it was known and held at the time t")]
    return [
        dialect.table(
            f"raw.{reference.name}", body(columns), "ReplacingMergeTree", f"{keys}, source_offset",
            f"{reference.description}: every version of every row",
        ),
        f"ALTER TABLE raw.{reference.name} " + ", ".join(f"ADD COLUMN IF NOT EXISTS {c.declaration}" for c in columns),
        *(
            view(
                dialect, f"city.{reference.name}{ending}", view_columns(reference, dialect.timezone),
                f"{reference.description}; {about}", _holding(reference, at, dialect.timezone), FIXED,
            )
            for ending, at, about in views
        ),
    ]  # fmt: skip


def view_columns(reference: Reference, timezone: str) -> list[TableColumn]:
    """Columns of its views."""
    return [*columns_of(reference, timezone), instant("arrived_at", "When the broker stored it", timezone)]


def _holding(reference: Reference, at: str, timezone: str) -> str:
    """The newest version of each row up to a time, of those that are there and hold, the one that begins last."""
    begins, ends, keys = reference.valid_from, reference.valid_to, ", ".join(reference.key)
    row = f"{keys}, {begins}" if begins else keys
    known = (
        f"SELECT * FROM raw.{reference.name} FINAL WHERE arrived_at <= {at} "
        f"ORDER BY source_offset DESC LIMIT 1 BY {row}"
    )
    holds = f" AND ifNull({begins} <= {at}, true) AND ifNull({ends} > {at}, true)" if begins else ""
    last = f"{keys}, {begins} DESC NULLS LAST" if begins else keys
    names = ", ".join(column.name for column in view_columns(reference, timezone))
    return f"SELECT {names} FROM ({known}) WHERE NOT removed{holds} ORDER BY {last} LIMIT 1 BY {keys}"

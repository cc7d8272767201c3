"""Every way in which ClickHouse can refuse rows that it takes again later."""

from __future__ import annotations

from dataclasses import dataclass

#: Bytes that no disk has free.
HUGE = 10**15
#: Numbers of 8 bytes in an array, and how many of it make one larger than the server's memory. The small one alone is
#: written before the server refuses, which takes no time that a slow machine could make long.
NUMBERS, ARRAYS = 10_000_000, 64


@dataclass(frozen=True)
class Refusal:
    """How it is staged as the owner, how undone, and what the sink then says is the reason."""

    stage: tuple[str, ...]
    mend: tuple[str, ...]
    reason: str


def refusals(table: str) -> dict[str, Refusal]:
    """By name, for inserts into a table."""

    def setting(reason: str, **values: int) -> Refusal:
        stage = ", ".join(f"{name} = {value}" for name, value in values.items())
        mend = ", ".join(values)
        return Refusal(
            (f"ALTER TABLE {table} MODIFY SETTING {stage}",), (f"ALTER TABLE {table} RESET SETTING {mend}",), reason
        )

    return {
        "read-only": Refusal(
            (f"ALTER TABLE {table} MODIFY SETTING table_readonly = 1",),
            (f"ALTER TABLE {table} MODIFY SETTING table_readonly = 0",),
            "readonly mode",
        ),
        "too many parts": setting("Too many parts", parts_to_delay_insert=1, parts_to_throw_insert=1),
        "disk full": setting("enough free space", min_free_disk_bytes_to_perform_insert=HUGE),
        "memory limit": Refusal(
            (
                "CREATE TABLE raw.nowhere (n UInt64) ENGINE = Null",
                "CREATE MATERIALIZED VIEW raw.greedy TO raw.nowhere AS "
                f"SELECT length(arrayConcat({', '.join(['range(many)'] * ARRAYS)})) AS n "
                f"FROM (SELECT {NUMBERS} + 0 * any(source_offset) AS many FROM {table})",
            ),
            ("DROP TABLE raw.greedy SYNC", "DROP TABLE raw.nowhere SYNC"),
            "memory limit exceeded",
        ),
        "table moved away": Refusal(
            (f"RENAME TABLE {table} TO raw.away",), (f"RENAME TABLE raw.away TO {table}",), "does not exist"
        ),
    }

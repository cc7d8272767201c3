"""Constants as ClickHouse SQL, for all who write some."""

from __future__ import annotations


def literal(value: int | float | str) -> str:
    """A constant as SQL."""
    if isinstance(value, str):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return repr(value)

"""A worker whose code is broken: it raises at a record with the cursed level, of one feed."""

from __future__ import annotations

import polars as pl

from citystream.cli import main
from schemas.verdict import ColumnarVerdict
from tests.isolation.made import CURSED

problems = ColumnarVerdict.problems


def problems_but_of_the_cursed(self: ColumnarVerdict, rows: pl.DataFrame) -> pl.Series | None:
    """Judge, and fail as code does of which nobody thought that it can."""
    if "level" in rows.columns and (rows["level"] == CURSED).any():
        raise ZeroDivisionError("this level was never thought of")
    return problems(self, rows)


if __name__ == "__main__":
    ColumnarVerdict.problems = problems_but_of_the_cursed  # type: ignore[method-assign]
    main()

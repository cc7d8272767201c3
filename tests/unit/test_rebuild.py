"""How the rows of a feed are cut for building windows."""

from __future__ import annotations

from typing import Any

import pytest

from sinks.dialect import Dialect
from sinks.rebuild import DAY_MS, ROWS_AT_ONCE, Rebuild, Span
from streams.positions import Position
from tests.reference.toy import FEED, NOON

POSITION = Position(500, 420, NOON, "id-1", FEED.definition, max_processed_ms=NOON)
HALF = ROWS_AT_ONCE // 2


class Days:
    """A ClickHouse that knows how many rows each day has."""

    def __init__(self, *rows: tuple[int, int]) -> None:
        self._rows = rows

    def execute(self, statement: str) -> Any:
        assert "source_offset < [500][source_partition + 1]" in statement
        return list(self._rows)


@pytest.mark.parametrize(
    ("rows", "spans"),
    [
        ([], []),
        ([(3, 7)], [(3, 4, 7)]),
        ([(-1, HALF), (0, HALF), (1, 1)], [(-1, 1, ROWS_AT_ONCE), (1, 2, 1)]),
        ([(1, 2), (30, 3)], [(1, 31, 5)]),
        ([(1, 2), (2, 3 * HALF), (3, 4)], [(1, 2, 2), (2, 3, 3 * HALF), (3, 4, 4)]),
    ],
)
def test_spans_are_whole_days_of_few_rows_and_leave_none_out(
    rows: list[tuple[int, int]], spans: list[tuple[int, int, int]]
) -> None:
    work = Rebuild(Days(*rows), FEED, {0: POSITION}, Dialect("UTC"))
    assert work.spans() == [Span(start * DAY_MS, end * DAY_MS, n) for start, end, n in spans]

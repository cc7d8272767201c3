"""What the release before left is brought to what it is now, a part at a time."""

from __future__ import annotations

import re
from typing import Any

from sinks.before import note_published
from tests.reference.toy import FEED

SILENT = "SELECT topic, groupBitmapState(offset) AS offsets FROM raw.toy"


class Left:
    """A ClickHouse of the release before."""

    def __init__(self, views: dict[str, str], months: list[str]) -> None:
        self.views, self.months, self.asked = views, months, list[str]()

    def __call__(self, statement: str, parameters: Any = None) -> list[tuple[str, ...]]:
        if "system.tables" in statement:
            return [*self.views.items()]
        if "system.parts" in statement:
            assert parameters == {"table": FEED.name}
            return [(month,) for month in self.months]
        self.asked.append(statement)
        return []


def test_when_records_were_published_is_noted_a_month_at_a_time() -> None:
    left = Left({"toy_ledger": SILENT, "quarantine_ledger": f"{SILENT}, minutes"}, ["202602", "202601"])
    note_published(left, [FEED])
    inserts = [one for one in left.asked if one.startswith("INSERT")]
    assert [re.findall(r"WHERE toYYYYMM\(arrived_at\) = (\d+) ", one) for one in inserts] == [["202601"], ["202602"]]


def test_what_is_noted_is_not_noted_again_and_nothing_is_in_an_empty_clickhouse() -> None:
    for views in ({}, {"toy_ledger": "SELECT 1 AS minutes", "quarantine_ledger": "SELECT 1 AS minutes"}):
        left = Left(views, ["202601"])
        note_published(left, [FEED])
        assert not [one for one in left.asked if one.startswith("INSERT")]

"""The queries of docs/analyst.md, run by the analyst on a real ClickHouse."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from citystream.installation import Installation
from citystream.settings import PROJECT
from citystream.stack.stack import Stack

pytestmark = pytest.mark.integration

PAGE = (PROJECT / "docs/analyst.md").read_text()
QUERIES = re.findall(r"^```sql\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = re.findall(r'^citystream sql "([^"]*)"', PAGE, re.MULTILINE)


@pytest.fixture(scope="module")
def city(stack: Stack) -> Installation:
    """An installation with every table and view."""
    installation = Installation(stack.settings)
    installation.prepare(lambda _: None)
    return installation


@pytest.mark.parametrize("query", QUERIES + COMMANDS, ids=lambda query: re.sub(r"\W+", " ", query)[:40])
def test_a_query_of_the_page_is_answered(city: Installation, connect: Callable[[str], Any], query: str) -> None:
    _, columns = connect("analyst").execute(query, with_column_types=True)
    assert columns


def test_there_are_queries() -> None:
    assert len(QUERIES) >= 5
    assert len(COMMANDS) >= 3

"""A table of reference data on a real Kafka: published as whole files, read beside feeds, idle or not."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import feeds
from citystream.installation import Installation
from citystream.settings import Settings
from citystream.stack.stack import Stack
from operations.publishing.mapping import FileMapping
from operations.publishing.table import TableReport, current, publish_table, shown
from schemas.fields import Place
from schemas.reference_rows import MARK, encoded
from sinks import references
from sinks.row_reader import RowReader
from sinks.writer import Writer
from streams import publications
from streams.clients import records_of
from streams.history import History
from streams.missing_schemas import NotYet
from streams.references import References
from streams.topics import Topic, create, of_references
from tests.reference.limits import FROZEN, REFERENCE, Limit, Said, catalogue, instant

pytestmark = pytest.mark.integration

LIMIT = feeds.references()["parking_limit"]
HEADER = "site_id,valid_from,valid_to,full\n"


@pytest.fixture(scope="module")
def city(stack: Stack, settings: Settings) -> Installation:
    found = Installation(settings)
    create(found.cluster, [*of_references([LIMIT], found.feeds.values()), Topic(publications.TOPIC, 1, None)])
    return found


@contextmanager
def reading(city: Installation) -> Iterator[References]:
    reader = References(city.cluster, [LIMIT], city.catalogue)
    reader.start()
    try:
        yield reader
    finally:
        reader.stop()


def history(reader: References, arrived_ms: int) -> History:
    """The history up to an arrival, as soon as it is read."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        with suppress(NotYet):
            return reader.history(LIMIT.name, arrived_ms)
        time.sleep(0.05)
    return reader.history(LIMIT.name, arrived_ms)


def full(found: History, site: str, arrived_ms: int, event_ms: int = 0) -> float | None:
    rows = found.rows([pl.Series([site])], np.array([arrived_ms]), np.array([event_ms]))
    value: float | None = found.column("full", rows).item()
    return value


def publish(city: Installation, text: str, *, dry_run: bool = False) -> TableReport:
    content = (HEADER + text).encode()
    return publish_table(city.cluster, LIMIT, content, "limits.csv", FileMapping(), city.catalogue, dry_run=dry_run)


def counts(report: TableReport) -> tuple[int, int, int, int]:
    assert not report.problems
    assert not report.failure
    return report.new, report.changed, report.removed, report.unchanged


def test_a_file_is_the_whole_table_and_only_what_changed_is_sent(city: Installation) -> None:
    publish(city, "")
    assert counts(publish(city, "a,,,0.9\nb,,,0.8\n")) == (2, 0, 0, 0)
    end = len([*records_of(city.cluster, LIMIT.name)])
    assert counts(publish(city, "b,,,0.8\na,,,0.9\n")) == (0, 0, 0, 2)
    assert counts(publish(city, "a,,,0.7\nc,,,0.8\n", dry_run=True)) == (1, 1, 1, 0)
    assert publish(city, "a,,,7\n").problems == ["limits.csv, line 2: full: 7.0 is above 2.0"]
    assert len([*records_of(city.cluster, LIMIT.name)]) == end
    assert counts(publish(city, "a,,,0.7\nc,,,0.8\n")) == (1, 1, 1, 0)
    rows = shown(LIMIT, city.catalogue, current(city.cluster, LIMIT))
    assert [(row["site_id"], row["full"]) for row in rows] == [("a", 0.7), ("c", 0.8)]
    assert publications.read(city.cluster)[-1].feed == LIMIT.name


def test_an_idle_table_is_read_up_to_now_and_every_record_finds_what_was_known_when_it_arrived(
    city: Installation,
) -> None:
    publish(city, "idle,,,0.5\n")
    first = [*records_of(city.cluster, LIMIT.name)][-1].timestamp + 10_000
    with reading(city) as live:
        found = history(live, first)  # nothing else is published: a mark has to say that nothing came
        assert full(found, "idle", first) == 0.5
        assert full(found, "idle", first - 1) is None
        publish(city, "idle,,,0.6\n")
        second = [*records_of(city.cluster, LIMIT.name)][-1].timestamp + 10_000
        after = history(live, second)
        assert [full(after, "idle", at) for at in (first, second - 1, second)] == [0.5, 0.5, 0.6]
    with reading(city) as again:
        assert [full(history(again, second), "idle", at) for at in (first, second - 1, second)] == [0.5, 0.5, 0.6]


def test_the_file_in_a_departments_folder_is_published_when_it_changed(
    city: Installation, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What is published from elsewhere meanwhile stays."""
    said: list[str] = []
    path = tmp_path / "feeds" / "parking" / "reference" / "parking_limit.csv"
    path.parent.mkdir(parents=True)
    monkeypatch.setattr(feeds, "rows_of", lambda _: path)

    def init(text: str) -> list[str]:
        path.write_text(HEADER + text)
        said.clear()
        city._publish_own(LIMIT, said.append)
        return said

    publish(city, "")
    assert "1 new" in init("own,,,0.5\n")[0]
    assert init("own,,,0.5\n") == []
    publish(city, "own,,,0.6\n")
    assert init("own,,,0.5\n") == []
    assert "1 changed" in init("own,,,0.7\n")[0]
    assert "line 2: full: 9.0 is above 2.0" in init("own,,,9\n")[0]
    assert [row["full"] for row in shown(LIMIT, city.catalogue, current(city.cluster, LIMIT))] == [0.7]


def test_every_version_is_stored_and_the_views_say_what_holds_and_what_held(
    city: Installation, connect: Callable[[str], Any]
) -> None:
    owner, dialect = connect("owner"), city.dialect
    for name in ("raw", "city"):
        owner.execute(f"CREATE DATABASE IF NOT EXISTS {name}")
    for _ in range(2):
        for statement in references.statements(LIMIT, dialect):
            owner.execute(statement)
    publish(city, "")
    publish(city, "s,,,0.9\ns,2020-01-01T00:00:00Z,2021-01-01T00:00:00Z,0.5\nlater,2100-01-01T00:00:00Z,,0.5\n")
    first = [*records_of(city.cluster, LIMIT.name)][-1].timestamp
    publish(city, "s,,,0.8\n")
    reader = RowReader(LIMIT, city.catalogue, dialect.timezone)
    rows = reader.rows_of(
        (one.offset, one.key, one.value, one.timestamp) for one in records_of(city.cluster, LIMIT.name)
    )
    writer = Writer(city.server("sink"), pytest.fail)
    for _ in range(2):
        writer.insert(reader.table, reader.columns, rows)
    analyst = connect("analyst")
    now = "SELECT site_id, full FROM city.parking_limit WHERE site_id IN ('s', 'later')"
    assert analyst.execute(now) == [("s", 0.8)]
    at = "SELECT full FROM city.parking_limit_at(t = fromUnixTimestamp64Milli({})) WHERE site_id = 's'"
    assert analyst.execute(at.format(first)) == [(0.9,)]
    assert analyst.execute(at.format(first - 3_600_000)) == []
    versions = "SELECT full, removed FROM raw.parking_limit FINAL WHERE site_id = 's' ORDER BY source_offset"
    assert sorted(map(str, connect("operator").execute(versions))) == sorted(
        map(str, [(0.9, False), (0.5, False), (0.8, False), (None, True)])
    )


def test_a_sink_stores_a_table_of_every_type(connect: Callable[[str], Any], settings: Settings) -> None:
    owner, found = connect("owner"), Installation(settings)
    for statement in references.statements(REFERENCE, found.dialect):
        owner.execute(statement)
    reader = RowReader(REFERENCE, catalogue(), settings.timezone)
    limit = Limit(
        site_id="a", floor=-1, begins=instant(1000), ends=None, full=0.5, decided_on=date(2026, 1, 2),
        place=Place(longitude=120.5, latitude=30.25),
    )  # fmt: skip
    sent = [encoded(REFERENCE, FROZEN, limit), Said("b", 0, None, None, None, 0).sent, (MARK, None)]
    rows = reader.rows_of([(n, *one, 5000) for n, one in enumerate(sent)])
    Writer(found.server("sink"), pytest.fail).insert(reader.table, reader.columns, rows)
    wanted = "floor, full, use, toString(decided_on), place_longitude, area, removed, toUnixTimestamp64Milli(begins)"
    assert owner.execute(f"SELECT {wanted} FROM raw.toy_limit ORDER BY site_id") == [
        (-1, 0.5, "daily", "2026-01-02", 120.5, None, False, 1000),
        (0, None, None, None, None, None, True, None),
    ]

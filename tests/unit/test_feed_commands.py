import json
import sys
from pathlib import Path
from typing import Any

import pytest

import feeds
from citystream import cli
from citystream.commands import schemas as commands
from schemas.catalogue import Catalogue, SchemaProblem, declared, freeze
from schemas.pseudonyms import department_key, pseudonym
from schemas.samples import write_samples
from streams.topics import stored

FEEDS = feeds.load()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run the command line; gives exit code, output and errors."""

    def command(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["citystream", *words])
        monkeypatch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as end:
            cli.main()
        printed = capsys.readouterr()
        return int(end.value.code or 0), printed.out, printed.err

    return command


def test_lists_every_feed(run: Any) -> None:
    code, printed, _ = run("feeds", "list", "-o", "json")
    rows = json.loads(printed)
    assert code == 0
    assert {row["name"] for row in rows} == FEEDS.keys()
    assert [row["batch"] for row in rows] == sorted(row["batch"] for row in rows)
    first = rows[0]
    assert first["department"] == FEEDS[first["name"]].department.name
    promised = FEEDS[first["name"]].silence
    assert first["silence_seconds"] == (None if promised is None else promised.total_seconds())
    _, table, _ = run("feeds", "list")
    assert all(name in table for name in FEEDS)


@pytest.mark.parametrize("feed", FEEDS.values(), ids=lambda feed: feed.name)
def test_shows_the_whole_contract(run: Any, feed: Any) -> None:
    code, printed, _ = run("feeds", "show", feed.name, "-o", "json")
    found = json.loads(printed)
    assert code == 0
    assert [field["name"] for field in found["fields"]] == [field.name for field in feed.fields]
    assert [field["unit"] for field in found["fields"]] == [field.unit for field in feed.fields]
    personal = {field["name"] for field in found["fields"] if field["sensitivity"] == "personal"}
    assert personal == {field.name for field in feed.fields if field.personal}
    names = {feed.name: feed.name} | {aggregate.topic: aggregate.name for aggregate in feed.aggregates}
    assert [topic["name"] for topic in found["topics"]] == [*names] == [topic.name for topic in stored([feed])][1:]
    assert [topic["schema_id"] for topic in found["topics"]] == [Catalogue.load().latest(name).id for name in names]
    tables = [table for topic, name in names.items() for table in (f"city.{name}", f"raw.{topic}")]
    for aggregate in feed.aggregates:
        after = tables.index(f"city.{aggregate.name}") + 1
        tables[after:after] = [f"city.{rollup.name}" for rollup in aggregate.rollups]
    endings = ["now", "at(t=...)", "active"][: 2 if feed.latest_active is None else 3]
    endings = [*(endings if feed.latest else []), *(["spans(since=..., until=...)"] if feed.spans else [])]
    tables[2:2] = [f"city.{feed.name}_{ending}" for ending in endings]
    assert [table["name"] for table in found["tables"]] == tables
    assert all(column["comment"] for table in found["tables"] for column in table["columns"])


@pytest.mark.parametrize("feed", FEEDS.values(), ids=lambda feed: feed.name)
def test_the_table_for_people_keeps_the_units(run: Any, feed: Any) -> None:
    code, printed, _ = run("feeds", "show", feed.name)
    assert code == 0
    for measure in (m for aggregate in feed.aggregates for m in aggregate.measures):
        assert all(f"[{result.unit}]" in printed for result in measure.results)


def test_an_unknown_feed_is_answered_with_the_nearest_and_the_list(run: Any) -> None:
    name = next(iter(FEEDS))
    code, printed, error = run("feeds", "show", name[:-1])
    assert (code, printed) == (2, "")
    assert f"{name} is meant" in error
    assert all(known in error for known in FEEDS)


def test_the_key_of_a_department_is_handed_out_and_works_in_place_of_the_citys(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CITYSTREAM_PSEUDONYM_KEY", "the key of the whole city, which is long")
    code, printed, said = run("feeds", "key", "police_incident")
    assert (code, printed.partition(":")[0]) == (0, "Police")
    monkeypatch.setenv("CITYSTREAM_PSEUDONYM_KEY", printed.strip())
    assert run("feeds", "key", "police_incident") == (0, printed, said)
    pseudonyms = pseudonym(department_key(printed.strip(), "Police"), "Wensan Road 17")
    assert f"its pseudonyms begin with {pseudonyms[:4]}" in said
    code, printed, said = run("feeds", "key", "traffic_flow")
    assert (code, printed) == (2, "")
    assert "traffic_flow has no personal fields and needs no key" in said


def test_check_is_content_with_what_is_committed(run: Any) -> None:
    code, printed, _ = run("schemas", "check")
    wanted, frozen = declared(FEEDS, feeds.references()), {one.subject for one in Catalogue.load().by_id.values()}
    assert (code, printed.splitlines()) == (
        0,
        [
            f"All {len(wanted)} declared schemas are frozen as they are",
            f"frozen and declared no longer: {', '.join(sorted(frozen - wanted.keys()))}",
        ],
    )


def test_check_names_what_is_not_frozen(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Catalogue, "load", lambda: Catalogue({}))
    code, printed, error = run("schemas", "check")
    assert (code, printed) == (1, "")
    assert all(f"{name}: not frozen as declared" in error for name in FEEDS)


def test_freezes_once_and_says_what(run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(commands, "freeze", lambda feeds, references: freeze(feeds, tmp_path, references))
    monkeypatch.setattr(commands, "write_samples", lambda feeds, made: write_samples(feeds, made, tmp_path))
    code, printed, _ = run("schemas", "freeze")
    assert code == 0
    for name in FEEDS:
        assert f"{name}: version 1 is frozen as id " in printed
        assert f"{name}: a sample of version 1 is kept" in printed
    assert run("schemas", "freeze") == (0, "All schemas are frozen already\n", "")


def test_a_refused_freeze_is_a_failed_check(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise SchemaProblem("report: cannot read version 1\nreport: cannot read version 2")

    monkeypatch.setattr(commands, "freeze", refuse)
    assert run("schemas", "freeze") == (1, "", "report: cannot read version 1\nreport: cannot read version 2\n")

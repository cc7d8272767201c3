"""What the bench compares the platform with does the same work, on the same bytes."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

import feeds
from bench import load
from bench.city import ROW, ManyFeeds, ratios
from bench.made_up import FEEDS
from bench.plain_faust import Windows, value_of
from citystream.settings import Settings
from docs import generate
from schemas.catalogue import Catalogue, freeze
from schemas.feed import Feed
from schemas.pseudonyms import replaced
from schemas.record_codec import decode, encode
from schemas.verdict import instant_ms
from simulation import simulator
from simulation.world import World
from streams import publisher
from tests.reference.partition import bucket, evaluate

ALL = {**feeds.load(), **FEEDS}


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> ManyFeeds:
    """The city with the made-up feeds, their schemas frozen in a folder of its own."""
    folder = tmp_path_factory.mktemp("frozen")
    freeze(ALL, folder)
    found = ManyFeeds(Settings(home=folder), FEEDS)
    found.__dict__["catalogue"] = Catalogue.load(folder)
    return found


def records(city: ManyFeeds, feed: Feed, count: int) -> list[dict[str, Any]]:
    frozen = city.catalogue.latest(feed.name)
    made = islice(simulator(feed)(World(load.START, 1)), count)
    return [decode(city.catalogue, encode(frozen, replaced(feed, load.KEY, one.model_dump()))) for one in made]


def test_sixteen_made_up_feeds_and_the_city_are_two_thousand_records_a_second() -> None:
    assert len(FEEDS) == 16
    assert not FEEDS.keys() & feeds.load().keys()
    assert {feed.partitions for feed in FEEDS.values()} == {4}
    rates = [feed.rate or 0 for feed in FEEDS.values()]
    assert (min(rates), max(rates)) == (0.1, 500)
    assert sum(feed.rate or 0 for feed in ALL.values()) == pytest.approx(2000, rel=0.01)


def test_the_records_are_the_same_each_time_and_hold_disorder_and_bad_ones(city: ManyFeeds, tmp_path: Path) -> None:
    for name in ("one", "two"):
        load.make(city, tmp_path / name, seconds=6, every=4)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    made = list(load.read(tmp_path / "one"))
    assert len(made) == pytest.approx(6 * 2000 / 4, rel=0.1)
    assert [one.due for one in made] == sorted(one.due for one in made)
    newest, behind, marked = dict[str, int](), 0, [one for one in made if one.event_id]
    for one in marked:
        behind += one.event_ms < newest.get(one.topic, 0)
        newest[one.topic] = max(newest.get(one.topic, 0), one.event_ms)
    assert 0 < behind < len(marked) / 10
    assert 0 < len(made) - len(marked) < len(made) / 50


def test_records_wait_for_others_as_with_the_platforms_publishers() -> None:
    assert load.LINGER_MS == publisher.LINGER_MS


def test_a_mark_is_read_as_it_was_printed() -> None:
    mark = load.Marked("made_up_a", "device-0001", 1, "id", 0.1)
    assert load.Marked.read(mark.line() + "\n") == mark


@pytest.mark.parametrize("feed", ALL.values(), ids=ALL)
def test_a_plain_agent_has_the_windows_of_the_reference(city: ManyFeeds, feed: Feed) -> None:
    events = records(city, feed, 200)
    values = [{n: instant_ms(v) if hasattr(v, "tzinfo") else v for n, v in event.items()} for event in events]
    kinds = {field.name: field.kind for field in feed.fields}
    for aggregate in feed.aggregates:
        partials = [p for measure in aggregate.measures for p in measure.partials]
        for partial in partials:
            value = value_of(partial.value, kinds)
            assert [value(event) for event in events] == [evaluate(partial.value, one) for one in values]
        windows = Windows(feed, aggregate, city.catalogue.latest(aggregate.topic))
        for number, event in enumerate(events):
            windows.add(event, instant_ms(event[feed.event_time]), 0, number)
        parts = [decode(city.catalogue, value) for _, value in windows.changed()]
        assert sum(part["events"] for part in parts) == len(events)
        for partial in partials:
            known = [n for one in values if (n := evaluate(partial.value, one)) is not None]
            match partial.merge:
                case "sum":
                    assert sum(part[partial.name] for part in parts) == sum(known)
                case "histogram":
                    counts = [n for part in parts for n in part[f"{partial.name}_counts"]]
                    assert sum(counts) == len(known)
                    buckets = {b for part in parts for b in part[f"{partial.name}_buckets"]}
                    assert buckets == {bucket(number) for number in known}
                case "min" | "max":
                    merged = min if partial.merge == "min" else max
                    found = [part[partial.name] for part in parts if part[partial.name] is not None]
                    assert merged(found) == merged(known)
        assert list(windows.changed()) == []


def test_a_kept_row_is_shown_with_its_ratios(monkeypatch: pytest.MonkeyPatch) -> None:
    row = {name: float(number) for number, name in enumerate(ROW, 1)}
    measured: dict[str, Any] = {"machine": "a machine", "measurements": [], "ratios": {}, "live": {}}
    monkeypatch.setattr(json, "loads", lambda _: measured)
    assert "real rate" not in generate.measurements()
    measured |= {"city": row, "city_machine": "another machine"}
    text = generate.measurements()
    assert "On another machine:" in text
    for name, words in ROW.items():
        assert f"| {words} | {row[name]:,} |" in text
    assert ratios(row)["processor over a plain Faust agent"] == round(2 / 6, 2)

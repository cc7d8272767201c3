"""A record is read and judged by the version it names, whichever version its reader declares."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field

from schemas.avro import feed_schema
from schemas.catalogue import AHEAD, Catalogue, FrozenSchema, SchemaProblem, freeze
from schemas.feed import Feed
from schemas.record_codec import encode, prefix
from streams.decode import Decoded, Decoder
from streams.ending import Stop
from streams.missing_schemas import PATIENCE, Awaited, NotYet
from streams.wire.column_reader import ColumnReader
from tests.reference.batches import batch, run
from tests.reference.newer import BOTH, NEW, NEWER, NEWER_SCHEMA, Newer, newer
from tests.reference.toy import CATALOGUE, FEED, NOON, Toy, instant, record, value

KEY = b"d-1"
OLD_READER, NEW_READER = (Decoder(BOTH, "toy", feed) for feed in (FEED, NEWER))


def read(reader: Decoder, *batches: list[bytes]) -> Decoded:
    """The values of these batches, their offsets counted from 0."""
    raw, base = [], 0
    for values in batches:
        raw.append(batch([(KEY, content, []) for content in values], base))
        base += len(values)
    return reader.read(run(*raw), 0)


FULL: dict[str, Any] = {
    "size": 9, "speed": 0.1 + 0.2, "tag": "it's\"湖", "seen_at": instant(NOON + 1), "made": date(2024, 2, 29),
    "lit": False, "home": {"longitude": 120.1, "latitude": -30.2}, "doors": 0, "colour": "", "temper": "angry",
    "heated": False,
}  # fmt: skip


def test_what_the_reader_does_not_declare_is_beside_the_row() -> None:
    batches = [value(note="old")], [newer(**FULL), newer(note="new", mood="angry")], [value(), newer()]
    decoded = read(OLD_READER, *batches)
    assert decoded.dead == []
    assert decoded.rows.columns == [f.name for f in FEED.fields] + [
        "_key",
        "_partition",
        "_offset",
        "_arrived",
        "_undeclared",
    ]
    assert decoded.rows["_offset"].to_list() == [0, 1, 2, 3, 4]
    assert decoded.rows["note"].to_list() == ["old", None, "new", None, None]
    assert decoded.rows["mood"].to_list() == ["calm", "calm", "angry", "calm", "calm"]
    first, full, plain, mixed, last = decoded.rows["_undeclared"]
    assert (first, mixed, plain) == (None, None, last)
    assert json.loads(full) == {
        **{name: FULL[name] for name in NEW if name != "home"},
        "seen_at": NOON + 1, "made": (date(2024, 2, 29) - date(1970, 1, 1)).days, "home_longitude": 120.1,
        "home_latitude": -30.2,
    }  # fmt: skip
    assert json.loads(last)["doors"] == 4

    ahead = read(NEW_READER, *batches).rows
    assert ahead.columns == [f.name for f in NEWER.fields] + ["_key", "_partition", "_offset", "_arrived"]
    assert ahead["speed"].to_list() == [None, 0.1 + 0.2, None, None, None]
    assert ahead["doors"].to_list() == [4, 0, 4, 4, 4]


def test_what_a_newer_version_gave_up_is_beside_the_row() -> None:
    """The newer toy is the older version here."""
    schemas = enumerate((NEWER_SCHEMA.schema, feed_schema(FEED)), 1)
    back = Catalogue({n: FrozenSchema(n, "toy", n, schema) for n, schema in schemas})
    (row,) = read(Decoder(back, "toy", FEED), [prefix(1) + newer(**FULL)[5:]]).rows.to_dicts()
    assert json.loads(row["_undeclared"])["size"] == 9
    assert list(row) == [f.name for f in FEED.fields] + ["_key", "_partition", "_offset", "_arrived", "_undeclared"]


values = st.one_of(
    st.builds(value, level=st.sampled_from([-1001, -1000, 100_000, 100_001]), note=st.sampled_from([None, "1234567"])),
    st.builds(
        newer,
        level=st.sampled_from([100_000, 100_001]),
        size=st.sampled_from([None, 0, 1, 9, 10]),
        speed=st.sampled_from([None, -0.1, 0.0, float("nan"), float("inf")]),
        tag=st.sampled_from([None, "a", "ab", "AB"]),
        home=st.sampled_from([None, {"longitude": 181.0, "latitude": 0.0}]),
        mood=st.sampled_from(["angry", "calm"]),
    ),
    st.sampled_from([b"noise", newer()[:-3], value() + b"\x00", prefix(99) + value()[5:]]),
)


@settings(max_examples=70)
@given(st.lists(st.lists(values, min_size=1, max_size=5), min_size=1, max_size=3))
def test_a_record_has_one_verdict_whatever_its_reader_declares(batches: list[list[bytes]]) -> None:
    old, new = (read(reader, *batches) for reader in (OLD_READER, NEW_READER))
    assert new.dead == old.dead
    shared = old.rows.drop("_undeclared", strict=False).columns
    assert new.rows.select(shared).rows() == old.rows.select(shared).rows()


BROKEN: list[tuple[dict[str, Any], str]] = [
    ({"size": 10}, "size: above 9"),
    ({"speed": float("nan")}, "speed: not a finite number"),
    ({"tag": "a"}, "tag: shorter than 2 characters"),
    ({"tag": "AB"}, "tag: not of the form"),
    ({"home": {"longitude": 181.0, "latitude": 0.0}}, "home.longitude: not between"),
    ({"seen_at": instant(-3 * 10**12)}, "seen_at: below"),
]


@pytest.mark.parametrize(("change", "cause"), BROKEN, ids=[cause for _, cause in BROKEN])
def test_a_field_is_held_to_its_bounds_by_readers_that_do_not_declare_it(change: dict[str, Any], cause: str) -> None:
    decoded = read(OLD_READER, [newer(), newer(**change)])
    assert decoded.rows["_offset"].to_list() == [0]
    (letter,) = decoded.dead
    assert (letter.offset, letter.stage) == (1, "VALIDATE")
    assert letter.cause.startswith(cause)


def test_bounds_hold_from_the_version_on_that_has_them() -> None:
    class Bounded(Toy):
        level: Annotated[int, Field(ge=-1000, le=10, description="Level")]

    bounded = replace(FEED, record=Bounded)
    second = FrozenSchema(9, "toy", 2, feed_schema(bounded))
    catalogue = Catalogue({**CATALOGUE.by_id, 9: second})
    for feed in (FEED, bounded):
        decoded = read(Decoder(catalogue, "toy", feed), [value(level=11), encode(second, record(level=11))])
        assert decoded.rows["_offset"].to_list() == [0]
        assert [letter.cause for letter in decoded.dead] == ["level: above 10"]
    assert bounded.definition == FEED.definition


class Unknown(Toy):
    level: Annotated[int | None, Field(ge=-1000, le=100_000, description="Level; null when nobody knows")]  # type: ignore[assignment]


def test_from_the_version_on_by_which_a_field_may_be_null_it_is_and_counts_where_it_is_known() -> None:
    unknown = replace(FEED, record=Unknown)
    second = FrozenSchema(9, "toy", 2, feed_schema(unknown))
    reader = Decoder(Catalogue({**CATALOGUE.by_id, 9: second}), "toy", unknown)
    decoded = read(reader, [value(level=4), encode(second, record(level=None)), encode(second, record(level=100_001))])
    assert decoded.rows["level"].to_list() == [4, None]
    assert [letter.cause for letter in decoded.dead] == ["level: above 100000"]
    assert (unknown.definition, unknown.fingerprints) == (FEED.definition, FEED.fingerprints)


def test_a_worker_of_a_declaration_by_which_it_is_never_null_stops() -> None:
    """Its sink would store 0."""
    second = FrozenSchema(9, "toy", 2, feed_schema(replace(FEED, record=Unknown)))
    reader = Decoder(Catalogue({**CATALOGUE.by_id, 9: second}), "toy", FEED)
    assert read(reader, [value()]).dead == []
    with pytest.raises(
        Stop, match=r"^by schema 9 of toy level may be null, and never as this worker declares it: install"
    ):
        read(reader, [value(), encode(second, record(level=4))])


def test_a_reader_whose_declaration_is_not_frozen_is_refused() -> None:
    with pytest.raises(SchemaProblem, match=r"^toy is not frozen as it is declared"):
        Decoder(CATALOGUE, "toy", NEWER)


#: Seconds between two tries of a run that has to wait.
PAUSE = 0.25


class Time:
    """A clock that only waiting moves; ``then`` happens at its time. ``said`` is what was waited for."""

    def __init__(self) -> None:
        self.now = 0.0
        self.then: dict[float, Callable[[], object]] = {}
        self.said: list[str] = []

    def clock(self) -> float:
        return self.now

    def read(self, reader: Decoder, *batches: list[bytes]) -> Decoded:
        """Read as soon as nothing has to be waited for."""
        while True:
            try:
                return read(reader, *batches)
            except NotYet as wait:
                self.said.append(str(wait))
                self.now += PAUSE
                for due in [due for due in self.then if due <= self.now]:
                    self.then.pop(due)()


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the first version of the toys is frozen."""
    freeze({"toy": FEED}, tmp_path)
    return tmp_path


@pytest.fixture
def reader(folder: Path, time: Time) -> Decoder:
    """A reader of the first version with these files."""
    catalogue = Catalogue.load(folder)
    return Decoder(catalogue, "toy", FEED, Awaited(catalogue, PATIENCE, time.clock))


def freeze_newer(folder: Path) -> FrozenSchema:
    (frozen,) = freeze({"toy": NEWER}, folder)
    assert frozen == NEWER_SCHEMA
    return frozen


def test_records_wait_for_the_schema_they_name(folder: Path, reader: Decoder, time: Time) -> None:
    time.then[PATIENCE - 2 * PAUSE] = lambda: freeze_newer(folder)
    decoded = time.read(reader, [value(), newer(size=3)], [newer()])
    assert decoded.dead == []
    assert decoded.rows["_offset"].to_list() == [0, 1, 2]
    assert time.now == PATIENCE - 2 * PAUSE
    (said,) = set(time.said)
    assert said.startswith(f"toy/0 at offset 1 names the schema id {NEWER_SCHEMA.id}, which is not frozen here")


def test_a_schema_that_does_not_come_is_waited_for_once(
    folder: Path, reader: Decoder, time: Time, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        decoded = time.read(reader, [value(), newer()], [newer()])
        assert decoded.rows["_offset"].to_list() == [0]
        assert [letter.cause for letter in decoded.dead] == [f"schema id {NEWER_SCHEMA.id} is not in the catalogue"] * 2
        assert PATIENCE <= time.now < PATIENCE + PAUSE
    assert [entry.levelno for entry in caplog.records] == [logging.ERROR]
    freeze_newer(folder)
    assert read(reader, [value(), newer()]).dead == []


def test_a_topic_waits_once_however_many_ids_nobody_knows(folder: Path, reader: Decoder, time: Time) -> None:
    """Sixty-four records of six bytes, each with an id that may come, would else hold it up for eleven minutes."""
    junk = [prefix(NEWER_SCHEMA.id + number) + b"\x00" for number in range(AHEAD)]
    decoded = time.read(reader, [*junk, value()])
    assert (len(decoded.dead), decoded.rows["_offset"].to_list()) == (AHEAD, [AHEAD])
    assert PATIENCE <= time.now < PATIENCE + PAUSE
    for one in junk:
        time.read(reader, [one], [value()])
    assert time.now < PATIENCE + PAUSE
    freeze_newer(folder)
    time.read(reader, [junk[1]])
    assert time.now >= 2 * PATIENCE, "a new file says that more may come"


def test_files_that_are_only_half_there_are_waited_for(folder: Path, reader: Decoder, time: Time) -> None:
    freeze_newer(folder)
    half = folder / "toy" / "2.avsc"
    whole = half.read_text()
    half.unlink()
    time.then[1.0] = lambda: half.write_text(whole[:-9])
    time.then[2.0] = lambda: half.write_text(whole)
    assert time.read(reader, [newer()]).dead == []
    assert time.now == 2


@pytest.mark.parametrize("schema_id", [0, NEWER_SCHEMA.id + AHEAD, 2**32 - 1])
def test_an_id_that_no_file_can_bring_is_not_waited_for(reader: Decoder, time: Time, schema_id: int) -> None:
    decoded = time.read(reader, [prefix(schema_id) + value()[5:], value()])
    assert decoded.rows["_offset"].to_list() == [1]
    assert decoded.dead[0].cause == f"schema id {schema_id} is not in the catalogue"
    assert time.now == 0


def test_a_schema_of_another_topic_that_came_leaves_its_records_dead(folder: Path, reader: Decoder, time: Time) -> None:
    other: dict[str, Feed] = {"other": replace(NEWER, name="other", aggregates=())}
    time.then[1.0] = lambda: freeze(other, folder)
    (letter,) = time.read(reader, [newer()]).dead
    assert (letter.cause, time.now) == (f"schema {NEWER_SCHEMA.id} is of other", 1)


def test_the_newer_toy_has_every_type_that_may_be_absent() -> None:
    """Or the tests of evolution would miss one."""
    kinds = {(field.kind, field.nullable) for field in NEWER.fields if field.name in NEW}
    assert {kind for kind, _ in kinds} == {f.kind for f in FEED.fields} - {"uuid"}
    assert {kind for kind, nullable in kinds if not nullable} == {"int", "string", "enum", "bool"}
    assert ColumnReader(NEWER_SCHEMA).frozen.schema == feed_schema(NEWER)
    assert issubclass(NEWER.record, Newer)

import io
import threading
from dataclasses import replace
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import fastavro
import pytest
from pydantic import Field, create_model

import feeds as declared
from schemas import catalogue as module
from schemas.avro import feed_schema, field_of
from schemas.catalogue import AHEAD, Catalogue, FrozenSchema, SchemaProblem, check, freeze
from schemas.department import Department
from schemas.expressions import Column
from schemas.feed import Aggregate, Feed
from schemas.fields import Day, EventId, Instant, Location, Record
from schemas.measures import count_where, total
from schemas.record_codec import PREFIX, decode
from schemas.samples import sample_file, write_samples
from simulation import first
from streams.wire.column_reader import ColumnReader
from tests.reference.newer import NEWER

FEEDS = declared.load()
CATALOGUE = Catalogue.load()
SAMPLED = [frozen for frozen in CATALOGUE.by_id.values() if frozen.subject in FEEDS]


class State(StrEnum):
    OPEN = "open"
    UNKNOWN = "unknown"


class Fewer(StrEnum):
    UNKNOWN = "unknown"


class Report(Record):
    event_id: EventId
    device_id: Annotated[str, Field(description="Device")]
    observed_at: Annotated[Instant, Field(description="Event time")]
    state: Annotated[State, Field(description="State of the device")]
    level: Annotated[int | None, Field(description="Level")]
    full: Annotated[bool | None, Field(description="Whether it is full")]


def toy(**changes: Any) -> dict[str, Feed]:
    """A feed of one aggregate whose record has these fields changed or added."""
    feed = Feed(
        name="report",
        description="Reports of devices",
        record=create_model("Report", __base__=Report, **changes) if changes else Report,
        key="device_id",
        event_time="observed_at",
        department=Department(name="Works", contact="works@city.example", purpose="Tests"),
        batch=1,
        rate=1,
        silence=timedelta(minutes=1),
        disorder=timedelta(0),
        lateness=timedelta(0),
        aggregates=(
            Aggregate(
                name="report_1m",
                by=("device_id",),
                window=timedelta(minutes=1),
                measures=(total("levels", Column("level"), unit="1", description="Sum of levels"),),
                description="Reports a minute",
            ),
        ),
    )
    return {feed.name: feed}


ADDED = {"added": (Annotated[str | None, Field(description="A new one")], None)}


def contents(folder: Path) -> dict[Path, str]:
    return {path: path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_what_is_declared_is_frozen() -> None:
    assert check(CATALOGUE, FEEDS) == []


def test_ids_are_given_once_and_for_ever(tmp_path: Path) -> None:
    first = freeze(toy(), tmp_path)
    assert [(s.id, s.subject, s.version) for s in first] == [(1, "report", 1), (2, "report_1m", 1), (3, "tick", 1)]
    assert check(Catalogue.load(tmp_path), toy()) == []
    assert freeze(toy(), tmp_path) == []

    (second,) = freeze(toy(**ADDED), tmp_path)
    assert (second.id, second.subject, second.version) == (4, "report", 2)
    assert Catalogue.load(tmp_path).by_id == {frozen.id: frozen for frozen in (*first, second)}


def test_a_change_that_is_not_frozen_names_its_field(tmp_path: Path) -> None:
    assert check(Catalogue.load(tmp_path), toy())[0] == "report: not frozen as declared; run: citystream schemas freeze"
    freeze(toy(), tmp_path)
    problems = check(Catalogue.load(tmp_path), toy(**ADDED))
    assert problems == ["report: not frozen as declared (added); run: citystream schemas freeze"]


class More(StrEnum):
    SHUT = "shut"
    OPEN = "open"
    UNKNOWN = "unknown"


DEFAULT = {"speed": (Annotated[int, Field(description="Speed")], 5)}

REFUSED: list[tuple[Any, str]] = [
    ({"added": Annotated[str, Field(description="Required")]}, "added is new and has no default"),
    ({"name": None}, "name is gone and had no default"),
    ({"full": Annotated[int | None, Field(description="How full")]}, "full was boolean or null and is int or null"),
    ({"level": Annotated[int, Field(description="Never null")]}, "level was int or null and is int"),
    ({"count": Annotated[float, Field(description="Count")]}, "count was int and is double"),
    ({"count": Annotated[Day, Field(description="Count")]}, "count was int and is date"),
    ({"name": EventId}, "name was string and is uuid"),
    ({"place": Annotated[str | None, Field(description="Where")]}, "place was record or null and is string or null"),
    ({"state": Annotated[bool, Field(description="No enum")]}, "state was enum and is boolean"),
    ({"state": Annotated[Fewer, Field(description="State")]}, "state has lost the symbol open"),
    ({"speed": (Annotated[int, Field(description="Speed")], 6)}, "speed had the default 5 and has 6"),
]


@pytest.mark.parametrize(("change", "reason"), REFUSED, ids=[reason for _, reason in REFUSED])
def test_a_change_with_which_versions_do_not_read_each_other_is_refused(
    tmp_path: Path, change: Any, reason: str
) -> None:
    some = {
        "name": Annotated[str, Field(description="Name")],
        "count": Annotated[int, Field(description="Count")],
        "place": Location,
        **DEFAULT,
    }
    freeze(toy(**some), tmp_path)
    before = contents(tmp_path)
    changed = {name: kind for name, kind in {**some, **change}.items() if kind is not None}
    with pytest.raises(SchemaProblem, match=f"^report is not compatible with its version 1: {reason}$"):
        freeze(toy(**changed), tmp_path)
    assert contents(tmp_path) == before


COMPATIBLE: list[Any] = [
    ADDED,
    DEFAULT,
    {"level": Annotated[int | None, Field(ge=3, description="Bounds")]},
    {"state": Annotated[More, Field(description="State of the device")]},
    {"full": Annotated[bool | None, Field(description="In other words")]},
]


@pytest.mark.parametrize("change", COMPATIBLE, ids=range(5))
def test_versions_that_read_each_other_are_frozen_either_way(tmp_path: Path, change: Any) -> None:
    """Also what a newer version gives up, but for a symbol."""
    freeze(toy(), tmp_path / "forth")
    (second,) = freeze(toy(**change), tmp_path / "forth")
    assert (second.subject, second.version) == ("report", 2)
    freeze(toy(**change), tmp_path / "back")
    if "state" not in change:
        (second,) = freeze(toy(), tmp_path / "back")
        assert (second.subject, second.version) == ("report", 2)


@pytest.mark.parametrize("kind", [int, Instant, Day, str, float, bool])
def test_a_field_may_be_null_from_a_version_on_and_never_again_has_to_be_there(tmp_path: Path, kind: Any) -> None:
    always = toy(added=Annotated[kind, Field(description="Always")])
    freeze(always, tmp_path)
    (second,) = freeze(toy(added=Annotated[kind | None, Field(description="Or null")]), tmp_path)
    assert (second.subject, second.version) == ("report", 2)
    with pytest.raises(
        SchemaProblem, match=r"^report is not compatible with its version 2: added was .* or null and is"
    ):
        freeze(always, tmp_path)


def redefined(**changes: Any) -> dict[str, Feed]:
    """The feed with its aggregate changed."""
    feed = toy()["report"]
    return {"report": replace(feed, aggregates=(replace(feed.aggregates[0], **changes),))}


def test_a_changed_aggregate_is_another_version(tmp_path: Path) -> None:
    """Its parts would be added to those of the old definition."""
    freeze(toy(), tmp_path)
    before = contents(tmp_path)
    more = (*toy()["report"].aggregates[0].measures, count_where("full", Column("full"), description="Full ones"))
    later = replace(toy()["report"], lateness=timedelta(seconds=1))
    for feeds, what in (
        (redefined(window=timedelta(minutes=2)), "window_ms"),
        (redefined(measures=more), "partials"),
        ({"report": later}, "lateness_ms"),
    ):
        with pytest.raises(SchemaProblem, match=rf"^report_1m: its definition changed \({what}\); raise its version$"):
            freeze(feeds, tmp_path)
        assert contents(tmp_path) == before
    (second,) = freeze(redefined(measures=more, version=2), tmp_path)
    assert (second.id, second.subject, second.version) == (4, "report_1m_v2", 1)
    assert check(Catalogue.load(tmp_path), redefined(measures=more, version=2)) == []


def test_another_description_is_no_other_definition(tmp_path: Path) -> None:
    freeze(toy(), tmp_path)
    (second,) = freeze(redefined(description="Other words"), tmp_path)
    assert (second.subject, second.version) == ("report_1m", 2)


def test_every_old_version_counts(tmp_path: Path) -> None:
    freeze(toy(), tmp_path)
    freeze(toy(**ADDED), tmp_path)
    changed = toy(full=Annotated[int, Field(description="How full")], added=Annotated[int, Field(description="Number")])
    with pytest.raises(SchemaProblem) as refused:
        freeze(changed, tmp_path)
    assert str(refused.value).splitlines() == [
        "report is not compatible with its version 1: added is new and has no default",
        "report is not compatible with its version 1: full was boolean or null and is int",
        "report is not compatible with its version 2: full was boolean or null and is int",
        "report is not compatible with its version 2: added was string or null and is int",
    ]


def test_the_files_are_read_again_only_when_they_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    freeze(toy(), tmp_path)
    catalogue = Catalogue.load(tmp_path)
    (new,) = freeze(toy(**ADDED), tmp_path)
    assert catalogue.latest("report").version == 1
    catalogue.refresh()
    assert catalogue.latest("report") == new
    monkeypatch.setattr(Path, "read_text", None)
    catalogue.refresh()


def test_a_thread_that_reads_slowly_does_not_bring_back_what_was_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one has read more meanwhile, and a record waits for just that."""
    freeze(toy(), tmp_path)
    files = Catalogue.load(tmp_path)
    freeze(toy(**ADDED), tmp_path)
    has_read, go_on = threading.Event(), threading.Event()
    read = module._read

    def read_slowly(folder: Path) -> dict[int, FrozenSchema]:
        found = read(folder)
        has_read.set()
        go_on.wait(0.5)
        return found

    monkeypatch.setattr(module, "_read", read_slowly)
    slow = threading.Thread(target=files.refresh)
    slow.start()
    assert has_read.wait(60)
    monkeypatch.setattr(module, "_read", read)
    (newest,) = freeze(toy(**ADDED, **DEFAULT), tmp_path)
    files.refresh()
    assert newest.id in files.by_id
    go_on.set()
    slow.join()
    assert newest.id in files.by_id


def test_what_was_read_stays_while_the_files_cannot_be_read(tmp_path: Path) -> None:
    freeze(toy(), tmp_path)
    catalogue = Catalogue.load(tmp_path)
    (new,) = freeze(toy(**ADDED), tmp_path)
    ids, late = tmp_path / "ids.json", tmp_path / "report" / "2.avsc"
    whole, text = ids.read_text(), late.read_text()
    for path, damaged, reason in ((ids, whole[:-9], "is no JSON; restore it"), (late, text[:-9], "was changed after")):
        path.write_text(damaged)
        for _ in range(2):
            with pytest.raises(SchemaProblem, match=reason):
                catalogue.refresh()
        assert catalogue.latest("report").version == 1
        path.write_text(whole if path == ids else text)
    catalogue.refresh()
    assert catalogue.latest("report") == new


def test_an_id_may_come_that_follows_the_newest(tmp_path: Path) -> None:
    """Ids are given one after the other: none is given later that lies before the newest, or far behind it."""
    freeze(toy(), tmp_path)
    catalogue = Catalogue.load(tmp_path)
    assert [n for n in range(2000) if catalogue.may_come(n)] == list(range(4, 4 + AHEAD))
    assert not Catalogue(catalogue.by_id).may_come(4)


def test_the_version_of_a_declaration_is_the_newest_that_is_like_it(tmp_path: Path) -> None:
    freeze(toy(), tmp_path)
    old, new = (feed_schema(toy(**changes)["report"]) for changes in ({}, ADDED))
    with pytest.raises(
        SchemaProblem, match=r"^report is not frozen as it is declared; run: citystream schemas freeze$"
    ):
        Catalogue.load(tmp_path).of("report", new)
    freeze(toy(**ADDED), tmp_path)
    catalogue = Catalogue.load(tmp_path)
    assert [catalogue.of("report", schema).version for schema in (old, new)] == [1, 2]
    freeze(toy(), tmp_path)
    assert Catalogue.load(tmp_path).of("report", old).version == 3


@pytest.mark.parametrize("feed", [*FEEDS.values(), NEWER], ids=lambda feed: str(feed.name))
def test_a_frozen_field_says_all_that_its_values_are_held_against(feed: Feed) -> None:
    for field, schema in zip(feed.fields, feed_schema(feed)["fields"], strict=True):
        assert field_of(schema) == replace(field, has_default=field.has_default or field.nullable, decimals=None)


@pytest.mark.parametrize("subject", ["report", "report_1m"])
def test_a_frozen_file_must_not_change(tmp_path: Path, subject: str) -> None:
    freeze(toy(), tmp_path)
    path = tmp_path / subject / "1.avsc"
    path.write_text(path.read_text().replace("long", "int", 1))
    with pytest.raises(SchemaProblem, match=f"{subject} version 1 was changed after it was frozen"):
        Catalogue.load(tmp_path)
    path.unlink()
    with pytest.raises(SchemaProblem, match=f"of {subject} is missing"):
        Catalogue.load(tmp_path)


def test_a_sample_is_written_once(tmp_path: Path) -> None:
    freeze(toy(), tmp_path)
    (path,) = write_samples(toy(), first, tmp_path)
    catalogue = Catalogue.load(tmp_path)
    assert path == sample_file(catalogue.latest("report"), tmp_path)
    assert decode(catalogue, bytes.fromhex(path.read_text()))["device_id"].startswith("device_id-")
    path.write_text("kept")
    assert write_samples(toy(), first, tmp_path) == []
    assert path.read_text() == "kept"


def test_no_sample_of_what_is_not_frozen(tmp_path: Path) -> None:
    freeze(toy(), tmp_path)
    assert write_samples(toy(**ADDED), first, tmp_path) == []


@pytest.mark.parametrize("frozen", SAMPLED, ids=lambda frozen: f"{frozen.subject}-{frozen.version}")
def test_every_record_ever_published_is_decoded(frozen: FrozenSchema) -> None:
    path = sample_file(frozen)
    assert path.exists(), "run: citystream schemas freeze"
    value = bytes.fromhex(path.read_text())
    assert PREFIX.unpack_from(value) == (0, frozen.id)
    record = decode(CATALOGUE, value)
    assert list(record) == [field["name"] for field in frozen.schema["fields"]]

    rows, bad = ColumnReader(frozen).read_values([value])
    assert (rows.height, bad) == (1, [])

    newest = CATALOGUE.latest(frozen.subject)
    now = fastavro.schemaless_reader(io.BytesIO(value[PREFIX.size :]), frozen.parsed, newest.parsed)
    assert isinstance(now, dict)
    assert sorted(now) == sorted(field["name"] for field in newest.schema["fields"])

import io
from collections.abc import Iterator
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path
from random import Random
from typing import Annotated, Any

import fastavro
import pytest
from pydantic import Field, create_model

import feeds as declared
from schemas.catalogue import Catalogue, FrozenSchema, SchemaProblem, check, freeze
from schemas.columnar import Layout
from schemas.expressions import Column
from schemas.feed import Aggregate, Feed
from schemas.fields import EventId, Instant, Record
from schemas.measures import total
from schemas.rowcodec import FRAME, decode
from schemas.samples import sample_file, write_samples

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


def simulate(start: datetime, random: Random) -> Iterator[Report]:
    while True:
        event_id = f"00000000-0000-4000-8000-{random.getrandbits(48):012x}"
        yield Report(event_id=event_id, device_id="d-1", observed_at=start, state=State.OPEN, level=None, full=None)


def toy(**changes: Any) -> dict[str, Feed]:
    """A feed of one aggregate whose record has these fields changed or added."""
    feed = Feed(
        name="report",
        description="Reports of devices",
        record=create_model("Report", __base__=Report, **changes) if changes else Report,
        key="device_id",
        event_time="observed_at",
        department="Works",
        batch=1,
        stage="trial",
        rate=1,
        silence=timedelta(minutes=1),
        disorder=timedelta(0),
        lateness=timedelta(0),
        simulate=simulate,
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
    assert [(s.id, s.subject, s.version) for s in first] == [(1, "report", 1), (2, "report_1m", 1)]
    assert check(Catalogue.load(tmp_path), toy()) == []
    assert freeze(toy(), tmp_path) == []

    (second,) = freeze(toy(**ADDED), tmp_path)
    assert (second.id, second.subject, second.version) == (3, "report", 2)
    assert Catalogue.load(tmp_path).by_id == {frozen.id: frozen for frozen in (*first, second)}


def test_a_change_that_is_not_frozen_names_its_field(tmp_path: Path) -> None:
    assert check(Catalogue.load(tmp_path), toy())[0] == "report: not frozen as declared; run: citystream schemas freeze"
    freeze(toy(), tmp_path)
    problems = check(Catalogue.load(tmp_path), toy(**ADDED))
    assert problems == ["report: not frozen as declared (added); run: citystream schemas freeze"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"added": Annotated[str, Field(description="Required")]}, "added: is new and has no default"),
        ({"full": Annotated[int | None, Field(description="How full")]}, "full: .*"),
        ({"level": Annotated[int, Field(description="Never null")]}, "level: .* writer type: null"),
        ({"state": Annotated[bool, Field(description="No enum")]}, "state: .* boolean .*enum"),
    ],
)
def test_a_change_that_cannot_read_old_records_is_refused(tmp_path: Path, change: Any, reason: str) -> None:
    freeze(toy(), tmp_path)
    before = contents(tmp_path)
    with pytest.raises(SchemaProblem, match=f"^report: cannot read version 1: {reason}$"):
        freeze(toy(**change), tmp_path)
    assert contents(tmp_path) == before


def test_every_old_version_counts(tmp_path: Path) -> None:
    freeze(toy(), tmp_path)
    freeze(toy(**ADDED), tmp_path)
    with pytest.raises(SchemaProblem, match=r"report: cannot read version 1: full: .*\nreport: cannot read version 2"):
        freeze(toy(full=Annotated[int, Field(description="How full")]), tmp_path)


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
    (path,) = write_samples(toy(), tmp_path)
    catalogue = Catalogue.load(tmp_path)
    assert path == sample_file(catalogue.latest("report"), tmp_path)
    assert decode(catalogue, bytes.fromhex(path.read_text()))["device_id"] == "d-1"
    path.write_text("kept")
    assert write_samples(toy(), tmp_path) == []
    assert path.read_text() == "kept"


def test_no_sample_of_what_is_not_frozen(tmp_path: Path) -> None:
    freeze(toy(), tmp_path)
    assert write_samples(toy(**ADDED), tmp_path) == []


@pytest.mark.parametrize("frozen", SAMPLED, ids=lambda frozen: f"{frozen.subject}-{frozen.version}")
def test_every_record_ever_published_is_decoded(frozen: FrozenSchema) -> None:
    path = sample_file(frozen)
    assert path.exists(), "run: citystream schemas freeze"
    value = bytes.fromhex(path.read_text())
    assert FRAME.unpack_from(value) == (0, frozen.id)
    record = decode(CATALOGUE, value)
    assert list(record) == [field["name"] for field in frozen.schema["fields"]]

    rows, bad = Layout(frozen).read_values([value])
    assert (rows.height, bad) == (1, [])

    newest = CATALOGUE.latest(frozen.subject)
    now = fastavro.schemaless_reader(io.BytesIO(value[FRAME.size :]), frozen.parsed, newest.parsed)
    assert isinstance(now, dict)
    assert list(now) == [field["name"] for field in newest.schema["fields"]]

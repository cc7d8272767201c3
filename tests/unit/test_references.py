"""What is looked up for a record is a function of both logs, however far and in whatever pieces they are read."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Annotated, Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

import feeds
from operations.publishing import table
from operations.publishing.mapping import FileMapping
from operations.publishing.rows import FileProblem
from operations.publishing.table import check_table
from schemas.avro import feed_schema, field_of
from schemas.catalogue import Catalogue, FrozenSchema, SchemaProblem, check, freeze, incompatibilities
from schemas.feed import DeclarationError, Feed
from schemas.fields import Area, Instant, Personal, Record, Text
from schemas.record_codec import encode
from schemas.reference import GRACE, Reference
from schemas.reference_rows import MARK, NoRow, Row, SchemaMissing, identity, read_row
from schemas.shapes import shape_problem
from streams.history import UNKNOWN, History
from streams.missing_schemas import NotYet
from streams.references import Log, References
from streams.topics import of_references
from tests.reference import toy
from tests.reference.areas import CoveredBy
from tests.reference.limits import FROZEN, GRACE_MS, REFERENCE, Limit, Said, catalogue, instant, known
from tests.reference.rules import Version, known_of

SITES, FLOORS = ["a", "b", ""], [0, -1]
SQUARE = '{"type": "Polygon", "coordinates": [[[120, 30], [121, 30], [121, 31], [120, 30]]]}'
WAY = '{"type": "LineString", "coordinates": [[120, 30], [121, 31]]}'


class AreaOf(Record):
    """An area by its name."""

    name: Annotated[Text, Field(description="Name")]
    shape: Annotated[Area, Field(description="Where it is")]


AREAS = Reference(name="toy_area", description="Areas", record=AreaOf, key=("name",), department=toy.DEPARTMENT)
FROZEN_AREAS = FrozenSchema(8, AREAS.name, 1, feed_schema(AREAS))

times = st.integers(0, 8).map(lambda n: n * 1000)
opens = st.none() | times


@st.composite
def said(draw: st.DrawFn) -> Said:
    begins, ends = draw(opens), draw(opens)
    if begins is not None and ends is not None and ends <= begins:
        ends = None
    # Clocks of brokers go back a little when another one leads the partition.
    return Said(
        draw(st.sampled_from(SITES[:2])), draw(st.sampled_from(FLOORS)), begins, ends,
        draw(st.none() | st.sampled_from([0.25, 0.5, 0.75])), draw(times),
    )  # fmt: skip


logs = st.lists(said(), max_size=25).map(
    lambda found: [replace(one, at=one.at + n // 3 * 1000) for n, one in enumerate(found)]
)
#: Site, floor, arrival and event time.
ASKED = [
    (site, floor, arrived * 1000 + GRACE_MS, event * 1000)
    for site in SITES
    for floor in [*FLOORS, 7]
    for arrived in range(-1, 17, 2)
    for event in range(-1, 9, 2)
]


def read(log: list[Said], one: Log) -> None:
    for offset, each in enumerate(log[one.next :], one.next):
        one.take(offset, *each.sent, each.at)


def looked_up(history: History, questions: list[tuple[str, int, int, int]]) -> list[float | None]:
    sites, floors, arrived, events = zip(*questions, strict=True) if questions else ((), (), (), ())
    keys = [pl.Series(sites, dtype=pl.String), pl.Series(floors, dtype=pl.Int64)]
    rows = history.rows(keys, np.array(arrived, np.int64), np.array(events, np.int64))
    found: list[float | None] = history.column("full", rows).to_list()
    assert [value is None for value in found] == (rows == UNKNOWN).tolist()
    return found


@given(logs, st.lists(st.integers(0, 25), max_size=3), st.sampled_from(ASKED))
def test_any_order_of_reading_finds_what_the_reference_finds(
    log: list[Said], cuts: list[int], alone: tuple[str, int, int, int]
) -> None:
    """A table is read in pieces, and after each everything is asked that it is read far enough for."""
    one = Log(REFERENCE, catalogue())
    for end in [*sorted(cuts), len(log)]:
        read(log[:end], one)
        answered = [question for question in ASKED if end >= len(log) or one.has_come_to(question[2])]
        assert looked_up(one.history(), answered) == [known(log, *question) for question in answered]
    assert looked_up(one.history(), [alone]) == [known(log, *alone)]
    assert "_rank" not in vars(one.history()), "areas alone are ranked"


def test_a_mark_brings_an_idle_table_to_now_and_changes_nothing() -> None:
    one = Log(REFERENCE, catalogue())
    limit = Said("a", 0, None, None, 0.5, 1000)
    one.take(0, *limit.sent, limit.at)
    before = one.history()
    assert not one.has_come_to(1000 + GRACE_MS)  # another one may come in the same millisecond
    one.asked_for = 1000 + GRACE_MS // 2
    assert one.wants_mark()
    one.take(1, MARK, None, 1001)
    assert one.has_come_to(1000 + GRACE_MS)
    assert not one.wants_mark()
    assert one.history() is before


def test_a_table_that_is_not_read_so_far_makes_only_what_looks_it_up_wait() -> None:
    references = References(None, [REFERENCE], catalogue())  # type: ignore[arg-type]
    with pytest.raises(NotYet, match="the reference data toy_limit are not known up to"):
        references.history("toy_limit", 5000)
    references._logs["toy_limit"].take(0, MARK, None, 5000)
    with pytest.raises(NotYet):
        references.history("toy_limit", 5000 + GRACE_MS)
    assert looked_up(references.history("toy_limit", 4999 + GRACE_MS), [("a", 0, 4999, 0)]) == [None]


def test_values_are_as_columns_of_records_have_them() -> None:
    values = {
        "site_id": "a", "floor": 1, "begins": instant(1000), "ends": None, "full": 0.5, "use": "event",
        "place": {"longitude": 120.1, "latitude": 30.2}, "area": SQUARE, "decided_on": None, "way": WAY,
    }  # fmt: skip
    one = Log(REFERENCE, catalogue())
    one.take(0, identity(REFERENCE, values), encode(FROZEN, values), 5)
    history = one.history()
    rows = history.rows(
        [pl.Series(["a", "a", None]), pl.Series([1, 1, 1], dtype=pl.Int32)],
        *np.array([[20_000] * 3, [1000, 999, 1000]]),
    )
    assert rows.tolist() == [0, UNKNOWN, UNKNOWN]
    found = {name: history.column(name, rows).to_list()[0] for name in values}
    assert found == values | {"begins": 1000}


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        (b"", None, "its key is no JSON"),
        (b"[1]", None, "its key is no list of 3 values"),
        (b'["a",true,null]', None, "another type"),
        (b'["a",1,"x"]', None, "ends with no time"),
        (b'["a",1,null]', b"x", "does not start with"),
        (b'["b",0,null]', Said("a", 0, None, None, 0.5, 0).sent[1], "not those of its key"),
    ],
)
def test_what_is_no_row_is_left_out_and_said(
    key: bytes, value: bytes | None, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(NoRow, match=reason):
        read_row(REFERENCE, catalogue(), key, value)
    one = Log(REFERENCE, catalogue())
    one.take(0, key, value, 7)
    assert (one.next, one.read_to) == (1, 7)
    assert reason in caplog.text


def test_a_row_of_a_schema_that_may_come_is_waited_for(tmp_path: Any) -> None:
    freeze({}, tmp_path)
    one = Log(REFERENCE, Catalogue.load(tmp_path))
    key, value = Said("a", 0, None, None, 0.5, 0).sent
    with pytest.raises(SchemaMissing):
        one.take(0, key, value, 7)
    assert one.next == 0


class Named(Record):
    """A row of a table that makes no sense."""

    name: Annotated[Text, Field(description="Name")]
    who: Annotated[Text, Field(description="Who"), Personal()]
    at: Annotated[Instant, Field(description="When")]
    size: Annotated[float, Field(description="Size")]
    maybe: Annotated[str | None, Field(description="Perhaps")]
    shape: Annotated[Area, Field(description="Where")]


class Site(Record):
    """A row of a table."""

    site_id: Annotated[Text, Field(description="Site")]
    removed: Annotated[bool, Field(description="Gone")]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"name": "Limit"}, "a name is lower-case words"),
        ({"name": "limit_v2"}, "a name is lower-case words"),
        ({"key": ()}, "needs a key"),
        ({"key": ("full",)}, "the key full has to be"),
        ({"key": ("begins",)}, "the key begins has to be"),
        ({"key": ("site_id", "site_id")}, "named twice"),
        ({"valid_to": None}, "together only"),
        ({"valid_from": "full"}, "full has to be a field that is an Instant"),
        ({"valid_to": "begins"}, "are one field"),
        ({"record": Named, "key": ("maybe",)}, "the key maybe has to be"),
        ({"record": Named, "key": ("shape",)}, "nobody looks one up by that"),
        ({"record": Named, "key": ("name",), "valid_from": None, "valid_to": None}, "who is personal"),
        ({"record": Site, "key": ("site_id",), "valid_from": None, "valid_to": None}, "removed is the name"),
    ],
)
def test_a_table_that_makes_no_sense_is_refused(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(DeclarationError, match=reason):
        replace(REFERENCE, **change)


def test_only_reference_data_has_shapes() -> None:
    class Shaped(toy.Toy):
        """A record with an area."""

        area: Annotated[Area, Field(description="Where")]

    with pytest.raises(DeclarationError, match="area is a shape, which only reference data has"):
        replace(toy.FEED, record=Shaped)
    field = field_of(next(f for f in FROZEN.schema["fields"] if f["name"] == "area"))
    assert (field.kind, field.nullable) == ("string", True)


@pytest.mark.parametrize(
    ("kind", "text", "reason"),
    [
        ("area", SQUARE, None),
        ("line", WAY, None),
        ("area", WAY, "is a LineString and no Polygon or MultiPolygon"),
        ("line", SQUARE, "is a Polygon and no LineString"),
        ("area", "x", "is no GeoJSON geometry"),
        ("area", '{"type": "Polygon", "coordinates": []}', "is empty"),
        ("area", '{"type": "Polygon", "coordinates": [[[0,0],[1,0],[0,1],[1,1],[0,0]]]}', "Self-intersection"),
        ("line", '{"type": "LineString", "coordinates": [[30, 120], [31, 121]]}', "no longitude and latitude"),
    ],
)
def test_a_shape_is_held_to_what_can_be_computed_with(kind: str, text: str, reason: str | None) -> None:
    found = shape_problem(kind, text)
    assert found is None if reason is None else reason in (found or "")


def test_its_schema_is_frozen_like_a_feeds(tmp_path: Any) -> None:
    tables = {REFERENCE.name: REFERENCE}
    (frozen,) = [one for one in freeze({}, tmp_path, tables) if one.subject == REFERENCE.name]
    assert frozen.schema == FROZEN.schema
    assert check(Catalogue.load(tmp_path), {}, tables) == []

    class Wider(Limit):
        """A row with one more field, which has no default."""

        more: Annotated[int, Field(description="More")]

    assert incompatibilities({**FROZEN.schema, "fields": FROZEN.schema["fields"][:2]}, FROZEN.schema)
    with pytest.raises(SchemaProblem, match="more is new and has no default"):
        freeze({}, tmp_path, {REFERENCE.name: replace(REFERENCE, record=Wider)})


def test_what_was_known_is_kept_longer_than_any_record_that_can_be_replayed() -> None:
    feed: Feed = toy.FEED
    (topic,) = of_references(
        [REFERENCE], [feed, replace(feed, name="other", retention=feed.retention * 3, aggregates=())]
    )
    assert topic.partitions == 1
    kept = int(topic.config["min.compaction.lag.ms"])
    assert kept > feed.retention.total_seconds() * 3000 + GRACE.total_seconds() * 1000
    assert topic.config["cleanup.policy"] == "compact"
    assert topic.config["message.timestamp.type"] == "LogAppendTime"


def test_a_table_has_one_key_and_one_beginning() -> None:
    bare = replace(REFERENCE, valid_from=None, valid_to=None)
    values = {"site_id": "ä\n", "floor": -1, "begins": instant(5)}
    assert identity(bare, values) == '["ä\\n",-1,null]'.encode()
    assert identity(REFERENCE, values) == '["ä\\n",-1,5]'.encode()
    assert isinstance(REFERENCE, Reference)


HEADER = "site_id,floor,begins,ends,full,use\n"


def checked(text: str, name: str = "limits.csv") -> tuple[list[str], dict[bytes, bytes]]:
    report, rows = check_table(REFERENCE, text.encode(), name, FileMapping(), FROZEN)
    return report.problems, rows


def test_a_file_becomes_the_rows_of_a_table() -> None:
    text = HEADER + "a,0,,,0.9,daily\na,0,2026-12-31T18:00:00+08:00,2027-01-01T02:00:00+08:00,0.85,event\n"
    problems, rows = checked(text)
    assert problems == []
    assert [*rows] == [b'["a",0,null]', b'["a",0,1798711200000]']
    values = [read_row(REFERENCE, catalogue(), *row).values or {} for row in rows.items()]
    assert [(one["full"], one["use"]) for one in values] == [(0.9, "daily"), (0.85, "event")]
    lines = '{"site_id": "a", "floor": 0, "full": 0.9, "area": ' + SQUARE + "}\n"
    assert [*checked(lines, "limits.jsonl")[1]] == [b'["a",0,null]']
    features = {
        "type": "FeatureCollection",
        "features": [{"type": "Feature", "properties": {"name": "a"}, "geometry": json.loads(SQUARE)}],
    }
    report, areas = check_table(AREAS, json.dumps(features).encode(), "areas.geojson", FileMapping(), FROZEN_AREAS)
    assert report.problems == []
    (value,) = areas.values()
    shape = read_row(AREAS, Catalogue({8: FROZEN_AREAS}), b'["a",null]', value).values
    assert shape is not None
    assert json.loads(shape["shape"]) == json.loads(SQUARE)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("a,x,,,0.5,daily", "limits.csv, line 2: floor: x is no whole number"),
        ("a,0,,,1.5,daily", "limits.csv, line 2: full: 1.5 is above 1.0"),
        ("a,0,,,0.5,sometimes", "limits.csv, line 2: use: sometimes is none of daily, event, unknown"),
        (
            "a,0,2026-01-02T00:00:00Z,2026-01-01T00:00:00Z,0.5,daily",
            "limits.csv, line 2: ends: 2026-01-01T00:00:00+00:00 is not after begins",
        ),
        ("a,0,,,0.5,daily\na,0,,,0.6,daily", "limits.csv, line 3: site_id, floor, begins are those of line 2"),
        ("a,0", "limits.csv, line 2: 6 columns are expected (there are 2)"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_by_line_and_field(row: str, problem: str) -> None:
    problems, _ = checked(f"{HEADER}{row}\n")
    assert problems == [problem]


def test_a_shape_that_is_none_is_named() -> None:
    problems, _ = checked('{"site_id": "a", "floor": 0, "full": 0.9, "area": ' + WAY + "}\n", "limits.jsonl")
    assert "limits.jsonl, line 1: area: " in problems[0]
    assert "is a LineString and no Polygon or MultiPolygon" in problems[0]
    with pytest.raises(FileProblem, match="is no FeatureCollection"):
        check_table(AREAS, b"[]", "areas.geojson", FileMapping(), FROZEN_AREAS)


def test_a_table_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "MOST_ROWS", 1)
    with pytest.raises(FileProblem, match="has more than 1 rows, which is the most a table may have"):
        checked(HEADER + "a,0,,,0.9,daily\nb,0,,,0.9,daily\n")


@pytest.mark.parametrize("reference", feeds.references().values(), ids=feeds.references())
def test_the_rows_in_the_folder_of_a_department_are_right(reference: Reference) -> None:
    path = feeds.rows_of(reference)
    assert path is not None
    frozen = Catalogue.load().of(reference.name, feed_schema(reference))
    report, rows = check_table(reference, path.read_bytes(), path.name, FileMapping(), frozen)
    assert report.problems == []
    assert len(rows) == report.rows > 0


class ZoneOf(Record):
    """An area for a time."""

    name: Annotated[Text, Field(description="Name")]
    begins: Annotated[Instant | None, Field(description="From when on it holds")]
    ends: Annotated[Instant | None, Field(description="Until when it holds")]
    shape: Annotated[Area, Field(description="Where it is")]


ZONES = Reference(
    name="toy_zone", description="Zones", record=ZoneOf, key=("name",), department=toy.DEPARTMENT, valid_from="begins",
    valid_to="ends",
)  # fmt: skip
corners = st.sampled_from([0, 0.5, 1, 2, 2.5])


@st.composite
def shapes(draw: st.DrawFn) -> str:
    """Rectangles, with a hole or two of them, and triangles, whose borders places may lie on."""
    x, y, size = draw(st.sampled_from([0, 0.5])), draw(st.sampled_from([0, 0.5])), draw(st.sampled_from([1.0, 2.0]))

    def ring(x: float, y: float, size: float) -> list[list[float]]:
        return [[x, y], [x + size, y], [x + size, y + size], [x, y + size], [x, y]]

    square, quarter = ring(x, y, size), size / 4
    return json.dumps(
        draw(
            st.sampled_from(
                [
                    {"type": "Polygon", "coordinates": [square]},
                    {"type": "Polygon", "coordinates": [square, ring(x + quarter, y + quarter, 2 * quarter)]},
                    {"type": "Polygon", "coordinates": [[*square[:2], *square[3:]]]},
                    {"type": "MultiPolygon", "coordinates": [[square], [ring(x + 2 * size, y, size)]]},
                ]
            )
        )
    )


@st.composite
def zone_versions(draw: st.DrawFn) -> list[Version]:
    found: list[Version] = []
    for at in sorted(draw(st.lists(st.integers(0, 3).map(lambda n: n * 1000), max_size=8))):
        begins, ends = draw(opens), draw(opens)
        ends = None if begins is not None and ends is not None and ends <= begins else ends
        name = draw(st.sampled_from("abc"))
        values = {"name": name, "begins": instant(begins), "ends": instant(ends), "shape": draw(shapes())}
        found.append((at, (name,), begins, ends, draw(st.sampled_from([values, values, None]))))
    return found


@given(zone_versions(), st.lists(st.tuples(corners, corners) | st.none(), max_size=12), st.integers(-1, 9))
def test_what_covers_a_place_is_what_the_reference_finds(
    versions: list[Version], at: list[tuple[float, float] | None], arrived: int
) -> None:
    places = [None if one is None else {"longitude": one[0], "latitude": one[1]} for one in at]
    arrivals = np.full(len(places), arrived * 1000 + GRACE_MS, np.int64)
    events = np.arange(len(places), dtype=np.int64) % 9 * 1000
    history = History(ZONES, [(stamp, Row(key, begins, values)) for stamp, key, begins, _, values in versions])
    series = pl.Series(places, dtype=pl.Struct({"longitude": pl.Float64, "latitude": pl.Float64}))
    rows = history.covering("shape", series, arrivals, events)
    expected = [
        known_of(versions, GRACE_MS, CoveredBy("shape", place), int(arrival), int(event))
        for place, arrival, event in zip(places, arrivals, events, strict=True)
    ]
    for name in ("name", "shape"):
        assert history.column(name, rows).to_list() == [one and one[name] for one in expected]

"""A frame of records is judged as pydantic judges each of them, for every feed there is."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from datetime import UTC, date, datetime
from typing import Any

import fastavro
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import feeds as declared
from schemas.avro import feed_schema, field_of
from schemas.catalogue import Catalogue, FrozenSchema
from schemas.feed import Feed, milliseconds
from schemas.fields import DAYS, INSTANTS, INT32, PSEUDONYM
from schemas.model import Field
from schemas.pseudonyms import replaced
from schemas.record_codec import NotDecodable, decode, encode, prefix
from schemas.verdict import AND, ColumnarVerdict, instant_ms, problems, rules
from simulation import simulator
from simulation.incidents import USUAL
from simulation.world import World
from streams.wire.column_reader import ColumnReader
from tests.reference import toy
from tests.reference.partition import problems as broken_fields

FEEDS: dict[str, Feed] = {**declared.load(), "toy": toy.FEED}
START = datetime(2026, 1, 5, 8, tzinfo=UTC)
INT64 = (-(2**63), 2**63 - 1)
LONG_TEXT = st.sampled_from(["", "x", "x" * 128, "x" * 129, "湖" * 128, "湖" * 129, "e\u0301" * 64, "a\x00b", "\n"])
NO_PSEUDONYMS = ["0" * 31, "0" * 33, "0" * 32 + "\n", "\n" + "0" * 32, "0" * 31 + "A", "Wensan Road 17", "\u0660" * 32]
BAD_IDS = st.sampled_from(
    [
        "",
        "00000000-0000-0000-0000-00000000000",
        "00000000-0000-0000-0000-0000000000000",
        "00000000-0000-0000-0000-000000000000\n",
        "\n00000000-0000-0000-0000-000000000000",
        "0000000A-0000-0000-0000-000000000000",
        "{00000000-0000-0000-0000-000000000000}",
        "00000000000000000000000000000000",
        "\u0660" * 8 + "-0000-0000-0000-000000000000",
    ]
)


def around(*borders: float) -> st.SearchStrategy[int]:
    return st.sampled_from([int(border) + step for border in borders for step in (-1, 0, 1)])


def wire_values(feed: Feed, field: Field, arrived_ms: int) -> st.SearchStrategy[Any]:
    """Numbers, texts and nulls as they may lie on the wire, many on a border or beyond it."""
    values: st.SearchStrategy[Any]
    match field.kind:
        case "string" if field.personal:
            values = st.one_of(LONG_TEXT, st.sampled_from(NO_PSEUDONYMS), st.from_regex(PSEUDONYM, fullmatch=True))
        case "string":
            values = st.one_of(LONG_TEXT, st.text(max_size=8).filter(_encodes))
        case "uuid":
            values = st.one_of(LONG_TEXT, BAD_IDS, st.uuids().map(str), mutated_ids())
        case "int":
            assert field.low is not None
            assert field.high is not None
            borders = around(field.low, field.high, *INT32, 0, 2**40, -(2**40))
            values = borders | st.sampled_from(INT64) | st.integers(*INT32)
        case "float":
            ends = [b for b in (field.low, field.high, 0.0) if b is not None]
            near = [math.nextafter(b, toward) for b in ends for toward in (-math.inf, math.inf)]
            values = st.sampled_from([*map(float, ends), *near, -0.0]) | st.floats()
        case "bool":
            values = st.booleans()
        case "instant":
            latest = arrived_ms + milliseconds(feed.allowance)
            borders = around(*INSTANTS, latest, arrived_ms, instant_ms(feed.earliest), 253_402_300_800_000)
            values = borders | st.sampled_from(INT64) | st.integers(*INSTANTS)
        case "date":
            values = around(*DAYS, *INT32, -719_162, 2_932_896) | st.integers(*DAYS)
        case "enum":
            values = st.sampled_from(field.symbols)
        case "place":
            degrees = st.sampled_from([-180.0, 180.0, -90.0, 90.0, 90.000001, 180.00001, 0.0, -0.0]) | st.floats()
            values = st.fixed_dictionaries({"longitude": degrees, "latitude": degrees})
    return st.none() | values if field.nullable else values


@st.composite
def mutated_ids(draw: st.DrawFn) -> str:
    """A UUID with one character replaced."""
    text = str(draw(st.uuids()))
    at = draw(st.integers(0, len(text) - 1))
    return text[:at] + draw(st.sampled_from("/0:9@A`ag\x00\x7f-\u00e9")) + text[at + 1 :]


def _encodes(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def on_the_wire(feed: Feed, record: Mapping[str, Any]) -> dict[str, Any]:
    """A record with instants as ms, dates as days and enums as symbols."""
    values = dict(record)
    for field in feed.fields:
        value = values[field.name]
        if value is not None and field.kind == "instant":
            values[field.name] = instant_ms(value)
        elif value is not None and field.kind == "date":
            values[field.name] = (value - date(1970, 1, 1)).days
        elif field.kind == "enum":
            values[field.name] = value.value
    return values


def unbounded(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with every integer a long, for fastavro to write any of them."""

    def widen(avro_type: Any) -> Any:
        if isinstance(avro_type, list):
            return [widen(member) for member in avro_type]
        if avro_type == "int" or (isinstance(avro_type, dict) and "logicalType" in avro_type):
            return "long"
        return avro_type

    fields = [{"name": f["name"], "type": widen(f["type"])} for f in schema["fields"]]
    parsed: dict[str, Any] = fastavro.parse_schema({"type": "record", "name": "Any", "fields": fields})
    return parsed


class Subject:
    """One feed with the codecs its records go through."""

    def __init__(self, feed: Feed) -> None:
        self.feed = feed
        self.frozen = FrozenSchema(1, feed.name, 1, feed_schema(feed))
        self.catalogue = Catalogue({1: self.frozen})
        self.reader = ColumnReader(self.frozen)
        self.writer = unbounded(self.frozen.schema)
        self.verdict = ColumnarVerdict(rules(feed))
        simulated = simulator(feed)(World(START, 1, USUAL))
        self.good = [on_the_wire(feed, replaced(feed, b"k", next(simulated).model_dump())) for _ in range(20)]

    def encode(self, values: Mapping[str, Any]) -> bytes:
        out = io.BytesIO()
        fastavro.schemaless_writer(out, self.writer, dict(values))
        return prefix(1) + out.getvalue()

    def columns(self, records: list[tuple[dict[str, Any], bytes, int]]) -> pl.DataFrame:
        rows, bad = self.reader.read_values([self.encode(values) for values, _, _ in records])
        assert not bad
        return rows.with_columns(
            _key=pl.Series([key for _, key, _ in records], dtype=pl.Binary),
            _arrived=pl.Series([arrived for _, _, arrived in records], dtype=pl.Int64),
        )

    def by_columns(self, records: list[tuple[dict[str, Any], bytes, int]]) -> list[set[str]]:
        """The fields that are wrong with each record."""
        found = self.verdict.problems(self.columns(records))
        return [set()] * len(records) if found is None else [named(cause) for cause in found]

    def by_pydantic(self, values: dict[str, Any], key: bytes, arrived_ms: int) -> set[str] | None:
        """The same of one record, None for one whose values Python does not have."""
        try:
            record = decode(self.catalogue, self.encode(values))
        except NotDecodable:
            return None
        return named(AND.join(problems(self.feed, record, key, arrived_ms)))


def named(cause: str | None) -> set[str]:
    """The fields a cause names."""
    return {reason.split(":")[0].split(".")[0] for reason in cause.split(AND)} if cause else set()


SUBJECTS = {name: Subject(feed) for name, feed in FEEDS.items()}


@st.composite
def judged(draw: st.DrawFn, subject: Subject) -> tuple[dict[str, Any], bytes, int]:
    """A simulated record with up to three of its fields replaced, its key and its arrival."""
    feed = subject.feed
    values = dict(draw(st.sampled_from(subject.good)))
    arrived = values[feed.event_time] + draw(st.sampled_from([0, 100, -milliseconds(feed.allowance)]))
    names = [f.name for f in feed.fields]
    by_name = {f.name: f for f in feed.fields}
    for name in draw(st.lists(st.sampled_from(names), max_size=3, unique=True)):
        values[name] = draw(wire_values(feed, by_name[name], arrived))
    for rule in feed.rules:
        if values[rule.later] is not None and draw(st.booleans()):
            values[rule.earlier] = max(INT64[0], min(INT64[1], values[rule.later] + draw(st.sampled_from([-1, 0, 1]))))
    key = draw(st.sampled_from([values[feed.key].encode()] * 6 + [b"", b"other", values[feed.key].encode() + b" "]))
    return values, key, arrived


@pytest.mark.parametrize("name", FEEDS)
@settings(max_examples=120)
@given(st.data())
def test_columns_and_pydantic_agree_on_every_record(name: str, data: st.DataObject) -> None:
    subject = SUBJECTS[name]
    records = data.draw(st.lists(judged(subject), min_size=1, max_size=6))
    found = subject.by_columns(records)
    for record, wrong in zip(records, found, strict=True):
        alone = subject.by_pydantic(*record)
        assert wrong == alone or (alone is None and wrong)
    assert [broken_fields(subject.feed, values, key, arrived) for values, key, arrived in records] == found


@pytest.mark.parametrize("name", FEEDS)
def test_every_border_of_every_field_has_the_same_verdict_from_both_sides(name: str) -> None:
    """Each field of a valid record at, just inside and just outside every border there is for its kind."""
    subject = SUBJECTS[name]
    feed = subject.feed
    good = subject.good[0]
    arrived = good[feed.event_time]
    records: list[tuple[dict[str, Any], bytes, int]] = []
    for field in feed.fields:
        candidates: list[Any] = [None] if field.nullable else []
        match field.kind:
            case "int":
                candidates += [
                    field.low,
                    field.high,
                    *INT32,
                    *(b + s for b in (field.low, field.high, *INT32) if b is not None for s in (-1, 1)),
                ]
            case "float":
                candidates += [math.nan, math.inf, -math.inf, 0.0, -0.0, 1e308, 5e-324]
                candidates += [
                    math.nextafter(b, t)
                    for b in (field.low, field.high)
                    if b is not None
                    for t in (-math.inf, b, math.inf)
                ]
            case "instant":
                borders = (*INSTANTS, arrived, arrived + milliseconds(feed.allowance), instant_ms(feed.earliest))
                candidates += [b + s for b in borders for s in (-1, 0, 1)] + list(INT64)
            case "date":
                candidates += [b + s for b in DAYS for s in (-1, 0, 1)] + list(INT64)
            case "string":
                size = int(field.high or 1)
                candidates += NO_PSEUDONYMS if field.personal else []
                candidates += ["", "0123456789abcdef" * 2, "x" * size, "x" * (size + 1), "湖" * size, "湖" * (size + 1)]
            case "enum":
                candidates += field.symbols
            case "place":
                candidates += [
                    {"longitude": x, "latitude": y}
                    for x in (-180.0, 180.0, 180.1, -180.1, math.nan, math.inf)
                    for y in (-90.0, 90.0, 90.1, -90.1, math.nan)
                ]
        for candidate in candidates:
            values = good | {field.name: candidate}
            records.append((values, values[feed.key].encode(), arrived))
    found = subject.by_columns(records)
    for n, record in enumerate(records):
        alone = subject.by_pydantic(*record)
        assert found[n] == alone or (alone is None and found[n]), {k: v for k, v in record[0].items() if v != good[k]}
    assert set() in found
    assert any(found)


@pytest.mark.parametrize("name", FEEDS)
def test_what_a_feed_simulates_is_valid_and_has_no_cause(name: str) -> None:
    subject = SUBJECTS[name]
    records = [(v, v[subject.feed.key].encode(), v[subject.feed.event_time]) for v in subject.good]
    assert subject.verdict.problems(subject.columns(records)) is None


def test_the_cause_names_every_rule_broken_in_the_order_of_the_fields() -> None:
    """So that a count by reason misses none because another field was wrong, too."""
    subject = SUBJECTS["toy"]
    wrong = [
        toy.record(level=-2000, weight=math.nan),
        toy.record(began_at=toy.instant(toy.NOON + 1)),
        toy.record(device_id="", note="too long"),
        toy.record(),
    ]
    values = [on_the_wire(toy.FEED, record) for record in wrong]
    problems = subject.verdict.problems(subject.columns([(v, b"d-1", toy.NOON) for v in values]))
    assert problems is not None
    assert problems.to_list() == [
        "level: below -1000; weight: not a finite number",
        "began_at: after observed_at",
        "device_id: shorter than 1 characters; note: longer than 6 characters; device_id: is not the record's key",
        None,
    ]


def test_no_rows_have_no_problem() -> None:
    subject = SUBJECTS["toy"]
    assert subject.verdict.problems(subject.columns([(subject.good[0], b"d-1", toy.NOON)]).clear()) is None


@pytest.mark.parametrize("name", FEEDS)
def test_every_cause_is_short_and_names_its_field(name: str) -> None:
    names = {field.name for field in FEEDS[name].fields}
    for cause, _ in rules(FEEDS[name]):
        assert cause.split(":")[0].split(".")[0] in names
        assert len(cause) < 120


def test_pydantic_names_field_and_reason_and_no_value() -> None:
    encoded = encode(SUBJECTS["toy"].frozen, toy.record(note="secret!"))
    record = decode(SUBJECTS["toy"].catalogue, encoded)
    found = problems(toy.FEED, record, b"d-1", toy.NOON)
    assert found == ["note: String should have at most 6 characters"]


def test_what_is_no_pseudonym_is_invalid_in_every_version() -> None:
    """Also in those frozen before schemas had a pattern for it."""
    schema = feed_schema(FEEDS["police_incident"])
    (address,) = (field for field in schema["fields"] if field.get("sensitivity") == "personal")
    assert address["pattern"] == PSEUDONYM
    before = field_of({name: value for name, value in address.items() if name != "pattern"})
    fields = [field_of(f) for f in schema["fields"] if f != address] + [before]
    verdict = ColumnarVerdict(rules(FEEDS["police_incident"], fields))
    subject = SUBJECTS["police_incident"]
    plain = subject.good[0] | {"address": "Wensan Road 17"}
    rows = [(values, values["incident_id"].encode(), values["changed_at"]) for values in (plain, subject.good[0])]
    found = verdict.problems(subject.columns(rows))
    assert found is not None
    assert found.to_list() == ["address: is no pseudonym", None]

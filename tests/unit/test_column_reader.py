"""The columnar codec: what is written comes back, and nothing else is believed."""

from __future__ import annotations

import io
import math
import struct
from dataclasses import replace
from typing import Any

import fastavro
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.catalogue import FrozenSchema
from schemas.record_codec import PREFIX, encode, prefix
from streams.wire.column_reader import ColumnReader, OpenedBatch
from streams.wire.column_writer import KEY_SEPARATOR, encode_bodies
from streams.wire.record_batch import packed, split
from tests.columns import columns_of
from tests.reference.batches import CODECS, batch, record_bytes, varint

INT32 = st.integers(-(2**31), 2**31 - 1)
INT64 = st.one_of(st.integers(-(2**63), 2**63 - 1), st.sampled_from([-(2**63), -1, 0, 63, 64, -64, -65, 2**63 - 1]))
TEXT = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=80), st.sampled_from(["", "湖", "\x00", "é" * 64])
)
DOUBLE = st.floats()

PLACE = {
    "type": "record",
    "name": "Place",
    "fields": [{"name": "longitude", "type": "double"}, {"name": "latitude", "type": "double"}],
}

#: Avro type and values of each field type of the feed language.
FEED_TYPES: dict[str, tuple[Any, st.SearchStrategy[Any]]] = {
    "string": ("string", TEXT),
    "int": ("int", INT32),
    "float": ("double", DOUBLE),
    "bool": ("boolean", st.booleans()),
    "instant": ({"type": "long", "logicalType": "timestamp-millis"}, INT64),
    "date": ({"type": "int", "logicalType": "date"}, INT32),
    "place": (PLACE, st.fixed_dictionaries({"longitude": DOUBLE, "latitude": DOUBLE})),
}
AGGREGATE_TYPES: dict[str, tuple[Any, st.SearchStrategy[Any]]] = {
    "string": ("string", TEXT),
    "long": ("long", INT64),
    "nullable": (["null", "long"], st.none() | INT64),
    "word": (["null", "string"], st.none() | TEXT),
    "flag": (["null", "boolean"], st.none() | st.booleans()),
    "condition": ("boolean", st.booleans()),
    "int": ("int", INT32),
    "ints": ({"type": "array", "items": "int"}, st.lists(INT32, max_size=70)),
    "longs": ({"type": "array", "items": "long"}, st.lists(INT64, max_size=5)),
}


def schema_of(fields: list[tuple[str, Any]]) -> FrozenSchema:
    named = [{"name": name, "type": avro_type} for name, avro_type in fields]
    return FrozenSchema(7, "thing", 1, {"type": "record", "name": "Thing", "fields": named})


def plain(frozen: FrozenSchema) -> FrozenSchema:
    """The schema without logical types, for fastavro to write whatever number it is given."""

    def strip(avro_type: Any) -> Any:
        if isinstance(avro_type, list):
            return [strip(member) for member in avro_type]
        return avro_type["type"] if isinstance(avro_type, dict) and "logicalType" in avro_type else avro_type

    return schema_of([(f["name"], strip(f["type"])) for f in frozen.schema["fields"]])


@st.composite
def feed_fields(draw: st.DrawFn) -> list[tuple[Any, st.SearchStrategy[Any]]]:
    fields: list[tuple[Any, st.SearchStrategy[Any]]] = []
    for kind in draw(st.lists(st.sampled_from([*FEED_TYPES, "enum"]), min_size=1, max_size=5)):
        if kind == "enum":
            symbols = [f"s{n}" for n in range(draw(st.integers(1, 64)))]
            name = f"Enum{len(fields)}"
            fields.append(({"type": "enum", "name": name, "symbols": symbols}, st.sampled_from(symbols)))
            continue
        avro_type, values = FEED_TYPES[kind]
        if kind == "place":
            avro_type = {**avro_type, "name": f"Place{len(fields)}"}
        if draw(st.booleans()):
            avro_type, values = ["null", avro_type], st.none() | values
        fields.append((avro_type, values))
    return fields


@st.composite
def tables(draw: st.DrawFn, aggregates: bool = False) -> tuple[FrozenSchema, list[dict[str, Any]]]:
    """A schema and records of it."""
    if aggregates:
        kinds = draw(st.lists(st.sampled_from(sorted(AGGREGATE_TYPES)), min_size=1, max_size=5))
        fields = [AGGREGATE_TYPES[kind] for kind in kinds]
    else:
        fields = draw(feed_fields())
    frozen = schema_of([(f"f{n}", avro_type) for n, (avro_type, _) in enumerate(fields)])
    record = st.fixed_dictionaries({f"f{n}": values for n, (_, values) in enumerate(fields)})
    return frozen, draw(st.lists(record, min_size=1, max_size=12))


def same(found: Any, expected: Any) -> bool:
    """Equal, with one NaN as good as another and -0.0 told from 0.0."""
    if isinstance(expected, float):
        both_nan = math.isnan(expected) and math.isnan(found)
        return both_nan or struct.pack("d", found) == struct.pack("d", expected)
    if isinstance(expected, dict):
        return isinstance(found, dict) and all(same(found[name], part) for name, part in expected.items())
    return type(found) is type(expected) and bool(found == expected)


def assert_rows(frame: pl.DataFrame, records: list[dict[str, Any]]) -> None:
    assert frame.height == len(records)
    for row, record in zip(frame.iter_rows(named=True), records, strict=True):
        for name, expected in record.items():
            assert same(row[name], expected), (name, row[name], expected)


@given(tables() | tables(aggregates=True))
def test_what_fastavro_writes_reads_as_columns(table: tuple[FrozenSchema, list[dict[str, Any]]]) -> None:
    frozen, records = table
    rows, bad = ColumnReader(frozen).read_values([encode(plain(frozen), record) for record in records])
    assert bad == []
    assert_rows(rows, records)


def key_text(value: Any) -> str:
    """What stands for a field in a record's key."""
    return "" if value is None else value if isinstance(value, str) else str(int(value))


@given(st.data(), tables(aggregates=True))
def test_columns_are_written_as_fastavro_writes_them(
    data: st.DataObject, table: tuple[FrozenSchema, list[dict[str, Any]]]
) -> None:
    frozen, records = table
    names = [f["name"] for f in frozen.schema["fields"]]
    keys = data.draw(
        st.integers(1, 3).flatmap(
            lambda parts: st.lists(st.tuples(*[TEXT] * parts), min_size=len(records), max_size=len(records))
        )
    )
    key = [f"key {n}" for n in range(len(keys[0]) if keys else 1)]
    rows = [{**record, **dict(zip(key, parts, strict=True))} for record, parts in zip(records, keys, strict=True)]
    key += data.draw(
        st.lists(st.sampled_from([name for name in names if not isinstance(records[0][name], list)] or key))
    )
    keys = [tuple(key_text(row[name]) for name in key) for row in rows]
    largest = data.draw(st.integers(1, 400))
    bodies = encode_bodies(frozen, key, columns_of(rows, [*names, *key]), largest)
    assert all(len(body.data) <= largest or body.count == 1 for body in bodies)
    written = [r for body in bodies for b in split(0, packed(body.data, body.count)) for r in b.records()]
    assert [offset for offset, *_ in written] == [n for body in bodies for n in range(body.count)]
    expected = [encode(plain(frozen), record) for record in records]
    assert [(key, value) for _, key, value, _ in written] == [
        (KEY_SEPARATOR.join(parts).encode(), value) for parts, value in zip(keys, expected, strict=True)
    ]


@settings(max_examples=60)
@given(st.data(), tables(), st.sampled_from(sorted(CODECS)))
def test_whole_batches_read_as_columns(
    data: st.DataObject, table: tuple[FrozenSchema, list[dict[str, Any]]], codec: str
) -> None:
    frozen, records = table
    values = [encode(plain(frozen), record) for record in records]
    keys = data.draw(st.lists(st.binary(max_size=70), min_size=len(values), max_size=len(values)))
    cut = data.draw(st.integers(0, len(values)))
    base = data.draw(st.sampled_from([0, 1, 2**31 - 2, 2**40]))
    pairs: list[Any] = [(key, value, []) for key, value in zip(keys, values, strict=True)]
    raw = [batch(part, at, codec, 1000 + at) for part, at in ((pairs[:cut], base), (pairs[cut:], base + cut)) if part]
    rows, bad = ColumnReader(frozen).read_batches([b.opened() for b in split(0, b"".join(raw))])
    assert bad == []
    assert_rows(rows, records)
    assert rows["_key"].to_list() == keys
    assert rows["_offset"].to_list() == list(range(base, base + len(values)))
    assert rows["_arrived"].to_list() == [1000 + base] * cut + [1000 + base + cut] * (len(values) - cut)


THING = schema_of(
    [
        ("word", "string"),
        ("number", ["null", "int"]),
        ("flag", "boolean"),
        ("kind", {"type": "enum", "name": "Kind", "symbols": ["a", "unknown"]}),
        ("where", ["null", PLACE]),
        ("weight", "double"),
    ]
)
RECORD = {
    "word": "abc",
    "number": 300,
    "flag": True,
    "kind": "a",
    "where": {"longitude": 1.0, "latitude": 2.0},
    "weight": 3.0,
}
READER = ColumnReader(THING)


def opened(*records: bytes, **changes: Any) -> OpenedBatch:
    whole = OpenedBatch(b"".join(records), len(records), 0, 0, len(records) - 1, 0)
    return replace(whole, **changes)


VALUE = encode(THING, RECORD)
GOOD = record_bytes(1, b"k", VALUE)


def _longer_by(step: int, record: bytes) -> bytes:
    """A record whose stated length is another."""
    length = varint(len(record) - 1)
    assert record.startswith(length)
    return bytes([length[0] + step]) + record[1:]


LONGER = VALUE[:5] + varint(4) + b"abcd" + VALUE[9:]


def assert_not_believed(reader: ColumnReader, batches: list[OpenedBatch]) -> None:
    """The batches have no rows, and the good ones around them have theirs."""
    good = opened(record_bytes(0, b"k", reader.prefix + VALUE[5:]), last_offset=0)
    rows, bad = reader.read_batches([good, *batches, good])
    assert bad == [*range(1, len(batches) + 1)]
    assert_rows(rows, [RECORD, RECORD])
    assert rows["_key"].to_list() == [b"k", b"k"]


@pytest.mark.parametrize(
    ("why", "wrong"),
    [
        ("a header", [record_bytes(0, b"k", VALUE, varint(1) + varint(1) + b"h" + varint(0)), GOOD]),
        ("a header count without a header", [record_bytes(0, b"k", VALUE, varint(1)), GOOD]),
        ("attributes", [varint(len(GOOD) - 1) + b"\x02" + record_bytes(0, b"k", VALUE)[2:], GOOD]),
        ("no key", [record_bytes(0, None, VALUE), GOOD]),
        ("no value", [record_bytes(0, b"k", None), GOOD]),
        ("another schema's prefix", [record_bytes(0, b"k", prefix(8) + VALUE[5:]), GOOD]),
        ("another magic byte", [record_bytes(0, b"k", b"\x01" + VALUE[1:]), GOOD]),
        ("bytes left over in a value", [record_bytes(0, b"k", VALUE + b"\x00"), GOOD]),
        ("a value cut short", [record_bytes(0, b"k", VALUE[:-1]), GOOD]),
        ("a length that lies", [GOOD.replace(varint(len(VALUE)), varint(len(VALUE) + 1)), GOOD]),
        (
            "lengths that lie and add up",
            [_longer_by(2, GOOD.replace(b"\x02\x02k", b"\x00\x02k")), _longer_by(-2, GOOD)],
        ),
        ("a varint longer than need be", [record_bytes(0, b"k", VALUE[:9] + b"\x02\xd8\x84\x00" + VALUE[12:]), GOOD]),
        ("offsets out of order", [GOOD, record_bytes(0, b"k", VALUE)]),
        ("an offset left out", [record_bytes(0, b"k", VALUE), record_bytes(2, b"k", VALUE)]),
        ("a text that is no UTF-8", [record_bytes(0, b"k", VALUE.replace(b"abc", b"\xff\xfe\xfd")), GOOD]),
        ("bytes after the last record", [record_bytes(0, b"k", VALUE), GOOD + b"\x00"]),
        ("the last record cut off", [record_bytes(0, b"k", VALUE), GOOD[:-1]]),
    ],
    ids=lambda part: part.replace(" ", "-") if isinstance(part, str) else "",
)
def test_a_batch_with_any_doubt_is_not_believed(why: str, wrong: list[bytes]) -> None:
    assert_not_believed(READER, [opened(*wrong)])


@pytest.mark.parametrize("count", [-(2**31), -1, 0, 1, 3, 10**6, 2**31 - 1])
def test_a_batch_that_states_another_number_of_records_is_not_believed(count: int) -> None:
    body = record_bytes(0, b"k", VALUE) + GOOD
    assert_not_believed(READER, [opened(body, count=count, last_offset=count - 1)])


@pytest.mark.parametrize(("ours", "theirs"), [(128, 0), (0x817F, 0x827F), (5, 6)], ids=str)
def test_a_schema_id_is_compared_bit_by_bit(ours: int, theirs: int) -> None:
    """Read as a little-endian float, 128 is -0.0 and equals 0.0, and one NaN equals the other."""
    reader = ColumnReader(FrozenSchema(ours, "thing", 1, THING.schema))
    same, other = (record_bytes(n, b"k", prefix(schema_id) + VALUE[5:]) for n, schema_id in enumerate((ours, theirs)))
    assert_not_believed(reader, [opened(same, other)])
    rows, bad = reader.read_values([prefix(ours) + VALUE[5:]])
    assert bad == []
    assert_rows(rows, [RECORD])


def test_a_batch_that_ends_at_another_offset_than_its_records_is_not_believed() -> None:
    assert_not_believed(READER, [opened(record_bytes(0, b"k", VALUE), GOOD, last_offset=2)])


def test_bytes_moved_from_one_batch_to_the_next_are_not_believed() -> None:
    first, second = record_bytes(0, b"k", VALUE), record_bytes(0, b"k", LONGER)
    whole = first + second
    cut = len(first) - 3
    assert_not_believed(
        READER, [opened(whole[:cut], count=1, last_offset=0), opened(whole[cut:], count=1, last_offset=0)]
    )


@pytest.mark.parametrize("body", [b"", b"\xff" * 1_000_000, b"\x80" * 1_000_000, b"\x00", varint(2**62)])
def test_the_first_prefix_of_any_bytes_is_read_at_once(body: bytes) -> None:
    assert opened(body).first_prefix() not in (prefix(7), VALUE)


def test_the_first_prefix_is_that_of_the_first_value() -> None:
    assert opened(record_bytes(0, b"key" * 50, VALUE), GOOD).first_prefix() == prefix(7)
    assert opened(record_bytes(0, None, VALUE)).first_prefix() == prefix(7)


@settings(max_examples=100)
@given(
    st.lists(
        st.one_of(st.just(VALUE), st.just(LONGER), st.binary(max_size=60).map(lambda b: prefix(7) + b)), max_size=9
    )
)
def test_a_value_reads_alone_as_it_reads_among_others(values: list[bytes]) -> None:
    rows, bad = READER.read_values(values)
    alone = [READER.read_values([value]) for value in values]
    assert bad == [n for n, (_, lost) in enumerate(alone) if lost]
    read = [frame for frame, lost in alone if not lost]
    assert rows.equals(pl.concat(read) if read else rows.clear())


@settings(max_examples=200)
@given(st.data())
def test_values_with_any_bytes_changed_or_cut_never_raise(data: st.DataObject) -> None:
    value = bytearray(VALUE)
    for at in data.draw(st.lists(st.integers(PREFIX.size, len(value) - 1), max_size=4)):
        value[at] = data.draw(st.integers(0, 255))
    cut = bytes(value[: data.draw(st.integers(PREFIX.size, len(value)))])
    rows, bad = READER.read_values([VALUE, cut, VALUE])
    assert rows.height == 3 - len(bad)
    assert_rows(rows[[0, -1]], [RECORD, RECORD])


def test_a_value_that_reads_is_what_fastavro_reads_wherever_its_encoding_is_canonical() -> None:
    """Bytes that another writer would not write for what is read may differ: fastavro and Polars disagree on them."""
    for at in range(PREFIX.size, len(VALUE)):
        for byte in {0, 1, 2, 3, 4, 7, 0x7F, 0x80, 0x81, 0xFF, VALUE[at] ^ 1, VALUE[at] ^ 0x80}:
            changed = VALUE[:at] + bytes([byte]) + VALUE[at + 1 :]
            rows, bad = READER.read_values([changed])
            if bad:
                continue
            row = rows.row(0, named=True)
            if encode(THING, row) == changed:
                assert same(row, fastavro.schemaless_reader(io.BytesIO(changed[PREFIX.size :]), THING.parsed, None))

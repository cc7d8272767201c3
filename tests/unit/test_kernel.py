"""What the compiled decoder refuses, and that the memory it hands to Polars comes back."""

from __future__ import annotations

import re
from threading import Thread
from typing import Any
from uuid import UUID

import numpy as np
import polars as pl
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.catalogue import FrozenSchema
from schemas.fields import UUID as EVENT_ID
from schemas.record_codec import prefix
from streams.wire.arrow import long_lists, texts
from streams.wire.column_reader import ColumnReader, OpenedBatch
from streams.wire.kernel import PADDING
from tests.reference.batches import record_bytes, sized, varint
from tests.reference.toy import halves

PREFIX = prefix(7)


def reader(avro_type: Any, **properties: Any) -> ColumnReader:
    fields = [{"name": "f", "type": avro_type} | properties]
    return ColumnReader(FrozenSchema(7, "thing", 1, {"type": "record", "name": "Thing", "fields": fields}))


LONGS = {"type": "array", "items": "long"}
KIND = {"type": "enum", "name": "Kind", "symbols": [f"s{n}" for n in range(100)]}

READ: list[tuple[Any, bytes, Any]] = [
    ("boolean", b"\x00", False),
    ("boolean", b"\x01", True),
    (["null", "boolean"], b"\x02\x01", True),
    (["null", "string"], b"\x00", None),
    ("long", b"\xff" * 9 + b"\x01", -(2**63)),
    ("long", b"\xfe" + b"\xff" * 8 + b"\x01", 2**63 - 1),
    (KIND, varint(99), "s99"),
    (["null", KIND], b"\x02" + varint(64), "s64"),
    (["null", KIND], b"\x00", None),
    (LONGS, b"\x00", []),
    (LONGS, b"\x04\x01\x02\x00", [-1, 1]),
    (["null", LONGS], b"\x00", None),
]

REFUSED: list[tuple[str, Any, bytes]] = [
    ("a boolean of another byte", "boolean", b"\x02"),
    ("a number with a byte too many", "long", b"\x80\x00"),
    ("a number of eleven bytes", "long", b"\xff" * 10 + b"\x00"),
    ("a number of more than 64 bits", "long", b"\xff" * 9 + b"\x02"),
    ("a number without an end", "long", b"\x80"),
    ("a member of the union there is not", ["null", "long"], b"\x04\x00"),
    ("a member of the union there is not, alone", ["null", "long"], b"\x04"),
    ("a member of the union below none", ["null", "long"], b"\x01\x00"),
    ("a member of the union in two bytes", ["null", "long"], b"\x82\x00\x00"),
    ("a symbol there is not", KIND, varint(100)),
    ("a symbol below none", KIND, varint(-1)),
    ("a double cut short", "double", bytes(7)),
    ("a text below none", "string", varint(-1)),
    ("a text longer than the record", "string", varint(2**62)),
    ("an array in several blocks", LONGS, b"\x02\x00\x02\x00\x00"),
    ("an array with its size in bytes", LONGS, b"\x01\x02\x00\x00"),
    ("an array without an end", LONGS, b"\x02\x00"),
    ("an array longer than the record", LONGS, varint(2**62)),
    ("bytes left over", "long", b"\x00\x00"),
    ("nothing", "long", b""),
]


@pytest.mark.parametrize(("avro_type", "body", "value"), READ, ids=str)
def test_the_canonical_encoding_is_read_in_a_batch_and_alone(avro_type: Any, body: bytes, value: Any) -> None:
    rows, bad = reader(avro_type).read_values([PREFIX + body])
    assert (rows["f"].to_list(), bad) == ([value], [])
    whole = record_bytes(0, b"k", PREFIX + body)
    assert reader(avro_type).read_batches([OpenedBatch(whole, 1, 0, 0, 0, 0)])[0]["f"].to_list() == [value]


@given(st.uuids(), st.data())
def test_a_uuid_is_two_numbers_and_absent_in_any_other_form(uuid: UUID, data: st.DataObject) -> None:
    text = str(uuid)
    at = data.draw(st.integers(0, 35))
    changed = text[:at] + data.draw(st.sampled_from("0f-/:`gAF @\x7f\x00é")) + text[at + 1 :]
    rows, bad = reader("string", format="uuid").read_values([PREFIX + sized(t.encode()) for t in (text, changed)])
    assert not bad
    form = re.fullmatch(EVENT_ID, changed, re.ASCII)
    assert rows["f"].to_list() == [halves(text), halves(changed) if form else None]


def test_a_uuid_that_is_no_text_is_refused() -> None:
    assert reader("string", format="uuid").read_values([PREFIX + sized(b"\xff" * 36)])[1] == [0]


@pytest.mark.parametrize(("why", "avro_type", "body"), REFUSED, ids=[why.replace(" ", "-") for why, *_ in REFUSED])
def test_any_other_encoding_is_refused_in_a_batch_and_alone(why: str, avro_type: Any, body: bytes) -> None:
    rows, bad = reader(avro_type).read_values([PREFIX + body])
    assert (rows.height, bad) == (0, [0])
    whole = record_bytes(0, b"k", PREFIX + body)
    assert reader(avro_type).read_batches([OpenedBatch(whole, 1, 0, 0, 0, 0)])[1] == [0]


def test_a_value_that_reaches_over_the_count_of_headers_is_refused() -> None:
    good = record_bytes(0, b"k", PREFIX + b"\x02")
    assert reader("long").read_batches([OpenedBatch(good, 1, 0, 0, 0, 0)])[1] == []
    longer = good.replace(varint(6) + PREFIX, varint(7) + PREFIX)
    assert longer != good
    assert reader("long").read_batches([OpenedBatch(longer, 1, 0, 0, 0, 0)])[1] == [0]


@given(st.binary(max_size=40))
def test_texts_are_those_that_are_utf8(content: bytes) -> None:
    try:
        expected = [content.decode()]
    except UnicodeDecodeError:
        expected = []
    assert reader("string").read_values([PREFIX + sized(content)])[0]["f"].to_list() == expected


@pytest.mark.parametrize(
    "content",
    [b"\xc0\x80", b"\xc1\xbf", b"\xe0\x9f\xbf", b"\xed\xa0\x80", b"\xf0\x8f\xbf\xbf", b"\xf4\x90\x80\x80", b"\xe6\xb9"],
    ids=bytes.hex,
)
@pytest.mark.parametrize("before", [0, 5, 8, 30])
def test_forms_that_look_like_utf8_are_refused(content: bytes, before: int) -> None:
    assert reader("string").read_values([PREFIX + sized(b"a" * before + content)])[1] == [0]


@given(st.lists(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_any_character_is_read(characters: list[str]) -> None:
    text = "".join(characters)
    assert reader("string").read_values([PREFIX + sized(text.encode())])[0]["f"].to_list() == [text]


@pytest.mark.parametrize("size", range(30))
def test_bytes_and_texts_around_the_size_of_a_view_are_read_whole(size: int) -> None:
    parts = [bytes([97 + n]) * (size + n) for n in range(3)]
    body = np.frombuffer(b"".join(parts) + bytes(PADDING), np.uint8)
    sizes = np.array([len(part) for part in parts], np.int64)
    spans = (np.cumsum(sizes) - sizes) << 32 | sizes
    assert texts(body, spans, utf8=False).to_list() == parts
    assert texts(body, spans, utf8=True).to_list() == [part.decode() for part in parts]


def test_columns_free_their_memory_in_whatever_thread_they_end() -> None:
    """Kept, it would be half a gigabyte."""
    count = 100_000
    body = np.frombuffer(b"\x02" * 30 * count + bytes(PADDING), np.uint8)
    spans = np.arange(count, dtype=np.int64) * 30 << 32 | 30

    def columns(times: int) -> None:
        for _ in range(times):
            frame = pl.DataFrame({"text": texts(body, spans, utf8=True), "longs": long_lists(body, spans)})
            assert frame.filter(pl.int_range(pl.len()) == count - 1).height == 1

    columns(3)
    process = psutil.Process()
    before = process.memory_info().rss
    threads = [Thread(target=columns, args=(5,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    columns(5)
    assert process.memory_info().rss - before < 256 * 2**20


def test_what_is_kept_of_a_frame_outlives_it() -> None:
    values = [PREFIX + sized(f"a text that is long, number {n}".encode()) for n in range(1000)]
    kept = reader("string").read_values(values)[0]["f"].slice(500, 1)
    reader("string").read_values(values[::-1])
    assert kept.to_list() == ["a text that is long, number 500"]

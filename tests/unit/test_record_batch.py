"""Record batches are read as the broker stores them, whoever built them, and refused where bytes do not fit."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kafka.record.default_records import DefaultRecordBatchBuilder as KafkaPythonBuilder

from streams.wire.record_batch import HEADER, CorruptBatch, MalformedBatch, NotOpened, RecordBatch, split
from tests.reference.batches import (
    CODECS,
    CONTROL,
    TRANSACTIONAL,
    Record,
    batch,
    batch_of,
    record_bytes,
    sized,
    stamped,
    varint,
)

records = st.lists(
    st.tuples(
        st.none() | st.binary(max_size=70),
        st.none() | st.binary(max_size=200),
        st.lists(
            st.tuples(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), st.binary(max_size=5)), max_size=2
        ),
    ),
    min_size=1,
    max_size=8,
)


def by_kafka_python(content: list[Record], codec: str) -> bytes:
    builder = KafkaPythonBuilder(
        magic=2, compression_type=CODECS[codec], is_transactional=0, producer_id=-1, producer_epoch=-1,
        base_sequence=-1, batch_size=2**24,
    )  # fmt: skip
    for delta, (key, value, headers) in enumerate(content):
        builder.append(delta, timestamp=1000 + delta, key=key, value=value, headers=headers)
    return bytes(builder.build())


@pytest.mark.parametrize("codec", CODECS)
@settings(max_examples=30)
@given(records, st.sampled_from([0, 7, 2**40]), st.booleans())
def test_records_of_every_codec_and_client_come_back(codec: str, content: list[Record], base: int, ours: bool) -> None:
    if ours or codec == "snappy":  # kafka-python wants another snappy than aiokafka
        raw = batch(content, base, codec, 5000)
    else:
        raw = stamped(by_kafka_python(content, codec), base, 5000)
    (found,) = split(3, raw)
    assert (found.partition, found.base_offset, found.last_offset) == (3, base, base + len(content) - 1)
    assert (found.count, found.arrived_ms) == (len(content), 5000)
    assert found.is_log_append_time
    assert not found.is_control
    assert not found.is_transactional
    assert found.records() == [(base + n, *record) for n, record in enumerate(content)]


@given(st.lists(records, max_size=4), st.integers(0, 400))
def test_a_fetch_is_cut_anywhere_and_its_whole_batches_come_back(contents: list[list[Record]], cut: int) -> None:
    raw, base = [], 0
    for content in contents:
        raw.append(batch(content, base))
        base += len(content)
    whole = b"".join(raw)
    data = whole[: max(0, len(whole) - cut)]
    ends = [sum(map(len, raw[: n + 1])) for n in range(len(raw))]
    assert [b.raw for b in split(0, data)] == [raw[n] for n, end in enumerate(ends) if end <= len(data)]


GOOD = batch([(b"k", b"v", [])], 10)


def test_attributes_are_told() -> None:
    (found,) = split(0, stamped(GOOD, 10, set_attributes=CONTROL | TRANSACTIONAL, producer=77))
    assert found.is_control
    assert found.is_transactional
    assert found.producer_id == 77
    (plain,) = split(0, batch([(b"k", b"v", [])], 0, attributes=0))
    assert not plain.is_log_append_time


def test_every_bit_that_is_wrong_is_seen_by_the_checksum() -> None:
    for at in range(21, len(GOOD)):
        for bit in range(8):
            changed = GOOD[:at] + bytes([GOOD[at] ^ 1 << bit]) + GOOD[at + 1 :]
            with pytest.raises(CorruptBatch, match="the batch at offset 10 has a wrong checksum"):
                list(split(0, changed))


@pytest.mark.parametrize("magic", [0, 1, 3])
def test_another_format_version_is_refused(magic: int) -> None:
    with pytest.raises(CorruptBatch, match=f"the batch at offset 10 has format version {magic}, not 2"):
        list(split(0, stamped(GOOD, 10, magic=magic)))


@pytest.mark.parametrize("length", [-(2**31), -12, -1, 0, 48])
def test_a_length_shorter_than_a_header_is_refused_and_not_read_for_ever(length: int) -> None:
    with pytest.raises(CorruptBatch, match="the batch at offset 10 is shorter than its header"):
        list(split(0, GOOD[:8] + struct.pack(">i", length) + GOOD[12:]))


def test_nothing_and_a_part_of_a_header_are_no_batch() -> None:
    assert list(split(0, b"")) == []
    assert list(split(0, GOOD[: HEADER.size - 1])) == []


def only(raw: bytes) -> RecordBatch:
    (found,) = split(0, raw)
    return found


@pytest.mark.parametrize("codec", [1, 2, 3, 4, 5, 6, 7])
@pytest.mark.parametrize("body", [b"", b"\x00", b"\xff" * 40, b"\x82SNAPPY\x00", b"\x1f\x8b\x08", b"\x04\x22\x4d\x18"])
def test_a_body_that_cannot_be_decompressed_says_so_or_holds_no_records(codec: int, body: bytes) -> None:
    with pytest.raises((NotOpened, MalformedBatch)):
        only(batch_of(body, 1, codec=codec)).records()


def test_header_names_that_are_not_utf8_are_shown_escaped() -> None:
    headers = varint(3) + sized(b"\xff") + sized(b"\xfe") + sized("é".encode()) + sized(None) + sized(b"") + sized(b"x")
    body = record_bytes(0, b"k", b"v") + record_bytes(1, None, None, headers) + record_bytes(2, b"", b"")
    assert only(batch_of(body, 3, 5)).records() == [
        (5, b"k", b"v", []),
        (6, None, None, [("\\xff", b"\xfe"), ("é", b""), ("", b"x")]),
        (7, b"", b"", []),
    ]


NOT_UTF8 = record_bytes(0, b"k", b"v", varint(1) + sized(b"\xff") + sized(b""))


@pytest.mark.parametrize(
    ("body", "count"),
    [
        (NOT_UTF8 + b"\x00", 1),
        (NOT_UTF8 + record_bytes(1, b"k", b"v")[:-1], 2),
        (NOT_UTF8, 2),
        (NOT_UTF8 + varint(3) + b"\x00" * 9, 2),
        (NOT_UTF8 + record_bytes(1, b"k", b"v", varint(2**60)), 2),
        (NOT_UTF8 + record_bytes(1, b"k", b"v", varint(-3)), 2),
        (NOT_UTF8 + varint(7) + b"\x00\x00\x02" + varint(2**50) + b"k\x00", 2),
    ],
)
def test_borders_are_checked_where_header_names_are_not_utf8_as_well(body: bytes, count: int) -> None:
    with pytest.raises(MalformedBatch):
        only(batch_of(body, count)).records()


@settings(max_examples=200)
@given(st.data())
def test_records_with_any_bytes_changed_are_read_or_refused(data: st.DataObject) -> None:
    body = bytearray(NOT_UTF8 + record_bytes(1, b"key", b"value", varint(1) + sized(b"name") + sized(b"x")))
    for at in data.draw(st.lists(st.integers(0, len(body) - 1), max_size=3)):
        body[at] = data.draw(st.integers(0, 255))
    found: Any = None
    try:
        found = only(batch_of(bytes(body[: data.draw(st.integers(0, len(body)))]), 2)).records()
    except MalformedBatch:
        return
    assert len(found) == 2

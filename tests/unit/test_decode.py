"""Whatever lies between good records, they are read as if they were alone, and each bad one becomes one dead letter."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import lz4.frame
import pytest
import zstandard
from aiokafka.codec import snappy_encode
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.avro import feed_schema
from schemas.catalogue import Catalogue, FrozenSchema
from schemas.feed import milliseconds
from schemas.record_codec import encode, prefix
from schemas.ticks import encode_clock_tick, encode_tick
from streams import decode
from streams.deadletters import LONGEST, DeadLetter
from streams.decode import LARGEST_LETTER, Decoded, Decoder, gaps
from streams.wire import record_batch
from tests.reference.batches import ARRIVED, CODECS, COMPRESS, batch, batch_of, record_bytes, run, sized, varint
from tests.reference.toy import CATALOGUE, FEED, NOON, SECOND, event_id, instant, record, value

DECODER = Decoder(CATALOGUE, "toy", FEED)
KEY = b"d-1"
GOOD = value(load=0.5, wait=300, note="湖", place={"longitude": 120.1, "latitude": 30.2})
PLAIN = value()
BASE = 5000

OF_ANOTHER_TOPIC = prefix(2) + sized(b"d-1") + bytes(15)

#: Key, value, and the headers as bytes.
Raw = tuple[bytes | None, bytes | None, bytes]

NO_HEADERS = b"\x00"
HEADERS = varint(2) + sized(b"trace") + sized(b"\xff\x00") + sized(b"") + sized(None)
HEADER_NOT_UTF8 = varint(1) + sized(b"\xff\xfe") + sized(b"x")


def batch_with(records: Sequence[Raw], base: int = BASE, codec: str = "none") -> bytes:
    body = b"".join(record_bytes(delta, *fields) for delta, fields in enumerate(records))
    return batch_of(COMPRESS[codec](body), len(records), base, CODECS[codec])


def read(*raw: bytes, from_offset: int = 0) -> Decoded:
    return DECODER.read(run(*raw), from_offset)


def alone(offset: int, fields: Raw) -> Decoded:
    return read(batch_with([fields], offset))


def summary(decoded: Decoded) -> tuple[list[str], list[DeadLetter]]:
    """Rows and dead letters in a form that compares NaN with NaN."""
    return [repr(row) for row in decoded.rows.iter_rows(named=True)], decoded.dead


def each_alone(base: int, records: Sequence[Raw]) -> tuple[list[str], list[DeadLetter]]:
    rows: list[str] = []
    dead: list[DeadLetter] = []
    for delta, fields in enumerate(records):
        more_rows, more_dead = summary(alone(base + delta, fields))
        rows += more_rows
        dead += more_dead
    return rows, dead


CUT_OFF = "the record is cut off: a record of schema 1 has more bytes"

BAD: dict[str, tuple[Raw, str, str]] = {
    "no key": ((None, PLAIN, NO_HEADERS), "DECODE", "the record has no key"),
    "neither key nor value": ((None, None, NO_HEADERS), "DECODE", "the record has no key"),
    "no value": ((KEY, None, NO_HEADERS), "DECODE", "the record has no value"),
    "empty value": ((KEY, b"", NO_HEADERS), "DECODE", "the value does not start with 0x00 and a schema id"),
    "JSON": ((KEY, b'{"event_id": 1}', NO_HEADERS), "DECODE", "the value does not start with 0x00 and a schema id"),
    "unknown schema": ((KEY, prefix(99) + PLAIN[5:], NO_HEADERS), "DECODE", "schema id 99 is not in the catalogue"),
    "another topic's schema": ((KEY, OF_ANOTHER_TOPIC, NO_HEADERS), "DECODE", "schema 2 is of toy_4s"),
    "cut in a number": ((KEY, PLAIN[:-6], NO_HEADERS), "DECODE", CUT_OFF),
    "cut in a text": ((KEY, PLAIN[:20], NO_HEADERS), "DECODE", CUT_OFF),
    "frame alone": ((KEY, PLAIN[:5], NO_HEADERS), "DECODE", CUT_OFF),
    "too long": ((KEY, PLAIN + b"\x00" * 7, NO_HEADERS), "DECODE", "7 bytes are left over after the record"),
    "noise": ((KEY, prefix(1) + b"\xfe" * 50, NO_HEADERS), "DECODE", "the body is not of schema 1"),
    "another key": ((b"d-2", PLAIN, NO_HEADERS), "VALIDATE", "device_id: is not the record's key"),
    "a rule broken": ((KEY, value(level=-1001), NO_HEADERS), "VALIDATE", "level: below -1000"),
    "a clock ahead": (
        (KEY, value(observed_at=instant(NOON + 10**9)), NO_HEADERS), "VALIDATE", "observed_at: more than 0:00:05 after",
    ),
    "not a number": ((KEY, value(weight=float("nan")), HEADERS), "VALIDATE", "weight: not a finite number"),
    "huge": ((KEY, prefix(1) + b"\x01" * (LARGEST_LETTER + 1), NO_HEADERS), "DECODE", CUT_OFF),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_record_becomes_one_dead_letter_and_the_good_ones_beside_it_are_read(name: str) -> None:
    (key, content, headers), stage, cause = BAD[name]
    decoded = read(batch_with([(KEY, GOOD, NO_HEADERS), (key, content, headers), (KEY, PLAIN, NO_HEADERS)]))
    assert decoded.rows["_offset"].to_list() == [BASE, BASE + 2]
    assert decoded.rows["wait"].to_list() == [300, None]
    (letter,) = decoded.dead
    assert (letter.topic, letter.partition, letter.offset, letter.last_offset) == ("toy", 0, BASE + 1, BASE + 1)
    assert letter.stage == stage
    assert letter.cause.startswith(cause)
    if name != "huge":
        assert (letter.key, letter.value) == (key, content)


def test_a_dead_letter_that_no_producer_would_take_leaves_its_bytes_in_the_log() -> None:
    big = prefix(1) + b"\x01" * LARGEST_LETTER
    (letter,) = read(batch_with([(KEY, big, NO_HEADERS)])).dead
    assert (letter.key, letter.value) == (None, None)
    assert letter.cause.endswith(f"its {len(big) + len(KEY)} bytes stay in the log")


@pytest.mark.parametrize("headers", [HEADERS, HEADER_NOT_UTF8], ids=["headers", "not UTF-8"])
def test_headers_make_no_record_bad(headers: bytes) -> None:
    """A header's name need not be UTF-8 for the broker to take it, and aiokafka would lose the whole batch."""
    records: list[Raw] = [(KEY, GOOD, NO_HEADERS), (KEY, PLAIN, headers), (KEY, b"bad", NO_HEADERS)]
    decoded = read(batch_with(records))
    assert decoded.rows["_offset"].to_list() == [BASE, BASE + 1]
    assert [letter.offset for letter in decoded.dead] == [BASE + 2]
    assert summary(decoded) == each_alone(BASE, records)


raw_values = st.one_of(
    st.sampled_from([GOOD, PLAIN, *(fields[1] for name, (fields, _, _) in BAD.items() if name != "huge")]),
    st.binary(max_size=30),
    st.binary(max_size=90).map(lambda body: prefix(1) + body),
    st.tuples(st.sampled_from([GOOD, PLAIN]), st.integers(0, 200)).map(lambda cut: cut[0][: cut[1]]),
    st.tuples(st.sampled_from([GOOD, PLAIN]), st.integers(5, 80), st.binary(min_size=1, max_size=3)).map(
        lambda at: at[0][: at[1]] + at[2] + at[0][at[1] + len(at[2]) :]
    ),
)
raw_records = st.tuples(
    st.sampled_from([KEY, KEY, KEY, KEY, b"d-2", b"", None]),
    raw_values,
    st.sampled_from([NO_HEADERS, NO_HEADERS, NO_HEADERS, HEADERS, HEADER_NOT_UTF8]),
)


@settings(max_examples=70)
@given(
    st.lists(
        st.tuples(st.lists(raw_records, min_size=1, max_size=6), st.sampled_from(sorted(COMPRESS))),
        min_size=1,
        max_size=4,
    ),
    st.integers(0, 8),
    st.sampled_from([100, 1000, 2**26]),
)
def test_any_bytes_between_good_records_never_change_a_good_record(
    batches: list[tuple[list[Raw], str]], skip: int, at_once: int
) -> None:
    base, raw = BASE, []
    for records, codec in batches:
        raw.append(batch_with(records, base, codec))
        base += len(records)
    everything = [fields for records, _ in batches for fields in records]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode, "MAX_BODY", at_once)
        found = summary(read(*raw, from_offset=BASE + skip))
    assert found == each_alone(BASE + skip, everything[skip:])


MIXED: list[Raw] = [
    (KEY, GOOD, NO_HEADERS),
    (KEY, value(level=-1001), NO_HEADERS),
    (KEY, PLAIN[:-3], HEADERS),
    (KEY, PLAIN, NO_HEADERS),
]


@settings(max_examples=150)
@given(st.binary(max_size=200), st.integers(-1, 5) | st.just(2**31 - 1), st.integers(0, 7))
def test_a_batch_of_any_bytes_never_raises(body: bytes, count: int, codec: int) -> None:
    decoded = read(batch_with([(KEY, GOOD, NO_HEADERS)]), batch_of(body, count, BASE + 1, codec, last_delta=4))
    assert decoded.rows["_offset"].to_list() == [BASE]
    for letter in decoded.dead:
        assert BASE + 1 <= letter.offset <= letter.last_offset <= BASE + 5


@settings(max_examples=150)
@given(st.data(), st.sampled_from(["gzip", "snappy", "lz4", "zstd"]))
def test_a_compressed_batch_with_bytes_changed_never_raises(data: st.DataObject, codec: str) -> None:
    body = bytearray(COMPRESS[codec](b"".join(record_bytes(delta, *fields) for delta, fields in enumerate(MIXED))))
    for at in data.draw(st.lists(st.integers(0, len(body) - 1), min_size=1, max_size=4)):
        body[at] = data.draw(st.integers(0, 255))
    changed = batch_of(bytes(body), len(MIXED), BASE, CODECS[codec])
    decoded = read(changed, batch_with([(KEY, GOOD, NO_HEADERS)], BASE + 4))
    assert decoded.rows["_offset"].to_list()[-1] == BASE + 4
    accounted = decoded.rows["_offset"].to_list()
    for letter in decoded.dead:
        accounted += range(letter.offset, letter.last_offset + 1)
    assert sorted(accounted) == list(range(BASE, BASE + 5))


SNAPPY = b"\x82SNAPPY\x00" + bytes([0, 0, 0, 1, 0, 0, 0, 1])


@pytest.mark.parametrize("size", [-1, -4, -20, 0, 2**31 - 1], ids=str)
def test_a_snappy_chunk_of_impossible_size_ends(size: int) -> None:
    body = SNAPPY + size.to_bytes(4, "big", signed=True) + b"\x0a" * 20
    (letter,) = read(batch_of(body, 3, BASE, 2)).dead
    assert (letter.offset, letter.last_offset) == (BASE, BASE + 2)
    assert letter.cause.startswith("the batch cannot be decompressed")


@pytest.mark.parametrize("codec", ["none", "gzip", "snappy", "lz4", "zstd"])
def test_a_batch_is_refused_one_byte_above_the_limit(codec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = batch_with([(KEY, GOOD, NO_HEADERS)] * 9, codec=codec)
    size = len(next(record_batch.split(0, raw)).opened().body)
    monkeypatch.setattr(record_batch, "MAX_BODY", size)
    assert read(raw).rows.height == 9
    monkeypatch.setattr(record_batch, "MAX_BODY", size - 1)
    decoded = read(raw)
    assert decoded.rows.is_empty()
    assert [(d.offset, d.last_offset, d.key, d.value) for d in decoded.dead] == [(BASE, BASE + 8, None, None)]


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
def test_a_decompression_bomb_is_quarantined_by_its_offsets_in_bounded_memory(codec: str) -> None:
    bomb = _bomb(codec, 256 * 2**20)
    Path("/proc/self/clear_refs").write_text("5")
    before = _highest_memory()
    decoded = read(
        batch_with([(KEY, GOOD, NO_HEADERS)]),
        batch_of(bomb, 7, BASE + 1, CODECS[codec]),
        batch_with([(KEY, PLAIN, NO_HEADERS)], BASE + 8),
    )
    assert _highest_memory() - before < 200 * 2**20
    assert decoded.rows["_offset"].to_list() == [BASE, BASE + 8]
    (letter,) = decoded.dead
    assert (letter.offset, letter.last_offset, letter.value) == (BASE + 1, BASE + 7, None)
    assert letter.cause == "the batch decompresses to more than 64 MiB"


def test_a_batch_of_millions_of_empty_records_is_quarantined_by_its_offsets_in_bounded_memory() -> None:
    count = 3_000_000
    body = lz4.frame.compress(b"".join(record_bytes(delta, None, None) for delta in range(count)))
    Path("/proc/self/clear_refs").write_text("5")
    before = _highest_memory()
    decoded = read(batch_of(body, count, BASE, CODECS["lz4"]), batch_with([(KEY, GOOD, NO_HEADERS)], BASE + count))
    assert _highest_memory() - before < 64 * 2**20
    assert decoded.rows["_offset"].to_list() == [BASE + count]
    assert {letter.cause for letter in decoded.dead} == {"the batch holds more than 131,072 records; send smaller ones"}
    borders = [letter.offset for letter in decoded.dead] + [BASE + count]
    assert borders[0] == BASE
    assert [letter.last_offset + 1 for letter in decoded.dead] == borders[1:]
    assert all(0 < end - start <= LONGEST for start, end in pairwise(borders))


def test_a_batch_is_quarantined_one_record_above_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = batch_with([(KEY, GOOD, NO_HEADERS)] * 8 + [(KEY, b"bad", NO_HEADERS)])
    monkeypatch.setattr(record_batch, "MAX_RECORDS", 9)
    assert read(raw).rows.height == 8
    monkeypatch.setattr(record_batch, "MAX_RECORDS", 8)
    decoded = read(raw)
    assert decoded.rows.is_empty()
    assert [(d.offset, d.last_offset) for d in decoded.dead] == [(BASE, BASE + 8)]


def _highest_memory() -> int:
    """The most resident bytes of this process since 5 was written to its ``clear_refs``."""
    (line,) = re.findall(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(line) * 1024


def _bomb(codec: str, size: int) -> bytes:
    """Zeros, compressed without ever being there."""
    chunk = bytes(2**22)
    if codec == "snappy":
        part: bytes = snappy_encode(chunk)[16:]
        return SNAPPY + part * (size // len(chunk))
    if codec == "lz4":
        with lz4.frame.LZ4FrameCompressor() as packer:
            return b"".join(
                [packer.begin(), *(packer.compress(chunk) for _ in range(size // len(chunk))), packer.flush()]
            )
    if codec == "gzip":
        deflate = zlib.compressobj(1, zlib.DEFLATED, 31)
        return b"".join(deflate.compress(chunk) for _ in range(size // len(chunk))) + deflate.flush()
    zstd = zstandard.ZstdCompressor().compressobj()
    return b"".join(zstd.compress(chunk) for _ in range(size // len(chunk))) + zstd.flush()


def test_records_of_a_batch_that_goes_back_are_taken_from_the_offset_asked_for() -> None:
    raw = batch_with(
        [(KEY, value(event_id=event_id(n)), NO_HEADERS) for n in range(4)] + [(KEY, b"bad", NO_HEADERS)] * 2
    )
    decoded = DECODER.read(run(raw, start=BASE + 2), BASE + 2)
    assert decoded.rows["_offset"].to_list() == [BASE + 2, BASE + 3]
    assert [letter.offset for letter in DECODER.read(run(raw), BASE + 5).dead] == [BASE + 5]


def test_a_batch_that_cannot_be_opened_is_told_whole_even_if_only_its_end_was_asked_for() -> None:
    (letter,) = read(batch_of(b"\xff" * 9, 5, BASE, 4), from_offset=BASE + 3).dead
    assert (letter.offset, letter.last_offset) == (BASE, BASE + 4)


@pytest.mark.parametrize("deltas", [(1, 0), (0, 0), (0, 2), (-1, 0), (0, 2**40)], ids=str)
def test_offsets_that_no_broker_would_give_quarantine_the_batch(deltas: tuple[int, int]) -> None:
    (letter,) = read(batch_of(b"".join(record_bytes(d, KEY, PLAIN) for d in deltas), 2, BASE)).dead
    assert (letter.offset, letter.last_offset) == (BASE, BASE + 1)


def _versions(*changes: Callable[[dict[str, Any]], None]) -> Catalogue:
    schemas = [feed_schema(FEED) for _ in changes]
    for schema, change in zip(schemas, changes, strict=True):
        change(schema)
    return Catalogue({n: FrozenSchema(n, "toy", n, schema) for n, schema in enumerate(schemas, 1)})


def _without(*names: str) -> Callable[[dict[str, Any]], None]:
    def change(schema: dict[str, Any]) -> None:
        schema["fields"] = [f for f in schema["fields"] if f["name"] not in names]

    return change


def test_records_of_an_older_version_get_the_defaults_of_the_newer_among_its_own() -> None:
    catalogue = _versions(_without("place", "note", "load", "built", "open", "wait", "began_at"), lambda _: None)
    old, new = (encode(catalogue.by_id[n], record(note="new", load=0.25)) for n in (1, 2))
    decoder = Decoder(catalogue, "toy", FEED)
    for mixed in (
        [batch([(KEY, old, []), (KEY, new, []), (KEY, old, [])], BASE)],
        [batch([(KEY, old, [])], BASE), batch([(KEY, new, [])], BASE + 1), batch([(KEY, old, [])], BASE + 2)],
        [batch([(KEY, old, [])] * 3, BASE)],
    ):
        decoded = decoder.read(run(*mixed), 0)
        assert decoded.dead == []
        assert decoded.rows.columns == [f.name for f in FEED.fields] + ["_key", "_partition", "_offset", "_arrived"]
        assert decoded.rows["_offset"].to_list() == [BASE, BASE + 1, BASE + 2]
        assert decoded.rows["place"].null_count() == 3
        assert decoded.rows["observed_at"].to_list() == [NOON] * 3
    decoded = decoder.read(run(batch([(KEY, old, []), (KEY, new, [])], BASE)), 0)
    assert decoded.rows["note"].to_list() == [None, "new"]
    assert decoded.rows["load"].to_list() == [None, 0.25]


def test_an_integer_of_an_older_version_reads_as_the_number_it_became() -> None:
    def whole(schema: dict[str, Any]) -> None:
        next(f for f in schema["fields"] if f["name"] == "weight")["type"] = "int"

    catalogue = _versions(whole, lambda _: None)
    decoder = Decoder(catalogue, "toy", FEED)
    old, new = (encode(catalogue.by_id[n], record(weight=weight)) for n, weight in ((1, 3), (2, 2.5)))
    assert decoder.read(run(batch([(KEY, old, []), (KEY, new, [])], 0)), 0).rows["weight"].to_list() == [3.0, 2.5]
    assert decoder.read(run(batch([(KEY, old, [])], 0)), 0).rows["weight"].to_list() == [3.0]


def test_no_content_of_a_record_gets_into_a_cause() -> None:
    secret = "secret"
    records = [
        value(note=secret),
        value(note=secret + "!"),
        value(note=secret)[:-4],
        value(note=secret) + secret.encode(),
    ]
    decoded = read(batch([(KEY, content, []) for content in records], BASE))
    assert len(decoded.dead) == 3
    assert all(secret not in letter.cause for letter in decoded.dead)


def test_a_topic_without_a_feed_is_decoded_and_not_judged() -> None:
    late = value(observed_at=instant(NOON - 10**6 * SECOND), level=10**6)
    rows = Decoder(CATALOGUE, "toy").read(run(batch([(b"any", late, [])], 0)), 0).rows
    assert rows["level"].to_list() == [10**6]


def test_a_tick_is_a_tick_without_a_key_on_a_feeds_topic_and_comes_no_later_than_an_event_could() -> None:
    """It says a time, or how long before its arrival; what says neither is none."""
    tick, late = encode_tick(CATALOGUE, NOON), encode_tick(CATALOGUE, ARRIVED + 10**9)
    clock, forged = (encode_clock_tick(CATALOGUE, timedelta(seconds=s)) for s in (30, -(10**9)))
    empty = encode(CATALOGUE.latest("tick"), {})
    ticks: list[Any] = [(None, value, []) for value in (tick, late, clock, forged)]
    raw = batch([(KEY, GOOD, []), *ticks, (KEY, tick, []), (None, tick + b"x", []), (None, empty, [])], BASE)
    decoded = read(raw)
    latest = ARRIVED + milliseconds(FEED.allowance)
    assert decoded.rows["_offset"].to_list() == [BASE]
    said = [(BASE + 1, NOON), (BASE + 2, latest), (BASE + 3, ARRIVED - 30_000), (BASE + 4, latest)]
    assert decoded.ticks == said
    number = CATALOGUE.latest("tick").id
    assert [(d.offset, d.cause) for d in decoded.dead] == [
        (BASE + 5, f"schema {number} is of tick"),
        (BASE + 6, "the record has no key"),
        (BASE + 7, "the record has no key"),
    ]
    assert read(raw, from_offset=BASE + 2).ticks == said[1:]
    parts = Decoder(CATALOGUE, FEED.aggregates[0].topic).read(run(batch([(None, tick, [])], BASE)), 0)
    assert (parts.ticks, [d.cause for d in parts.dead]) == ([], ["the record has no key"])


def test_offsets_without_a_record_are_gaps() -> None:
    """Before, between and behind the batches, and inside a batch that was compacted; from the offset asked for on."""
    compacted = batch_of(b"".join(record_bytes(delta, KEY, GOOD) for delta in (1, 3)), 2, BASE, last_delta=4)
    behind = batch_with([(KEY, GOOD, NO_HEADERS)] * 2, BASE + 8)
    found = replace(run(compacted, behind, start=BASE - 2), next=BASE + 12)
    expected = [(BASE - 2, BASE), (BASE + 2, BASE + 2), (BASE + 4, BASE + 7), (BASE + 10, BASE + 11)]
    assert gaps(found, BASE - 2) == expected
    assert gaps(found, BASE + 5) == [(BASE + 5, BASE + 7), expected[-1]]
    assert gaps(replace(found, batches=()), BASE) == [(BASE, BASE + 11)]


@pytest.mark.parametrize(
    "raw",
    [
        batch_of(b"\x01 no records", 2, BASE, last_delta=4),
        batch_of(b"no gzip", 2, BASE, CODECS["gzip"], last_delta=4),
        batch_of(b"".join(record_bytes(delta, KEY, GOOD) for delta in (3, 1)), 2, BASE, last_delta=4),
    ],
    ids=["no borders", "not decompressed", "out of order"],
)
def test_an_offset_is_in_a_dead_letter_or_in_a_gap_and_never_in_both(raw: bytes) -> None:
    assert gaps(run(raw), BASE) == []
    (letter,) = read(raw).dead
    assert (letter.offset, letter.last_offset) == (BASE, BASE + 4)

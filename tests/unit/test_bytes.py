"""Every byte that can be wrong in a batch, in turn: what the record is by itself, and nothing happens to others.

The checksum always fits, so that it is not what finds the wrong byte. ``tests.reference.alone`` says by other means
what each record is.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle, pairwise
from typing import Any

import pytest
from aiokafka.structs import TopicPartition
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.avro import feed_schema
from schemas.catalogue import Catalogue, FrozenSchema
from schemas.record_codec import encode, prefix
from streams.decode import Decoder, gaps
from streams.transport import fetching as delivery
from streams.wire.fetched_batches import Run
from streams.wire.record_batch import CRC_FROM, HEADER, CorruptBatch, split
from tests.reference.alone import Alone, NoBorders, Outcome, borders
from tests.reference.batches import (
    ARRIVED,
    CODECS,
    COMPRESS,
    CONTROL,
    LOG_APPEND_TIME,
    TRANSACTIONAL,
    batch_of,
    record_bytes,
    sealed,
    sized,
    varint,
)
from tests.reference.toy import CATALOGUE as TOYS
from tests.reference.toy import FEED, NOON, event_id, instant, record

#: The field weight was an integer once, one mood less was known, and some fields were not there.
OLD, NEW, OTHER = 1, 2, 3


def _old_schema() -> dict[str, Any]:
    schema = feed_schema(FEED)
    schema["fields"] = [f for f in schema["fields"] if f["name"] not in ("place", "note", "built")]
    fields = {field["name"]: field for field in schema["fields"]}
    fields["weight"]["type"] = "int"
    fields["mood"]["type"]["symbols"].remove("calm")
    return schema


CATALOGUE = Catalogue(
    {
        OLD: FrozenSchema(OLD, "toy", 1, _old_schema()),
        NEW: FrozenSchema(NEW, "toy", 2, feed_schema(FEED)),
        OTHER: FrozenSchema(OTHER, "toy_4s", 1, TOYS.latest("toy_4s").schema),
    }
)
DECODER = Decoder(CATALOGUE, "toy", FEED)
ALONE = Alone(CATALOGUE, FEED)

#: Key, value, and the headers as bytes.
Raw = tuple[bytes | None, bytes | None, bytes]

KEY, NO_HEADERS = b"d-1", b"\x00"
HEADERS = varint(2) + sized(b"trace") + sized(b"\xff\x00") + sized(b"") + sized(None)


def value(schema: int = NEW, **changes: Any) -> bytes:
    return encode(CATALOGUE.by_id[schema], record(**changes))


FULL = value(
    event_id="0a1b2c3d-4e5f-6789-abcd-ef0123456789", began_at=instant(NOON - 5), mood="busy", level=-3, wait=300,
    load=0.5, open=True, built=instant(NOON).date(), note="湖é", place={"longitude": 120.1, "latitude": -30.2},
)  # fmt: skip
PLAIN = value()
FIRST = value(OLD, event_id=event_id(7), mood="busy", weight=3, wait=-1)

MIXED: dict[str, Raw] = {
    "newest version": (KEY, FULL, NO_HEADERS),
    "old version": (KEY, FIRST, NO_HEADERS),
    "headers": (KEY, PLAIN, HEADERS),
    "another key": ("湖湖".encode(), value(device_id="湖湖", weight=-0.0), NO_HEADERS),
    "a repeat": (KEY, FULL, NO_HEADERS),
    "no key": (None, PLAIN, NO_HEADERS),
    "tombstone": (KEY, None, NO_HEADERS),
    "empty": (b"", b"", NO_HEADERS),
    "against a rule": (KEY, value(level=-1001), NO_HEADERS),
    "cut off": (KEY, PLAIN[:-3], HEADERS),
    "left over": (KEY, PLAIN + b"\x00", NO_HEADERS),
    "of another topic": (KEY, prefix(OTHER) + sized(b"d-1") + bytes(15), NO_HEADERS),
    "unknown schema": (KEY, prefix(99) + PLAIN[5:], NO_HEADERS),
    "JSON": (KEY, b'{"event_id": 1}', NO_HEADERS),
}


def body_of(records: Sequence[Raw]) -> bytes:
    return b"".join(record_bytes(delta, *fields) for delta, fields in enumerate(records))


def bits(content: bytes | None) -> Iterator[bytes]:
    """The content with each of its bits flipped in turn."""
    for at in range(8 * len(content or b"")):
        yield flipped(content or b"", at)


def flipped(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def broken(fields: Raw) -> Iterator[Raw]:
    """A record with each bit of its key, then of its value, then of a header's content flipped."""
    key, content, headers = fields
    yield from ((other, content, headers) for other in bits(key))
    yield from ((key, other, headers) for other in bits(content))
    if headers != NO_HEADERS:
        where = headers.index(b"trace")
        for other in bits(b"trace"):
            yield key, content, headers[:where] + other + headers[where + 5 :]


#: What became of each offset.
Found = dict[int, Outcome]


def read(run: Run) -> tuple[Found, list[tuple[int, int]]]:
    """What became of each offset, and the stretches that became a dead letter as a whole.

    Checks that no offset is accounted for twice, and that the letter of a record holds its key and value.
    """
    decoded = DECODER.read(run, run.start)
    rows = decoded.rows.to_dicts()
    found = {row["_offset"]: Outcome(repr(row)) for row in rows}
    assert len(found) == len(rows)
    whole = []
    for letter in decoded.dead:
        if letter.cause.startswith("the records of the batch have no borders") or letter.last_offset > letter.offset:
            assert (letter.key, letter.value) == (None, None)
            whole.append((letter.offset, letter.last_offset))
        else:
            assert letter.offset not in found
            found[letter.offset] = Outcome(stage=letter.stage)
    return found, whole


def different(found: Found, expected: Found) -> dict[int, tuple[Outcome | None, Outcome | None]]:
    """The offsets that came to something else, with what they came to and what they had to come to."""
    offsets = sorted(found.keys() | expected.keys())
    return {n: (found.get(n), expected.get(n)) for n in offsets if found.get(n) != expected.get(n)}


@pytest.fixture(scope="module")
def side_by_side() -> tuple[list[Raw], Found]:
    """Records with each of their bits flipped, each between records of every kind, and what each is alone."""
    neighbours = cycle(MIXED.values())
    records = [one for fields in MIXED.values() for other in broken(fields) for one in (other, next(neighbours))]
    return records, {n: ALONE.outcome(n, key, content, ARRIVED) for n, (key, content, _) in enumerate(records)}


@pytest.mark.parametrize("codec", CODECS)
def test_every_bit_of_every_record_of_a_mixed_batch_matters_to_that_record_alone(
    codec: str, side_by_side: tuple[list[Raw], Found]
) -> None:
    records, expected = side_by_side
    raw = batch_of(COMPRESS[codec](body_of(records)), len(records), codec=CODECS[codec])
    found, whole = read(Run("toy", 0, 0, len(records), tuple(split(0, raw))))
    assert whole == []
    assert different(found, expected) == {}
    assert {outcome.stage for outcome in expected.values()} == {None, "DECODE", "VALIDATE"}


def outcomes(body: bytes, count: int, base: int) -> tuple[Found, list[tuple[int, int]]]:
    """What a batch has to come to: all of it a dead letter if its records have no borders, else each by itself."""
    try:
        records = list(borders(body, count))
    except NoBorders:
        return {}, [(base, base + count - 1)]
    if [delta for delta, *_ in records] != list(range(count)):
        return {}, [(base, base + count - 1)]
    return {base + n: ALONE.outcome(base + n, key, content, ARRIVED) for n, key, content in records}, []


ALIKE = [MIXED["newest version"], (KEY, PLAIN, NO_HEADERS), MIXED["another key"]]
DIFFERENT = [MIXED[name] for name in ("old version", "headers", "no key", "tombstone")]


@pytest.mark.parametrize(
    ("records", "masks"),
    [(ALIKE, [1 << bit for bit in range(8)]), (DIFFERENT, [0x01, 0x80])],
    ids=["one schema", "mixed"],
)
def test_every_byte_of_a_batch_with_its_envelopes_changes_one_record_or_makes_all_of_it_one_dead_letter(
    records: list[Raw], masks: list[int]
) -> None:
    """Each in a batch of its own, one behind the other, in one codec after the other."""
    body, codecs = body_of(records), cycle(CODECS)
    raw: list[bytes] = []
    expected: Found = {}
    expected_whole: list[tuple[int, int]] = []
    for at in range(len(body)):
        for mask in masks:
            base = len(raw) * len(records)
            changed = body[:at] + bytes([body[at] ^ mask]) + body[at + 1 :]
            alone, lost = outcomes(changed, len(records), base)
            expected |= alone
            expected_whole += lost
            codec = next(codecs)
            raw.append(batch_of(COMPRESS[codec](changed), len(records), base, CODECS[codec]))
    run = Run("toy", 0, 0, len(raw) * len(records), tuple(split(0, b"".join(raw))))
    found, whole = read(run)
    assert whole == expected_whole
    assert different(found, expected) == {}
    assert gaps(run, 0) == []


def fetched(data: bytes, start: int, aborted: Sequence[tuple[int, int]] = ()) -> Run:
    """What a fetch from an offset becomes, in however many runs."""
    runs = []
    for delivered in delivery._RunRecords(TopicPartition("toy", 0), data, aborted, start):
        if isinstance(delivered.value, CorruptBatch):
            raise delivered.value
        runs.append(delivered.value)
    assert all(one.next == other.start for one, other in pairwise(runs))
    return Run("toy", 0, runs[0].start, runs[-1].next, tuple(one for run in runs for one in run.batches))


#: That the broker stamped the arrival, and that the last record is behind the first.
REFUSED = (8 * 22 + 3, 8 * 23 + 7)


@pytest.mark.parametrize("at", range(CRC_FROM, HEADER.size))
def test_any_bit_of_a_batch_header_leaves_every_offset_accounted_for_once_or_is_refused(at: int) -> None:
    """The offsets that the header states then; a batch before it is read as ever."""
    before = [MIXED["another key"]] * 2
    good = batch_of(body_of(before), 2)
    refused = []
    raw = batch_of(body_of([*before, MIXED["tombstone"]]), 3, 2)
    for bit in range(8 * at, 8 * at + 8):
        try:
            run = fetched(good + sealed(flipped(raw, bit)), 0)
        except CorruptBatch:
            refused.append(bit)
            continue
        found, whole = read(run)
        accounted = sorted([*((n, n) for n in found), *whole, *gaps(run, 0)])
        assert accounted[0][0] == 0
        assert all(last + 1 == first for (_, last), (first, _) in pairwise(accounted)), accounted
        assert accounted[-1][1] == run.next - 1
        assert [found[n] for n in (0, 1)] == [ALONE.outcome(n, *before[n][:2], ARRIVED) for n in (0, 1)]
    assert refused == [bit for bit in REFUSED if bit // 8 == at]


#: Name of each record, and whether it was left there by compaction.
Records = list[tuple[str, bool]]


@dataclass
class Written:
    """A log as the broker has it, and what each offset comes to; None if it holds no record that counts."""

    raw: list[bytes] = field(default_factory=list)
    bases: list[int] = field(default_factory=list)
    expected: dict[int, Outcome | None] = field(default_factory=dict)
    aborted: list[tuple[int, int]] = field(default_factory=list)
    #: The records of each producer's open transaction, behind its first offset.
    open: dict[int, tuple[int, dict[int, Outcome]]] = field(default_factory=dict)
    end: int = 1000

    def append(self, raw: bytes, offsets: int) -> None:
        self.raw.append(raw)
        self.bases.append(self.end)
        self.expected |= dict.fromkeys(range(self.end, self.end + offsets))
        self.end += offsets

    def data(self, producer: int | None, records: Records, codec: str) -> None:
        """A batch, of a transaction if there is a producer."""
        base, kept = self.end, [(n, MIXED[name]) for n, (name, stays) in enumerate(records) if stays]
        body = COMPRESS[codec](b"".join(record_bytes(n, *fields) for n, fields in kept))
        more = {} if producer is None else {"producer": producer, "set_attributes": TRANSACTIONAL | LOG_APPEND_TIME}
        self.append(batch_of(body, len(kept), base, CODECS[codec], last_delta=len(records) - 1, **more), len(records))
        found = {base + n: ALONE.outcome(base + n, key, content, ARRIVED) for n, (key, content, _) in kept}
        if producer is None:
            self.expected |= found
        else:
            self.open.setdefault(producer, (base, {}))[1].update(found)

    def marker(self, producer: int, commits: bool | None) -> None:
        """The end of a transaction; None for a marker that was removed, once nothing was left of its transaction."""
        if commits is None:
            body, count = b"", 0
        else:
            body, count = record_bytes(0, struct.pack(">hh", 0, commits), bytes(6)), 1
        more = {"producer": producer, "set_attributes": CONTROL | TRANSACTIONAL | LOG_APPEND_TIME}
        self.append(batch_of(body, count, self.end, last_delta=0, **more), 1)
        if commits is not None and producer in self.open:
            first, found = self.open.pop(producer)
            if commits:
                self.expected |= found
            else:
                self.aborted.append((producer, first))


batches_of_records = st.lists(
    st.tuples(st.sampled_from(sorted(MIXED)), st.sampled_from([True] * 4 + [False])), min_size=1, max_size=5
)
written = st.one_of(
    st.tuples(
        st.just("data"), st.sampled_from([None, None, 7, 8]), batches_of_records, st.sampled_from(sorted(CODECS))
    ),
    st.tuples(st.just("marker"), st.sampled_from([7, 8]), st.booleans()),
    st.tuples(st.just("marker"), st.just(9), st.none()),
)


@settings(max_examples=150)
@given(st.lists(written, min_size=1, max_size=8), st.integers(0, 12))
def test_every_offset_of_any_log_is_read_as_its_record_alone_or_told_to_hold_none(steps: list[Any], skip: int) -> None:
    """Compacted batches, emptied ones, transactions and their markers; fetched from any offset on."""
    log = Written()
    for step, *details in [*steps, ("marker", 7, False), ("marker", 8, True)]:
        getattr(log, step)(*details)
    start = min(1000 + skip, log.end - 1)
    from_batch = bisect_right(log.bases, start) - 1
    run = fetched(b"".join(log.raw[from_batch:]), start, list(log.aborted))
    assert (run.start, run.next) == (start, log.end)
    found, whole = read(run)
    assert whole == []
    assert all(outcome is not None for outcome in found.values())
    without = {n for first, last in gaps(run, start) for n in range(first, last + 1)}
    assert sum(last - first + 1 for first, last in gaps(run, start)) == len(without)
    assert found == {n: outcome for n, outcome in log.expected.items() if outcome is not None and n >= start}
    assert without == {n for n, outcome in log.expected.items() if outcome is None and n >= start}

"""From the runs of a topic to the rows of its table."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import feeds
from schemas.catalogue import Catalogue
from schemas.feed import Feed
from schemas.fields import INSTANTS
from schemas.measures import LAST_BUCKET
from sinks.topic_rows import FeedReader, PartReader, QuarantineReader, Read, Unread, readers
from streams.deadletters import LONGEST, TOPIC, DeadLetter, Headers
from streams.decode import Decoder
from streams.feed_topics import topic_of
from streams.positions import NO_EVENT_TIME
from streams.wire.column_writer import encode_bodies
from streams.wire.fetched_batches import Run
from streams.wire.record_batch import packed, split
from tests.columns import columns_of
from tests.reference.batches import ARRIVED, CODECS, batch, batch_of, record_bytes, rows_of, run, sized, stamped, varint
from tests.reference.newer import BOTH, NEWER, newer
from tests.reference.streams import Log, logs
from tests.reference.toy import CATALOGUE, FEED, NOON, value

LETTER = DeadLetter("toy", 3, 41, 45, "DECODE", "the record has no value", b"d-1", None, ARRIVED - 5)
BASE = 7
(BY_MOOD,) = (aggregate for aggregate in FEED.aggregates if "mood" in aggregate.by)


def quarantined(found: Run, from_offset: int = 0) -> list[dict[str, Any]]:
    """Rows of the quarantine."""
    ((rows, *_),) = QuarantineReader("UTC").read([Unread(found, from_offset, 0)])
    return rows_of(rows.drop("arrived_at"))


def headers(**changed: bytes | None) -> Headers:
    """The headers of a dead letter, some of them changed or, if None, left out."""
    names = {name.rpartition(".")[2]: name for name, _ in LETTER.headers()}
    content = {names["message"]: b"", **dict(LETTER.headers())}
    for name, said in changed.items():
        content[names[name]] = said if said is not None else b""
        if said is None:
            del content[names[name]]
    return list(content.items())


def test_a_dead_letter_is_stored_under_the_offset_it_is_of() -> None:
    (row,) = quarantined(run(batch([(b"d-1", None, LETTER.headers())], BASE), topic=TOPIC))
    assert (row["topic"], row["source_partition"], row["source_offset"], row["last_offset"]) == ("toy", 3, 41, 45)
    assert (row["stage"], row["cause"], row["key"], row["value"]) == (LETTER.stage, LETTER.cause, b"d-1".hex(), None)
    assert row["published_at"] == LETTER.arrived_ms


def told(read: Read) -> tuple[dict[str, Any], list[str], int]:
    """Types, rows and the new maximum, comparable."""
    rows = read.rows.select(sorted(read.rows.columns))
    return dict(rows.schema), [repr(row) for row in rows.iter_rows()], read.max_event_ms


@settings(max_examples=60)
@given(st.lists(st.tuples(logs(NOON, 12), st.integers(NOON, NOON + 20_000)), min_size=1, max_size=4))
def test_partitions_read_together_are_those_read_one_by_one(found: list[tuple[Log, int]]) -> None:
    reader = FeedReader(topic_of(replace(FEED, partitions=4), 0), CATALOGUE, "UTC")
    wanted = [
        Unread(Run("toy", number, 0, log.end, tuple(split(number, b"".join(log.batches())))), 0, seen)
        for number, (log, seen) in enumerate(found)
    ]
    assert [*map(told, reader.read(wanted))] == [told(*reader.read([one])) for one in wanted]


@pytest.mark.parametrize(("reader", "written"), [(NEWER, value()), (FEED, newer(size=3)), (NEWER, newer(size=3))])
def test_versions_read_together_have_the_types_of_the_declaration(reader: Feed, written: bytes) -> None:
    """Frames of both ways are joined."""
    both = FeedReader(topic_of(replace(reader, partitions=2), 0), BOTH, "UTC")
    raw = batch([(b"d-1", written, [])], 0)
    wanted = [Unread(Run("toy", number, 0, 1, tuple(split(number, raw))), 0, NO_EVENT_TIME) for number in range(2)]
    assert [*map(told, both.read(wanted))] == [told(*both.read([one])) for one in wanted]


def test_a_dead_letter_of_a_later_topic_is_stored_under_the_number_of_its_partition() -> None:
    letters = [replace(LETTER, topic=topic) for topic in ("toy.from4", "toy.from65535")]
    found = quarantined(run(batch([(b"d-1", None, letter.headers()) for letter in letters], BASE), topic=TOPIC))
    assert [(row["topic"], row["source_partition"]) for row in found] == [("toy", 7), ("toy.from65535", 3)]


def test_a_dead_letter_names_the_topic_the_record_is_in() -> None:
    decoder = Decoder(CATALOGUE, "toy", FEED, topic="toy.from4")
    (letter,) = decoder.read(run(batch([(b"d-1", b"noise", [])], 0), topic="toy.from4"), 0).dead
    assert (letter.topic, letter.partition) == ("toy.from4", 0)


PREFIX = "no dead letter: the header __connect.errors."


@pytest.mark.parametrize(
    ("junk", "cause"),
    [
        ([], f"{PREFIX}offset is missing"),
        ([("trace", b"\xff"), ("trace", b"")], f"{PREFIX}offset is missing"),
        (headers(topic=None), f"{PREFIX}topic is missing"),
        (headers(topic=b"\xff\xfe"), f"{PREFIX}topic is not UTF-8"),
        (headers(partition=b"65536"), f"{PREFIX}partition is no number from 0 to 65535"),
        (headers(partition=b"secret"), f"{PREFIX}partition is no number from 0 to 65535"),
        (headers(offset=b"-1"), f"{PREFIX}offset is no number from 0 to {2**63 - 1 - 2**16}"),
        (headers(offset=b"9" * 5000), f"{PREFIX}offset is no number from 0 to {2**63 - 1 - 2**16}"),
        (headers(last_offset=b"40"), f"{PREFIX}last_offset is no number from 41 to {40 + 2**16}"),
        (headers(last_offset=b"%d" % (41 + 2**16)), f"{PREFIX}last_offset is no number from 41 to {40 + 2**16}"),
        (headers(arrived_ms=None), f"{PREFIX}arrived_ms is missing"),
        (headers(arrived_ms=b"9" * 14), f"{PREFIX}arrived_ms is no number from 0 to {INSTANTS[1]}"),
        (headers(stage=b"LUNCH"), f"{PREFIX}stage is neither DECODE nor VALIDATE"),
        (headers(message=None), f"{PREFIX}exception.message is missing"),
        (headers(message=b"\xff"), f"{PREFIX}exception.message is not UTF-8"),
    ],
    ids=range(15),
)
def test_a_record_that_is_no_dead_letter_is_kept_as_one_of_its_own_topic(junk: Headers, cause: str) -> None:
    """With its own offset, whatever stands before and behind it; the cause has nothing of its content."""
    letter = (b"d-1", None, LETTER.headers())
    found = run(batch([letter, (None, b"\xff", junk), letter], BASE), topic=TOPIC)
    before, kept, behind = quarantined(found)
    assert before == behind
    assert kept == {
        "topic": TOPIC, "source_partition": 0, "source_offset": BASE + 1, "last_offset": BASE + 1, "stage": "DECODE",
        "cause": cause, "key": None, "value": "ff", "published_at": ARRIVED,
    }  # fmt: skip
    assert quarantined(found, BASE + 1) == [kept, behind]


def test_a_header_without_content_is_missing() -> None:
    body = record_bytes(0, b"key", b"value", varint(1) + sized(b"__connect.errors.offset") + sized(None))
    (row,) = quarantined(run(batch_of(body, 1, BASE), topic=TOPIC))
    assert (row["topic"], row["source_offset"], row["cause"]) == (TOPIC, BASE, f"{PREFIX}offset is missing")


@pytest.mark.parametrize("raw", [batch_of(b"\x01", 2, BASE), batch_of(b"no gzip", 2, BASE, CODECS["gzip"])])
def test_a_batch_that_cannot_be_read_is_kept_by_its_offsets(raw: bytes) -> None:
    (row,) = quarantined(run(raw, topic=TOPIC))
    assert (row["topic"], row["source_offset"], row["last_offset"]) == (TOPIC, BASE, BASE + 1)
    assert row["cause"].startswith("no dead letters: the batch cannot be read: ")


def test_a_batch_of_millions_of_empty_records_is_kept_by_its_offsets() -> None:
    count = 3_000_000
    rows = quarantined(run(batch_of(b"", count, BASE, CODECS["lz4"]), topic=TOPIC))
    assert len(rows) == math.ceil(count / LONGEST)
    assert [row["source_offset"] for row in rows[1:]] == [row["last_offset"] + 1 for row in rows[:-1]]
    assert (rows[0]["source_offset"], rows[-1]["last_offset"]) == (BASE, BASE + count - 1)


PART: dict[str, Any] = {
    "mood": "calm", "window_start": ARRIVED // 60_000 * 60_000, "source_partition": 0, "since": 0, "version": 2,
    "watermark": None, "events": 3, "wait_histogram_buckets": [-1, 0, 64, LAST_BUCKET],
    "wait_histogram_counts": [1, 2, 1, 9],
}  # fmt: skip


def parts(*changes: dict[str, Any], partition: int = 0) -> Run:
    """Parts of windows by mood as on their topic, each with these values."""
    frozen = CATALOGUE.latest(BY_MOOD.topic)
    default = {f["name"]: [] if isinstance(f["type"], dict) else 0 for f in frozen.schema["fields"]} | PART
    rows = columns_of([{**default, **change} for change in changes], default)
    (body,) = encode_bodies(frozen, ["mood"], rows, 2**24)
    batches = tuple(split(partition, stamped(packed(body.data, body.count), 0)))
    return Run(BY_MOOD.topic, partition, 0, body.count, batches)


@pytest.mark.parametrize(
    "forged",
    [
        {"window_start": PART["window_start"] + 1},
        {"window_start": INSTANTS[0] - 60_000},
        {"window_start": PART["window_start"] + 2 * 3_600_000},
        {"source_partition": FEED.partitions},
        {"source_partition": -1},
        {"since": -1},
        {"version": -(2**63)},
        {"watermark": 2**63 - 1},
        {"watermark": -(2**63)},
        {"watermark": ARRIVED + 2 * 3_600_000},
        {"events": 0},
        {"events": -1, "watermark": ARRIVED},
        {"wait_histogram_counts": [1, 2, 1]},
        {"wait_histogram_counts": [1, 2, 1, 0]},
        {"wait_histogram_buckets": [-2, 0, 64, 65]},
        {"wait_histogram_buckets": [-1, 0, 64, LAST_BUCKET + 1]},
        {"wait_histogram_buckets": [-1, 0, 0, 1]},
        {"wait_histogram_buckets": list(range(5000)), "wait_histogram_counts": [1] * 5000},
    ],
    ids=range(18),
)
def test_a_part_that_no_processor_wrote_reaches_no_table(
    forged: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """ClickHouse would refuse it, or a view over it would fail: the parts beside it are stored all the same."""
    reader = PartReader(FEED, BY_MOOD, CATALOGUE, "UTC")
    ((rows, *_),) = reader.read([Unread(parts({}, forged, {"watermark": ARRIVED}), 0, 0)])
    assert rows["_offset"].to_list() == [0, 2]
    assert "1 records from offset 1 on are no parts of windows" in caplog.text


def test_parts_read_together_are_those_read_one_by_one() -> None:
    reader = PartReader(FEED, BY_MOOD, CATALOGUE, "UTC")
    wanted = [
        Unread(parts(*changes, partition=number), 0, 7 + number)
        for number, changes in enumerate([({}, {"watermark": ARRIVED}), ({"events": 9},)])
    ]
    assert [*map(told, reader.read(wanted))] == [told(*reader.read([one])) for one in wanted]


def test_progress_is_the_newest_watermark_of_each_partition() -> None:
    reader = PartReader(FEED, FEED.aggregates[0], CATALOGUE, "UTC")
    parts = pl.DataFrame({"source_partition": [0, 0, 1, 1, 2], "watermark": [5, None, 9, 4, None], "events": [1] * 5})
    assert reader.progress(parts) == [(reader.topic, 0, 5), (reader.topic, 1, 9)]
    assert not reader.progress(parts.filter(pl.col("source_partition") == 2))


def test_records_are_written_before_windows() -> None:
    """Both are fetched at the same moment, and somebody waits for the records."""
    found = [type(one) for one in readers(feeds.load(), Catalogue.load(), "UTC")]
    assert found == sorted(found, key=[FeedReader, QuarantineReader, PartReader].index)

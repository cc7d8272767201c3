"""The topics of a feed, one after the other: numbers, bounds, and windows that no event is counted into twice."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kafka.future import Future

from schemas.feed import Aggregate, Feed, Outgrown
from schemas.record_codec import encode
from sinks.topic_rows import FeedReader, Unread
from streams.decode import Decoder
from streams.feed_topics import FeedPartition, FeedTopic, feed_topics, topic_of
from streams.lag import PartitionLag, by_feed_partition
from streams.positions import NO_EVENT_TIME, first
from streams.publisher import Publisher
from streams.topics import stored
from streams.watermark import ASIDE, closes_at, window_start
from streams.wire.fetched_batches import Run
from streams.wire.record_batch import split
from tests.columns import Staged, parts_of, process
from tests.reference.batches import batch
from tests.reference.toy import CATALOGUE, FEED, NOON, SECOND, event_id, instant, record

ENDS = (NOON + 10 * SECOND, NOON + 25 * SECOND)
GROWN = replace(FEED, partitions=1, outgrown=tuple(Outgrown(partitions=1, until=instant(end)) for end in ENDS))
DECODER = Decoder(CATALOGUE, "toy", GROWN)
TOPICS = [*feed_topics(GROWN).values()]
LANES = [FeedReader(topic, CATALOGUE, "UTC") for topic in TOPICS]
WIDE = replace(FEED, partitions=6, outgrown=(Outgrown(partitions=4, until=instant(NOON)),))


def test_a_partition_has_one_number_through_all_topics() -> None:
    old, new = feed_topics(replace(WIDE, partitions=6)).values()
    assert (old.name, new.name) == ("toy", "toy.from4")
    places = [(one.name, n) for one in (old, new) for n in range(one.partitions)]
    assert [FeedPartition.of(*place) for place in places] == [("toy", number) for number in range(10)]
    assert [topic_of(WIDE, number) for number in range(10)] == [old] * 4 + [new] * 6
    assert feed_topics(WIDE) == {"toy": old, "toy.from4": new}
    log = [PartitionLag("toy.from4", 2, 0, 1, 2, None), PartitionLag("dead_letters", 0, 0, 0, 0, None)]
    assert [(p.topic, p.partition) for p in by_feed_partition(log)] == [("toy", 6), ("dead_letters", 0)]


@pytest.mark.parametrize(
    "place",
    [("toy", 3), ("toy.from", 1), ("toy.from0", 1), ("toy.from04", 1), ("Toy.from4", 1), ("toy.from4.from5", 1),
     ("toy.from99999", 1), ("toy.from65535", 1), ("toy.from1", 65535), ("toy_from4", 1), ("toy.from4\n", 1)],
)  # fmt: skip
def test_what_is_no_later_topic_of_a_feed_stands_for_itself(place: tuple[str, int]) -> None:
    assert FeedPartition.of(*place) == place


def test_growing_leaves_the_definition_of_all_but_the_topic_that_ends() -> None:
    """Positions of aggregates and of topics that ended before stay; those of the ending one have to be carried on."""
    once = replace(WIDE, outgrown=(), partitions=4)
    (only,) = feed_topics(once).values()
    assert only.definition == once.definition == WIDE.definition
    ended, second = feed_topics(WIDE).values()
    twice = replace(WIDE, partitions=8, outgrown=(*WIDE.outgrown, Outgrown(partitions=6, until=instant(NOON + 1))))
    again = [*feed_topics(twice).values()]
    assert again[0].definition == ended.definition
    assert len({one.definition for one in (only, *again, second)}) == 5
    _, other = feed_topics(replace(WIDE, partitions=7)).values()
    assert other.definition != second.definition
    later = feed_topics(replace(WIDE, outgrown=(Outgrown(partitions=4, until=instant(NOON + 1)),))).values()
    assert {one.definition for one in later}.isdisjoint({ended.definition, second.definition})


@given(
    st.sampled_from(ENDS),
    st.sampled_from([-6_000, -5_000, -1, 0, 1, 4_999, 5_000, 5_001, 20_000]),
    st.lists(st.sampled_from([-5_000, -4_999, -1, 0, 1, 5_000, 60_000]), min_size=3, max_size=3),
)
def test_at_most_one_topic_counts_an_event(end: int, off: int, delays: list[int]) -> None:
    """By whichever of them it comes, and however late; each time it is valid."""
    counted = 0
    for topic, delay in zip(TOPICS, delays, strict=True):
        row = pl.DataFrame({"observed_at": [end + off], "_arrived": [end + off + delay]})
        assert topic.counts is not None
        counted += row.select(topic.counts).item()
    assert counted <= 1


def test_a_topic_counts_what_arrives_before_its_end_and_the_next_what_could_not() -> None:
    rows = pl.DataFrame({"observed_at": [NOON, ENDS[0] + 4_999, ENDS[0] + 5_000, ENDS[1] + 5_000]})
    on_time, ahead = (rows.with_columns(_arrived=pl.col("observed_at") + delay) for delay in (0, -5_000))
    found = [
        frame.select(one.counts).to_series().to_list()
        for one in TOPICS
        if one.counts is not None
        for frame in (on_time, ahead)
    ]
    assert found == [
        [True, False, False, False], [True, True, False, False],
        [False, False, True, False], [False, False, True, False],
        [False, False, False, True], [False, False, False, True],
    ]  # fmt: skip


def test_a_feed_with_one_topic_counts_everything() -> None:
    assert [one.counts for one in feed_topics(FEED).values()] == [None]


@dataclass(frozen=True)
class Sent:
    """An event, and how long after it happened it arrived, in ms; each event may be sent several times."""

    number: int
    device: str
    at: int
    delay: int

    @property
    def values(self) -> dict[str, Any]:
        return record(event_id=event_id(self.number), device_id=self.device, observed_at=instant(NOON + self.at))


sendings = st.lists(
    st.builds(
        Sent, st.integers(1, 5), st.sampled_from(["d-1", "d-2"]), st.sampled_from(range(-2_000, 40_000, 1_000)),
        st.sampled_from([-5_000, 0, 0, 0, 100, 1_000, 3_000, 9_000, 30_000]),
    ),
    max_size=25,
)  # fmt: skip


def delivered(topic: FeedTopic, log: list[Sent]) -> Run:
    """One partition as the broker has it: a batch for each record, none before the one before it."""
    raw, now = b"", 0
    for offset, sent in enumerate(log):
        now = max(now, NOON + sent.at + sent.delay)
        value = encode(CATALOGUE.latest("toy"), sent.values)
        raw += batch([(sent.device.encode(), value, [])], offset, arrived_ms=now)
    return Run(topic.name, 0, 0, len(log), tuple(split(0, raw)))


def in_stream(topic: FeedTopic, run: Run, aggregate: Aggregate) -> Counter[tuple[Any, ...]]:
    """Events of the parts that a processor writes."""
    partition = Staged(GROWN, topic.first, DECODER, first("", topic.definition, 0))
    process(partition, run)
    output = partition.flush()
    assert output is not None
    parts = parts_of(output, GROWN, aggregate)
    assert set(parts["source_partition"]) <= {topic.first}
    return Counter({tuple(row): n for *row, n in parts.select(*aggregate.by, "window_start", "events").iter_rows()})


def late(feed: Feed, rows: list[dict[str, Any]], aggregate: Aggregate) -> Counter[tuple[Any, ...]]:
    """Events that a view counts from the raw rows that are left."""
    starts = [(row, window_start(aggregate, row["observed_at"])) for row in rows]
    return Counter(
        (*(row[name] for name in aggregate.by), start)
        for row, start in starts
        if start + closes_at(feed, aggregate) <= row["seen_before"]
    )


def first_occurrences(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a replacing table keeps, in the order of ``sinks.tables.FIRST``."""
    kept: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in sorted(rows, key=lambda r: (r["seen_before"] == ASIDE, r["source_partition"], r["source_offset"])):
        kept.setdefault((row["device_id"], row["observed_at"], row["event_id_low"]), row)
    return list(kept.values())


AHEAD = Sent(1, "d-1", 12_000, -5_000)


@settings(max_examples=40)
@example([[AHEAD], [AHEAD], []])
@example([[replace(AHEAD, delay=9_000)], [AHEAD], []])
@given(st.lists(sendings, min_size=3, max_size=3))
def test_windows_over_all_topics_hold_each_event_once(logs: list[list[Sent]]) -> None:
    """Whatever is sent by which topic, repeated on another, or comes long after a topic ended."""
    runs = {
        n: delivered(one, log)
        for n, (one, log) in enumerate(zip(feed_topics(GROWN).values(), logs, strict=True))
        if log
    }
    rows: list[dict[str, Any]] = []
    for n, run in runs.items():
        ((frame, newest, _),) = LANES[n].read([Unread(run, 0, NO_EVENT_TIME)])
        assert frame.height == run.next, "every record here is valid"
        assert newest < ASIDE
        names = ("device_id", "mood", "observed_at", "event_id_low", "source_partition", "source_offset", "seen_before")
        rows += frame.select(names).to_dicts()
    events = {(sent.device, NOON + sent.at, sent.number) for log in logs for sent in log}
    left = first_occurrences(rows)
    assert len(left) == len(events)
    for aggregate in GROWN.aggregates:
        shown = late(GROWN, left, aggregate)
        for n, run in runs.items():
            shown += in_stream(TOPICS[n], run, aggregate)
        assert shown == Counter(
            (*({"device_id": device, "mood": "calm"}[name] for name in aggregate.by), window_start(aggregate, at))
            for device, at, _ in events
        )


def test_publishers_write_to_the_last_topic() -> None:
    sent: list[str] = []

    class Producer:
        def send(self, topic: str, **_: object) -> Future:
            sent.append(topic)
            return Future()

    Publisher(Producer(), WIDE, CATALOGUE.latest("toy"), None).send(b"d-1", b"")
    assert sent == ["toy.from4"]
    assert [(topic.name, topic.partitions) for topic in stored([WIDE])][1:] == [
        ("toy", 4), ("toy.from4", 6), ("toy_4s", 4), ("toy_5s_mood", 4),
    ]  # fmt: skip

"""The clock writes ticks where feeds ask for them, whatever the brokers say, and waits for nothing."""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import cast

import pytest
from kafka import KafkaProducer
from kafka.errors import KafkaError, KafkaTimeoutError, TopicAuthorizationFailedError
from kafka.future import Future

from schemas.feed import Outgrown
from schemas.ticks import encode_clock_tick
from streams.clock import EVERY, Clock, ticking
from tests.reference.toy import CATALOGUE, FEED

DELAY = timedelta(seconds=30)
GROWN = replace(
    FEED, name="grown", delay=2 * DELAY, partitions=3, outgrown=(Outgrown(partitions=1, until=datetime.now(UTC)),),
    aggregates=(),
)  # fmt: skip
FEEDS = [replace(FEED, delay=DELAY), replace(FEED, name="other", aggregates=()), GROWN]


class Brokers:
    """A producer whose brokers have these partitions; what was sent is on its way until they take or refuse it."""

    def __init__(self, partitions: dict[str, int]) -> None:
        self.partitions = partitions
        self.sent: list[tuple[str, int, bytes, Future]] = []

    def partitions_for(self, topic: str) -> set[int]:
        if topic not in self.partitions:
            raise KafkaTimeoutError(topic)
        return set(range(self.partitions[topic]))

    def send(self, topic: str, *, value: bytes, partition: int) -> Future:
        self.sent.append((topic, partition, value, Future()))
        return self.sent[-1][-1]

    def answer(self, error: KafkaError | None = None) -> list[tuple[str, int]]:
        """Take or refuse what is on its way; where it went."""
        found, self.sent = self.sent, []
        for *_, future in found:
            future.success(None) if error is None else future.failure(error)
        return [(topic, partition) for topic, partition, *_ in found]


def started(brokers: Brokers) -> Clock:
    return Clock(cast("KafkaProducer", brokers), FEEDS, CATALOGUE)


def test_every_partition_of_the_newest_topics_of_feeds_with_a_delay_gets_a_tick_that_says_it() -> None:
    """How many there are the brokers know, at each tick."""
    brokers = Brokers({"toy": 1, "grown": 1, "grown.from1": 3, "other": 4})
    clock = started(brokers)
    clock.tick()
    assert {(topic, value) for topic, _, value, _ in brokers.sent} == {
        ("toy", encode_clock_tick(CATALOGUE, DELAY)), ("grown.from1", encode_clock_tick(CATALOGUE, 2 * DELAY)),
    }  # fmt: skip
    later = [("grown.from1", number) for number in range(3)]
    assert brokers.answer() == [("toy", 0), *later]
    brokers.partitions["toy"] = 2
    clock.tick()
    assert brokers.answer() == [("toy", 0), ("toy", 1), *later]


def test_no_tick_follows_one_that_is_on_its_way() -> None:
    """Brokers that are away for an hour get none of that hour."""
    brokers = Brokers({"toy": 2, "grown.from1": 1})
    clock = started(brokers)
    for _ in range(1800):
        clock.tick()
    assert len(brokers.answer()) == 3
    clock.tick()
    assert len(brokers.answer(KafkaTimeoutError("expired"))) == 3
    clock.tick()
    assert len(brokers.answer()) == 3


def test_what_the_brokers_refuse_is_said_once_and_keeps_no_other_feed_from_its_ticks(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "citystream")
    brokers = Brokers({"grown.from1": 1})
    clock = started(brokers)
    for _ in range(3):
        clock.tick()
        assert brokers.answer() == [("grown.from1", 0)]
    brokers.partitions["toy"] = 1
    clock.tick()
    brokers.answer()
    clock.tick()
    brokers.answer(TopicAuthorizationFailedError("no"))
    assert [record.message.partition(":")[0] for record in caplog.records] == [
        "toy has no ticks", "toy has ticks again", "toy has no ticks", "grown.from1 has no ticks",
    ]  # fmt: skip


def test_it_ticks_and_sleeps_in_turn() -> None:
    brokers, slept = Brokers({"toy": 1, "grown.from1": 1}), []

    def sleep(seconds: float) -> None:
        assert len(brokers.answer()) == 2
        slept.append(seconds)
        if len(slept) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        started(brokers).run(sleep)
    assert slept == 3 * [EVERY.total_seconds()]


def test_a_feed_without_a_delay_asks_for_no_ticks() -> None:
    assert ticking(FEEDS) == {"toy": DELAY, "grown.from1": 2 * DELAY}
    assert FEEDS[0].definition == FEED.definition, "what a tick says stands in the log"

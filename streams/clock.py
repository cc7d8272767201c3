"""The clock: lets time pass in the logs of feeds that ask for it, so that windows end though nothing comes.

Any number of clocks may run. A tick that comes twice, late or never changes no count: it only moves event time on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from contextlib import closing
from datetime import timedelta
from functools import partial
from typing import NoReturn

from kafka import KafkaProducer
from kafka.errors import KafkaError
from kafka.producer.future import FutureRecordMetadata
from kafka.protocol.consumer import OffsetSpec

from schemas.catalogue import Catalogue
from schemas.feed import Feed, milliseconds
from schemas.ticks import encode_clock_tick
from streams.clients import new_admin
from streams.cluster import Cluster
from streams.lag import leaders
from streams.publisher import LINGER_MS, RECONNECT_MS, topic_for
from streams.waiting import CLIENTS, KAFKA

log = logging.getLogger("citystream")

#: How long time stands still in a log between two ticks.
EVERY = timedelta(seconds=2)
#: At each tick, a topic that was deleted is looked for no longer than this.
MISSING_MS = 1000
#: Nothing has come to a partition for so long: no clock runs.
STILL = timedelta(seconds=30)


def ticking(feeds: Iterable[Feed]) -> dict[str, timedelta]:
    """The topics that ticks are written to, and the delay of each: those that feeds with a delay are published to."""
    return {topic_for(feed): feed.delay for feed in feeds if feed.delay is not None}


class Clock:
    """Writes ticks by a producer; those of partitions whose last one is still on its way are left out.

    So few ticks wait for brokers that are away, and none of an hour ago comes when they are back.
    """

    def __init__(self, producer: KafkaProducer, feeds: Iterable[Feed], catalogue: Catalogue) -> None:
        self._producer = producer
        self._ticks = {topic: encode_clock_tick(catalogue, delay) for topic, delay in ticking(feeds).items()}
        self._sent: dict[tuple[str, int], FutureRecordMetadata] = {}
        self._refused: set[str] = set()

    def run(self, sleep: Callable[[float], None]) -> NoReturn:
        """Tick for ever; ``sleep`` takes seconds."""
        while True:
            self.tick()
            sleep(EVERY.total_seconds())

    def tick(self) -> None:
        """Write a tick to every partition there is now, and do not wait for the brokers."""
        for topic, value in self._ticks.items():
            try:
                for number in self._producer.partitions_for(topic):
                    self._tick(topic, number, value)
            except KafkaError as error:
                self._failed(topic, error)

    def _tick(self, topic: str, number: int, value: bytes) -> None:
        before = self._sent.get((topic, number))
        if before is None or before.is_done:
            sent = self._producer.send(topic, value=value, partition=number)
            self._sent[topic, number] = sent
            sent.add_callback(partial(self._taken, topic))
            sent.add_errback(partial(self._failed, topic))

    def _taken(self, topic: str, _: object) -> None:
        KAFKA.end(CLIENTS)
        if topic in self._refused:
            self._refused.discard(topic)
            log.info("%s has ticks again", topic)

    def _failed(self, topic: str, error: BaseException) -> None:
        if topic not in self._refused:
            self._refused.add(topic)
            log.warning("%s has no ticks: %s; trying on", topic, error)


def run(cluster: Cluster, feeds: Iterable[Feed], catalogue: Catalogue, sleep: Callable[[float], None]) -> NoReturn:
    """Let time pass in these feeds for ever, once a broker answers.

    A tick that is written twice, or not at all, does no harm, so its producer needs no id, and lets go of it in time.
    """
    producer = KafkaProducer(
        **cluster.kafka_python(),
        acks="all",
        enable_idempotence=False,
        linger_ms=LINGER_MS,
        allow_auto_create_topics=False,
        max_block_ms=MISSING_MS,
        reconnect_backoff_max_ms=RECONNECT_MS,
    )
    with closing(producer):
        Clock(producer, feeds, catalogue).run(sleep)


def standing_still(cluster: Cluster, feeds: Iterable[Feed], now_ms: int) -> list[str]:
    """The topics in which time should pass and does not: to a partition nothing has come for a while, not even a tick.

    Raises
    ------
    KafkaError
        The brokers do not say.
    """
    topics = list(ticking(feeds))
    if not topics:
        return []
    with closing(new_admin(cluster, bootstrap_timeout_ms=3000)) as admin:
        places, unobserved = leaders(topics, admin.describe_topics(topics))
        newest = admin.list_partition_offsets(dict.fromkeys(places, OffsetSpec.MAX_TIMESTAMP)) if places else {}
    still = {one.topic for one in unobserved}
    still |= {place.topic for place, at in newest.items() if at.timestamp < now_ms - milliseconds(STILL)}
    return [topic for topic in topics if topic in still]

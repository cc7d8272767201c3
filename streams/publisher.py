"""Publishing records of a feed: validated, pseudonymised, acknowledged one by one."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

from kafka import KafkaProducer
from kafka.errors import IllegalStateError, KafkaTimeoutError
from kafka.producer.future import RecordMetadata

from schemas.catalogue import Catalogue, FrozenSchema
from schemas.feed import Feed
from schemas.fields import Record
from schemas.pseudonyms import replaced
from schemas.record_codec import encode
from streams.cluster import Cluster
from streams.feed_topics import feed_topics
from streams.topics import MAX_BATCH, states, wait_for_kafka
from streams.waiting import CLIENTS, KAFKA

#: Records sent and not yet acknowledged; beyond it ``publish`` waits.
IN_FLIGHT = 20_000

#: How long a publisher that is told to end waits for Kafka to take what is on its way.
STOP_SECONDS = 4.0
#: How long one that begins waits for a broker that answers.
START_PATIENCE = timedelta(seconds=10)
#: Longest pause between two attempts to reach a broker.
RECONNECT_MS = 5_000
#: How long a record waits for others of its partition: broker and workers pay for a batch, hardly for a record in it.
LINGER_MS = 100

#: Hears where a record is in the log, once all replicas have it, or the error.
OnResult = Callable[[RecordMetadata | Exception], None]


class Producer(KafkaProducer):
    """An idempotent producer that waits for all replicas, and for brokers that are away as long as it takes.

    A record never expires: kafka-python 3.0.12 drops its producer id with one that does, asks for no other (its
    state says that it has one), and then sends nothing more, for ever.
    """

    def __init__(self, cluster: Cluster, **settings: Any) -> None:
        super().__init__(
            **cluster.kafka_python(),
            acks="all",
            enable_idempotence=True,
            compression_type="lz4",
            linger_ms=LINGER_MS,
            batch_size=256 * 1024,
            max_request_size=MAX_BATCH,
            allow_auto_create_topics=False,
            delivery_timeout_ms=math.inf,
            reconnect_backoff_max_ms=RECONNECT_MS,
            **settings,
        )

    def close(self, timeout: float = STOP_SECONDS, null_logger: bool = False) -> None:
        """Let go of Kafka; what it has not taken after ``timeout`` seconds fails."""
        try:
            super().close(timeout, null_logger)
        except KafkaTimeoutError:
            self._sender.force_close()
            self._sender.join(STOP_SECONDS)


def topic_for(feed: Feed) -> str:
    """The topic that records of a feed are published to."""
    return [*feed_topics(feed)][-1]


class Publisher:
    """Sends records of one feed; use as a context manager, leaving it without an error waits for the last
    acknowledgement.

    ``pseudonym_key`` is that of the feed's department; a feed without personal fields needs none.
    """

    def __init__(self, producer: KafkaProducer, feed: Feed, frozen: FrozenSchema, pseudonym_key: bytes | None) -> None:
        self.producer = producer
        self._feed = feed
        self._frozen = frozen
        self._key = pseudonym_key
        self.topic = topic_for(feed)
        personal = [field.name for field in feed.fields if field.personal]
        if personal and not pseudonym_key:
            raise ValueError(f"{feed.name} has personal fields ({', '.join(personal)}); set a pseudonym key")
        self._slots = threading.BoundedSemaphore(IN_FLIGHT)
        self.acknowledged = 0
        self.failed = 0

    def publish(self, record: Record, on_result: OnResult | None = None) -> None:
        """Send one record."""
        self.send(*self.encode(record), on_result)

    def encode(self, record: Record) -> tuple[bytes, bytes]:
        """Key and value of a record as they are sent, personal values replaced by their pseudonyms."""
        values = record.model_dump()
        if self._key:
            values = replaced(self._feed, self._key, values)
        return values[self._feed.key].encode(), encode(self._frozen, values)

    def send(self, key: bytes | None, value: bytes | None, on_result: OnResult | None = None) -> None:
        """Send bytes as they are; to a producer that was closed meanwhile they are one of the failed."""
        self._slots.acquire()
        try:
            future = self.producer.send(self.topic, key=key, value=value)
        except IllegalStateError as closed:
            self._failed(on_result, closed)
            return
        future.add_callback(self._acknowledged, on_result)
        future.add_errback(self._failed, on_result)

    def _acknowledged(self, on_result: OnResult | None, place: RecordMetadata) -> None:
        self.acknowledged += 1
        KAFKA.end(CLIENTS)
        self._done(on_result, place)

    def _failed(self, on_result: OnResult | None, error: Exception) -> None:
        self.failed += 1
        self._done(on_result, error)

    def _done(self, on_result: OnResult | None, result: RecordMetadata | Exception) -> None:
        self._slots.release()
        if on_result:
            on_result(result)

    def send_tick(self, tick: bytes) -> None:
        """Send a tick's value to every partition and wait until all have it.

        Raises
        ------
        KafkaError
            Not every partition has it.
        """
        partitions = sorted(self.producer.partitions_for(self.topic))
        for sent in [self.producer.send(self.topic, value=tick, partition=number) for number in partitions]:
            sent.get()

    def flush(self) -> None:
        """Wait until every record sent so far is acknowledged or has failed."""
        self.producer.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.flush()


@contextmanager
def publishers(
    cluster: Cluster,
    feeds: Collection[Feed],
    catalogue: Catalogue,
    keys: Mapping[str, bytes | None],
    say: Callable[[str], None],
    *topics: str,
) -> Iterator[dict[str, Publisher]]:
    """A publisher for each feed by its name, over one producer; ``keys`` are the pseudonym keys, ``topics`` others that
    are written to.

    Raises
    ------
    KafkaError
        No broker answers.
    TopicProblem
        A topic does not exist.
    SchemaProblem
        A feed was never frozen.
    """
    wait_for_kafka(cluster, say, START_PATIENCE)
    states(cluster, [*(topic_for(feed) for feed in feeds), *topics])
    with closing(Producer(cluster)) as producer, ExitStack() as opened:
        yield {
            feed.name: opened.enter_context(Publisher(producer, feed, catalogue.latest(feed.name), keys[feed.name]))
            for feed in feeds
        }

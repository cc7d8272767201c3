"""Sending from inside a Faust worker: whole batches, every future awaited."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from typing import Any

from aiokafka.errors import KafkaError as AiokafkaError

from streams.deadletters import DeadLetter
from streams.wire.column_writer import Body
from streams.wire.record_batch import packed

log = logging.getLogger("citystream")

#: Bytes of a batch before compression at most. A request holds one of each partition, and has to fit with a broker.
LARGEST_BODY = 125_000


class Packed:
    """A finished record batch in the place of aiokafka's builder of one; may be sent again."""

    def __init__(self, body: Body) -> None:
        self._data = packed(body.data, body.count)
        self._count = body.count

    def record_count(self) -> int:
        return self._count

    def closed(self) -> bool:
        return True

    def size(self) -> int:
        return len(self._data)

    def _build(self) -> bytes:
        return self._data


async def send_unwaited(producer: Any, topic: str, records: Sequence[tuple[bytes, bytes]], what: str) -> None:
    """Send keys and values through a Faust producer and wait for no acknowledgement; what fails is logged as ``what``.

    Only for records whose next one makes up for a lost one.
    """

    def note(error: BaseException) -> None:
        log.warning("%s was not written (%s); the one before it stays", what, error)

    def check(sent: asyncio.Future[Any]) -> None:
        if not sent.cancelled() and (error := sent.exception()) is not None:
            note(error)

    try:
        for key, value in records:
            (await producer._ensure_producer().send(topic, key=key, value=value)).add_done_callback(check)
    except AiokafkaError as error:
        note(error)


def _appended(batch: Any, letter: DeadLetter) -> bool:
    """Whether a batch took a letter; an empty one takes any."""
    added = batch.append(timestamp=None, key=letter.key, value=letter.value, headers=letter.headers())
    return added is not None


class Sender:
    """Sends through a Faust producer and collects the futures; ``settle`` raises what failed."""

    def __init__(self, producer: Any) -> None:
        self._producer = producer._ensure_producer()
        self._pending: list[asyncio.Future[Any]] = []

    async def send_letters(self, topic: str, letters: Sequence[DeadLetter]) -> None:
        """Send dead letters to the topic's one partition, in order.

        In batches, as ``send`` of aiokafka takes no record with neither key nor value, and Kafka does.
        """
        batch = self._producer.create_batch()
        for letter in letters:
            while not _appended(batch, letter):
                await self._send_batch(batch, topic)
                batch = self._producer.create_batch()
        if batch.record_count():
            await self._send_batch(batch, topic)

    async def _send_batch(self, batch: Any, topic: str) -> None:
        self._pending.append(await self._producer.send_batch(batch, topic, partition=0))

    async def send_packed(self, topic: str, partition: int, batches: Iterable[Packed]) -> None:
        """Send batches of records to one partition, in order."""
        for batch in batches:
            self._pending.append(await self._producer.send_batch(batch, topic, partition=partition))

    async def send(self, topic: str, key: bytes, value: bytes) -> asyncio.Future[Any]:
        """Send a record to the partition of its key; the future has its offset."""
        sent: asyncio.Future[Any] = await self._producer.send(topic, key=key, value=value)
        self._pending.append(sent)
        return sent

    async def settle(self) -> None:
        """Wait for every acknowledgement; raises the first failure, which Faust would only log."""
        pending, self._pending = self._pending, []
        for result in await asyncio.gather(*pending, return_exceptions=True):
            if isinstance(result, BaseException):
                raise result

"""Sending from inside a Faust worker: whole batches, every future awaited."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from aiokafka.errors import KafkaError

from streams.deadletters import Headers

log = logging.getLogger("citystream")


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
    except KafkaError as error:
        note(error)


class Sender:
    """Sends through a Faust producer and collects the futures; ``settle`` raises what failed."""

    def __init__(self, producer: Any) -> None:
        self._producer = producer._ensure_producer()
        self._pending: list[asyncio.Future[Any]] = []

    async def send(self, topic: str, key: bytes | None, value: bytes | None, headers: Headers) -> None:
        """Send one record."""
        self._pending.append(await self._producer.send(topic, key=key, value=value, headers=headers))

    async def send_all(self, topic: str, partition: int, keys: Sequence[bytes], values: Sequence[bytes]) -> None:
        """Send records without headers to one partition, in order."""
        batch = self._producer.create_batch()
        for key, value in zip(keys, values, strict=True):
            if batch.append(key=key, value=value, timestamp=None) is None:
                self._pending.append(await self._producer.send_batch(batch, topic, partition=partition))
                batch = self._producer.create_batch()
                if batch.append(key=key, value=value, timestamp=None) is None:
                    raise ValueError(f"a record of {len(value)} bytes does not fit a batch of {topic}")
        if batch.record_count():
            self._pending.append(await self._producer.send_batch(batch, topic, partition=partition))

    async def settle(self) -> None:
        """Wait for every acknowledgement; raises the first failure, which Faust would only log."""
        pending, self._pending = self._pending, []
        for result in await asyncio.gather(*pending, return_exceptions=True):
            if isinstance(result, BaseException):
                raise result

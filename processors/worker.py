"""The processor: a Faust worker with one agent a feed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from datetime import timedelta

import polars as pl
from faust.types import TP
from tenacity import AsyncRetrying, before_sleep_log, retry_if_exception, wait_exponential

from processors.partition import Output, Partition
from schemas.catalogue import Catalogue
from schemas.feed import Aggregate, Feed
from schemas.writing import encode_rows
from streams import deadletters
from streams.decode import Decoder
from streams.producing import Sender
from streams.transport import Run, passes
from streams.worker import BatchApp, run

log = logging.getLogger("citystream")

GROUP = "processor"
#: Between the group keys in the key of an aggregate's record.
KEY_SEPARATOR = "\x1f"
FLUSH_EVERY = timedelta(seconds=1)


class Processor:
    """States of the assigned partitions and the rhythm of processing and flushing."""

    def __init__(
        self, app: BatchApp, feeds: Mapping[str, Feed], catalogue: Catalogue, *, accept_bad: bool = False
    ) -> None:
        self._app = app
        self._accept_bad = accept_bad
        self._feeds = feeds
        self._catalogue = catalogue
        self._decoders = {name: Decoder(catalogue, name, feed) for name, feed in feeds.items()}
        self._partitions: dict[TP, Partition] = {}
        self._state = asyncio.Lock()
        self._flushing = asyncio.Lock()
        for name in feeds:
            app.each_run(name, self.take)
        app.every(FLUSH_EVERY, self.flush)

    async def take(self, tp: TP, run: Run) -> None:
        """Process a run in the state that belongs to the partition's current assignment."""
        async with self._state:
            start = self._app.batch_consumer.resumed[tp]
            partition = self._partitions.get(tp)
            if partition is None or partition.start is not start:
                partition = Partition(
                    self._feeds[tp.topic], tp.partition, self._decoders[tp.topic], start, accept_bad=self._accept_bad
                )
                self._partitions[tp] = partition
            await asyncio.to_thread(partition.process, run)

    async def flush(self) -> None:
        """Write what changed, wait for every acknowledgement, then let the position be committed."""
        async with self._flushing:
            for tp, partition in list(self._partitions.items()):
                consumer = self._app.batch_consumer
                if consumer.resumed.get(tp) is not partition.start or tp not in consumer.assignment():
                    del self._partitions[tp]
                    continue
                async with self._state:
                    output = await asyncio.to_thread(partition.flush)
                if output is not None and await self._written(tp, partition, output):
                    consumer.flushed[tp] = output.position

    async def _written(self, tp: TP, partition: Partition, output: Output) -> bool:
        """Write until Kafka has it all; false if the partition was taken away meanwhile."""
        resumed = self._app.batch_consumer.resumed
        async for attempt in AsyncRetrying(
            retry=retry_if_exception(passes),
            wait=wait_exponential(min=1, max=30),
            stop=lambda _: resumed.get(tp) is not partition.start,
            before_sleep=before_sleep_log(log, logging.WARNING),
            retry_error_callback=lambda _: None,
        ):
            with attempt:
                await self._write(tp, output)
        return resumed.get(tp) is partition.start

    async def _write(self, tp: TP, output: Output) -> None:
        sender = Sender(self._app.producer)
        for aggregate in self._feeds[tp.topic].aggregates:
            keys, values = await asyncio.to_thread(self._encode, aggregate, output.parts[aggregate.name])
            await sender.send_all(aggregate.name, tp.partition, keys, values)
        for letter in output.dead:
            await sender.send(deadletters.TOPIC, letter.key, letter.value, letter.headers())
        await sender.settle()

    def _encode(self, aggregate: Aggregate, parts: pl.DataFrame) -> tuple[list[bytes], list[bytes]]:
        keys = parts.select(pl.concat_str(aggregate.by, separator=KEY_SEPARATOR).cast(pl.Binary)).to_series().to_list()
        return keys, encode_rows(self._catalogue.latest(aggregate.name), parts)


def main(
    feeds: Mapping[str, Feed],
    catalogue: Catalogue,
    bootstrap: str,
    instance: str | None = None,
    *,
    accept_bad: bool = False,
) -> None:
    """Process these feeds until a signal ends it; ``accept_bad`` goes on whatever the share of bad records."""
    app = BatchApp(GROUP, bootstrap, {name: feed.definition for name, feed in feeds.items()}, instance=instance)
    Processor(app, feeds, catalogue, accept_bad=accept_bad)
    run(app, feeds)

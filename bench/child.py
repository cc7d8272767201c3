"""One of the platform's workers under a stopwatch: from its first fetched run to its last acknowledged flush.

Usage: python -m bench.child processor|sink WORKERS
Starts when its group has so many members.
Prints one line of JSON (see ``bench.process.Timing``) once everything is flushed and committed, and ends.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sys
import time
from collections.abc import Mapping
from contextlib import closing
from threading import Lock
from typing import Any

from faust.types import TP
from kafka import KafkaAdminClient

from bench.process import FEED
from citystream.installation import Installation
from processors import GROUP as PROCESSOR
from processors import worker as processor
from sinks import worker as sink
from streams.batchworker import BatchWorker, Held
from streams.lag import LagMeter
from streams.runs import Run

#: How often it is looked whether what was flushed last is committed (s).
COMMITTED_EVERY = 0.1


class Stopwatch:
    """Starts with the first run; stops at the flush after which nothing is left to do, once that is committed."""

    def __init__(self, city: Installation, role: str, workers: int) -> None:
        self._city, self._role, self._workers = city, role, workers
        self._gate = Lock()
        self._meter = LagMeter(city.cluster)
        self._results = [a.topic for a in city.feeds[FEED].aggregates] if role == "sink" else []
        self._ends = self._measured([FEED])
        self._began: tuple[float, float] | None = None
        self._ended: tuple[float, float] | None = None

    def start(self) -> None:
        """Start, unless it runs; wait for the group's other members before."""
        with self._gate:
            if self._began is None:
                self._wait_for_members()
                self._began = time.monotonic(), time.process_time()

    def _wait_for_members(self) -> None:
        if self._workers == 1:
            return
        with closing(KafkaAdminClient(**self._city.cluster.kafka_python())) as admin:
            while True:
                group = admin.describe_groups([self._role])[self._role]
                if group["group_state"] == "Stable" and len(group["members"]) == self._workers:
                    return
                time.sleep(0.1)

    def check(self, consumer: Any) -> None:
        """Report and end the process if everything assigned to it is flushed and committed."""
        if self._began is None or not self._done(consumer, self._ends):
            return
        now = time.monotonic(), time.process_time()
        ends = self._ends | self._measured(self._results)
        if not self._done(consumer, ends):
            self._ended = None
            return
        self._ended = self._ended or now
        if self._processor_works() or any(
            consumer.committed.get(tp, 0) < ends.get(tp, 0) for tp in consumer.assignment()
        ):
            return
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        timing = {"began": self._began[0], "ended": self._ended[0], "cpu_seconds": self._ended[1] - self._began[1],
                  "peak_rss_mb": peak}  # fmt: skip
        print(json.dumps(timing), flush=True)
        os._exit(0)

    @property
    def stopped(self) -> bool:
        """Whether all is flushed, and perhaps not committed."""
        return self._ended is not None

    def _measured(self, topics: list[str]) -> dict[TP, int]:
        found = self._meter.measure(PROCESSOR, topics, waiting=False) if topics else []
        return {TP(p.topic, p.partition): p.end for p in found}

    def _done(self, consumer: Any, ends: Mapping[TP, int]) -> bool:
        flushed = {tp: p.processed for tp, p in consumer.flushed.items()}
        assigned = [tp for tp in consumer.assignment() if tp in ends]
        return all(flushed.get(tp, consumer.committed.get(tp, 0)) >= ends[tp] for tp in assigned)

    def _processor_works(self) -> bool:
        """A sink is done only after the processor."""
        waiting = self._meter.measure(PROCESSOR, [FEED], waiting=False) if self._results else []
        return any(p.records for p in waiting)


def _put_under(watch: Stopwatch, worker: type[BatchWorker[Any, Any]]) -> None:
    take, flush = worker.take, worker.flush

    def timed_take(self: BatchWorker[Any, Any], state: Any, run: Run, read: Any) -> None:
        watch.start()
        take(self, state, run, read)

    async def timed_flush(self: BatchWorker[Any, Any], held: Mapping[TP, Held[Any]]) -> None:
        await flush(self, held)
        watch.check(self.app.batch_consumer)
        while watch.stopped:
            await asyncio.sleep(COMMITTED_EVERY)
            watch.check(self.app.batch_consumer)

    worker.take, worker.flush = timed_take, timed_flush  # type: ignore[method-assign]


def main(role: str, workers: int) -> None:
    """Work until nothing is left to do."""
    city = Installation.load()
    feeds = city.choose([FEED])
    watch = Stopwatch(city, role, workers)
    if role == "processor":
        _put_under(watch, processor.Processor)
        processor.main(feeds, city.catalogue, city.cluster)
    else:
        _put_under(watch, sink.Sink)
        sink.main(
            feeds,
            city.catalogue,
            city.cluster,
            city.server("sink"),
            city.settings.timezone,
            processor=PROCESSOR,
        )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))

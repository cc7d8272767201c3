"""One of the platform's workers under a stopwatch: from its first fetched run to its last acknowledged flush.

Usage: python -m bench.child processor|sink
Prints one line of JSON (see ``bench.process.Timing``) once everything is flushed and committed, and ends.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from typing import Any

from bench.process import FEED
from citystream.installation import Installation
from processors import worker as processor
from sinks import worker as sink
from streams.lag import LagMeter
from streams.transport import Run


class Stopwatch:
    """Starts with the first run; stops at the flush after which nothing is left to do."""

    def __init__(self, city: Installation, role: str) -> None:
        self._meter = LagMeter(city.bootstrap)
        self._role = role
        self._topics = [FEED] + ([a.name for a in city.feeds[FEED].aggregates] if role == "sink" else [])
        self._began: tuple[float, float] | None = None
        self._ended: tuple[float, float] | None = None

    def start(self) -> None:
        """Start, unless it runs."""
        if self._began is None:
            self._began = time.monotonic(), time.process_time()

    def check(self, consumer: Any) -> None:
        """Report and end the process if everything assigned to it is flushed and committed."""
        if self._began is None:
            return
        now = time.monotonic(), time.process_time()
        ends = {
            tp: p.end
            for p in self._meter.measure(processor.GROUP, self._topics, waiting=False)
            for tp in consumer.assignment()
            if (tp.topic, tp.partition) == (p.topic, p.partition)
        }
        done = {tp: p.processed if (p := consumer.flushed.get(tp)) else consumer.committed.get(tp, 0) for tp in ends}
        if any(done[tp] < end for tp, end in ends.items()):
            self._ended = None
            return
        self._ended = self._ended or now
        if self._others_work() or any(consumer.committed.get(tp, 0) < end for tp, end in ends.items()):
            return
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        timing = {"began": self._began[0], "ended": self._ended[0], "cpu_seconds": self._ended[1] - self._began[1],
                  "peak_rss_mb": peak}  # fmt: skip
        print(json.dumps(timing), flush=True)
        os._exit(0)

    def _others_work(self) -> bool:
        """A sink is done only after the processor."""
        waiting = self._meter.measure(processor.GROUP, [FEED], waiting=False) if self._role == "sink" else []
        return any(p.records for p in waiting)


def _put_under(watch: Stopwatch, worker: type[Any]) -> None:
    take, flush = worker.take, worker.flush

    async def timed_take(self: Any, tp: Any, run: Run) -> None:
        watch.start()
        await take(self, tp, run)

    async def timed_flush(self: Any) -> None:
        await flush(self)
        watch.check(self._app.batch_consumer)

    worker.take, worker.flush = timed_take, timed_flush


def main(role: str) -> None:
    """Work until nothing is left to do."""
    city = Installation.load()
    feeds = city.choose([FEED])
    watch = Stopwatch(city, role)
    if role == "processor":
        _put_under(watch, processor.Processor)
        processor.main(feeds, city.catalogue, city.bootstrap)
    else:
        _put_under(watch, sink.Sink)
        sink.main(feeds, city.catalogue, city.bootstrap, city.server("sink"), city.settings.timezone)


if __name__ == "__main__":
    main(sys.argv[1])

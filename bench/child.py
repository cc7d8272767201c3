"""One of the platform's workers under a stopwatch: from its first fetched run to its last acknowledged flush.

Usage: python -m bench.child processor|sink
Prints a line of JSON: seconds, cpu_seconds, peak_rss_mb; then ends.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from typing import Any

from citystream.installation import Installation
from processors import worker as processor
from sinks import worker as sink
from streams.lag import measure
from streams.transport import Run


class Stopwatch:
    """Runs from the first record to the moment every partition is flushed up to its end."""

    def __init__(self, ends: dict[tuple[str, int], int]) -> None:
        self._ends = {tp: end for tp, end in ends.items() if end}
        self._began: tuple[float, float] | None = None

    def start(self) -> None:
        """Start, unless it runs."""
        if self._began is None:
            self._began = time.monotonic(), time.process_time()

    def check(self, flushed: dict[Any, Any]) -> None:
        """Report and end the process if everything is flushed."""
        if self._began is None or not self._ends:
            return
        if all(tp in flushed and flushed[tp].processed >= end for tp, end in self._ends.items()):
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(
                json.dumps(
                    {
                        "began": self._began[0],
                        "ended": time.monotonic(),
                        "cpu_seconds": time.process_time() - self._began[1],
                        "peak_rss_mb": round(peak),
                    }
                ),
                flush=True,
            )
            os._exit(0)


def _time(worker: type[Any], watch: Stopwatch) -> None:
    take, flush = worker.take, worker.flush

    async def timed_take(self: Any, tp: Any, run: Run) -> None:
        watch.start()
        await take(self, tp, run)

    async def timed_flush(self: Any) -> None:
        await flush(self)
        watch.check(self._app.batch_consumer.flushed)

    worker.take, worker.flush = timed_take, timed_flush


def main(role: str) -> None:
    """Run until the feed's topic is worked off."""
    city = Installation.load()
    feeds = city.choose(["traffic_flow"])
    watched = ["traffic_flow"]
    ends = {(p.topic, p.partition): p.end for p in measure(city.bootstrap, "none", watched)}
    watch = Stopwatch(ends)
    if role == "processor":
        _time(processor.Processor, watch)
        processor.main(feeds, city.catalogue, city.bootstrap)
    else:
        _time(sink.Sink, watch)
        sink.main(feeds, city.catalogue, city.bootstrap, city.server("sink"), city.settings.timezone)


if __name__ == "__main__":
    main(sys.argv[1])

"""One of the platform's workers under a stopwatch: from its first fetched run to its last acknowledged flush.

Usage: python -m bench.child processor|sink WORKERS
Starts when its group has so many members.
Prints one line of JSON (see ``bench.process.Timing``) once everything is flushed and committed, and ends.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Mapping
from contextlib import closing
from threading import Event, Thread

from bench.process import FEED
from citystream.installation import Installation
from processors import GROUP as PROCESSOR
from processors import worker as processor
from sinks import worker as sink
from streams.assignment import TopicPartition
from streams.clients import new_admin
from streams.lag import LagMeter
from streams.lifecycle import Moment, Stage, listen

#: How often it is looked whether nothing is left to do (s).
LOOK_EVERY = 0.1


class Stopwatch:
    """Starts with the first run; stops at the flush after which nothing is left to do, once that is committed."""

    def __init__(self, city: Installation, role: str, workers: int) -> None:
        self._city, self._role, self._workers = city, role, workers
        self._meter = LagMeter(city.cluster)
        self._results = [a.topic for a in city.feeds[FEED].aggregates] if role == "sink" else []
        self._ends = self._measured([FEED])
        self._began: tuple[float, float] | None = None
        self._flushed: tuple[float, float] | None = None
        self._committed: dict[TopicPartition, int] = {}
        self._news = Event()
        Thread(target=self._watch, daemon=True).start()

    def hear(self, moment: Moment) -> None:
        """Note when it began, when something was flushed last, and how far it is committed."""
        if moment.stage is Stage.DECODED and self._began is None:
            self._wait_for_members()
            self._began = time.monotonic(), time.process_time()
        elif moment.stage is Stage.FLUSHED:
            self._flushed = time.monotonic(), time.process_time()
        elif moment.place is not None and moment.stage in (Stage.ASSIGNED, Stage.COMMITTED):
            self._committed[moment.place] = moment.next
            self._news.set()

    def _wait_for_members(self) -> None:
        if self._workers == 1:
            return
        with closing(new_admin(self._city.cluster)) as admin:
            while True:
                group = admin.describe_groups([self._role])[self._role]
                if group["group_state"] == "Stable" and len(group["members"]) == self._workers:
                    return
                time.sleep(LOOK_EVERY)

    def _watch(self) -> None:
        """Report and end the process when everything assigned to it is committed."""
        while True:
            self._news.wait()
            self._news.clear()
            while self._began is not None and self._flushed is not None and self._done(self._ends):
                if not self._processor_works() and self._done(self._ends | self._measured(self._results)):
                    self._report(self._began, self._flushed)
                time.sleep(LOOK_EVERY)

    def _report(self, began: tuple[float, float], ended: tuple[float, float]) -> None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        timing = {"began": began[0], "ended": ended[0], "cpu_seconds": ended[1] - began[1], "peak_rss_mb": peak}
        print(json.dumps(timing), flush=True)
        os._exit(0)

    def _measured(self, topics: list[str]) -> dict[TopicPartition, int]:
        found = self._meter.measure(PROCESSOR, topics, waiting=False) if topics else []
        return {TopicPartition(p.topic, p.partition): p.end for p in found}

    def _done(self, ends: Mapping[TopicPartition, int]) -> bool:
        return all(at >= ends.get(place, 0) for place, at in [*self._committed.items()])

    def _processor_works(self) -> bool:
        """A sink is done only after the processor."""
        waiting = self._meter.measure(PROCESSOR, [FEED], waiting=False) if self._results else []
        return any(p.records for p in waiting)


def main(role: str, workers: int) -> None:
    """Work until nothing is left to do."""
    city = Installation.load()
    feeds = city.choose([FEED])
    listen(Stopwatch(city, role, workers).hear)
    if role == "processor":
        processor.main(feeds, city.catalogue, city.cluster)
    else:
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

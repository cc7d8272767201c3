"""Waiting until the sink has stored what was published so far."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from datetime import timedelta

from sinks import GROUP
from streams.cluster import Cluster
from streams.lag import LagMeter

LOOK_EVERY = timedelta(milliseconds=200)
#: How long nothing may move.
PATIENCE = timedelta(seconds=30)


class SinkBehind(Exception):
    """The sink does not store what was published; the message says what to do."""


def await_sink(cluster: Cluster, topics: Iterable[str], say: Callable[[int, int], None]) -> None:
    """Wait until the sink has stored all that is in these topics now; ``say`` hears how many of how many records.

    Raises
    ------
    SinkBehind
        It stores nothing for ``PATIENCE``.
    """
    names = list(topics)
    with LagMeter(cluster) as meter:
        log = meter.measure(GROUP, names, waiting=False)
        ends = {(p.topic, p.partition): p.end for p in log}
        total = left = sum(p.records for p in log)
        moved = time.monotonic()
        while left:
            time.sleep(LOOK_EVERY.total_seconds())
            log = meter.measure(GROUP, names, waiting=False)
            now = sum(max(0, ends.get((p.topic, p.partition), 0) - p.committed) for p in log)
            if now < left:
                moved = time.monotonic()
            elif time.monotonic() - moved > PATIENCE.total_seconds():
                raise SinkBehind(
                    f"the sink has not yet stored {left:,} records of {', '.join(names)}, among which may be what an "
                    "interrupted redrive published; start it (citystream sink), then try again"
                )
            left = now
            say(total - left, total)

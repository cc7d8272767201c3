"""A worker that kills itself at a given moment, and one that works by rules broken on purpose.

Usage: python -m tests.campaign.worker [--moment MOMENT --count N] [--broken RULE] WORD...   the words of a command

MOMENT is one of ``MOMENTS``: the process is killed with -9 when it comes there for the N-th time. RULE is one of
``BROKEN``.
"""

from __future__ import annotations

import argparse
import inspect
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from citystream import cli
from processors.partition import Partition
from processors.worker import Change, Processor
from sinks.clickhouse import Writer
from sinks.worker import Sink
from streams.producing import Sender
from streams.transport import Consumer, ConsumerThread

#: What a worker says when it comes to the moment it is to die at.
DYING = "dies now, as it was told to"
#: Where a worker dies: class, method, and whether before or after it.
MOMENTS: dict[str, tuple[type[Any], str, str]] = {
    "started": (Consumer, "perform_seek", "before"),
    "assigned": (Consumer, "perform_seek", "after"),
    "revoked": (Consumer, "on_partitions_revoked", "before"),
    "replaying or processing": (Partition, "take", "before"),
    "parts half sent": (Sender, "settle", "before"),
    "flushed, not committed": (ConsumerThread, "_commit", "before"),
    "committed, no checkpoint": (ConsumerThread, "_commit", "after"),
    "rows not sent": (Writer, "_execute", "before"),
    "acknowledged, not committed": (Writer, "_execute", "after"),
}


def die(moment: str, count: int) -> None:
    """Make the present process die there."""
    owner, name, when = MOMENTS[moment]
    original = getattr(owner, name)
    left = [count]

    def pass_by(here: str, *words: Any) -> None:
        if here == when and (moment != "revoked" or words[1]):  # the first one comes before any partition was given
            left[0] -= 1
            if left[0] == 0:
                os.write(sys.stderr.fileno(), f"{DYING}\n".encode())
                os.kill(os.getpid(), signal.SIGKILL)

    def plain(*words: Any, **more: Any) -> Any:
        pass_by("before", *words)
        result = original(*words, **more)
        pass_by("after")
        return result

    async def awaited(*words: Any, **more: Any) -> Any:
        pass_by("before", *words)
        result = await original(*words, **more)
        pass_by("after")
        return result

    setattr(owner, name, awaited if inspect.iscoroutinefunction(original) else plain)


def commit_before_flush() -> None:
    """A processor lets its position be committed before what it writes is acknowledged."""
    written = Processor._written

    async def early(self: Processor, held: Any, changes: dict[Any, Change]) -> None:
        for tp, change in changes.items():
            self.app.batch_consumer.flushed[tp] = change.position
        await self.app.batch_consumer.commit(set(changes))
        await written(self, held, changes)

    Processor._written = early  # type: ignore[method-assign]


def commit_before_insert() -> None:
    """A sink lets its positions be committed before ClickHouse has the rows."""
    flush = Sink.flush

    async def early(self: Sink, held: Any) -> None:
        for tp, reading in held.items():
            if self.keeps(tp, reading):
                self.app.batch_consumer.flushed[tp] = reading.state.position
        await self.app.batch_consumer.commit(set(held))
        await flush(self, held)

    Sink.flush = early  # type: ignore[method-assign]


def rewind_to_processed() -> None:
    """A processor goes on from where it was, without the records its open windows began with."""
    position = Partition._position

    def shortened(self: Partition) -> Any:
        whole = position(self)
        return whole.__class__(**{**whole.__dict__, "rewind": whole.processed, "max_event_ms": whole.max_processed_ms})

    Partition._position = shortened  # type: ignore[method-assign]


BROKEN: dict[str, Callable[[], None]] = {
    "commit-before-flush": commit_before_flush,
    "commit-before-insert": commit_before_insert,
    "rewind-to-processed": rewind_to_processed,
}


def main() -> None:
    """Prepare, then be that command."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--moment", choices=MOMENTS)
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--broken", choices=BROKEN)
    parser.add_argument("words", nargs=argparse.REMAINDER)
    chosen = parser.parse_args()
    if chosen.broken:
        BROKEN[chosen.broken]()
    if chosen.moment:
        die(chosen.moment, chosen.count)
    sys.argv = ["citystream", *chosen.words]
    cli.main()


if __name__ == "__main__":
    main()

"""A worker that kills itself at a given moment, and one that works by rules broken on purpose.

Usage: python -m tests.campaign.worker [--moment MOMENT --count N] [--broken RULE] WORD...   the words of a command

MOMENT is one of ``MOMENTS``: the process is killed with -9 when it comes there for the N-th time. RULE is one of
``BROKEN``.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, cast

from citystream import cli
from processors.partition import Partition
from processors.worker import Change, Processor
from sinks.worker import Sink
from streams.lifecycle import Moment, Stage, listen
from streams.transport.app import BatchApp

#: What a worker says when it comes to the moment it is to die at.
DYING = "dies now, as it was told to"
#: When a worker dies.
MOMENTS = {
    "started": Stage.ASSIGNING,
    "assigned": Stage.ASSIGNED,
    "revoked": Stage.REVOKING,
    "replaying or processing": Stage.DECODED,
    "parts half sent": Stage.SENT,
    "flushed, not committed": Stage.COMMITTING,
    "committed, no checkpoint": Stage.COMMITTED,
    "rows not sent": Stage.INSERTING,
    "acknowledged, not committed": Stage.INSERTED,
}


def die(moment: str, count: int) -> None:
    """Make the present process die when it comes there for the given time."""
    left = [count]

    def hear(told: Moment) -> None:
        if told.stage is MOMENTS[moment]:
            left[0] -= 1
            if left[0] == 0:
                os.write(sys.stderr.fileno(), f"{DYING}\n".encode())
                os.kill(os.getpid(), signal.SIGKILL)

    listen(hear)


def commit_before_flush() -> None:
    """A processor lets its position be committed before what it writes is acknowledged."""
    written = Processor._written

    async def early(self: Processor, changes: dict[Any, Change]) -> None:
        for one, change in changes.items():
            one.flushed = change.position
        await cast("BatchApp", self.transport).batch_consumer.commit()
        await written(self, changes)

    Processor._written = early  # type: ignore[method-assign]


def commit_before_insert() -> None:
    """A sink lets its positions be committed before ClickHouse has the rows."""
    flush = Sink.flush

    async def early(self: Sink, assigned: Any) -> None:
        for one in assigned:
            if one.begun:
                one.flushed = one.state.position
        await cast("BatchApp", self.transport).batch_consumer.commit()
        await flush(self, assigned)

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

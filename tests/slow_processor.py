"""The processor with small fetches, each taken as it comes and slowly in its replay, that says where it is: so a test
can meet it in the middle.

It says ``replays`` of a run before the processed offset and ``straddles`` of one around it.
"""

from __future__ import annotations

import time
from typing import Any

from citystream.cli import main
from processors.partition import Partition, Read
from processors.worker import Processor
from streams import batchworker, runs
from streams.runs import Run
from streams.transport import ConsumerThread

FETCHED = 64 * 1024
#: Records of a run at most: enough for several batches, of which one may end at the processed offset.
LONGEST = 500
#: A run of the replay takes this long, so that a replay goes on over several flushes and commits; in s.
PAUSE = 0.1

create, take = ConsumerThread._create_worker_consumer, Processor.take


def create_with_small_fetches(self: ConsumerThread, transport: Any) -> Any:
    """A consumer that fetches little at once."""
    consumer = create(self, transport)
    consumer._max_partition_fetch_bytes = FETCHED
    return consumer


def take_slowly(self: Processor, state: Partition, run: Run, read: Read) -> None:
    """Say where a run lies, and wait."""
    processed = state.start.processed
    if run.start < processed:
        word = "straddles" if run.next > processed else "replays"
        print(f"{word} {run.topic}/{run.partition}: {run.start} to {run.next}, processed {processed}", flush=True)
        time.sleep(PAUSE)
    take(self, state, run, read)


if __name__ == "__main__":
    ConsumerThread._create_worker_consumer = create_with_small_fetches  # type: ignore[method-assign]
    Processor.take = take_slowly  # type: ignore[method-assign]
    batchworker.AT_ONCE, runs.LONGEST_RUN = 1, LONGEST
    main()

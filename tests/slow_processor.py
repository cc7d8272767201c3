"""The processor with small fetches, each taken as it comes and slowly in its replay, that says where it is: so a test
can meet it in the middle.

It says ``replays`` of a run before the processed offset and ``straddles`` of one around it.
"""

from __future__ import annotations

import time

from citystream.cli import main
from streams import batchworker
from streams.assignment import TopicPartition
from streams.lifecycle import Moment, Stage, listen
from streams.transport import app
from streams.wire import fetched_batches

#: Records of a run at most: enough for several batches, of which one may end at the processed offset.
LONGEST = 500
#: A run of the replay takes this long, so that a replay goes on over several flushes and commits; in s.
PAUSE = 0.1

processed: dict[TopicPartition, int] = {}


def hear(moment: Moment) -> None:
    """Say where a run lies that is about to be taken, and wait."""
    if moment.place is None:
        return
    if moment.stage is Stage.ASSIGNED:
        processed[moment.place] = moment.next
    elif moment.stage is Stage.DECODED and moment.start < (reached := processed[moment.place]):
        word = "straddles" if moment.next > reached else "replays"
        print(f"{word} {moment.place}: {moment.start} to {moment.next}, processed {reached}", flush=True)
        time.sleep(PAUSE)


if __name__ == "__main__":
    listen(hear)
    app.PARTITION_FETCH_BYTES, batchworker.AT_ONCE_BYTES, fetched_batches.LONGEST_RUN = 64 * 1024, 1, LONGEST
    main()

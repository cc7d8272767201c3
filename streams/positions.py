"""Positions of a worker in a partition, and how they survive it.

The *processed* offset is committed as such, so every lag tool shows the truth. The *rewind* offset is where a
restarted worker reads again from to rebuild its open windows. The commit's metadata carries it, with what the log
before it determines: the running maximum of event time.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

NO_EVENT_TIME = -(2**63)


class Stop(RuntimeError):
    """A worker must not go on by itself; the message names the choice to make."""


class PositionProblem(Stop):
    """A position cannot be trusted."""


class LogGap(Stop):
    """Offsets are missing between two runs, which the log does not explain."""


@dataclass(frozen=True)
class Position:
    """Where a worker stands in one partition.

    ``max_event_ms`` is the running maximum of event time over the valid records before ``rewind``, and ``bad`` how many
    records before it are bad in the block of offsets it lies in.
    """

    processed: int
    rewind: int
    max_event_ms: int
    topic_id: str
    definition: str
    bad: int = 0

    def metadata(self) -> str:
        """The commit's metadata string."""
        return json.dumps(
            {
                "rewind": self.rewind,
                "max_event_ms": self.max_event_ms,
                "topic": self.topic_id,
                "def": self.definition,
                "bad": self.bad,
            },
            separators=(",", ":"),
        )


def first(topic_id: str, definition: str, log_start: int) -> Position:
    """The position of a group that never committed."""
    return Position(log_start, log_start, NO_EVENT_TIME, topic_id, definition)


def resume(
    worker: str,
    topic: str,
    partition: int,
    committed: int | None,
    metadata: str,
    *,
    topic_id: str,
    definition: str,
    log_start: int,
) -> Position:
    """The position to go on from after an assignment.

    Raises
    ------
    PositionProblem
        Metadata is missing or speaks of another topic or definition, or the log no longer reaches back to the rewind:
        a window rebuilt from its middle would replace a whole one, so nothing is guessed.
    """
    where = f"{worker} in {topic}/{partition}"
    if committed is None or committed < 0:
        return first(topic_id, definition, log_start)
    choice = f"stop the workers, then run: citystream positions reset {worker} {topic}"
    try:
        fields = json.loads(metadata)
        position = Position(
            committed,
            int(fields["rewind"]),
            int(fields["max_event_ms"]),
            fields["topic"],
            fields["def"],
            int(fields["bad"]),
        )
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise PositionProblem(f"{where}: the commit at {committed} carries no position; {choice}") from error
    if position.rewind > committed:
        raise PositionProblem(
            f"{where}: the commit at {committed} is before its rewind offset {position.rewind}; {choice}"
        )
    if position.topic_id != topic_id:
        raise PositionProblem(f"{where}: the topic was deleted and created again; {choice}")
    if position.definition != definition:
        raise PositionProblem(
            f"{where}: the feed's definition changed since the last commit; go on with the old "
            "one and give the changed feed or aggregate a new name, or start over where nothing is worth keeping"
        )
    if position.rewind < log_start:
        raise PositionProblem(
            f"{where}: the log starts at {log_start}, after the rewind offset {position.rewind}; {choice}"
        )
    return position

"""The moments in the life of what a worker reads, told to whoever listens: metrics, benches, staged faults.

Nothing follows from them: a listener sees what happens and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from streams.assignment import TopicPartition


class Stage(StrEnum):
    """What has just happened, unless its name says that it is about to."""

    ASSIGNING = "assigning"
    ASSIGNED = "assigned"
    REVOKING = "revoking"
    FETCHED = "fetched"
    DECODED = "decoded"
    PROCESSED = "processed"
    SENT = "sent"
    FLUSHED = "flushed"
    COMMITTING = "committing"
    COMMITTED = "committed"
    INSERTING = "inserting"
    INSERTED = "inserted"


@dataclass(frozen=True)
class Moment:
    """A stage that the offsets from ``start`` up to ``next`` of a partition came to, or rows of a table.

    An assigned partition is read from ``start`` on and was processed up to ``next``. ``place`` is None where several
    partitions come to a stage together.
    """

    stage: Stage
    place: TopicPartition | None = None
    start: int = 0
    next: int = 0
    table: str = ""
    rows: int = 0


Listener = Callable[[Moment], None]
_listeners: list[Listener] = []


def listen(listener: Listener) -> None:
    """Let a listener hear every moment of this process, in the thread in which it comes; it must return soon."""
    _listeners.append(listener)


def tell(moment: Moment) -> None:
    """Tell all listeners."""
    for listener in _listeners:
        listener(moment)

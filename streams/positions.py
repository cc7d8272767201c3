"""Positions of a worker in a partition, and how a commit's metadata carries them.

The *processed* offset is committed as such, so every lag tool shows the truth. The *rewind* offset is where a
restarted worker reads again from to rebuild its open windows. The commit's metadata carries it, with what the log
before it determines: the running maximum of event time. A checkpoint is the same position, kept elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from schemas.before import renewed
from schemas.persisted import Newer, check_version
from streams.ending import EX_CONFIG, Stop

#: Of what a commit's metadata holds. Positions of version 1 say none, and have other fingerprints of records.
VERSION = 2
NO_EVENT_TIME = -(2**63)
#: Characters of why a worker does not go on, of three bytes each: a commit's metadata has no room for more.
LONGEST_REASON = 500


class PositionProblem(Stop):
    """A position cannot be trusted."""

    code = EX_CONFIG


class LogGap(Stop):
    """Offsets are missing between two runs, which the log does not explain."""


class Snapshot(NamedTuple):
    """The offset of a snapshot on its own topic, and the offset before which everything is in it."""

    offset: int
    processed: int


@dataclass(frozen=True)
class Position:
    """Where a worker stands in one partition.

    ``max_event_ms`` is the running maximum of event time over the valid records before ``rewind``,
    ``max_processed_ms`` the one before ``processed``, ``ticks`` how many ticks lie before ``rewind``, and ``bad`` how
    many records before it are bad in the block it lies in. ``since`` is the offset from which on this life of the
    partition counts: 0 until a position is frozen; an earlier life counted what comes before it.

    Whether a schema's files are there is the one thing about a record that the log does not say, so a processor's
    position does: ``given_up`` are the schema ids it gave up, each with the offset up to which what names it is dead,
    and ``newest_schema`` is the newest id it knew.

    ``snapshot`` is where the state of the rules is kept at an offset that is not behind ``processed``; what it needs is
    read again from ``rewind``.

    ``paused`` says why the worker does not go on there, while it does not: for people, nothing follows from it.
    """

    processed: int
    rewind: int
    max_event_ms: int
    topic_id: str
    definition: str
    bad: int = 0
    max_processed_ms: int = NO_EVENT_TIME
    since: int = 0
    given_up: Mapping[int, int] = field(default_factory=dict)
    newest_schema: int = 0
    paused: str = ""
    snapshot: Snapshot | None = None
    ticks: int = 0

    def renewed(self, definition: str) -> Position:
        """The same, with this definition where the release before wrote the same one in its own way."""
        return replace(self, definition=renewed(self.definition, definition))

    @property
    def reach(self) -> int:
        """The offset up to which this life of the partition, or an earlier one, has read."""
        return max(self.processed, self.since)

    def metadata(self) -> str:
        """The commit's metadata string."""
        return json.dumps(
            {
                "version": VERSION,
                "rewind": self.rewind,
                "max_event_ms": self.max_event_ms,
                "max_processed_ms": self.max_processed_ms,
                "topic": self.topic_id,
                "def": self.definition,
                "bad": self.bad,
                "since": self.since,
                "unknown": [*self.given_up.items()],
                "schema": self.newest_schema,
                "paused": _fitting(self.paused),
                **({} if self.snapshot is None else {"snapshot": self.snapshot}),
                **({"ticks": self.ticks} if self.ticks else {}),
            },
            ensure_ascii=False,
            separators=(",", ":"),
        )


def _fitting(reason: str) -> str:
    """A reason that fits into a commit's metadata, whatever characters it has."""
    printable = "".join(c if c.isprintable() else " " for c in reason[:LONGEST_REASON])
    return printable.encode()[: 3 * LONGEST_REASON].decode(errors="ignore")


def parse(where: str, processed: int, metadata: str) -> Position | None:
    """The position a commit carries, or None if its metadata is no such thing.

    Fields that a release adds are not there in what the one before wrote, and have a default.

    Raises
    ------
    PositionProblem
        A newer release wrote it; ``where`` is for the message.
    """
    try:
        fields = json.loads(metadata)
        check_version(fields, VERSION)
        return Position(
            processed,
            int(fields["rewind"]),
            int(fields["max_event_ms"]),
            fields["topic"],
            fields["def"],
            int(fields.get("bad", 0)),
            int(fields["max_processed_ms"]),
            int(fields.get("since", 0)),
            {int(schema_id): int(offset) for schema_id, offset in fields.get("unknown", ())},
            int(fields.get("schema", 0)),
            str(fields.get("paused", "")),
            Snapshot(*map(int, fields["snapshot"])) if "snapshot" in fields else None,
            int(fields.get("ticks", 0)),
        )
    except Newer as newer:
        raise PositionProblem(f"{where}: the position {newer}") from None
    except (ValueError, KeyError, TypeError, OverflowError):
        return None


def first(topic_id: str, definition: str, log_start: int) -> Position:
    """The position of a group that never committed."""
    return Position(log_start, log_start, NO_EVENT_TIME, topic_id, definition)


def readable(found: Position | PositionProblem | None) -> Position | None:
    """A position that was found, if one was; raises what is wrong with one of a newer release."""
    if isinstance(found, PositionProblem):
        raise found
    return found

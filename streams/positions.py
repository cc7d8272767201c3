"""Positions of a worker in a partition, how they survive it, and whether they can be gone on from.

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
from streams.generations import source

#: Of what a commit's metadata holds. Positions of version 1 say none, and have other fingerprints of records.
VERSION = 2
NO_EVENT_TIME = -(2**63)
#: Characters of why a worker does not go on, of three bytes each: a commit's metadata has no room for more.
LONGEST_REASON = 500

#: What an operator can do about a position that cannot be trusted, as subcommands of ``citystream positions``; see
#: ``streams.position_repair``.
CHOICES = {
    "restore": "goes on from the checkpoint",
    "reset": "reads the topic again from its first record",
    "freeze": "leaves open windows as they were written and counts on beside them",
}


class PositionProblem(Stop):
    """A position cannot be trusted."""

    code = EX_CONFIG


class LogGap(Stop):
    """Offsets are missing between two runs, which the log does not explain."""


@dataclass(frozen=True)
class Position:
    """Where a worker stands in one partition.

    ``max_event_ms`` is the running maximum of event time over the valid records before ``rewind``,
    ``max_processed_ms`` the one before ``processed``, and ``bad`` how many records before ``rewind`` are bad in the
    block of offsets it lies in. ``since`` is the offset from which on this life of the partition counts: 0 until a
    position is frozen; an earlier life counted what comes before it.

    Whether a schema's files are there is the one thing about a record that the log does not say, so a processor's
    position does: ``unknown`` are the schema ids it gave up, each with the offset up to which what names it is dead,
    and ``newest_schema`` is the newest id it knew.

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
    unknown: Mapping[int, int] = field(default_factory=dict)
    newest_schema: int = 0
    paused: str = ""

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
                "unknown": [*self.unknown.items()],
                "schema": self.newest_schema,
                "paused": _fitting(self.paused),
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
        )
    except Newer as newer:
        raise PositionProblem(f"{where}: the position {newer}") from None
    except (ValueError, KeyError, TypeError, OverflowError):
        return None


def in_words_of(definition: str, position: Position | None) -> Position | None:
    """The same, with its definition as fingerprinted now if the release before wrote it."""
    return position and replace(position, definition=renewed(position.definition, definition))


class Answer(NamedTuple):
    """What the brokers say of a group in a partition; the log is asked about after the commit, so it is not behind it.

    ``committed`` is None, or negative, where nothing is committed.
    """

    committed: int | None
    metadata: str
    log_start: int
    log_end: int


@dataclass(frozen=True, kw_only=True)
class Known:
    """What is known of where a worker stands in a partition.

    ``committed`` is None, or negative, for a group that never committed or was deleted. ``is_feed`` is false of topics
    of windows and of dead letters: what is stored of them does not go by their offsets.
    """

    worker: str
    topic: str
    partition: int
    committed: int | None
    metadata: str
    checkpoint: Position | None
    topic_id: str
    definition: str
    log_start: int
    log_end: int
    is_feed: bool = True

    @property
    def feed(self) -> str:
        """The feed, where it is a feed's topic."""
        return source(self.topic, self.partition)[0]

    @property
    def where(self) -> str:
        """For messages."""
        return f"{self.worker} in {self.topic}/{self.partition}"

    @property
    def commit(self) -> Position | None:
        """The committed position, if there is a readable one."""
        if self.committed is None or self.committed < 0:
            return None
        return in_words_of(self.definition, parse(self.where, self.committed, self.metadata))

    @property
    def last(self) -> Position | None:
        """The furthest position that is readable."""
        readable = [position for position in (self.checkpoint, self.commit) if position is not None]
        return max(readable, key=lambda position: (position.since, position.processed), default=None)


def first(topic_id: str, definition: str, log_start: int) -> Position:
    """The position of a group that never committed."""
    return Position(log_start, log_start, NO_EVENT_TIME, topic_id, definition)


def resume(known: Known) -> Position:
    """The position to go on from after an assignment.

    Raises
    ------
    PositionProblem
        The commit is gone though there is a checkpoint, its metadata is missing or speaks of another topic or
        definition, or the log ends before it: new records would pass for those it counts. Or the log no longer reaches
        back to the rewind: a window rebuilt from its middle would replace a whole one, so nothing is guessed. Nor for
        a group without any position where records are deleted already: it may have been there before, and what is
        deleted has to be noticed.
    """
    if known.committed is None or known.committed < 0:
        if known.checkpoint is None:
            return _begin(known)
        check_log(known, known.checkpoint)
        raise PositionProblem(
            f"{known.where}: there is no commit, but a checkpoint at {known.checkpoint.processed}; "
            f"{choose(known, *CHOICES)}"
        )
    position = known.commit
    if position is None:
        raise PositionProblem(
            f"{known.where}: the commit at {known.committed} carries no position; {choose(known, *CHOICES)}"
        )
    if position.rewind > position.processed:
        raise PositionProblem(
            f"{known.where}: the commit at {position.processed} is before its rewind offset {position.rewind}; "
            f"{choose(known, *CHOICES)}"
        )
    return trusted(known, position)


def check_agreement(known: Known, other: str, position: Position | None) -> None:
    """Hold a worker's definition of a feed to what another one (``other``) committed for the same topic.

    Raises
    ------
    PositionProblem
        They differ: the two would judge one record in two ways, or count and store different windows.
    """
    position = in_words_of(known.definition, position)
    if position is not None and position.topic_id == known.topic_id and position.definition != known.definition:
        raise PositionProblem(
            f"{known.where}: the {other} works by another definition of the feed; run both from the same version of "
            f"it, after a change of its windows behind: citystream rebuild {known.feed}"
        )


def trusted(known: Known, position: Position) -> Position:
    """The same position.

    Raises
    ------
    PositionProblem
        It is of something else, or the log no longer has what it needs.
    """
    check_same(known, position)
    if position.rewind < known.log_start:
        raise PositionProblem(
            f"{known.where}: the log starts at {known.log_start}, after the rewind offset {position.rewind}; "
            f"{choose(known, 'freeze')}"
        )
    return position


def check_log(known: Known, position: Position) -> None:
    """Look whether the log still is the one of a position.

    Raises
    ------
    PositionProblem
        The topic is another one, or the brokers have lost the end of its log.
    """
    if position.topic_id != known.topic_id:
        raise PositionProblem(f"{known.where}: the topic was deleted and created again; {choose(known, 'reset')}")
    if position.reach > known.log_end:
        raise beyond(known, position.reach)


def check_same(known: Known, position: Position) -> None:
    """Hold what a position belongs to against what is there now.

    Raises
    ------
    PositionProblem
        The topic or the definition is another one, or the brokers have lost the end of the log.
    """
    check_same_records(known, position)
    if position.definition != known.definition:
        raise PositionProblem(
            f"{known.where}: the feed's definition changed since the last commit; undo the change, or have "
            f"its windows built anew: citystream rebuild {known.feed}"
        )


def check_same_records(known: Known, position: Position) -> None:
    """The same, whatever the definition of the windows.

    Raises
    ------
    PositionProblem
        The topic or what makes a record valid is another one, or the brokers have lost the end of the log.
    """
    check_log(known, position)
    if _records(position.definition) != _records(known.definition):
        raise PositionProblem(
            f"{known.where}: the feed's definition changed since the last commit; records are judged otherwise: go on "
            "with the old one and give the changed feed a new name, or start over where nothing is worth keeping"
        )


def beyond(known: Known, offset: int) -> PositionProblem:
    """What is wrong when the log was read up to an offset and ended before it; it may have grown again since."""
    lost = offset - known.log_end
    said = (
        f"{known.where}: the log ended before offset {offset}, up to which it was read: the brokers have lost "
        f"{lost if lost > 0 else 'some'} offsets. Bring back their data. If that is not possible, "
    )
    if not known.is_feed:
        return PositionProblem(said + choose(known, "reset"))
    return PositionProblem(f"{said}results are kept under offsets that mean other records now. {start_over(known)}")


def choose(known: Known, *choices: str) -> str:
    """The choices to name in a message, each as a command."""
    named = [f"citystream positions {c} {known.worker} {known.topic} ({CHOICES[c]})" for c in choices]
    return "stop the workers, then run: " + ", or: ".join(named)


def start_over(known: Known) -> str:
    """What is left to do, for a message, where a feed's results are kept under offsets that mean other records."""
    return (
        "To keep them give the feed another name. To drop them stop the workers, then run: "
        f"citystream positions clear {known.feed}"
    )


def _begin(known: Known) -> Position:
    if known.log_start > 0:
        raise PositionProblem(
            f"{known.where}: there is no position, and the log begins at offset {known.log_start}: what came before is "
            f"deleted; {choose(known, 'freeze')}"
        )
    return first(known.topic_id, known.definition, 0)


def _records(definition: str) -> str:
    """The part of a feed's definition that is about its records."""
    return definition.partition(".")[0]

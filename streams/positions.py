"""Positions of a worker in a partition, how they survive it, and which choices there are when they did not.

The *processed* offset is committed as such, so every lag tool shows the truth. The *rewind* offset is where a
restarted worker reads again from to rebuild its open windows. The commit's metadata carries it, with what the log
before it determines: the running maximum of event time. A checkpoint is the same position, kept elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace

from streams.generations import source

NO_EVENT_TIME = -(2**63)

#: What an operator can do about a position that cannot be trusted, as subcommands of ``citystream positions``.
CHOICES = {
    "restore": "goes on from the checkpoint",
    "reset": "reads the topic again from its first record",
    "freeze": "leaves open windows as they were written and counts on beside them",
}


class Stop(RuntimeError):
    """A worker must not go on by itself; the message names the choice to make."""


class PositionProblem(Stop):
    """A position cannot be trusted."""


class LogGap(Stop):
    """Offsets are missing between two runs, which the log does not explain."""


@dataclass(frozen=True)
class Position:
    """Where a worker stands in one partition.

    ``max_event_ms`` is the running maximum of event time over the valid records before ``rewind``,
    ``max_processed_ms`` the one before ``processed``, and ``bad`` how many records before ``rewind`` are bad in the
    block of offsets it lies in. ``since`` is the offset from which on this life of the partition counts: 0 until a
    position is frozen; an earlier life counted what comes before it.
    """

    processed: int
    rewind: int
    max_event_ms: int
    topic_id: str
    definition: str
    bad: int = 0
    max_processed_ms: int = NO_EVENT_TIME
    since: int = 0

    def metadata(self) -> str:
        """The commit's metadata string."""
        return json.dumps(
            {
                "rewind": self.rewind,
                "max_event_ms": self.max_event_ms,
                "max_processed_ms": self.max_processed_ms,
                "topic": self.topic_id,
                "def": self.definition,
                "bad": self.bad,
                "since": self.since,
            },
            separators=(",", ":"),
        )


def parse(processed: int, metadata: str) -> Position | None:
    """The position a commit carries, or None if its metadata is no such thing."""
    try:
        fields = json.loads(metadata)
        return Position(
            processed,
            int(fields["rewind"]),
            int(fields["max_event_ms"]),
            fields["topic"],
            fields["def"],
            int(fields["bad"]),
            int(fields["max_processed_ms"]),
            int(fields["since"]),
        )
    except (ValueError, KeyError, TypeError, OverflowError):
        return None


@dataclass(frozen=True, kw_only=True)
class Known:
    """What is known of where a worker stands in a partition.

    ``committed`` is None, or negative, for a group that never committed or was deleted.
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
        return None if self.committed is None or self.committed < 0 else parse(self.committed, self.metadata)

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
        definition, or the log no longer reaches back to the rewind: a window rebuilt from its middle would replace a
        whole one, so nothing is guessed. Nor for a group without any position where records are deleted already: it
        may have been there before, and what is deleted has to be noticed.
    """
    if known.committed is None or known.committed < 0:
        if known.checkpoint is None:
            return _begin(known)
        _check_same_topic(known, known.checkpoint)
        raise PositionProblem(
            f"{known.where}: there is no commit, but a checkpoint at {known.checkpoint.processed}; "
            f"{_choose(known, *CHOICES)}"
        )
    position = known.commit
    if position is None:
        raise PositionProblem(
            f"{known.where}: the commit at {known.committed} carries no position; {_choose(known, *CHOICES)}"
        )
    if position.rewind > position.processed:
        raise PositionProblem(
            f"{known.where}: the commit at {position.processed} is before its rewind offset {position.rewind}; "
            f"{_choose(known, *CHOICES)}"
        )
    return _trusted(known, position)


def restore(known: Known) -> Position:
    """The position the checkpoint holds.

    Raises
    ------
    PositionProblem
        There is no checkpoint, or it cannot be gone on from.
    """
    if known.checkpoint is None:
        raise PositionProblem(f"{known.where}: there is no checkpoint; {_choose(known, 'reset', 'freeze')}")
    return _trusted(known, known.checkpoint)


def reset(known: Known, since: int, *, stored: bool = False) -> Position:
    """The position before the first record.

    Parameters
    ----------
    since: the last life that wrote parts.
    stored: whether ClickHouse holds anything of this partition.

    Raises
    ------
    PositionProblem
        The log has lost its beginning, a later life counted already, to whose parts this one would be added, or there
        are results of an earlier topic of this name.
    """
    other = known.last is not None and known.last.topic_id != known.topic_id
    if other and (stored or known.log_start > 0):
        raise PositionProblem(
            f"{known.where}: the topic was deleted and created again, and results of the earlier one are kept under "
            "offsets that mean other records now. To keep them give the feed another name. To drop them stop the "
            f"workers, then run: citystream positions clear {known.topic}"
        )
    if known.log_start > 0:
        raise PositionProblem(
            f"{known.where}: the log begins at offset {known.log_start}: what came before is deleted and its windows "
            f"cannot be built again; {_choose(known, 'freeze')}"
        )
    if since > 0:
        raise PositionProblem(
            f"{known.where}: it was frozen at offset {since} and what came after is in parts of its own; counted again "
            f"from the first record it would be there twice; {_choose(known, 'restore', 'freeze')}"
        )
    return first(known.topic_id, known.definition, 0)


def freeze(known: Known, counted: int, seen_before: Callable[[int], int]) -> Position:
    """The position of a new life, which counts from behind everything the lives before it wrote.

    It reads from the rewind, or what the log has left behind it, so that repeats are recognised, and counts from
    ``since`` on.

    Parameters
    ----------
    counted: the offset behind the last one counted into any written part of this partition.
    seen_before: the maximum of event time (ms) before an offset, for when no position is left that says it or the log
        begins behind it.

    Raises
    ------
    PositionProblem
        The topic or the definition is another one.
    """
    last = known.last
    since = max(counted, known.log_start)
    if last is not None:
        _check_same(known, last)
        since = max(since, last.processed, last.since)
        if last.rewind >= known.log_start:
            return replace(last, rewind=min(last.rewind, last.processed), since=since)
        if last.processed >= known.log_start:
            # What is read before the processed offset is not counted, so its exact maximum does not matter.
            return replace(last, rewind=known.log_start, max_event_ms=last.max_processed_ms, bad=0, since=since)
    seen = seen_before(since)
    return Position(since, since, seen, known.topic_id, known.definition, 0, seen, since)


def out_of_range(known: Known, offset: int) -> PositionProblem:
    """What is wrong when the log does not have the offset that was to be read next."""
    if offset < known.log_start:
        return PositionProblem(
            f"{known.where}: the log starts at {known.log_start}, after offset {offset}, which was to be read next: "
            f"retention deleted records before they were read; {_choose(known, 'freeze')}"
        )
    return PositionProblem(
        f"{known.where}: the log ends before offset {offset}, which was to be read next: the brokers have lost "
        f"records; {_choose(known, 'reset')}"
    )


def rebuilt_from(known: Known) -> Position | None:
    """The furthest position there is, whatever the definition of its windows; None where the worker never began.

    Raises
    ------
    PositionProblem
        It is lost, or the topic or what makes a record valid is another one.
    """
    if known.committed is not None and known.committed >= 0 and known.last is None:
        raise PositionProblem(
            f"{known.where}: the commit at {known.committed} carries no position; go back to the feed as it was, mend "
            f"the position there (citystream positions show {known.worker}), then change the feed again"
        )
    if known.last is not None:
        _check_same_records(known, known.last)
    return known.last


def rebuilt(known: Known, last: Position, oldest: tuple[int, int] | None) -> Position:
    """The position from which the windows of another definition go on where those of the last one ended.

    ``oldest`` is the first offset counted into any window of the new definition that is open there, and the maximum of
    event time (ms) before it; None if no window is open.
    """
    rewind, seen = oldest or (last.processed, last.max_processed_ms)
    return replace(last, rewind=rewind, max_event_ms=seen, definition=known.definition, bad=0)


def check_agreement(known: Known, other: str, metadata: str) -> None:
    """Hold a worker's definition of a feed to what another one (``other``) committed for the same topic.

    Raises
    ------
    PositionProblem
        They differ: the two would judge one record in two ways, or count and store different windows.
    """
    position = parse(0, metadata)
    if position is not None and position.topic_id == known.topic_id and position.definition != known.definition:
        raise PositionProblem(
            f"{known.where}: the {other} works by another definition of the feed; run both from the same version of "
            f"it, after a change of its windows behind: citystream rebuild {known.feed}"
        )


def _begin(known: Known) -> Position:
    if known.log_start > 0:
        raise PositionProblem(
            f"{known.where}: there is no position, and the log begins at offset {known.log_start}: what came before is "
            f"deleted; {_choose(known, 'freeze')}"
        )
    return first(known.topic_id, known.definition, 0)


def _trusted(known: Known, position: Position) -> Position:
    _check_same(known, position)
    if position.rewind < known.log_start:
        raise PositionProblem(
            f"{known.where}: the log starts at {known.log_start}, after the rewind offset {position.rewind}; "
            f"{_choose(known, 'freeze')}"
        )
    return position


def _check_same_topic(known: Known, position: Position) -> None:
    if position.topic_id != known.topic_id:
        raise PositionProblem(f"{known.where}: the topic was deleted and created again; {_choose(known, 'reset')}")


def _check_same(known: Known, position: Position) -> None:
    _check_same_records(known, position)
    if position.definition != known.definition:
        raise PositionProblem(
            f"{known.where}: the feed's definition changed since the last commit; undo the change, or have "
            f"its windows built anew: citystream rebuild {known.feed}"
        )


def _check_same_records(known: Known, position: Position) -> None:
    _check_same_topic(known, position)
    if _records(position.definition) != _records(known.definition):
        raise PositionProblem(
            f"{known.where}: the feed's definition changed since the last commit; records are judged otherwise: go on "
            "with the old one and give the changed feed a new name, or start over where nothing is worth keeping"
        )


def _records(definition: str) -> str:
    """The part of a feed's definition that is about its records."""
    return definition.partition(".")[0]


def _choose(known: Known, *choices: str) -> str:
    named = [f"citystream positions {c} {known.worker} {known.topic} ({CHOICES[c]})" for c in choices]
    return "stop the workers, then run: " + ", or: ".join(named)

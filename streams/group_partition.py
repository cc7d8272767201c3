"""A worker's group in one partition: where it starts there, or what is wrong and what can be done about it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from streams.assignment import TopicPartition
from streams.feed_topics import FeedPartition
from streams.positions import Position, PositionProblem, first, parse, readable

#: What an operator can do about a position that cannot be trusted, as subcommands of ``citystream positions``; see
#: ``operations.positions``.
REPAIRS = {
    "restore": "goes on from the checkpoint",
    "reset": "reads the topic again from its first record",
    "freeze": "leaves open windows as they were written and counts on beside them",
}


@dataclass(frozen=True, kw_only=True)
class GroupPartition:
    """A group in a partition: what it committed, its checkpoint, what the log has, and where it starts from.

    ``committed`` is None for a group that never committed or was deleted. ``kept`` is the checkpoint as it was read.
    ``definition`` is the worker's own. ``is_feed`` is false of topics of windows and of dead letters: what is stored of
    them does not go by their offsets.
    """

    group: str
    topic: str
    partition: int
    committed: int | None
    metadata: str
    kept: Position | PositionProblem | None
    topic_id: str
    definition: str
    log_start: int
    log_end: int
    is_feed: bool = True

    @property
    def place(self) -> TopicPartition:
        """Which partition it is."""
        return TopicPartition(self.topic, self.partition)

    @property
    def feed(self) -> str:
        """The feed, where it is a feed's topic."""
        return FeedPartition.of(self.topic, self.partition).feed

    @property
    def number(self) -> int:
        """The number of the partition in ClickHouse."""
        return FeedPartition.of(self.topic, self.partition).number

    @property
    def where(self) -> str:
        """For messages."""
        return f"{self.group} in {self.place}"

    @property
    def commit(self) -> Position | None:
        """The committed position, if the commit carries one; a ``PositionProblem`` if it is of a newer release."""
        position = None if self.committed is None else parse(self.where, self.committed, self.metadata)
        return position and position.renewed(self.definition)

    @property
    def paused(self) -> str:
        """Why the worker does not go on here, as its commit says; empty if it does, or the commit cannot be read."""
        try:
            return self.commit.paused if self.commit else ""
        except PositionProblem:
            return ""

    @property
    def checkpoint(self) -> Position | None:
        """The position in the checkpoint, if there is one; raises as ``commit``."""
        position = readable(self.kept)
        return position and position.renewed(self.definition)

    @property
    def furthest(self) -> Position | None:
        """Of the two the one that is further; raises as ``commit``."""
        there = [position for position in (self.checkpoint, self.commit) if position is not None]
        return max(there, key=lambda position: (position.since, position.processed), default=None)

    @property
    def lag(self) -> int:
        """Records not yet processed."""
        return max(0, self.log_end - (self.log_start if self.committed is None else self.committed))

    def start(self) -> Position:
        """The position to start from after an assignment; a ``PositionProblem`` where it would have to be guessed.

        The commit is gone though there is a checkpoint, its metadata is missing or speaks of another topic or
        definition, or the log ends before it: new records would pass for those it counts. Or the log no longer reaches
        back to the rewind: a window rebuilt from its middle would replace a whole one. Or records are deleted already
        of a group without any position: it may have been there before, and what is deleted has to be noticed.
        """
        if self.committed is None:
            if self.checkpoint is None:
                if self.log_start == 0:
                    return first(self.topic_id, self.definition, 0)
                said = f"there is no position, and the log begins at offset {self.log_start}: what came before is"
                raise self.problem(f"{said} deleted", "freeze")
            self.check_log(self.checkpoint)
            raise self.problem(f"there is no commit, but a checkpoint at {self.checkpoint.processed}", *REPAIRS)
        position = self.commit
        if position is None:
            raise self.problem(f"the commit at {self.committed} carries no position", *REPAIRS)
        if position.rewind > position.processed:
            said = f"the commit at {position.processed} is before its rewind offset {position.rewind}"
            raise self.problem(said, *REPAIRS)
        self.check(position)
        return position

    def set_to(self, position: Position) -> GroupPartition:
        """The same once this position is committed."""
        return replace(self, committed=position.processed, metadata=position.metadata())

    def why_not(self) -> str:
        """Why it cannot start; empty if it can."""
        try:
            self.start()
        except PositionProblem as problem:
            return str(problem)
        return ""

    def check(self, position: Position) -> None:
        """Raise a ``PositionProblem`` if a position is of something else, or the log no longer has what it needs."""
        self.check_definition(position)
        if position.rewind < self.log_start:
            said = f"the log starts at {self.log_start}, after the rewind offset {position.rewind}"
            raise self.problem(said, "freeze")

    def check_definition(self, position: Position) -> None:
        """The same, wherever the log begins."""
        self.check_records(position)
        if position.definition != self.definition:
            raise PositionProblem(
                f"{self.where}: the feed's definition changed since the last commit; undo the change, or have "
                f"its windows built anew: citystream rebuild {self.feed}"
            )

    def check_records(self, position: Position) -> None:
        """The same, whatever windows are counted: what makes a record valid has to be as it was."""
        self.check_log(position)
        if position.definition.partition(".")[0] != self.definition.partition(".")[0]:
            raise PositionProblem(
                f"{self.where}: the feed's definition changed since the last commit; records are judged otherwise: go "
                "on with the old one and give the changed feed a new name, or start over where nothing is worth keeping"
            )

    def check_log(self, position: Position) -> None:
        """Raise a ``PositionProblem`` if the topic is another one than that of a position, or has lost its end."""
        if position.topic_id != self.topic_id:
            raise self.problem("the topic was deleted and created again", "reset")
        if position.reach > self.log_end:
            raise self.beyond(position.reach)

    def check_agreement(self, other: str, definition: str, position: Position | None) -> None:
        """Raise a ``PositionProblem`` if another group (``other``) committed by another definition than it has to work
        by: the two would judge one record in two ways, or count and store different windows."""
        if position is None or position.topic_id != self.topic_id:
            return
        if position.renewed(definition).definition != definition:
            raise PositionProblem(
                f"{self.where}: the {other} works by another definition of the feed; run both from the same version of "
                f"it, after a change of its windows behind: citystream rebuild {self.feed}"
            )

    def out_of_range(self, offset: int) -> PositionProblem:
        """What is wrong when the log does not have the offset that was to be read next."""
        if offset < self.log_start:
            return self.problem(
                f"the log starts at {self.log_start}, after offset {offset}, which was to be read next: retention "
                "deleted records before they were read",
                "freeze",
            )
        try:
            self.start()
        except PositionProblem as problem:  # the offset may be a commit's of another program
            return problem
        return self.beyond(offset)

    def beyond(self, offset: int) -> PositionProblem:
        """What is wrong when the log was read up to an offset and ended before it; it may have grown again since."""
        lost = offset - self.log_end
        said = (
            f"the log ended before offset {offset}, up to which it was read: the brokers have lost "
            f"{lost if lost > 0 else 'some'} offsets. Bring back their data. If that is not possible,"
        )
        if not self.is_feed:
            return PositionProblem(f"{self.where}: {said} {self._ways('reset')}")
        return self.other_records(f"{said} results are kept under offsets that mean other records now")

    def problem(self, said: str, *repairs: str) -> PositionProblem:
        """What is wrong here, and what an operator can do about it."""
        return PositionProblem(f"{self.where}: {said}; {self._ways(*repairs)}")

    def other_records(self, said: str) -> PositionProblem:
        """What is wrong where results of a feed are kept under offsets that mean other records, and what is left."""
        return PositionProblem(
            f"{self.where}: {said}. To keep them give the feed another name. To drop them stop the workers, then run: "
            f"citystream positions clear {self.feed}"
        )

    def _ways(self, *repairs: str) -> str:
        named = [f"citystream positions {one} {self.group} {self.topic} ({REPAIRS[one]})" for one in repairs]
        return "stop the workers, then run: " + ", or: ".join(named)

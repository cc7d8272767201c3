"""A worker's positions in all partitions it reads: asked for, decided, and set.

The worker decides by what its own client says, commands ask from outside, and set them while it is stopped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import closing
from typing import NamedTuple

from kafka import OffsetAndMetadata
from kafka import TopicPartition as ClientPartition
from kafka.errors import IllegalGenerationError, NoError, RebalanceInProgressError, UnknownMemberIdError

from streams import checkpoints
from streams.assignment import TopicPartition
from streams.clients import new_admin
from streams.cluster import Cluster
from streams.group_partition import GroupPartition
from streams.lag import LagMeter, committed_offsets
from streams.positions import Position, PositionProblem, parse, readable
from streams.publisher import Producer
from streams.topics import TopicState, found, not_there, states

RUNNING = (UnknownMemberIdError, RebalanceInProgressError, IllegalGenerationError)


class PartitionOffsets(NamedTuple):
    """What the brokers say of a group in a partition; the log is asked about after the commit, so it is not behind it.

    ``committed`` is None, or negative, where nothing is committed: so client libraries say it.
    """

    committed: int | None
    metadata: str
    log_start: int
    log_end: int


class GroupPositions:
    """Reads, decides and sets the positions of a worker's group."""

    def __init__(
        self, cluster: Cluster, group: str, definitions: Mapping[str, str], agrees_with: GroupPositions | None = None
    ) -> None:
        """``definitions`` are those of this worker's positions, by topic it reads. Another group that it
        ``agrees_with`` has to work by its own ones; its topics are the feeds', all are unless it is given."""
        self.cluster = cluster
        self.group = group
        self.definitions = definitions
        self._other = agrees_with
        self._feeds = (agrees_with or self).definitions

    def decide(
        self, offsets: Mapping[TopicPartition, PartitionOffsets], topics: Mapping[str, TopicState]
    ) -> dict[TopicPartition, Position | PositionProblem]:
        """The position to start from in each partition, or why there is none; for the worker, whose own client said
        these offsets of these topics."""
        others = self._other.committed() if self._other else {}
        return {place: self._decided(one, others) for place, one in self.partitions(offsets, topics).items()}

    def _decided(
        self, one: GroupPartition, others: Mapping[TopicPartition, Position | PositionProblem]
    ) -> Position | PositionProblem:
        try:
            if self._other and one.topic in self._other.definitions:
                position = readable(others.get(one.place))
                one.check_agreement(self._other.group, self._other.definitions[one.topic], position)
            return one.start()
        except PositionProblem as problem:
            return problem

    def partitions(
        self,
        offsets: Mapping[TopicPartition, PartitionOffsets],
        topics: Mapping[str, TopicState],
        kept: Mapping[checkpoints.Place, Position | PositionProblem] | None = None,
    ) -> dict[TopicPartition, GroupPartition]:
        """The group in each partition of which the brokers said these offsets. Checkpoints, unless given, are read only
        if there is no commit somewhere."""
        offsets = {p: at if (at.committed or 0) >= 0 else at._replace(committed=None) for p, at in offsets.items()}
        if kept is None:
            lost = any(at.committed is None for at in offsets.values())
            kept = checkpoints.read(self.cluster) if lost else {}
        return {
            place: GroupPartition(
                group=self.group,
                topic=place.topic,
                partition=place.partition,
                kept=kept.get((self.group, *place)),
                topic_id=str(topics[place.topic].id),
                definition=self.definitions[place.topic],
                is_feed=place.topic in self._feeds,
                **at._asdict(),
            )
            for place, at in offsets.items()
        }

    def read(self, topics: Iterable[str] | None = None) -> list[GroupPartition]:
        """The group in each partition of these topics, or of all it reads, asked from outside; a ``TopicProblem`` where
        one does not exist."""
        names = [*(self.definitions if topics is None else topics)]
        there = states(self.cluster, [*names, checkpoints.TOPIC])
        kept = checkpoints.read(self.cluster)
        with closing(new_admin(self.cluster)) as admin:
            commits = committed_offsets(admin, self.group)
        with LagMeter(self.cluster) as meter:  # later than the commits: those of a running worker would be beyond it
            log = meter.measure(self.group, names, waiting=False)
        offsets = {}
        for one in log:
            commit = commits.get(ClientPartition(one.topic, one.partition))
            committed, metadata = (commit.offset, commit.metadata) if commit else (None, "")
            place = TopicPartition(one.topic, one.partition)
            offsets[place] = PartitionOffsets(committed, metadata, one.log_start, one.end)
        return [*self.partitions(offsets, there, kept).values()]

    def by_number(self) -> dict[int, GroupPartition]:
        """The same of the one feed that it reads, by the partitions' numbers in ClickHouse."""
        return {one.number: one for one in self.read(self._feeds)}

    def held_up(self) -> dict[str, str]:
        """Why the worker does not go on in a topic, where it does not; for status and lag.

        It says so with its commit. Where it has no position that it can trust, or no topic, it commits nothing: then
        this says what the worker says, by the same rules.
        """
        with closing(new_admin(self.cluster)) as admin:
            there = found(admin, [*self.definitions, checkpoints.TOPIC])
        missing = [name for name in (*self.definitions, checkpoints.TOPIC) if name not in there]
        reasons = {name: str(not_there(name)) for name in missing}
        if checkpoints.TOPIC in missing:
            return reasons
        others = self._other.committed() if self._other else {}
        for one in self.read(name for name in self.definitions if name in there):
            decided = self._decided(one, others)
            if one.paused:
                reasons[one.topic] = one.paused
            elif isinstance(decided, PositionProblem):
                reasons.setdefault(one.topic, str(decided))
        return reasons

    def check_stopped(self) -> None:
        """Raise a ``PositionProblem`` if the worker is running."""
        with closing(new_admin(self.cluster)) as admin:
            if admin.describe_groups([self.group])[self.group]["members"]:
                raise self._running()

    def _running(self) -> PositionProblem:
        return PositionProblem(f"the {self.group} is running, or ended less than a session ago; stop it and try again")

    def write(self, positions: Mapping[TopicPartition, Position]) -> Mapping[TopicPartition, Position]:
        """Let the stopped worker start from these positions, which are its checkpoints, too; gives them. A
        ``PositionProblem`` where it is running, or Kafka refuses for another reason."""
        if not positions:
            return positions
        offsets = {
            ClientPartition(*place): OffsetAndMetadata(position.processed, position.metadata(), -1)
            for place, position in positions.items()
        }
        with closing(new_admin(self.cluster)) as admin:
            answers = set(admin.alter_group_offsets(self.group, offsets).values()) - {NoError}
        if answers & set(RUNNING):
            raise self._running()
        if answers:
            raise PositionProblem(f"Kafka refused the positions: {', '.join(sorted(a.__name__ for a in answers))}")
        with closing(Producer(self.cluster)) as producer:
            sent = []
            for place, position in positions.items():
                key, value = checkpoints.record((self.group, *place), position)
                sent.append(producer.send(checkpoints.TOPIC, key=key, value=value))
            producer.flush()
            for one in sent:
                one.get()
        return positions

    def committed(self) -> dict[TopicPartition, Position | PositionProblem]:
        """What the group has committed, where it is a position, or what is wrong with one of a newer release."""
        with closing(new_admin(self.cluster)) as admin:
            commits = committed_offsets(admin, self.group)
        there: dict[TopicPartition, Position | PositionProblem] = {}
        for tp, commit in commits.items():
            place = TopicPartition(tp.topic, tp.partition)
            try:
                position = parse(f"{self.group} in {place}", commit.offset, commit.metadata)
            except PositionProblem as problem:
                there[place] = problem
            else:
                there |= {place: position} if position else {}
        return there

"""Where a worker's group stands, and how it is set from outside while the worker is stopped."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from contextlib import closing
from typing import TypeVar

from kafka import OffsetAndMetadata, TopicPartition
from kafka.errors import IllegalGenerationError, NoError, RebalanceInProgressError, UnknownMemberIdError

from streams import checkpoints
from streams.clients import new_admin
from streams.cluster import Cluster
from streams.generations import source
from streams.lag import LagMeter, PartitionLag, committed_offsets
from streams.positions import Answer, Known, Position, PositionProblem, in_words_of, parse, resume
from streams.publisher import new_producer
from streams.topics import TopicState, found, not_there, states

RUNNING = (UnknownMemberIdError, RebalanceInProgressError, IllegalGenerationError)
#: Topic and partition.
P = TypeVar("P", bound=tuple[str, int])


def known_of(
    worker: str,
    answers: Mapping[P, Answer],
    kept: Mapping[checkpoints.Place, Position],
    topics: Mapping[str, TopicState],
    definitions: Mapping[str, str],
    feeds: Container[str],
) -> dict[P, Known]:
    """What is known of a worker in each partition the brokers were asked about.

    ``definitions`` are those it has for the topics; ``feeds`` are those of the topics that are a feed's.
    """
    return {
        place: Known(
            worker=worker,
            topic=place[0],
            partition=place[1],
            committed=answer.committed,
            metadata=answer.metadata,
            checkpoint=in_words_of(definitions[place[0]], kept.get((worker, *place))),
            topic_id=str(topics[place[0]].id),
            definition=definitions[place[0]],
            log_start=answer.log_start,
            log_end=answer.log_end,
            is_feed=place[0] in feeds,
        )
        for place, answer in answers.items()
    }


def standing(
    cluster: Cluster, worker: str, definitions: Mapping[str, str], feeds: Container[str] | None = None
) -> list[tuple[Known, PartitionLag]]:
    """What is known of a worker in each partition of these topics, given the definition it has for each.

    ``feeds`` are those of the topics that are a feed's: all, unless given.

    Raises
    ------
    TopicProblem
        A topic does not exist.
    """
    there = states(cluster, [*definitions, checkpoints.TOPIC])
    kept = checkpoints.read(cluster)
    with closing(new_admin(cluster)) as admin:
        commits = committed_offsets(admin, worker)
    with LagMeter(cluster) as meter:  # later than the commits: those of a worker that runs would be beyond the end
        log = meter.measure(worker, definitions, waiting=False)
    answers = {}
    for partition in log:
        place = partition.topic, partition.partition
        commit = commits.get(TopicPartition(*place))
        committed, metadata = (commit.offset, commit.metadata) if commit else (None, "")
        answers[place] = Answer(committed, metadata, partition.log_start, partition.end)
    found = known_of(worker, answers, kept, there, definitions, definitions if feeds is None else feeds)
    return [(found[partition.topic, partition.partition], partition) for partition in log]


def by_number(found: Iterable[tuple[Known, PartitionLag]]) -> dict[int, Known]:
    """What ``standing`` gave for the topics of one feed, by the number of the partition in ClickHouse."""
    return {source(known.topic, known.partition)[1]: known for known, _ in found}


def committed_positions(cluster: Cluster, worker: str) -> dict[tuple[str, int], Position]:
    """What a worker has committed, by topic and partition, where it can be read.

    Raises
    ------
    PositionProblem
        A newer release wrote it.
    """
    with closing(new_admin(cluster)) as admin:
        found = {
            (tp.topic, tp.partition): parse(f"{worker} in {tp.topic}/{tp.partition}", c.offset, c.metadata)
            for tp, c in committed_offsets(admin, worker).items()
        }
    return {place: position for place, position in found.items() if position is not None}


def held_up(
    cluster: Cluster, worker: str, definitions: Mapping[str, str], feeds: Container[str] | None = None
) -> dict[str, str]:
    """Why a worker does not go on in a topic, where it does not; arguments as of ``standing``.

    A worker says it with its commit. Where it has no position that it can trust, or no topic, it commits nothing: then
    this says what the worker says, by the same rules.
    """
    with closing(new_admin(cluster)) as admin:
        there = found(admin, [*definitions, checkpoints.TOPIC])
    missing = [name for name in (*definitions, checkpoints.TOPIC) if name not in there]
    reasons = {name: str(not_there(name)) for name in missing}
    if checkpoints.TOPIC in missing:
        return reasons
    here = {name: definition for name, definition in definitions.items() if name in there}
    for known, _ in standing(cluster, worker, here, feeds):
        if known.commit is not None and known.commit.paused:
            reasons[known.topic] = known.commit.paused
        try:
            resume(known)
        except PositionProblem as problem:
            reasons.setdefault(known.topic, str(problem))
    return reasons


def check_stopped(cluster: Cluster, workers: Iterable[str]) -> None:
    """Look whether workers are stopped.

    Raises
    ------
    PositionProblem
        One of them is running.
    """
    with closing(new_admin(cluster)) as admin:
        for worker, group in admin.describe_groups(list(workers)).items():
            if group["members"]:
                raise _running(worker)


def _running(worker: str) -> PositionProblem:
    return PositionProblem(f"the {worker} is running, or ended less than a session ago; stop it and try again")


def commit(cluster: Cluster, worker: str, positions: Mapping[tuple[str, int], Position]) -> None:
    """Let a stopped worker go on from these positions, one a topic and partition; they are its checkpoints, too.

    Raises
    ------
    PositionProblem
        The worker is running, or Kafka refuses for another reason.
    """
    offsets = {
        TopicPartition(*place): OffsetAndMetadata(position.processed, position.metadata(), -1)
        for place, position in positions.items()
    }
    with closing(new_admin(cluster)) as admin:
        answers = set(admin.alter_group_offsets(worker, offsets).values()) - {NoError}
    if answers & set(RUNNING):
        raise _running(worker)
    if answers:
        raise PositionProblem(f"Kafka refused the positions: {', '.join(sorted(a.__name__ for a in answers))}")
    with closing(new_producer(cluster)) as producer:
        sent = []
        for place, position in positions.items():
            key, value = checkpoints.record((worker, *place), position)
            sent.append(producer.send(checkpoints.TOPIC, key=key, value=value))
        producer.flush()
        for one in sent:
            one.get()

"""Where a worker's group stands, seen and set from outside while the worker is stopped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import closing

from kafka import KafkaAdminClient, OffsetAndMetadata, TopicPartition
from kafka.errors import IllegalGenerationError, NoError, RebalanceInProgressError, UnknownMemberIdError

from streams import checkpoints
from streams.lag import LagMeter, PartitionLag, committed_offsets
from streams.positions import Known, Position, PositionProblem
from streams.publisher import new_producer
from streams.topics import states

RUNNING = (UnknownMemberIdError, RebalanceInProgressError, IllegalGenerationError)


def standing(bootstrap: str, worker: str, definitions: Mapping[str, str]) -> list[tuple[Known, PartitionLag]]:
    """What is known of a worker in each partition of these topics, given the definition it has for each.

    Raises
    ------
    TopicProblem
        A topic does not exist.
    """
    there = states(bootstrap, [*definitions, checkpoints.TOPIC])
    kept = checkpoints.read(bootstrap)
    with LagMeter(bootstrap) as meter:
        log = meter.measure(worker, definitions, waiting=False)
    with closing(KafkaAdminClient(bootstrap_servers=bootstrap)) as admin:
        commits = committed_offsets(admin, worker)
    found = []
    for partition in log:
        topic, number = partition.topic, partition.partition
        commit = commits.get(TopicPartition(topic, number))
        known = Known(
            worker=worker,
            topic=topic,
            partition=number,
            committed=commit.offset if commit else None,
            metadata=commit.metadata if commit else "",
            checkpoint=kept.get((worker, topic, number)),
            topic_id=str(there[topic].id),
            definition=definitions[topic],
            log_start=partition.log_start,
        )
        found.append((known, partition))
    return found


def check_stopped(bootstrap: str, workers: Iterable[str]) -> None:
    """Look whether workers are stopped.

    Raises
    ------
    PositionProblem
        One of them is running.
    """
    with closing(KafkaAdminClient(bootstrap_servers=bootstrap)) as admin:
        for worker, group in admin.describe_groups(list(workers)).items():
            if group["members"]:
                raise _running(worker)


def _running(worker: str) -> PositionProblem:
    return PositionProblem(f"the {worker} is running, or ended less than a session ago; stop it and try again")


def commit(bootstrap: str, worker: str, positions: Mapping[tuple[str, int], Position]) -> None:
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
    with closing(KafkaAdminClient(bootstrap_servers=bootstrap)) as admin:
        answers = set(admin.alter_group_offsets(worker, offsets).values()) - {NoError}
    if answers & set(RUNNING):
        raise _running(worker)
    if answers:
        raise PositionProblem(f"Kafka refused the positions: {', '.join(sorted(a.__name__ for a in answers))}")
    with closing(new_producer(bootstrap)) as producer:
        sent = []
        for place, position in positions.items():
            key, value = checkpoints.record((worker, *place), position)
            sent.append(producer.send(checkpoints.TOPIC, key=key, value=value))
        producer.flush()
        for one in sent:
            one.get()

"""Growing: the end of a topic that its feed has outgrown, before the next one begins.

It ends while no worker runs and nothing of it waits to be processed or stored. Its positions then carry the definition
of a topic that ended, so a worker which knows nothing of that cannot go on from them, and the windows that are open in
it are left as they were written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime

from kafka import TopicPartition
from kafka.errors import UnknownTopicOrPartitionError

from processors import GROUP as PROCESSOR
from schemas.feed import Feed
from sinks import GROUP as SINK
from streams.clients import new_admin
from streams.cluster import Cluster
from streams.generations import Generation, generations
from streams.group_positions import commit, standing
from streams.lag import PartitionLag, measure
from streams.positions import Position, resume
from streams.topics import TopicProblem

#: What each worker's positions in a feed's topic depend on.
DEFINITIONS: Mapping[str, Callable[[Generation], str]] = {
    PROCESSOR: lambda generation: generation.definition,
    SINK: lambda generation: generation.records,
}


def outgrown(feeds: Iterable[Feed]) -> list[Generation]:
    """The topics these feeds have outgrown, oldest first."""
    return [generation for feed in feeds for generation in generations(feed)[:-1]]


def end(cluster: Cluster, generation: Generation, now_ms: int) -> None:
    """Let the workers go on in an outgrown topic as in one that ended, once; nothing to do in a new installation.

    Raises
    ------
    TopicProblem
        Publishers still write to it, or a worker is behind.
    PositionProblem
        A worker is running, or its position is lost.
    """
    topic, before = generation.topic, replace(generation, until=None)
    try:
        measure(cluster, PROCESSOR, [topic])
    except UnknownTopicOrPartitionError:
        return
    found = {group: _going_on(cluster, group, before, generation) for group in DEFINITIONS}
    if any(found.values()):
        _check_stopped(cluster, generation, now_ms)
        if waiting := [f"{p.topic}/{p.partition}" for p in _waiting(cluster, generation)]:
            raise TopicProblem(
                f"{topic} cannot end yet: records of {', '.join(waiting)} are not processed or stored; start the "
                "workers with the declaration as it was until citystream lag shows 0, then try again"
            )
    for group, positions in found.items():
        if positions:
            commit(cluster, group, {place: _ended(group, p, generation) for place, p in positions.items()})


def settled(cluster: Cluster, generation: Generation, now_ms: int) -> bool:
    """Whether all that an outgrown topic counts is stored."""
    return _past(generation, now_ms) and not _waiting(cluster, generation)


def _going_on(cluster: Cluster, group: str, before: Generation, after: Generation) -> dict[tuple[str, int], Position]:
    """The positions of a group in a topic from before it ended."""
    definition = DEFINITIONS[group]
    return {
        (known.topic, known.partition): resume(known)
        for known, _ in standing(cluster, group, {before.topic: definition(before)})
        if known.last is not None and known.last.definition != definition(after)
    }


def _ended(group: str, position: Position, generation: Generation) -> Position:
    """Behind all windows, which have been written; should one be counted into again, that is added to it."""
    at, seen = position.processed, position.max_processed_ms
    return replace(position, rewind=at, max_event_ms=seen, bad=0, since=at, definition=DEFINITIONS[group](generation))


def _waiting(cluster: Cluster, generation: Generation) -> list[PartitionLag]:
    """Where the processor, or then the sink, has something left to do."""
    parts = [aggregate.topic for aggregate in generation.feed.aggregates]
    log = measure(cluster, PROCESSOR, [generation.topic])
    log += measure(cluster, SINK, [generation.topic, *parts])
    return [p for p in log if p.records]


def _check_stopped(cluster: Cluster, generation: Generation, now_ms: int) -> None:
    assert generation.until is not None
    until = datetime.fromtimestamp(generation.until / 1000, UTC)
    if not _past(generation, now_ms):
        raise TopicProblem(f"{generation.topic} cannot end yet: {until} is still to come")
    with closing(new_admin(cluster)) as admin:  # a consumer takes a partition without leader for one without records
        asked = {TopicPartition(generation.topic, n): generation.until for n in range(generation.partitions)}
        later = admin.list_partition_offsets(asked)
    if any(found.offset >= 0 for found in later.values()):
        raise TopicProblem(
            f"{generation.topic} cannot end: records came after {until}; stop its publishers, then declare a later time"
        )


def _past(generation: Generation, now_ms: int) -> bool:
    return generation.until is not None and generation.until <= now_ms

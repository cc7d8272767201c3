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

from kafka import TopicPartition as ClientPartition
from kafka.errors import UnknownTopicOrPartitionError

from processors import GROUP as PROCESSOR
from schemas.feed import Feed
from sinks import GROUP as SINK
from streams.assignment import TopicPartition
from streams.clients import new_admin
from streams.cluster import Cluster
from streams.feed_topics import FeedTopic, feed_topics
from streams.group_positions import GroupPositions
from streams.lag import PartitionLag, measure
from streams.positions import Position
from streams.topics import TopicProblem

#: What each worker's positions in a feed's topic depend on.
DEFINITIONS: Mapping[str, Callable[[FeedTopic], str]] = {
    PROCESSOR: lambda topic: topic.definition,
    SINK: lambda topic: topic.record_definition,
}


def outgrown(feeds: Iterable[Feed]) -> list[FeedTopic]:
    """The topics these feeds have outgrown, oldest first."""
    return [topic for feed in feeds for topic in [*feed_topics(feed).values()][:-1]]


def end(cluster: Cluster, topic: FeedTopic, now_ms: int) -> None:
    """Let the workers go on in an outgrown topic as in one that ended, once; nothing to do in a new installation.

    Raises
    ------
    TopicProblem
        Publishers still write to it, or a worker is behind.
    PositionProblem
        A worker is running, or its position is lost.
    """
    before = replace(topic, until=None)
    try:
        measure(cluster, PROCESSOR, [topic.name])
    except UnknownTopicOrPartitionError:
        return
    found = {group: _going_on(cluster, group, before, topic) for group in DEFINITIONS}
    if any(found.values()):
        _check_stopped(cluster, topic, now_ms)
        if waiting := [f"{p.topic}/{p.partition}" for p in _waiting(cluster, topic)]:
            raise TopicProblem(
                f"{topic.name} cannot end yet: records of {', '.join(waiting)} are not processed or stored; start the "
                "workers with the declaration as it was until citystream lag shows 0, then try again"
            )
    for group, positions in found.items():
        ended = {place: _ended(group, position, topic) for place, position in positions.items()}
        GroupPositions(cluster, group, {topic.name: DEFINITIONS[group](topic)}).write(ended)


def settled(cluster: Cluster, topic: FeedTopic, now_ms: int) -> bool:
    """Whether all that an outgrown topic counts is stored."""
    return _past(topic, now_ms) and not _waiting(cluster, topic)


def _going_on(cluster: Cluster, group: str, before: FeedTopic, after: FeedTopic) -> dict[TopicPartition, Position]:
    """The positions of a group in a topic from before it ended."""
    definition = DEFINITIONS[group]
    return {
        one.place: one.start()
        for one in GroupPositions(cluster, group, {before.name: definition(before)}).read()
        if one.furthest is not None and one.furthest.definition != definition(after)
    }


def _ended(group: str, position: Position, topic: FeedTopic) -> Position:
    """Behind all windows, which have been written; should one be counted into again, that is added to it."""
    at, seen = position.processed, position.max_processed_ms
    return replace(
        position, rewind=at, max_event_ms=seen, bad=0, ticks=0, since=at, definition=DEFINITIONS[group](topic)
    )


def _waiting(cluster: Cluster, topic: FeedTopic) -> list[PartitionLag]:
    """Where the processor, or then the sink, has something left to do."""
    parts = [aggregate.topic for aggregate in topic.feed.aggregates]
    log = measure(cluster, PROCESSOR, [topic.name])
    log += measure(cluster, SINK, [topic.name, *parts])
    return [p for p in log if p.records]


def _check_stopped(cluster: Cluster, topic: FeedTopic, now_ms: int) -> None:
    assert topic.until is not None
    until = datetime.fromtimestamp(topic.until / 1000, UTC)
    if not _past(topic, now_ms):
        raise TopicProblem(f"{topic.name} cannot end yet: {until} is still to come")
    with closing(new_admin(cluster)) as admin:  # a consumer takes a partition without leader for one without records
        asked = {ClientPartition(topic.name, n): topic.until for n in range(topic.partitions)}
        later = admin.list_partition_offsets(asked)
    if any(found.offset >= 0 for found in later.values()):
        raise TopicProblem(
            f"{topic.name} cannot end: records came after {until}; stop its publishers, then declare a later time"
        )


def _past(topic: FeedTopic, now_ms: int) -> bool:
    return topic.until is not None and topic.until <= now_ms

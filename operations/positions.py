"""What an operator can do about the positions of a stopped worker: where each choice leads, and setting it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TypeVar

from clickhouse_driver import Client

from processors import GROUP as PROCESSOR
from schemas.feed import Feed
from sinks import GROUP as SINK
from sinks import queries
from sinks.clickhouse import Server
from sinks.definitions import definitions
from sinks.migrate import empty
from streams.assignment import TopicPartition
from streams.cluster import Cluster
from streams.feed_topics import feed_definitions, feed_topics
from streams.gathered import processed_definitions
from streams.group_partition import GroupPartition
from streams.group_positions import GroupPositions
from streams.positions import NO_EVENT_TIME, Position, PositionProblem, first

A = TypeVar("A")

#: The positions that were set.
NewPositions = Mapping[TopicPartition, Position]


def positions_of(cluster: Cluster, group: str, feeds: Iterable[Feed]) -> GroupPositions:
    """The positions of a worker's group in all topics that it reads for these feeds."""
    feeds = [*feeds]
    if group == PROCESSOR:
        return GroupPositions(cluster, PROCESSOR, processed_definitions(*feeds))
    processor = GroupPositions(cluster, PROCESSOR, feed_definitions(*feeds))
    return GroupPositions(cluster, group, definitions(feeds), agrees_with=processor)


class Repairs:
    """Sets positions of one group, asking ClickHouse what was stored and counted; for ``citystream positions``.

    ``groups`` are both workers', by group; ``connect`` opens ClickHouse as the user ``operator``. What cannot be done
    raises ``PositionProblem`` before anything is set, also for a worker that runs.
    """

    def __init__(
        self, groups: Mapping[str, GroupPositions], group: str, feeds: Mapping[str, Feed], connect: Callable[[], Client]
    ) -> None:
        self._group = groups[group]
        self._sink = groups[SINK]
        self._is_processor = group == PROCESSOR
        self._feeds = feeds
        self._connect = connect

    def restore(self, topics: Iterable[str] | None) -> NewPositions:
        """Let the worker start from the checkpoints of its lost positions."""
        return self._group.write({one.place: restore(one) for one in self._group.read(topics) if one.why_not()})

    def reset(self, topics: Iterable[str]) -> NewPositions:
        """Let it read topics again from their first record."""
        return self._group.write({one.place: self._reset(one) for one in self._group.read(topics)})

    def freeze(self, topics: Iterable[str] | None) -> NewPositions:
        """Let it start behind all that was counted where its position is lost, or every trace of it is gone."""
        lost = [
            one
            for one in self._group.read(topics)
            if one.why_not() or (one.furthest is None and self._parts(one) != (0, 0))
        ]
        for one in lost:
            if one.furthest is not None:  # the sink, which is waited for below, may stand still for the same reason
                one.check_log(one.furthest)
        if lost and self._is_processor:
            self._check_stored({one.feed for one in lost})
        frozen = {one.place: freeze(one, self._parts(one)[1], self._seen_before(one)) for one in lost}
        return self._group.write(frozen)

    def _reset(self, one: GroupPartition) -> Position:
        if one.feed not in self._feeds:  # parts and dead letters replace what they were, wherever they are in the log
            return first(one.topic_id, one.definition, one.log_start)
        feed, number, last = self._feeds[one.feed], one.number, one.furthest
        same = last is not None and last.topic_id == one.topic_id
        stored = not same and self._ask(lambda client: queries.holds(client, feed, number))
        if not self._is_processor:
            newest = self._ask(lambda client: queries.newest_before(client, feed, number, one.log_start))
            return store_again(one, newest, stored=stored)
        return reset(one, last.since if last is not None and same else self._parts(one)[0], stored=stored)

    def _parts(self, one: GroupPartition) -> tuple[int, int]:
        """The last life that wrote parts of a partition, and the offset behind the last one counted; 0 for a sink."""
        if not self._is_processor:
            return 0, 0
        return self._ask(lambda client: queries.lives(client, self._feeds[one.feed], one.number))

    def _check_stored(self, feeds: Iterable[str]) -> None:
        parts = [aggregate.topic for name in feeds for aggregate in self._feeds[name].aggregates]
        waiting = {one.topic for one in self._sink.read(parts) if one.lag}
        if waiting:
            raise PositionProblem(
                f"the sink has not yet stored all parts of {', '.join(sorted(waiting))}, which say what was counted; "
                "let it catch up, then try again"
            )

    def _seen_before(self, one: GroupPartition) -> Callable[[int], int]:
        """The maximum of event time before an offset, as the stored rows have it: they are what late is decided by."""

        def ask(offset: int) -> int:
            if one.feed not in self._feeds:
                return NO_EVENT_TIME
            if self._is_processor:
                stored = {sink.place: sink.committed or 0 for sink in self._sink.read([one.topic])}
                if stored[one.place] < offset:
                    raise PositionProblem(
                        f"{one.where}: no position is left that says how far event time had come before offset "
                        f"{offset}, and the sink has not yet stored the rows before it; let it catch up, then try again"
                    )
            return self._ask(lambda client: queries.seen_before(client, self._feeds[one.feed], one.number, offset))

        return ask

    def _ask(self, question: Callable[[Client], A]) -> A:
        with self._connect() as client:
            return question(client)


def clear(
    groups: Iterable[GroupPositions], feed: Feed, owner: Server, say: Callable[[str], None]
) -> Iterable[tuple[str, NewPositions]]:
    """Drop everything ClickHouse holds of a feed, and let both stopped workers read its topics from their beginning;
    gives the positions by group. Parts that were written before are passed over. ``say`` hears that a server is away.
    A ``PositionProblem`` where a worker runs.
    """
    groups, records = [*groups], feed_topics(feed)
    parts = {aggregate.topic for aggregate in feed.aggregates}
    for group in groups:
        group.check_stopped()
    done = []
    for group in groups:
        own = [topic for topic in group.definitions if topic in parts or topic in records]
        places = [(one, one.log_end if one.topic in parts else one.log_start) for one in group.read(own)]
        begin = {one.place: first(one.topic_id, one.definition, at) for one, at in places}
        done.append((group.group, group.write(begin)))
    empty(owner, feed, say)
    return done


def restore(one: GroupPartition) -> Position:
    """The position the checkpoint holds; a ``PositionProblem`` where it cannot be started from, or what is stored may
    reach beyond the end of the log."""
    if one.furthest is not None:
        one.check_log(one.furthest)
    if one.checkpoint is None:
        raise one.problem("there is no checkpoint", "reset", "freeze")
    one.check(one.checkpoint)
    return one.checkpoint


def reset(one: GroupPartition, since: int, *, stored: bool = False) -> Position:
    """The position before the first record, given the last life that wrote parts (``since``) and whether ClickHouse
    holds anything of the partition (``stored``).

    A ``PositionProblem`` where the log has lost its beginning or its end, a later life counted already, to whose parts
    this one would be added, or there are results of an earlier topic of this name.
    """
    _check_topic(one, stored)
    if one.log_start > 0:
        raise one.problem(
            f"the log begins at offset {one.log_start}: what came before is deleted and its windows cannot be built "
            "again",
            "freeze",
        )
    if since > 0:
        raise one.problem(
            f"it was frozen at offset {since} and what came after is in parts of its own; counted again from the first "
            "record it would be there twice",
            *("restore", "freeze"),
        )
    return _judging_alike(first(one.topic_id, one.definition, 0), one.furthest)


def _judging_alike(position: Position, last: Position | None) -> Position:
    """The same, with the schema ids that were given up: dead letters of such records may be published again."""
    if last is None or last.topic_id != position.topic_id:
        return position
    return replace(position, given_up=last.given_up, newest_schema=last.newest_schema)


def store_again(one: GroupPartition, newest_ms: int, *, stored: bool) -> Position:
    """The position before the first record there is, for rows: what is stored again replaces itself.

    ``newest_ms`` is the maximum of event time before that record; ``stored`` and problems are as of ``reset``.
    """
    _check_topic(one, stored)
    begin = first(one.topic_id, one.definition, one.log_start)
    return replace(begin, max_event_ms=newest_ms, max_processed_ms=newest_ms)


def _check_topic(one: GroupPartition, stored: bool) -> None:
    last = one.furthest
    if last is not None and last.topic_id == one.topic_id:
        one.check_log(last)
    elif last is not None and (stored or one.log_start > 0):
        raise one.other_records(
            "the topic was deleted and created again, and results of the earlier one are kept under offsets that mean "
            "other records now"
        )


def freeze(one: GroupPartition, counted: int, seen_before: Callable[[int], int]) -> Position:
    """The position of a new life, which counts from behind everything the lives before it wrote.

    It reads from the rewind, or what the log has left behind it, so that repeats are recognised, and counts from
    ``since`` on. ``counted`` is the offset behind the last one counted into any written part of the partition;
    ``seen_before`` asks for the maximum of event time (ms) before an offset, where no position is left that says it.
    A ``PositionProblem`` where the topic or the definition is another one, or the brokers have lost the end of the log.
    """
    last = one.furthest
    if last is not None:
        one.check_definition(last)
    since = max(counted, one.log_start, last.reach if last else 0)
    if since > one.log_end:
        raise one.beyond(since)
    if last is not None and last.rewind >= one.log_start:
        return replace(last, rewind=min(last.rewind, last.processed), since=since)
    if last is not None and last.processed >= one.log_start:
        # What is read before the processed offset is not counted, so its exact maximum does not matter.
        return replace(last, rewind=one.log_start, max_event_ms=last.max_processed_ms, bad=0, ticks=0, since=since)
    seen = seen_before(since)
    return _judging_alike(Position(since, since, seen, one.topic_id, one.definition, 0, seen, since), last)


def rebuilt_from(one: GroupPartition) -> Position | None:
    """The furthest position there is, whatever the definition of its windows; None where the worker never began.

    A ``PositionProblem`` where it is lost or of something else, or the brokers have lost the end of the log.
    """
    if one.committed is not None and one.furthest is None:
        raise PositionProblem(
            f"{one.where}: the commit at {one.committed} carries no position; go back to the feed as it was, mend "
            f"the position there (citystream positions show {one.group}), then change the feed again"
        )
    if one.furthest is not None:
        one.check_records(one.furthest)
    return one.furthest


def rebuilt(one: GroupPartition, last: Position, oldest: tuple[int, int] | None) -> Position:
    """The position from which the windows of another definition go on where those of the last one ended.

    ``oldest`` is the first offset counted into any window of the new definition that is open there, and the maximum of
    event time (ms) before it; None if no window is open.
    """
    rewind, seen = oldest or (last.processed, last.max_processed_ms)
    return replace(last, rewind=rewind, max_event_ms=seen, definition=one.definition, bad=0, ticks=0)

"""What an operator can choose when a position cannot be trusted or the feed changed, and where each choice leads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from streams.positions import (
    Known,
    Position,
    PositionProblem,
    beyond,
    check_log,
    check_same,
    check_same_records,
    choose,
    first,
    resume,
    start_over,
    trusted,
)


def restore(known: Known) -> Position:
    """The position the checkpoint holds.

    Raises
    ------
    PositionProblem
        There is no checkpoint, or it cannot be gone on from, or what is stored may reach beyond the end of the log.
    """
    if known.last is not None:
        check_log(known, known.last)
    if known.checkpoint is None:
        raise PositionProblem(f"{known.where}: there is no checkpoint; {choose(known, 'reset', 'freeze')}")
    return trusted(known, known.checkpoint)


def reset(known: Known, since: int, *, stored: bool = False) -> Position:
    """The position before the first record.

    Parameters
    ----------
    since: the last life that wrote parts.
    stored: whether ClickHouse holds anything of this partition.

    Raises
    ------
    PositionProblem
        The log has lost its beginning or its end, a later life counted already, to whose parts this one would be added,
        or there are results of an earlier topic of this name.
    """
    _check_topic(known, stored)
    if known.log_start > 0:
        raise PositionProblem(
            f"{known.where}: the log begins at offset {known.log_start}: what came before is deleted and its windows "
            f"cannot be built again; {choose(known, 'freeze')}"
        )
    if since > 0:
        raise PositionProblem(
            f"{known.where}: it was frozen at offset {since} and what came after is in parts of its own; counted again "
            f"from the first record it would be there twice; {choose(known, 'restore', 'freeze')}"
        )
    begin, last = first(known.topic_id, known.definition, 0), known.last
    if last is None or last.topic_id != known.topic_id:
        return begin
    return replace(begin, unknown=last.unknown, newest_schema=last.newest_schema)


def store_again(known: Known, newest_ms: int, *, stored: bool) -> Position:
    """The position before the first record there is, for rows: what is stored again replaces itself.

    ``newest_ms`` is the maximum of event time before that record; ``stored`` as for ``reset``.

    Raises
    ------
    PositionProblem
        The log has lost its end, or there are results of an earlier topic of this name.
    """
    _check_topic(known, stored)
    begin = first(known.topic_id, known.definition, known.log_start)
    return replace(begin, max_event_ms=newest_ms, max_processed_ms=newest_ms)


def _check_topic(known: Known, stored: bool) -> None:
    last = known.last
    if last is not None and last.topic_id == known.topic_id:
        check_log(known, last)
    elif last is not None and (stored or known.log_start > 0):
        raise PositionProblem(
            f"{known.where}: the topic was deleted and created again, and results of the earlier one are kept under "
            f"offsets that mean other records now. {start_over(known)}"
        )


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
        The topic or the definition is another one, or the brokers have lost the end of the log.
    """
    last = known.last
    if last is not None:
        check_same(known, last)
    since = max(counted, known.log_start, last.reach if last else 0)
    if since > known.log_end:
        raise beyond(known, since)
    if last is not None and last.rewind >= known.log_start:
        return replace(last, rewind=min(last.rewind, last.processed), since=since)
    if last is not None and last.processed >= known.log_start:
        # What is read before the processed offset is not counted, so its exact maximum does not matter.
        return replace(last, rewind=known.log_start, max_event_ms=last.max_processed_ms, bad=0, since=since)
    seen = seen_before(since)
    begin = Position(since, since, seen, known.topic_id, known.definition, 0, seen, since)
    return replace(begin, unknown=last.unknown, newest_schema=last.newest_schema) if last else begin


def out_of_range(known: Known, offset: int) -> PositionProblem:
    """What is wrong when the log does not have the offset that was to be read next."""
    if offset < known.log_start:
        return PositionProblem(
            f"{known.where}: the log starts at {known.log_start}, after offset {offset}, which was to be read next: "
            f"retention deleted records before they were read; {choose(known, 'freeze')}"
        )
    try:
        resume(known)
    except PositionProblem as problem:  # the offset may be a commit's of another program
        return problem
    return beyond(known, offset)


def rebuilt_from(known: Known) -> Position | None:
    """The furthest position there is, whatever the definition of its windows; None where the worker never began.

    Raises
    ------
    PositionProblem
        It is lost, the topic or what makes a record valid is another one, or the brokers have lost the end of the log.
    """
    if known.committed is not None and known.committed >= 0 and known.last is None:
        raise PositionProblem(
            f"{known.where}: the commit at {known.committed} carries no position; go back to the feed as it was, mend "
            f"the position there (citystream positions show {known.worker}), then change the feed again"
        )
    if known.last is not None:
        check_same_records(known, known.last)
    return known.last


def rebuilt(known: Known, last: Position, oldest: tuple[int, int] | None) -> Position:
    """The position from which the windows of another definition go on where those of the last one ended.

    ``oldest`` is the first offset counted into any window of the new definition that is open there, and the maximum of
    event time (ms) before it; None if no window is open.
    """
    rewind, seen = oldest or (last.processed, last.max_processed_ms)
    return replace(last, rewind=rewind, max_event_ms=seen, definition=known.definition, bad=0)

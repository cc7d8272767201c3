"""Taking a publication back: when it can be, and the steps in an order that may end anywhere and be taken again."""

from __future__ import annotations

from collections.abc import Mapping

from operations.positions import positions_of
from operations.progress import OnProgress, unheard
from processors import GROUP as PROCESSOR
from schemas.feed import Feed
from sinks import GROUP as SINK
from sinks.tables import RAW_KEPT
from sinks.withdrawal import Withdrawal
from streams.cluster import Cluster
from streams.group_partition import GroupPartition
from streams.positions import Position, PositionProblem
from streams.publications import Publication, own_name


def past(cluster: Cluster, feed: Feed, publication: Publication, now_ms: int) -> dict[int, Position]:
    """The processor's positions, by number, in the partitions of a publication whose records are all stored.

    Raises
    ------
    PositionProblem
        A worker is not past them, its position cannot be trusted, or their rows are kept no longer.
    """
    if now_ms - (publication.at_ms or 0) > RAW_KEPT.total_seconds() * 1000:
        raise PositionProblem(
            f"{publication.file} was published more than {RAW_KEPT.days} days ago, and raw rows are kept no longer"
        )
    processor, sink = (positions_of(cluster, group, [feed]).by_number() for group in (PROCESSOR, SINK))
    check_stored(publication, sink, processor)
    return {number: processor[number].start() for number in publication.stretches}


def check_stored(publication: Publication, *workers: Mapping[int, GroupPartition]) -> None:
    """Look whether workers are past all records of a publication, given their groups by number of the partition.

    Raises
    ------
    PositionProblem
        They are not.
    """
    for number, some in publication.stretches.items():
        last = max(end for _, end in some)
        for one in (worker[number] for worker in workers):
            if (one.committed or 0) <= last:
                raise PositionProblem(
                    f"{one.where}: the records of {publication.file} end at offset {last} and the position is "
                    f"{one.committed or 0}; let the {one.group} catch up (see: citystream lag), then try again"
                )


def take_back(work: Withdrawal, on_progress: OnProgress = unheard) -> None:
    """Build the windows without its rows, note which offsets go, and let the rows go."""
    steps = (work.build, lambda: work.note(own_name()), work.delete)
    for n, step in enumerate(steps):
        on_progress("taking back", n, len(steps))
        step()
    on_progress("taking back", len(steps), len(steps))

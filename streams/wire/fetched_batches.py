"""Runs: whole record batches as they were fetched of a partition, none of them opened."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TypeVar

from streams.wire.record_batch import RecordBatch

T = TypeVar("T")

#: Records of a run at most, unless a batch alone has more: a few bytes of a log can hold millions.
LONGEST_RUN = 500_000


@dataclass(frozen=True)
class Run:
    """What one fetch brought of a partition, or a part of it: the batches of the offsets from ``start`` up to ``next``.

    The first batch may begin before ``start`` and control or aborted batches are left out, so rows below ``start``
    have to be dropped and not every offset has a record.
    """

    topic: str
    partition: int
    start: int
    next: int
    batches: tuple[RecordBatch, ...] = field(repr=False)

    @property
    def size(self) -> int:
        """Bytes of its batches, compressed if they are."""
        return sum(len(batch.raw) for batch in self.batches)

    @property
    def records(self) -> int:
        """How many records its batches state."""
        return sum(batch.count for batch in self.batches)


def joined(runs: Iterable[Run]) -> tuple[Run, int]:
    """The first of these runs of a partition as one with those that follow on it, and how many they are."""
    first, *others = runs
    batches, end, count = list(first.batches), first.next, 1
    records = first.records
    for run in others:
        records += run.records
        if run.start != end or records > LONGEST_RUN:
            break
        batches += run.batches
        end, count = run.next, count + 1
    return replace(first, next=end, batches=tuple(batches)), count


def pieces(items: Iterable[T], records: Callable[[T], int]) -> Iterator[list[T]]:
    """Items in their order, in pieces of at most ``LONGEST_RUN`` records, unless one alone has more."""
    piece: list[T] = []
    held = 0
    for item in items:
        if piece and held + records(item) > LONGEST_RUN:
            yield piece
            piece, held = [], 0
        piece.append(item)
        held += records(item)
    if piece:
        yield piece

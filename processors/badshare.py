"""The share of bad records: many in a row are a broken publisher or a missing schema, and their feed stops."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from datetime import timedelta
from decimal import Decimal

from schemas.feed import Feed
from schemas.verdict import ahead_of_arrival
from streams.deadletters import DeadLetter
from streams.decode import Tick
from streams.ending import Stop
from streams.positions import Position

#: A block is what a partition gets in this time at the feed's declared rate, within these numbers of records: single
#: records must not decide, and no feed may become dead letters for hours.
BLOCK_OF = timedelta(minutes=10)
FEWEST, MOST = 1_000, 10_000
#: Characters of a cause that are said: what is said has to end with what to do.
SAID = 120


class TooManyBad(Stop):
    """More records are bad than a feed allows: its publisher or a schema is broken, not single records."""


def block_size(feed: Feed) -> int:
    """Records over which the share is taken, in blocks that begin at multiples of it."""
    return round(min(MOST, max(FEWEST, (feed.rate or 0) / feed.partitions * BLOCK_OF.total_seconds())))


def most_bad(feed: Feed, size: int) -> int:
    """How many records of a block of a size may be bad; 29% of 1,500 are 435, which floats make 434.99999999999994."""
    return int(Decimal(str(feed.bad_ratio)) * size)


class BadShare:
    """Counts the bad records of each block of one partition, from the block of its rewind offset on.

    Records are numbered by their offsets less the ticks before them: a feed of few records may have many more ticks.

    It depends on the log alone at which offset a block has too many. What lies below the processed offset was passed
    by an earlier life of the worker, which was told to, and is not judged again.
    """

    def __init__(self, feed: Feed, number: int, start: Position, *, accept: bool) -> None:
        self._feed = feed
        self._where = f"{feed.name}/{number}"
        self._size = block_size(feed)
        self._allowed = most_bad(feed, self._size)
        self._judged_from = None if accept else start.processed
        self._ticks: list[int] = []
        self._ticks_before = start.ticks
        number = self._number(start.rewind)
        self._block, self._in_block = number // self._size, start.bad
        self._ranges = [(number - start.bad, number)]

    def add(self, dead: Iterable[DeadLetter], ticks: Sequence[Tick], from_offset: int) -> None:
        """Count dead letters, in the order of the log, from an offset on, with the ticks there.

        Raises
        ------
        TooManyBad
            A block holds a larger share of bad records than the feed allows, whatever the rest of it will be.
        """
        self._ticks += [offset for offset, _ in ticks if offset >= from_offset]
        for letter in dead:
            offset = max(letter.offset, from_offset)
            first = self._number(offset)
            end, ticks_before = first + letter.last_offset + 1 - offset, offset - first
            self._note(first, end)
            for block in range(first // self._size, (end - 1) // self._size + 1):
                begin = max(first, block * self._size)
                bad = min(end, (block + 1) * self._size) - begin
                self._count(block, begin, bad, ticks_before, letter.cause)

    def _number(self, offset: int) -> int:
        """The number of the record at an offset."""
        return offset - self._ticks_before - bisect_left(self._ticks, offset)

    def _note(self, first: int, end: int) -> None:
        """Neighbours are one range: many bad records are so in a row."""
        begin, before = self._ranges[-1]
        if first <= before:
            self._ranges[-1] = begin, max(end, before)
        else:
            self._ranges.append((first, end))

    def _count(self, block: int, begin: int, bad: int, ticks_before: int, cause: str) -> None:
        if block != self._block:
            self._block, self._in_block = block, 0
        room = self._allowed - self._in_block
        self._in_block += bad
        decided = begin + room + ticks_before
        if 0 <= room < bad and self._judged_from is not None and decided >= self._judged_from:
            raise TooManyBad(
                f"{self._where}: {self._allowed + 1:,} of the records up to offset {decided} "
                f"are bad, more than {self._feed.bad_ratio:.0%} of a block of {self._size:,} ({_short(cause)}). "
                f"{self._advice(cause)}, and start the worker again; or go on with: citystream process --accept-bad "
                f"{self._feed.name}, which makes dead letters of them"
            )

    def _advice(self, cause: str) -> str:
        who = self._feed.department.name
        if ahead_of_arrival(self._feed) in cause:
            return f"The clock of {who} is probably fast: have it set by the network's time"
        return f"Have {who} mend the publisher, or freeze the schema it uses"

    def before(self, rewind: int) -> tuple[int, int]:
        """Bad records before a new rewind offset, in its block, and all ticks before it; older ones are forgotten."""
        number = self._number(rewind)
        del self._ticks[: rewind - self._ticks_before - number]
        self._ticks_before = rewind - number
        block = number // self._size * self._size
        self._ranges = [(first, end) for first, end in self._ranges[:-1] if end > block] + self._ranges[-1:]
        bad = sum(max(0, min(number, end) - max(block, first)) for first, end in self._ranges)
        return bad, self._ticks_before


def _short(cause: str) -> str:
    return cause if len(cause) <= SAID else f"{cause[:SAID]}..."

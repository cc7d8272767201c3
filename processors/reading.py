"""The stage before windows: record batches of one topic become rows."""

from __future__ import annotations

from collections.abc import Sequence

from processors.events import EventColumns
from processors.partition import Partition, Rows
from streams.decode import Decoder, Wanted, places
from streams.ending import Stop
from streams.feed_topics import FeedTopic
from streams.missing_schemas import GivenUp
from streams.positions import Position
from streams.wire.fetched_batches import Run


class Reader:
    """Reads runs of any partitions of a topic, each from where it stands; keeps nothing itself."""

    def __init__(self, topic: FeedTopic, decoder: Decoder) -> None:
        self._decoder = decoder
        self._columns = EventColumns(topic.feed, topic.counts)

    def check(self, where: str, start: Position) -> None:
        """Look whether the schemas are here by which a partition was processed up to a position.

        Raises
        ------
        Stop
            They are not.
        """
        if not self._decoder.knows(start.newest_schema):
            raise Stop(
                f"{where} was processed with schema ids up to {start.newest_schema}, and those here end at "
                f"{self._decoder.newest_schema}; bring the newest files of schemas/frozen, then start it again"
            )

    def read(self, waiting: Sequence[tuple[Partition, Run]]) -> list[Rows]:
        """Read runs, in the order of their partitions; together they cost little more than one.

        Raises
        ------
        NotYet
            A schema is waited for; nothing was read.
        """
        given_up = [GivenUp({**at.given_up}, run.next - 1, at.start.newest_schema) for at, run in waiting]
        wanted = [Wanted(run, at.next, verdicts) for (at, run), verdicts in zip(waiting, given_up, strict=True)]
        frame, found = self._decoder.read_together(wanted)
        events, newest = self._columns.of(frame), self._decoder.newest_schema
        return [
            Rows(run.start, run.next, events.where(part), decoded.dead, decoded.ticks, verdicts.dead, newest)
            for (_, run), verdicts, decoded, part in zip(waiting, given_up, found, places(found), strict=True)
        ]

"""The stage before windows: record batches of one topic become rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import polars as pl

from processors.events import EventColumns, column_of
from processors.making import Making
from processors.partition import Partition, Rows
from schemas.expressions import Column, LookedUp
from schemas.model import Field
from streams.decode import Decoder, Wanted, places
from streams.ending import Stop
from streams.feed_topics import FeedTopic
from streams.history import History
from streams.missing_schemas import GivenUp
from streams.positions import NO_EVENT_TIME, Position
from streams.wire.fetched_batches import Run

#: Gives what is known of a table for records up to an arrival (ms); raises ``NotYet`` where it is not read so far.
Histories = Callable[[str, int], History]


class Reader:
    """Reads runs of any partitions of a topic, each from where it stands; keeps nothing itself."""

    def __init__(
        self,
        topic: FeedTopic,
        decoder: Decoder,
        histories: Histories | None = None,
        makings: Sequence[Making] = (),
    ) -> None:
        """``histories`` has what is known of a table for records up to an arrival (ms), ``makings`` make others."""
        self._decoder = decoder
        self._columns = EventColumns(topic.feed, topic.counts)
        self._histories = histories
        self._makings = makings
        made_with = {column_of(leaf): leaf for making in makings for leaf in making.looked_up}
        looked_up = {**self._columns.looked_up, **made_with}
        self._look_ups = LookUps(looked_up, topic.feed.event_time) if looked_up else None

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
            A schema, or reference data, are waited for; nothing was read.
        """
        given_up = [GivenUp({**at.given_up}, run.next - 1, at.start.newest_schema) for at, run in waiting]
        wanted = [Wanted(run, at.next, verdicts) for (at, run), verdicts in zip(waiting, given_up, strict=True)]
        frame, found = self._decoder.read_together(wanted)
        if self._look_ups is not None:
            assert self._histories is not None
            frame = self._look_ups.beside(frame, self._histories)
        events, newest = self._columns.of(frame), self._decoder.newest_schema
        made = [one for making in self._makings for one in making.of(frame)]
        read = zip(waiting, given_up, found, places(found), strict=True)
        return [
            Rows(
                start=run.start,
                next=run.next,
                events=events.where(part),
                dead=decoded.dead,
                ticks=decoded.ticks,
                given_up=verdicts.dead,
                newest_schema=newest,
                made=[one for one in made if one.partition == run.partition],
            )
            for (_, run), verdicts, decoded, part in read
        ]


class LookUps:
    """What is looked up for rows of a feed, by the names it has beside them."""

    def __init__(self, looked_up: Mapping[str, LookedUp], event_time: str) -> None:
        self._event_time = event_time
        #: By the row of a table that it is taken from.
        self._by_row: dict[tuple[str, tuple[Field, ...], tuple[Column, ...]], dict[str, LookedUp]] = {}
        for name, leaf in looked_up.items():
            self._by_row.setdefault((leaf.table, leaf.key_fields, leaf.keys), {})[name] = leaf

    def beside(self, frame: pl.DataFrame, histories: Histories) -> pl.DataFrame:
        """Rows, with when they ``_arrived`` (ms), and what is looked up for them."""
        arrived, event = frame["_arrived"].to_numpy(), frame[self._event_time].cast(pl.Int64).to_numpy()
        newest = int(arrived.max()) if frame.height else NO_EVENT_TIME
        found = []
        for (table, fields, keys), leaves in self._by_row.items():
            history, asked = histories(table, newest), [frame[key.name] for key in keys]
            if fields[0].shape:
                rows = history.covering(fields[0].name, asked[0], arrived, event)
            else:
                rows = history.rows(asked, arrived, event)
            found += [history.column(leaf.field.name, rows).alias(name) for name, leaf in leaves.items()]
        return frame.with_columns(found)

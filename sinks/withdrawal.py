"""A publication taken back: its rows go, and the final windows it counted in are built anew of the rows that stay.

Repeats of its events go with them: some are merged away already, so what is left of the others would be chance. Killed
at any moment, it is mended by doing it again: while rows of the publication are stored, the windows are built without
them, and they are the last to go.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from clickhouse_driver import Client

from schemas.feed import Feed
from schemas.sql import literal
from sinks.dialect import Dialect
from sinks.rebuild import Rebuild
from sinks.shown import shown
from streams.positions import Position, PositionProblem
from streams.publications import Publication, Stretch

#: Bytes of a statement at most: a publication among others' records has many stretches.
LONGEST_STATEMENT_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Taken:
    """What is taken back: rows, rows of other publications or publishers that repeat them, and windows by aggregate."""

    rows: int
    repeats: int
    windows: Mapping[str, int]


def rows_at(stretches: Mapping[int, Sequence[Stretch]]) -> str:
    """SQL of whether a raw row is in these stretches, by partition."""
    found = [
        f"(source_partition = {number} AND source_offset IN (SELECT toUInt64(first + n) FROM (SELECT "
        f"arrayJoin({[list(one) for one in some]}) AS stretch, stretch[1] AS first, "
        "arrayJoin(range(stretch[2] - stretch[1] + 1)) AS n)))"
        for number, some in stretches.items()
    ]
    return f"({' OR '.join(found) or '0'})"


class Withdrawal:
    """Takes a publication back; ``positions`` are the processor's by number, ``client`` the owner's."""

    def __init__(
        self, client: Client, feed: Feed, publication: Publication, positions: Mapping[int, Position], dialect: Dialect
    ) -> None:
        self._client = client
        self._feed = feed
        self._publication = publication
        self._rows = rows_at(publication.stretches)
        self._rebuild = Rebuild(client, feed, positions, dialect)

    def look(self) -> Taken:
        """What would be taken back.

        Raises
        ------
        PositionProblem
            A window that it counted in is open, or is not shown as declared.
        """
        now, windows = shown(self._client.execute, self._feed), {}
        for aggregate in self._feed.aggregates:
            if now.get(aggregate.name) != aggregate.topic:
                raise PositionProblem(
                    f"city.{aggregate.name} is not shown as declared; first run: citystream rebuild {self._feed.name}"
                )
            windows[aggregate.name], still_open, closes = self._rebuild.touched(aggregate, self._rows)
            if still_open:
                raise PositionProblem(
                    f"{still_open:,} windows of {aggregate.name} that it counted in are not final yet; wait until "
                    f"event time has come to {datetime.fromtimestamp(closes / 1000, UTC):%Y-%m-%d %H:%M:%S} UTC in all "
                    "partitions of its records (no newer events come: publish its file again with --finished), then "
                    "try again"
                )
        table = f"raw.{self._feed.name}"
        ((rows,),) = self._client.execute(f"SELECT count() FROM {table} FINAL WHERE {self._rows}")
        ((repeats,),) = self._client.execute(f"SELECT count() FROM {table} WHERE {self._is_repeat}")
        return Taken(rows, repeats, windows)

    def build(self) -> None:
        """Build the windows of the rows that stay; until the others are gone, only windows show the difference."""
        self._delete(self._is_repeat)
        for span in self._rebuild.spans(self._rows):
            for aggregate in self._feed.aggregates:
                self._rebuild.build_without(aggregate, span, self._rows)

    def note(self, by: str) -> None:
        """Note which offsets had rows, for the ledger; noted twice they are noted once."""
        self._client.execute(
            "INSERT INTO raw.withdrawn (publication, topic, source_partition, withdrawn_by, offsets) "
            f"SELECT {literal(self._publication.id)}, {literal(self._feed.name)}, source_partition, {literal(by)}, "
            f"groupBitmapState(source_offset) FROM raw.{self._feed.name} FINAL WHERE {self._rows} "
            "GROUP BY source_partition"
        )

    def delete(self) -> None:
        """Let the rows go."""
        self._delete(self._rows)

    @property
    def _identity(self) -> str:
        return f"({self._feed.key}, {self._feed.event_time}, event_id)"

    @property
    def _is_repeat(self) -> str:
        """Whether a raw row is a repeat of one of the publication, and not yet merged away."""
        stored = f"SELECT {self._identity} FROM raw.{self._feed.name} FINAL WHERE {self._rows}"
        return f"NOT {self._rows} AND {self._identity} IN ({stored})"

    def _delete(self, where: str) -> None:
        self._client.execute(f"ALTER TABLE raw.{self._feed.name} DELETE WHERE {where} SETTINGS mutations_sync = 2")

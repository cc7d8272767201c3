"""A small table of reference data with every type of its fields, and what is known of it at a time, in plain Python."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any

from pydantic import Field

from schemas.avro import feed_schema
from schemas.catalogue import Catalogue, FrozenSchema
from schemas.fields import Area, Day, Instant, Line, Location, Record, Text, Unit
from schemas.reference import Reference
from schemas.reference_rows import encoded
from tests.reference.toy import DEPARTMENT

GRACE_MS = 10_000


class Use(StrEnum):
    """What a limit is for."""

    DAILY = "daily"
    EVENT = "event"
    UNKNOWN = "unknown"


class Limit(Record):
    """From when on a toy site is full."""

    site_id: Annotated[Text, Field(description="Site")]
    floor: Annotated[int, Field(ge=-9, le=99, description="Floor")]
    begins: Annotated[Instant | None, Field(description="From when on it holds")]
    ends: Annotated[Instant | None, Field(description="Until when it holds")]
    full: Annotated[float, Field(ge=0, le=1, description="Share of spots that are taken"), Unit("1")]
    use: Annotated[Use, Field(description="What it is for")] = Use.DAILY
    decided_on: Annotated[Day | None, Field(description="Day it was decided")] = None
    place: Location = None
    area: Annotated[Area | None, Field(description="Where it holds")] = None
    way: Annotated[Line | None, Field(description="The way there")] = None


REFERENCE = Reference(
    name="toy_limit",
    description="Limits of toy sites",
    record=Limit,
    key=("site_id", "floor"),
    department=DEPARTMENT,
    valid_from="begins",
    valid_to="ends",
)
FROZEN = FrozenSchema(7, REFERENCE.name, 1, feed_schema(REFERENCE))


def catalogue() -> Catalogue:
    """One that knows the table."""
    return Catalogue({FROZEN.id: FROZEN})


def instant(ms: int | None) -> datetime | None:
    """An instant, None if it is open."""
    return None if ms is None else datetime.fromtimestamp(ms / 1000, UTC)


@dataclass(frozen=True)
class Said:
    """A record of the log: what it says of a row (``full`` is None where it takes it away), and when it was stored."""

    site: str
    floor: int
    begins: int | None
    ends: int | None
    full: float | None
    at: int

    @property
    def sent(self) -> tuple[bytes, bytes | None]:
        """Key and value on the topic."""
        limit = Limit(
            site_id=self.site, floor=self.floor, begins=instant(self.begins), ends=instant(self.ends),
            full=self.full or 0.0,
        )  # fmt: skip
        key, value = encoded(REFERENCE, FROZEN, limit)
        return key, None if self.full is None else value


def known(log: Sequence[Said], site: Any, floor: Any, arrived: int, event: int) -> float | None:
    """The limit that counts for a record: of what was stored by its arrival less the grace."""
    rows: dict[int | None, Said] = {}
    highest = -1
    for said in log:
        highest = max(highest, said.at)
        if highest <= arrived - GRACE_MS and (said.site, said.floor) == (site, floor):
            rows[said.begins] = said
    holding = [
        said
        for said in rows.values()
        if said.full is not None
        and (said.begins is None or said.begins <= event)
        and (said.ends is None or event < said.ends)
    ]
    chosen = max(holding, key=lambda said: (said.begins is not None, said.begins or 0), default=None)
    return None if chosen is None else chosen.full

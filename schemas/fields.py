"""The words a record's fields are declared in.

A field is an ``Annotated`` type: a Python type, a description, bounds (pydantic's ``Field``) and the marks below.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

INT32 = (-(2**31), 2**31 - 1)
#: The instants ClickHouse and every client can show, in ms since 1970-01-01 UTC: the years 1900 to 2199.
INSTANTS = (-2_208_988_800_000, 7_258_118_399_999)
#: The same years in days since 1970-01-01.
DAYS = (-25_567, 84_005)


#: A UUID in its canonical form, the only one taken: an event has one id.
UUID = r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"


@dataclass(frozen=True)
class Unit:
    """The unit a value is measured in, as UCUM writes it where UCUM has it."""

    symbol: str


#: Characters of a pseudonym, hexadecimal digits.
PSEUDONYM_LENGTH = 32
#: What a personal value is in the log; anything else there is invalid.
PSEUDONYM = rf"^[0-9a-f]{{{PSEUDONYM_LENGTH}}}$"


@dataclass(frozen=True)
class Personal:
    """The value tells of a person: the publisher replaces it by a pseudonym before the record leaves.

    Both have to keep the field's bounds, so it has no pattern and its lengths allow for ``PSEUDONYM_LENGTH``.
    """


@dataclass(frozen=True)
class Coarse:
    """Analysts see the place to so many decimals of a degree (2: about a kilometre); the log keeps it exact."""

    decimals: int


#: Characters of a shape: some thousand corners.
LARGEST_SHAPE = 200_000


@dataclass(frozen=True)
class Shape:
    """The text is GeoJSON in WGS 84: an area is a Polygon or MultiPolygon, a line a LineString or MultiLineString.

    Of reference data only.
    """

    kind: Literal["area", "line"]


class Place(BaseModel):
    """A position in WGS 84."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    longitude: Annotated[float, Field(ge=-180, le=180, description="Longitude, WGS 84"), Unit("deg")]
    latitude: Annotated[float, Field(ge=-90, le=90, description="Latitude, WGS 84"), Unit("deg")]


class Record(BaseModel):
    """One event of a feed. Subclasses add their fields; every field needs a description."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


EventId = Annotated[
    str,
    Field(
        pattern=UUID,
        description="UUID of the event; with key and event time it is the event's identity",
    ),
]
Text = Annotated[str, Field(min_length=1, max_length=128)]
Count = Annotated[int, Field(ge=0, le=INT32[1])]
Instant = Annotated[
    AwareDatetime,
    Field(ge=datetime(1900, 1, 1, tzinfo=UTC), lt=datetime(2200, 1, 1, tzinfo=UTC)),
    Unit("ms since 1970-01-01 UTC"),
]
Day = Annotated[date, Field(ge=date(1900, 1, 1), lt=date(2200, 1, 1))]
Location = Annotated[Place | None, Field(description="Where it happened; null when unknown")]
Area = Annotated[str, Field(min_length=1, max_length=LARGEST_SHAPE), Shape("area")]
Line = Annotated[str, Field(min_length=1, max_length=LARGEST_SHAPE), Shape("line")]

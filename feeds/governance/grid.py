"""The grids of the city: the areas that its grassroots governance is divided into."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from feeds.governance import DEPARTMENT
from schemas.fields import Area, Record, Text
from schemas.reference import Reference


class Grid(Record):
    """One grid."""

    grid: Annotated[Text, Field(description="Grid")]
    name: Annotated[Text, Field(description="What people call it")]
    area: Annotated[Area, Field(description="Where it is")]


REFERENCE = Reference(
    name="grid",
    description="Grids of grassroots governance: the area of each",
    record=Grid,
    key=("grid",),
    department=DEPARTMENT,
)

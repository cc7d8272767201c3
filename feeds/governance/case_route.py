"""Which rules open cases, who handles them and by when; alerts of other rules open none."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from feeds.governance import DEPARTMENT
from schemas.fields import Record, Text, Unit
from schemas.reference import Reference


class CaseRoute(Record):
    """Where cases of one rule go."""

    rule: Annotated[Text, Field(description="Rule whose alerts open cases")]
    agency: Annotated[Text, Field(description="Agency that handles them")]
    hours: Annotated[int, Field(ge=1, le=8784, description="Time to handle one from its report on"), Unit("h")]


REFERENCE = Reference(
    name="case_route",
    description="Agencies and deadlines of the cases that alerts open, by rule",
    record=CaseRoute,
    key=("rule",),
    department=DEPARTMENT,
)

"""What the people of parking ask."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from schemas.fields import Day, Record, Text, Unit
from schemas.question import Question


class MinutesFull(Record):
    """A car park on a day."""

    day: Annotated[Day, Field(description="Day of the city")]
    site_id: Annotated[Text, Field(description="Parking site")]
    minutes_full: Annotated[float, Field(description="How long 0.95 or more of its spots were taken"), Unit("min")]
    minutes_known: Annotated[int, Field(description="How long it reported how many were"), Unit("min")]


QUESTIONS = (
    Question(
        name="parking_minutes_full",
        asks="How many minutes was each car park full on each day?",
        parameters={"since": "2026-03-02 00:00:00", "until": "2026-03-09 00:00:00"},
        answer=MinutesFull,
        sql="""
            SELECT toDate(window_start) AS day, site_id, sum(full) * 15 AS minutes_full, count() * 15 AS minutes_known
            FROM city.parking_site_15m
            WHERE final AND full IS NOT NULL
                AND window_start >= {since:DateTime64(3)} AND window_start < {until:DateTime64(3)}
            GROUP BY day, site_id
            ORDER BY day, site_id
        """,
    ),
)

"""What the police ask."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from schemas.fields import Count, Instant, Record, Text
from schemas.question import Question


class Caller(Record):
    """A place from which was called again and again."""

    address: Annotated[Text, Field(description="The place, as a pseudonym")]
    beat_id: Annotated[Text, Field(description="Beat responsible for the last call")]
    calls: Annotated[Count, Field(description="Incidents reported from there")]
    calls_in_an_hour: Annotated[Count, Field(description="The most of them within an hour")]
    first_call: Annotated[Instant, Field(description="When the first of them was reported")]
    last_call: Annotated[Instant, Field(description="When the last of them was reported")]


QUESTIONS = (
    Question(
        name="police_repeated_calls",
        asks="From which places was called three times or more within an hour?",
        parameters={"since": "2026-03-02 00:00:00", "until": "2026-03-03 00:00:00"},
        answer=Caller,
        sql="""
            SELECT address, argMax(beat_id, reported_at) AS beat_id, count() AS calls,
                max(within_an_hour) AS calls_in_an_hour, min(reported_at) AS first_call, max(reported_at) AS last_call
            FROM (
                SELECT address, beat_id, reported_at, count() OVER (
                    PARTITION BY address ORDER BY toUnixTimestamp(reported_at)
                    RANGE BETWEEN 3599 PRECEDING AND CURRENT ROW
                ) AS within_an_hour
                FROM city.police_incident
                WHERE status = 'reported'
                    AND reported_at >= {since:DateTime64(3)} AND reported_at < {until:DateTime64(3)}
            )
            GROUP BY address
            HAVING calls_in_an_hour >= 3
            ORDER BY calls DESC, address
        """,
    ),
)

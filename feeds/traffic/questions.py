"""What the people of traffic ask."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from schemas.fields import Instant, Record, Text
from schemas.question import Question


class Episode(Record):
    """A congestion from its beginning to its end."""

    segment_id: Annotated[Text, Field(description="Road segment")]
    began: Annotated[Instant, Field(description="When it began")]
    ended: Annotated[Instant | None, Field(description="When it ended; null while it lasts")]
    severity: Annotated[Text, Field(description="How grave it was at its worst")]


QUESTIONS = (
    Question(
        name="traffic_congestion",
        asks="Which segments were congested, from when to when, and how badly?",
        parameters={"since": "2026-03-02 00:00:00", "until": "2026-03-03 00:00:00"},
        answer=Episode,
        sql="""
            SELECT entity AS segment_id, min(onset) AS began, maxOrNullIf(sent, msg_type = 'Cancel') AS ended,
                if(countIf(severity = 'Severe') > 0, 'Severe', 'Moderate') AS severity
            FROM city.alert
            WHERE rule = 'congestion' AND sent < {until:DateTime64(3)}
            GROUP BY alert_id, segment_id
            HAVING ended IS NULL OR ended > {since:DateTime64(3)}
            ORDER BY began, segment_id
        """,
    ),
)

"""What the police ask."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from feeds.police.police_incident import LAST, MOST_WAIT, STEPS
from schemas.fields import Count, Instant, Record, Text, Unit
from schemas.question import Question


class Caller(Record):
    """A place from which was called again and again."""

    address: Annotated[Text, Field(description="The place, as a pseudonym")]
    beat_id: Annotated[Text, Field(description="Beat responsible for the last call")]
    calls: Annotated[Count, Field(description="Incidents reported from there")]
    calls_in_an_hour: Annotated[Count, Field(description="The most of them within an hour")]
    first_call: Annotated[Instant, Field(description="When the first of them was reported")]
    last_call: Annotated[Instant, Field(description="When the last of them was reported")]


class Waiting(Record):
    """Incidents of one priority."""

    priority: Annotated[Count, Field(description="1 is the most urgent, 5 the least; 5 where none is told")]
    incidents: Annotated[Count, Field(description="Incidents reported in the time")]
    overdue: Annotated[Count, Field(description="Those that waited longer for a patrol than they may")]
    still_waiting: Annotated[Count, Field(description="Those that no patrol was on its way to at the end of the time")]
    wait_p50: Annotated[float | None, Field(description="How long half of the others waited at most"), Unit("s")]
    wait_p90: Annotated[float | None, Field(description="How long nine of ten of the others waited at most"), Unit("s")]


class Stay(Record):
    """A status of incidents."""

    status: Annotated[Text, Field(description="Status")]
    incidents: Annotated[Count, Field(description="Incidents that left it in the time")]
    stay_p50: Annotated[float, Field(description="How long half of them were in it at most"), Unit("s")]
    stay_p90: Annotated[float, Field(description="How long nine of ten of them were in it at most"), Unit("s")]


class Step(Record):
    """A status that an incident may not have had then."""

    incident_id: Annotated[Text, Field(description="Incident")]
    beat_id: Annotated[Text, Field(description="Beat responsible")]
    before: Annotated[Text, Field(description="Status before")]
    status: Annotated[Text, Field(description="Status that may not follow it")]
    changed_at: Annotated[Instant, Field(description="When it was reached")]


SPAN = {"since": "2026-03-02 00:00:00", "until": "2026-03-03 00:00:00"}
#: Status and the one after it, as SQL.
ALLOWED = ", ".join(f"('{one.value}', '{after.value}')" for after, allowed in STEPS.items() for one in allowed)

QUESTIONS = (
    Question(
        name="police_overdue_dispatch",
        asks="How many incidents of each priority waited too long for a patrol?",
        parameters=SPAN,
        answer=Waiting,
        sql="""
            SELECT priority, count() AS incidents, countIf(waited > priority * MOST_WAIT) AS overdue,
                countIf(is_waiting) AS still_waiting,
                quantileExactOrNullIf(0.5)(waited, NOT is_waiting) AS wait_p50,
                quantileExactOrNullIf(0.9)(waited, NOT is_waiting) AS wait_p90
            FROM (
                SELECT ifNull(priority, LAST) AS priority, ended IS NULL AS is_waiting,
                    dateDiff('ms', reported_at, ifNull(ended, {until:DateTime64(3)})) / 1000 AS waited
                FROM city.police_incident_spans(since={since:DateTime64(3)}, until={until:DateTime64(3)})
                WHERE status = 'reported' AND changed_at >= {since:DateTime64(3)}
            )
            GROUP BY priority
            ORDER BY priority
        """.replace("MOST_WAIT", str(MOST_WAIT // 1000)).replace("LAST", str(LAST)),
    ),
    Question(
        name="police_time_in_status",
        asks="How long are incidents in each status?",
        parameters=SPAN,
        answer=Stay,
        sql="""
            SELECT status, count() AS incidents, quantileExact(0.5)(stay) AS stay_p50,
                quantileExact(0.9)(stay) AS stay_p90
            FROM (
                SELECT status, dateDiff('ms', changed_at, assumeNotNull(ended)) / 1000 AS stay
                FROM city.police_incident_spans(since={since:DateTime64(3)}, until={until:DateTime64(3)})
                WHERE ended IS NOT NULL
            )
            GROUP BY status
            ORDER BY status
        """,
    ),
    Question(
        name="police_illegal_steps",
        asks="Which incidents came to a status that may not follow the one before?",
        parameters=SPAN,
        answer=Step,
        sql="""
            SELECT incident_id, beat_id, assumeNotNull(before) AS before, status, changed_at
            FROM city.police_incident_spans(since={since:DateTime64(3)}, until={until:DateTime64(3)}) AS span
            WHERE span.before IS NOT NULL AND status != 'unknown' AND changed_at >= {since:DateTime64(3)}
                AND (assumeNotNull(span.before), status) NOT IN (ALLOWED)
            ORDER BY changed_at, incident_id
        """.replace("ALLOWED", ALLOWED),
    ),
    Question(
        name="police_repeated_calls",
        asks="From which places was called three times or more within an hour?",
        parameters=SPAN,
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

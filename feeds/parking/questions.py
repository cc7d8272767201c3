"""What the people of parking ask."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from schemas.fields import Count, Day, Record, Text, Unit
from schemas.question import Question


class MinutesFull(Record):
    """A car park on a day."""

    day: Annotated[Day, Field(description="Day of the city")]
    site_id: Annotated[Text, Field(description="Parking site")]
    minutes_full: Annotated[float, Field(description="How long 0.95 or more of its spots were taken"), Unit("min")]
    minutes_known: Annotated[int, Field(description="How long it reported how many were"), Unit("min")]


class Turnover(Record):
    """A car park over a time."""

    site_id: Annotated[Text, Field(description="Parking site")]
    spots: Annotated[Count, Field(description="Spots that are known of it"), Unit("{spot}")]
    stays: Annotated[Count, Field(description="Times that a car left a spot")]
    turnover: Annotated[float, Field(description="Stays over spots"), Unit("1")]
    dwell_p50: Annotated[float | None, Field(description="How long half of the cars stayed at most"), Unit("s")]
    dwell_p90: Annotated[float | None, Field(description="How long nine of ten cars stayed at most"), Unit("s")]


class Balance(Record):
    """What gates, sensors and the count of a car park say from its first report in a time to its last."""

    site_id: Annotated[Text, Field(description="Parking site")]
    reports: Annotated[Count, Field(description="Reports of the site in the time")]
    gates: Annotated[int | None, Field(description="Vehicles that came in less those that went out"), Unit("{vehicle}")]
    counted: Annotated[int, Field(description="By how much the taken spots of its reports went up"), Unit("{spot}")]
    sensed: Annotated[int | None, Field(description="By how much those of its sensors went up"), Unit("{spot}")]
    gate_drift: Annotated[int | None, Field(description="Gates less what was counted"), Unit("{vehicle}")]
    sensor_drift: Annotated[int | None, Field(description="What was sensed less what was counted"), Unit("{spot}")]
    drifts: Annotated[bool, Field(description="One of them is 20 or more away")]


SPAN = {"since": "2026-03-02 00:00:00", "until": "2026-03-03 00:00:00"}

QUESTIONS = (
    Question(
        name="parking_turnover",
        asks="How often was each spot of a car park used, and how long did cars stay that left?",
        parameters=SPAN,
        answer=Turnover,
        sql="""
            SELECT site_id, uniqExact(spot_id) AS spots, countIf(is_over) AS stays, stays / spots AS turnover,
                quantileExactOrNullIf(0.5)(assumeNotNull(duration), is_over) AS dwell_p50,
                quantileExactOrNullIf(0.9)(assumeNotNull(duration), is_over) AS dwell_p90
            FROM (
                SELECT site_id, spot_id, dateDiff('ms', observed_at, ended) / 1000 AS duration,
                    status = 'occupied' AND ended IS NOT NULL AS is_over
                FROM city.parking_spot_spans(since={since:DateTime64(3)}, until={until:DateTime64(3)})
            )
            GROUP BY site_id
            ORDER BY site_id
        """,
    ),
    Question(
        name="parking_balance",
        asks="Do the gates of each car park agree with its own count, and its sensors?",
        parameters=SPAN,
        answer=Balance,
        sql="""
            WITH report AS (
                SELECT site_id, observed_at, occupied_spot_number AS taken,
                    vehicle_entrance_count - vehicle_exit_count AS gate,
                    min(observed_at) OVER (PARTITION BY site_id) AS begins
                FROM city.parking_site
                WHERE observed_at >= {since:DateTime64(3)} AND observed_at < {until:DateTime64(3)}
            ), counts AS (
                SELECT site_id, count() AS reports, any(begins) AS first_at, max(observed_at) AS last_at,
                    sumOrNullIf(gate, observed_at > begins) AS gates,
                    argMax(toInt64(taken), observed_at) - argMin(toInt64(taken), observed_at) AS counted
                FROM report
                GROUP BY site_id
            ), change AS (
                SELECT site_id, observed_at, multiIf(
                    status = 'occupied', 1, before = 'occupied' OR before IS NULL AND status = 'free', -1, 0
                ) AS cars
                FROM city.parking_spot_spans(since={since:DateTime64(3)}, until={until:DateTime64(3)})
            ), sensors AS (
                SELECT site_id, toNullable(sumIf(cars, observed_at > first_at AND observed_at <= last_at)) AS sensed
                FROM change INNER JOIN counts USING site_id
                GROUP BY site_id
            )
            SELECT site_id, reports, gates, counted, sensed, gates - counted AS gate_drift,
                sensed - counted AS sensor_drift,
                ifNull(abs(gate_drift) >= 20, false) OR ifNull(abs(sensor_drift) >= 20, false) AS drifts
            FROM counts LEFT JOIN sensors USING site_id
            ORDER BY site_id
        """,
    ),
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

"""What the people of traffic ask."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from feeds.traffic.traffic_flow import COVERED
from schemas.fields import Count, Instant, Record, Text, Unit
from schemas.question import Question


class Episode(Record):
    """A congestion from its beginning to its end."""

    segment_id: Annotated[Text, Field(description="Road segment")]
    began: Annotated[Instant, Field(description="When it began")]
    ended: Annotated[Instant | None, Field(description="When it ended; null while it lasts")]
    severity: Annotated[Text, Field(description="How grave it was at its worst")]


class Stretch(Record):
    """Segments of a road that follow each other and are congested."""

    road_id: Annotated[Text, Field(description="Road")]
    segments: Annotated[Count, Field(description="How many segments in a row are congested")]
    from_metre: Annotated[float, Field(description="Where the first of them is along the road"), Unit("m")]
    to_metre: Annotated[float, Field(description="Where the last of them is along the road"), Unit("m")]
    began: Annotated[Instant, Field(description="When the first to be congested was")]
    began_at: Annotated[Text, Field(description="The segment that was congested first")]


class State(Record):
    """What a segment does."""

    segment_id: Annotated[Text, Field(description="Road segment")]
    road_id: Annotated[Text | None, Field(description="Road it is a piece of")]
    district: Annotated[Text, Field(description="District it lies in")]
    state: Annotated[
        Text, Field(description="silent, flowing, standing, empty, or unknown where occupancy is not told")
    ]
    vehicles: Annotated[Count, Field(description="Vehicles counted in three minutes"), Unit("{vehicle}")]
    covered: Annotated[float | None, Field(description="Share of these that detectors were covered"), Unit("1")]
    last_report: Annotated[Instant, Field(description="End of its last period")]


QUESTIONS = (
    Question(
        name="traffic_spread",
        asks="How far along each road does a congestion reach at a time, and where did it begin?",
        parameters={"at": "2026-03-02 08:00:00"},
        answer=Stretch,
        sql="""
            WITH jam AS (
                SELECT entity AS segment_id, min(onset) AS began
                FROM city.alert
                WHERE rule = 'congestion' AND onset <= {at:DateTime64(3)}
                GROUP BY alert_id, segment_id
                HAVING countIf(msg_type = 'Cancel' AND sent <= {at:DateTime64(3)}) = 0
            ), segment AS (
                SELECT segment_id, assumeNotNull(any(road_id)) AS road_id,
                    assumeNotNull(any(distance_along)) AS distance_along
                FROM city.traffic_flow AS flow
                WHERE date_observed_to > {at:DateTime64(3)} - INTERVAL 1 HOUR AND date_observed_to <= {at:DateTime64(3)}
                    AND flow.road_id IS NOT NULL AND flow.distance_along IS NOT NULL
                GROUP BY segment_id
            ), placed AS (
                SELECT segment_id, road_id, distance_along,
                    row_number() OVER (PARTITION BY road_id ORDER BY distance_along, segment_id) AS place
                FROM segment
            ), jammed AS (
                SELECT segment_id, road_id, distance_along, began,
                    place - row_number() OVER (PARTITION BY road_id ORDER BY place) AS stretch
                FROM placed INNER JOIN jam USING segment_id
            )
            SELECT road_id, count() AS segments, min(distance_along) AS from_metre, max(distance_along) AS to_metre,
                min(began) AS began, argMin(segment_id, (jammed.began, segment_id)) AS began_at
            FROM jammed
            GROUP BY road_id, stretch
            ORDER BY segments DESC, road_id, from_metre
        """,
    ),
    Question(
        name="traffic_state",
        asks="Which segments are silent, empty, flowing or standing at a time?",
        parameters={"at": "2026-03-02 08:00:00"},
        answer=State,
        sql="""
            SELECT segment_id, any(road_id) AS road_id, any(district) AS district,
                multiIf(
                    last_report <= {at:DateTime64(3)} - INTERVAL 3 MINUTE, 'silent', vehicles > 0, 'flowing',
                    covered IS NULL, 'unknown', covered >= COVERED, 'standing', 'empty'
                ) AS state,
                sumIf(intensity, date_observed_to > {at:DateTime64(3)} - INTERVAL 3 MINUTE) AS vehicles,
                avgOrNullIf(occupancy, date_observed_to > {at:DateTime64(3)} - INTERVAL 3 MINUTE) AS covered,
                max(date_observed_to) AS last_report
            FROM city.traffic_flow
            WHERE date_observed_to > {at:DateTime64(3)} - INTERVAL 1 DAY AND date_observed_to <= {at:DateTime64(3)}
            GROUP BY segment_id
            ORDER BY segment_id
        """.replace("COVERED", str(COVERED)),
    ),
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

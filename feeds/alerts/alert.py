"""Alerts of all rules: messages in the words of the Common Alerting Protocol 1.2, written by the workers."""

from __future__ import annotations

from datetime import timedelta

from feeds.alerts import DEPARTMENT
from schemas.alerts import Alert, Kind
from schemas.expressions import Column
from schemas.feed import Aggregate, Feed, Latest, Spans
from schemas.measures import count_where

DOES = Column("msg_type")

FEED = Feed(
    name="alert",
    description="Messages about alerts: each begins, updates or ends one",
    record=Alert,
    key="alert_id",
    event_time="sent",
    department=DEPARTMENT,
    batch=1,
    rate=None,
    silence=None,
    disorder=timedelta(minutes=5),
    lateness=timedelta(minutes=10),
    ahead=timedelta(hours=1),
    retention=timedelta(days=30),
    by_workers=True,
    latest=Latest(active=~DOES.equals(Kind.CANCEL.value)),
    spans=Spans(of="msg_type"),
    aggregates=(
        Aggregate(
            name="alert_15m",
            by=("rule", "severity"),
            window=timedelta(minutes=15),
            measures=(
                count_where("begun", DOES.equals(Kind.ALERT.value), description="Alerts that began"),
                count_where("ended", DOES.equals(Kind.CANCEL.value), description="Alerts that ended"),
            ),
            description="Alerts by rule and severity in 15 min",
        ),
    ),
)

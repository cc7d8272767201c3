"""What a rule says of an alert, as a record of the feed of alerts."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from processors.rules import Said, Series
from schemas.alerts import (
    LONGEST_ENTITY,
    LONGEST_TEXT,
    SENDER,
    Kind,
    Message,
    Status,
    alert_id,
    entity_name,
    message_id,
)
from schemas.rules import Rule
from schemas.sql import literal

_KINDS = (Kind.ALERT, Kind.UPDATE, Kind.CANCEL)


def message(rule: Rule, series: Series, said: Said, status: Status) -> Message:
    """The record; ``status`` says whether it is meant."""
    entity = entity_name(said.entity.values())
    alert = alert_id(rule.name, entity, said.onset)
    kind = _KINDS[said.does]
    first = min(said.onset, said.observed)
    return {
        "event_id": message_id(alert, kind, said.sent),
        "alert_id": alert,
        "sender": SENDER,
        "sent": _instant(said.sent),
        "status": status.value,
        "msg_type": kind.value,
        "references": None if said.before is None else _reference(alert, *said.before),
        "category": rule.category.value,
        "severity": rule.levels[said.level].severity.value,
        "headline": f"{rule.headline}: {entity}"[:LONGEST_TEXT],
        "onset": _instant(said.onset),
        "feed": series.feed.name,
        "series": series.view,
        "rule": rule.name,
        "entity": entity[:LONGEST_ENTITY],
        "numbers": json.dumps({name: _plain(number) for name, number in said.numbers.items()}),
        "observed_from": _instant(first),
        "observed_to": _instant(said.observed),
        "query": _query(series, said.entity, first, said.observed)[:LONGEST_TEXT],
        "place": None if said.place is None else dict(zip(("longitude", "latitude"), said.place, strict=True)),
    }


def _instant(ms: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ms)


def _reference(alert: str, does: int, sent: int) -> str:
    """A message in CAP's way of naming one: sender, identifier and when it was sent."""
    return f"{SENDER},{message_id(alert, _KINDS[does], sent)},{_instant(sent).isoformat(timespec='milliseconds')}"


def _plain(number: float) -> float | None:
    if math.isnan(number):
        return None
    return int(number) if number.is_integer() else number


def _query(series: Series, entity: Mapping[str, str], begin: int, end: int) -> str:
    """SQL that shows the observations from one event time to another."""
    whose = "".join(f"{name} = {literal(value)} AND " for name, value in entity.items())
    times = " AND ".join(f"fromUnixTimestamp64Milli({ms - series.span_ms})" for ms in (begin, end))
    return f"SELECT * FROM city.{series.view} WHERE {whose}{series.time} BETWEEN {times} ORDER BY {series.time}"  # noqa: S608

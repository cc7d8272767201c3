"""Questions about alerts, asked of the views that analysts have: messages as ``city.alert`` shows them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clickhouse_driver import Client

from schemas.alerts import FEED_NAME, Alert, Kind, Severity
from schemas.sql import literal
from sinks.queries import named_rows

#: How grave a message's severity is, as a number.
GRAVITY = f"indexOf([{', '.join(literal(one.value) for one in Severity)}], severity)"
Messages = list[dict[str, Any]]


def active(client: Client) -> Messages:
    """The last message of each alert that has not ended, the gravest and oldest first."""
    return named_rows(client, f"SELECT * FROM city.{FEED_NAME}_active ORDER BY {GRAVITY} DESC, onset, rule, entity")


def history(
    client: Client, wanted: Mapping[str, str], since_ms: int | None, until_ms: int | None, most: int
) -> Messages:
    """Messages whose columns have the values that are ``wanted``, sent from one time to another, the newest first."""
    where = [f"{name} = %({name})s" for name in wanted]
    where += [] if since_ms is None else [f"sent >= fromUnixTimestamp64Milli({since_ms:d})"]
    where += [] if until_ms is None else [f"sent <= fromUnixTimestamp64Milli({until_ms:d})"]
    return named_rows(
        client,
        f"SELECT * FROM city.{FEED_NAME} WHERE {' AND '.join(where) or 'true'} "
        f"ORDER BY sent DESC, rule, entity LIMIT {most:d}",
        wanted,
    )


def of_alerts(client: Client, beginning: str) -> Messages:
    """All messages of the alerts whose ids begin so, those of each in their order."""
    return named_rows(
        client,
        f"SELECT * FROM city.{FEED_NAME} WHERE startsWith(alert_id, %(beginning)s) ORDER BY alert_id, sent",
        {"beginning": beginning},
    )


def of_rule(client: Client, feed: str, rule: str, since_ms: int, until_ms: int) -> Messages:
    """All messages up to a time of the alerts of a rule that were there from another time on, in their order."""
    ended = f"msg_type = '{Kind.CANCEL}' AND sent < fromUnixTimestamp64Milli({since_ms:d})"
    return named_rows(
        client,
        f"SELECT * FROM city.{FEED_NAME} WHERE feed = %(feed)s AND rule = %(rule)s "
        f"AND sent <= fromUnixTimestamp64Milli({until_ms:d}) "
        f"AND alert_id NOT IN (SELECT alert_id FROM city.{FEED_NAME} WHERE {ended}) ORDER BY sent, entity",
        {"feed": feed, "rule": rule},
    )


def record_of(message: Mapping[str, Any]) -> Alert:
    """A message as the record it was."""
    longitude, latitude = message["place_longitude"], message["place_latitude"]
    place = None if longitude is None else {"longitude": longitude, "latitude": latitude}
    values = {name: message[name] for name in Alert.model_fields if name != "place"}
    # Not strict: the members of enums are texts here.
    return Alert.model_validate({**values, "event_id": str(message["event_id"]), "place": place}, strict=False)

"""Alerts as records of a feed like any other, in the words of the Common Alerting Protocol 1.2 (OASIS).

A worker writes them; whoever wants to know of them reads their topic. A message is identified by its alert, its kind
and its time, so one that is written twice is one.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated, Any
from uuid import UUID, uuid5

from pydantic import Field

from schemas.fields import EventId, Instant, Location, Record, Text

#: The feed of alerts, whose records are those below.
FEED_NAME = "alert"
#: Who says so, where nobody else does.
SENDER = "citystream"
#: Of identifiers: what is made of the same words is the same everywhere.
_NAMES = UUID("8a3f1c6e-5d0b-4c1a-9c59-0d5f5c3f7a10")
#: Characters an entity, its numbers and a query may have.
LONGEST_ENTITY, LONGEST_TEXT = 512, 4096


class Status(StrEnum):
    """Whether an alert is meant: Exercise for what is simulated."""

    ACTUAL = "Actual"
    EXERCISE = "Exercise"
    SYSTEM = "System"
    TEST = "Test"
    UNKNOWN = "unknown"


class Kind(StrEnum):
    """What a message does: it begins an alert, changes it or ends it."""

    ALERT = "Alert"
    UPDATE = "Update"
    CANCEL = "Cancel"
    UNKNOWN = "unknown"


class Category(StrEnum):
    """What an alert is about."""

    GEO = "Geo"
    MET = "Met"
    SAFETY = "Safety"
    SECURITY = "Security"
    RESCUE = "Rescue"
    FIRE = "Fire"
    HEALTH = "Health"
    ENVIRONMENT = "Env"
    TRANSPORT = "Transport"
    INFRASTRUCTURE = "Infra"
    OTHER = "Other"
    UNKNOWN = "unknown"


class Severity(StrEnum):
    """How grave it is, from the mildest to the gravest."""

    UNKNOWN = "unknown"
    MINOR = "Minor"
    MODERATE = "Moderate"
    SEVERE = "Severe"
    EXTREME = "Extreme"


class Alert(Record):
    """A message about an alert."""

    event_id: EventId
    alert_id: Annotated[Text, Field(description="The alert, the same in all its messages")]
    sender: Annotated[Text, Field(description="Who says so")]
    sent: Annotated[Instant, Field(description="Event time at which it was decided: the event time")]
    status: Annotated[Status, Field(description="Exercise for what is simulated")]
    msg_type: Annotated[Kind, Field(description="Whether it begins, changes or ends the alert")]
    references: Annotated[
        str | None,
        Field(max_length=256, description="The message before: sender,identifier,sent; null of the first"),
    ]
    category: Annotated[Category, Field(description="What it is about")]
    severity: Annotated[Severity, Field(description="How grave it is; of one that ends, how grave it was")]
    headline: Annotated[str, Field(min_length=1, max_length=LONGEST_TEXT, description="What it says")]
    onset: Annotated[Instant, Field(description="Event time at which it began")]
    feed: Annotated[Text, Field(description="Feed whose records, or whose windows, raised it")]
    series: Annotated[Text, Field(description="View of the records or windows that raised it")]
    rule: Annotated[Text, Field(description="Rule that raised it")]
    entity: Annotated[
        str, Field(min_length=1, max_length=LONGEST_ENTITY, description="Whom it is about, by its fields")
    ]
    numbers: Annotated[str, Field(max_length=LONGEST_TEXT, description="The numbers that raised it, as JSON")]
    observed_from: Annotated[Instant, Field(description="Event time of the first observation it rests on")]
    observed_to: Annotated[Instant, Field(description="Event time of the last observation before it was decided")]
    query: Annotated[str, Field(max_length=LONGEST_TEXT, description="SQL that shows the observations")]
    place: Location


def entity_name(values: Iterable[str]) -> str:
    """What an entity is called, by the values of its fields.

    Where there are several, commas within them are doubled, so no two are called alike. ``sinks.sql.entity_name`` says
    the same.
    """
    several = [*values]
    return several[0] if len(several) == 1 else ", ".join(one.replace(",", ",,") for one in several)


def alert_id(rule: str, entity: str, onset_ms: int) -> str:
    """What an alert is called: by its rule, its entity and the event time of its beginning."""
    return str(uuid5(_NAMES, f"{rule}\n{entity}\n{onset_ms}"))


def message_id(alert: str, kind: Kind, sent_ms: int) -> str:
    """What a message about an alert is called."""
    return str(uuid5(_NAMES, f"{alert}\n{kind.value}\n{sent_ms}"))


#: A message as ``schemas.record_codec`` writes it.
Message = dict[str, Any]

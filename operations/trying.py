"""A rule tried on the past: what it would have raised, beside what the one that ran then has raised."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from clickhouse_driver import Client

from operations.past import past_of
from operations.progress import OnProgress, unheard
from operations.rules import DeclaredRule
from processors.messages import message
from processors.rules import Watch
from schemas.alerts import Kind, Message, Severity, Status
from schemas.feed import milliseconds
from schemas.reference import Reference
from schemas.verdict import instant_ms
from sinks.alerts import of_rule
from sinks.past import Stretch

_SEVERITIES = [one.value for one in Severity]
MINUTE = 60_000


@dataclass(frozen=True)
class Episode:
    """An alert from its beginning to its end, None while it has none; ``severity`` is the gravest it had."""

    alert_id: str
    entity: str
    onset: datetime
    ended: datetime | None
    severity: str

    def meets(self, other: Episode) -> bool:
        """Whether both are about one entity, and there at one time."""
        return (
            self.entity == other.entity
            and (other.ended is None or self.onset <= other.ended)
            and (self.ended is None or other.onset <= self.ended)
        )


@dataclass(frozen=True)
class Pair:
    """An alert as the tried rule raises it beside the one that is there; None where one raises none."""

    tried: Episode | None
    present: Episode | None

    @property
    def raised_by(self) -> Literal["both", "tried", "present"]:
        """Which of the rules raises it."""
        return "present" if self.tried is None else "tried" if self.present is None else "both"


@dataclass(frozen=True)
class Trial:
    """What a rule says of a span of event time: messages of alerts that are there in it, and both rules' alerts.

    ``through`` is as far as the past is known (ms), of the partition that has come furthest, and within the span;
    ``watched`` is how many observations there were, those before the span among them.
    """

    tried: Sequence[Message]
    present: Sequence[Message]
    pairs: Sequence[Pair]
    through: int
    watched: int


def try_rule(
    client: Client,
    found: DeclaredRule,
    references: Mapping[str, Reference],
    since: int,
    until: int,
    on_progress: OnProgress = unheard,
) -> Trial:
    """Let a rule watch a span of the past (ms), of ClickHouse as the user ``operator``, and nothing be said of it.

    It begins to watch before the span, so that what it holds of an entity is there when the span begins: what it keeps
    may be of any age, so a rule that keeps something begins with the oldest that is stored, any other as long before as
    it ``remembers`` an entity. What an alert of that one began with still earlier is not known in the trial.
    ``on_progress`` hears how many minutes of event time are watched.
    """
    past, begin = past_of(client, found, references), since - milliseconds(found.rule.remembers)
    if found.rule.keep:
        begin = min(since, past.oldest())
    minutes = (until - begin) // MINUTE
    watches = {number: Watch(found.rule, past.series) for number in past.passed}
    told, watched = list[Message](), 0
    for taken in past.taken(Stretch(begin, until)):
        watched += len(taken.rows.times)
        said = watches[taken.partition].advance(taken.rows, taken.through, past.texts)
        told += [message(found.rule, past.series, one, Status.TEST) for one in said]
        on_progress("watching", min(minutes, max(0, taken.through - begin) // MINUTE), minutes)
    on_progress("watching", minutes, minutes)
    ended = {one["alert_id"] for one in told if one["msg_type"] == Kind.CANCEL and instant_ms(one["sent"]) < since}
    tried = sorted((one for one in told if one["alert_id"] not in ended), key=lambda one: (one["sent"], one["entity"]))
    present = of_rule(client, found.feed.name, found.rule.name, since, until)
    through = max([since, *(min(until, passed) for passed in past.passed.values())])
    return Trial(tried, present, compared(episodes(tried), episodes(present)), through, watched)


def episodes(messages: Iterable[Mapping[str, Any]]) -> list[Episode]:
    """The alerts that some messages are about, by their beginning."""
    by_alert: dict[str, list[Mapping[str, Any]]] = {}
    for one in messages:
        by_alert.setdefault(one["alert_id"], []).append(one)
    found = [
        Episode(
            alert_id=alert,
            entity=own[0]["entity"],
            onset=own[0]["onset"],
            ended=next((one["sent"] for one in own if one["msg_type"] == Kind.CANCEL), None),
            severity=max((one["severity"] for one in own), key=_SEVERITIES.index),
        )
        for alert, own in by_alert.items()
    ]
    return sorted(found, key=lambda one: (one.onset, one.entity))


def compared(tried: Sequence[Episode], present: Sequence[Episode]) -> list[Pair]:
    """Each alert beside those of the other rule that are about the same entity and there at the same time."""
    pairs = [Pair(one, other) for one in tried for other in present if one.meets(other)]
    met = {id(one) for pair in pairs for one in (pair.tried, pair.present)}
    pairs += [Pair(one, None) for one in tried if id(one) not in met]
    pairs += [Pair(None, one) for one in present if id(one) not in met]

    def order(pair: Pair) -> tuple[datetime, str]:
        return min((one.onset, one.entity) for one in (pair.tried, pair.present) if one is not None)

    return sorted(pairs, key=order)

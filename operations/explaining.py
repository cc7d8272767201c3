"""Why there is an alert: what its entity did from before its beginning on, evaluated once more, step by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clickhouse_driver import Client

from operations.past import past_of
from operations.rules import DeclaredRule
from processors.messages import message
from processors.steps import Step, Stepping
from schemas.alerts import Message, Status
from schemas.feed import milliseconds
from schemas.reference import Reference
from schemas.verdict import instant_ms
from sinks.past import Stretch

#: Steps before the first observation that an alert rests on, which show how it was before.
BEFORE = 3


@dataclass(frozen=True)
class Explanation:
    """The steps of an alert's entity, from a few before its beginning to its last message.

    ``told`` has what the rule says at each, None mostly. They ``agree`` if that is what the alert's messages said; else
    the rule, or what is stored, is not what it was.
    """

    steps: Sequence[Step]
    told: Sequence[Message | None]
    agree: bool


def explain(
    client: Client, found: DeclaredRule, references: Mapping[str, Reference], messages: Sequence[Mapping[str, Any]]
) -> Explanation:
    """Watch the entity of an alert again, whose ``messages`` these are, of ClickHouse as the user ``operator``.

    It begins with the oldest that is stored, as what the rule holds of an entity may be of any age.
    """
    first, last = messages[0], messages[-1]
    onset = min(instant_ms(first["onset"]), instant_ms(first["observed_from"]))
    begin, end = onset - milliseconds(found.rule.remembers), instant_ms(last["sent"])
    past = past_of(client, found, references)
    stepping = {number: Stepping(found.rule, past.series) for number in past.passed}
    steps: list[Step] = []
    for taken in past.taken(Stretch(past.oldest(), end, found.of, first["entity"])):
        own, shown = stepping[taken.partition], taken.rows.times >= begin
        own.watch.advance(taken.rows.where(~shown), min(taken.through, begin - 1), past.texts)
        steps += own.take(taken.rows.where(shown), taken.through, past.texts)
    start = next((n for n, step in enumerate(steps) if step.time >= onset), 0)
    steps = steps[max(0, start - BEFORE) :]
    told = [None if one.said is None else message(found.rule, past.series, one.said, Status.TEST) for one in steps]
    again = [one["event_id"] for one in told if one is not None and one["alert_id"] == first["alert_id"]]
    return Explanation(steps, told, again == [str(one["event_id"]) for one in messages])

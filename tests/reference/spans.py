"""From when to when each entity was in each state, in plain Python: slow and obviously right."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Change:
    """An event of an entity: when it happened (ms), its rank among those of one time, and the state it says."""

    entity: Hashable
    time: int
    rank: tuple[str, ...]
    state: Hashable


@dataclass(frozen=True)
class Span:
    """A state by its first event, with the state before and when it ended (ms), if they are known.

    It began (ms) with that event, or at the time from which on it was asked for.
    """

    first: Change
    before: Hashable | None
    began: int
    ended: int | None


def spans(changes: Iterable[Change], since: int, until: int) -> list[Span]:
    """Those of the events from one time on and before another (ms), and of the newest one before of each entity."""
    entities: dict[Hashable, list[Change]] = {}
    for change in sorted(changes, key=lambda one: (one.time, one.rank)):
        if change.time < until:
            entities.setdefault(change.entity, []).append(change)
    found = []
    for events in entities.values():
        earlier = [event for event in events if event.time < since]
        first: list[Change] = []
        for event in [*earlier[-1:], *events[len(earlier) :]]:
            if not first or event.state != first[-1].state:
                first.append(event)
        for before, event, after in zip([None, *first], first, [*first[1:], None], strict=False):
            ended = None if after is None else after.time
            if ended is None or ended > since:
                found.append(Span(event, None if before is None else before.state, max(since, event.time), ended))
    return found

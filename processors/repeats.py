"""Repeats of an event within the open windows, or before the watermark has passed it: same key, time and event id."""

from __future__ import annotations

from datetime import timedelta

import numpy as np

from processors.events import EVENT_MS, HIGH, LOW, EventColumns, Events
from processors.tables import Flags, Integers, Table
from schemas.feed import Feed, milliseconds
from streams.positions import NO_EVENT_TIME

#: How often, in the time that they are kept for, identities are forgotten.
FORGETTING = 8
#: Columns of the identities held.
_KEY, _EVENT_MS = 0, 1


class Repeats:
    """Identities seen in windows that may still be open."""

    def __init__(self, feed: Feed, columns: EventColumns) -> None:
        spans = [aggregate.window + feed.lateness for aggregate in feed.aggregates]
        spans += [timedelta(milliseconds=1)] if feed.alerts else []
        self._keep_for = milliseconds(max(spans) + feed.disorder) if spans else None
        self._text = columns.keys[feed.key]
        self._seen = Table(4)
        self._forget_at = NO_EVENT_TIME

    def fresh(self, events: Events, max_event_ms: int) -> Flags | slice:
        """Which of numbered events were not seen before.

        What ``max_event_ms`` closes for good is forgotten by and by.
        """
        if self._keep_for is None:
            return slice(None)
        self._seen.reserve(len(events))
        key, (event_ms, *halves) = events.keys[:, self._text], events.cells[:, [EVENT_MS, HIGH, LOW]].T
        _, fresh = self._seen.number(np.column_stack((key, event_ms, *halves)))
        if max_event_ms >= self._forget_at:
            self._seen.replace(self._seen.rows[self._seen.rows[:, _EVENT_MS] + self._keep_for > max_event_ms])
            self._forget_at = max_event_ms + self._keep_for // FORGETTING
        return slice(None) if fresh.all() else fresh

    @property
    def texts(self) -> Integers:
        """Numbers of the texts of what is held."""
        return self._seen.rows[:, _KEY]

    def renumber(self, texts: Integers) -> None:
        """Go by other numbers of texts, which stand at the old ones."""
        rows = self._seen.rows.copy()
        rows[:, _KEY] = texts[rows[:, _KEY]]
        self._seen.replace(rows)

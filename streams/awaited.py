"""Schemas that records name before their files are here: wait for them before the records count as bad."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable

from schemas.catalogue import Catalogue, SchemaProblem

log = logging.getLogger("citystream")

#: Seconds that a topic waits for ids it does not know, counted from the first record that names one.
PATIENCE = 10.0


class NotYet(Exception):
    """A run cannot be read yet, and nothing of it was taken; the message says what it waits for."""


class Awaited:
    """The ids one topic waits for: all of them together, and once until the files bring a newer one.

    Bytes that came to harm name any id, and anybody can publish them. So only one that may come is waited for
    (``Catalogue.may_come``), and when the time is over whatever is not here is unknown at once. ``clock`` is in
    seconds.
    """

    def __init__(
        self, catalogue: Catalogue, patience: float = PATIENCE, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._catalogue = catalogue
        self._patience = patience
        self._clock = clock
        self._newest = -1
        self._until: float | None = None

    def came(self, schema_id: int, where: str, in_vain: Callable[[int], bool] = lambda _: False) -> bool:
        """Whether an id that was not known is known now.

        ``where`` is the record that names it, for messages; ``in_vain`` is that of ``streams.unknown``.

        Raises
        ------
        NotYet
            It may still come.
        """
        if schema_id in self._catalogue.by_id:
            return True
        if not self._catalogue.may_come(schema_id):
            return False
        reason, newest = self._lacks(schema_id), self._catalogue.newest_id
        if not reason:
            return True
        if newest != self._newest:
            self._newest, self._until = newest, -math.inf if in_vain(newest) else None
        if not self._catalogue.may_come(schema_id):
            return False
        if self._until is None:
            self._until = self._clock() + self._patience
        if self._clock() < self._until:
            raise NotYet(
                f"{where} names the schema id {schema_id}, which is not frozen here; waiting for its files: bring what "
                "citystream schemas freeze made where the feed is declared"
            )
        if self._patience and self._until > -math.inf:
            self._until = -math.inf
            log.error(
                "%s: the schema id %d did not come (%s); what names it, or another id that is not here, is dead until "
                "it is there. Producers may use only what is frozen where the workers run",
                *(where, schema_id, reason),
            )
        return False

    def _lacks(self, schema_id: int) -> str:
        """Why an id is not known; empty if it is."""
        try:
            self._catalogue.refresh()
        except SchemaProblem as problem:
            return str(problem)
        return "" if schema_id in self._catalogue.by_id else "the files do not have it"

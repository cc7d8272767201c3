"""Schemas that records name before their files are here: wait for them before the records count as bad."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from schemas.catalogue import Catalogue, SchemaProblem

log = logging.getLogger("citystream")

#: Seconds that an id is waited for, counted from the first record that names it.
PATIENCE = 10.0
#: Seconds between two looks at the files.
PAUSE = 0.25


class Awaited:
    """The ids waited for by one process, each of them once.

    Bytes that came to harm name any id. So only one that may come is waited for (``Catalogue.may_come``), and none
    twice: behind its time it is unknown at once, until the files change. ``clock`` and ``sleep`` are in seconds.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        patience: float = PATIENCE,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._catalogue = catalogue
        self._patience = patience
        self._clock = clock
        self._sleep = sleep
        self._until: dict[int, float] = {}

    def came(self, schema_id: int, where: str) -> bool:
        """Whether an id that was not known is known now; waits in this thread while it may come.

        ``where`` is the record that names it, for messages.
        """
        known = schema_id in self._catalogue.by_id
        if known or not self._catalogue.may_come(schema_id):
            return known
        if schema_id not in self._until:
            self._until[schema_id] = self._clock() + self._patience
            log.warning("%s names the schema id %d, which is not frozen here; waiting for its files", where, schema_id)
        waited = False
        while (reason := self._lacks(schema_id)) and self._may_still_come(schema_id):
            self._sleep(PAUSE)
            waited = True
        if reason and waited:
            log.error(
                "%s: the schema id %d did not come (%s); what names it is dead until it is there. "
                "Producers may use only what is frozen where the workers run",
                *(where, schema_id, reason),
            )
        return not reason

    def _may_still_come(self, schema_id: int) -> bool:
        return self._catalogue.may_come(schema_id) and self._clock() < self._until[schema_id]

    def _lacks(self, schema_id: int) -> str:
        """Why an id is not known; empty if it is."""
        try:
            self._catalogue.refresh()
        except SchemaProblem as problem:
            return str(problem)
        return "" if schema_id in self._catalogue.by_id else "the files do not have it"

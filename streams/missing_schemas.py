"""Schemas that records name before their files are here: wait for them, and until when what names them is dead.

Whether the files are there is the one thing about a record that the log does not say. So what a processor decided
stands: its position carries it over a restart, and the sink follows it.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

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

        ``where`` is the record that names it, for messages; ``in_vain`` is that of ``streams.missing_schemas``.

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


#: A commit's metadata has room for so many ids.
MOST = 64


class SchemaVerdicts(Protocol):
    """Which schema ids that are named in one run are missing for good, and who decides that."""

    def dead_to(self, schema_id: int, /) -> int:
        """The offset up to which what names an id is dead, whatever the files say now; -1 for nothing."""
        ...

    def give_up(self, schema_id: int) -> None:
        """An id did not come."""
        ...

    def in_vain(self, newest: int, /) -> bool:
        """Whether an earlier life of the worker has waited since the newest id there is came."""
        ...


@dataclass(frozen=True)
class GivenUp:
    """What a processor gave up in a partition, of which a run up to ``last_offset`` is read.

    ``newest_before`` is the newest id that the life of the worker before this one knew.
    """

    dead: dict[int, int]
    last_offset: int
    newest_before: int = 0

    def dead_to(self, schema_id: int) -> int:
        """The end of the last run in which it did not come."""
        return self.dead.get(schema_id, -1)

    def give_up(self, schema_id: int) -> None:
        """In all of the run: should the files come while it is read, they come for the next one."""
        self.dead[schema_id] = self.last_offset

    def in_vain(self, newest: int) -> bool:
        """By an earlier life of the worker, which had the files that are here."""
        return newest == self.newest_before and any(schema_id > newest for schema_id in self.dead)


def newest(dead: Mapping[int, int]) -> dict[int, int]:
    """Those that were given up last, as many as a position can carry."""
    return dict(sorted(dead.items(), key=lambda one: one[1])[-MOST:])

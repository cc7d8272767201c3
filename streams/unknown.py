"""Schema ids that records name while their files are not there: until when what names them is dead.

Whether the files are there is the one thing about a record that the log does not say. So what a processor decided
stands: its position carries it over a restart, and the sink follows it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

#: A commit's metadata has room for so many ids.
MOST = 64


class Unknown(Protocol):
    """What counts as unknown in the records of one run."""

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

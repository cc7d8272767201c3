"""What the processor decided about schema ids, which the sink follows: a record is a row or a dead letter, not both."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from kafka.errors import KafkaError

from schemas.catalogue import AHEAD, Catalogue
from streams.positions import Position
from streams.runs import Run
from streams.unknown import Unknown

log = logging.getLogger("citystream")

#: Seconds between two looks at the processor's commits.
PAUSE = 0.5

#: By topic and partition.
Positions = Mapping[tuple[str, int], Position]


class Following:
    """The processor's positions, asked for again only where those that were seen do not decide.

    ``positions`` asks the brokers; ``sleep`` is in seconds.
    """

    def __init__(
        self, catalogue: Catalogue, positions: Callable[[], Positions], sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._catalogue = catalogue
        self._positions = positions
        self._sleep = sleep
        self._known_at_first = catalogue.newest_id
        self._seen: Positions | None = None

    def of(self, run: Run) -> Unknown:
        """What the processor has decided, or will have, of a run."""
        return _OfRun(self, run)

    def decision(self, run: Run, schema_id: int) -> Position | None:
        """A position that decides for an id in a run; waits for the processor to get there. None if there is none, and
        the id is known or never will be."""
        asked = 0
        while True:
            seen = self._seen
            position = None if seen is None else _begun(seen.get((run.topic, run.partition)))
            if seen is not None and self._decides(position, run, schema_id, fresh=asked > 0):
                return position
            if asked == 1:
                log.warning(
                    "%s/%d: a record before offset %d names the schema id %d, which the processor does not know yet; "
                    "waiting for it to say whether the record counts",
                    *(run.topic, run.partition, run.next, schema_id),
                )
            if asked:
                self._sleep(PAUSE)
            asked += 1
            try:
                self._seen = self._positions()
            except (KafkaError, OSError) as error:
                log.warning("Kafka does not say where the processor is (%s); it will be asked again", error)

    def _decides(self, position: Position | None, run: Run, schema_id: int, *, fresh: bool) -> bool:
        """A processor that was never there may have come since; one that was passes over nothing it would wait for."""
        if position is None:
            return not self._catalogue.may_come(schema_id) and (fresh or schema_id <= self._known_at_first)
        if run.next <= position.processed or schema_id <= position.newest_schema:
            return True
        return schema_id > max(position.newest_schema, self._catalogue.newest_id) + AHEAD


def _begun(position: Position | None) -> Position | None:
    """None for one that was set from outside, in which no processor has begun yet."""
    return position if position and position.newest_schema else None


@dataclass(frozen=True)
class _OfRun:
    following: Following
    run: Run

    def dead_to(self, schema_id: int) -> int:
        """Where the processor gave an id up, or all of the run if it does not know it."""
        position = self.following.decision(self.run, schema_id)
        if position is None:
            return -1
        unknown_to = self.run.next - 1 if schema_id > position.newest_schema else -1
        return max(unknown_to, position.unknown.get(schema_id, -1))

    def give_up(self, schema_id: int) -> None:
        """The processor decides."""

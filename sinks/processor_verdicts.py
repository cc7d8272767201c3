"""What the processor decided about schema ids, which the sink follows: a record is a row or a dead letter, not both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from kafka.errors import KafkaError

from schemas.catalogue import AHEAD, Catalogue
from streams.assignment import TopicPartition
from streams.missing_schemas import NotYet, SchemaVerdicts
from streams.positions import Position, PositionProblem, readable
from streams.wire.fetched_batches import Run

#: Those that are of a newer release cannot be read.
Positions = Mapping[TopicPartition, Position | PositionProblem]


class ProcessorVerdicts:
    """The processor's positions, asked for again only where those that were seen do not decide.

    ``positions`` asks the brokers.
    """

    def __init__(self, catalogue: Catalogue, positions: Callable[[], Positions]) -> None:
        self._catalogue = catalogue
        self._positions = positions
        self._known_at_first = catalogue.newest_id
        self._seen: Positions | None = None

    def of(self, run: Run) -> SchemaVerdicts:
        """What the processor has decided, or will have, of a run."""
        return _OfRun(self, run)

    def of_parts(self, run: Run) -> SchemaVerdicts:
        """What the processor has decided of a run of its own windows."""
        return _OfParts(self, run)

    def decision(self, run: Run, schema_id: int) -> Position | None:
        """A position that decides for an id in a run; None if there is none, and the id is known or never will be.

        Raises
        ------
        NotYet
            The processor has not got there.
        PositionProblem
            Its position is of a newer release.
        """
        for ask in (False, True):
            seen = self._ask() if ask else self._seen
            position = None if seen is None else _begun(readable(seen.get(TopicPartition(run.topic, run.partition))))
            if seen is not None and self._decides(position, run, schema_id, fresh=ask):
                return position
        raise NotYet(
            f"{run.topic}/{run.partition}: a record before offset {run.next} names the schema id {schema_id}, which "
            "the processor does not know yet; waiting for it to say whether the record counts: is it there? "
            "citystream status"
        )

    def knows(self, schema_id: int) -> bool:
        """Whether a processor has this id by now; one of a newer release may have.

        Raises
        ------
        NotYet
            Kafka does not say.
        """
        found = self._ask().values()
        return any(isinstance(one, PositionProblem) or schema_id <= one.newest_schema for one in found)

    def _ask(self) -> Positions:
        try:
            self._seen = self._positions()
        except (KafkaError, OSError) as error:
            raise NotYet(f"Kafka does not say where the processor is ({error}); it will be asked again") from error
        return self._seen

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
    processor: ProcessorVerdicts
    run: Run

    def dead_to(self, schema_id: int) -> int:
        """Where the processor gave an id up, or all of the run if it does not know it."""
        position = self.processor.decision(self.run, schema_id)
        if position is None:
            return -1
        unknown_to = self.run.next - 1 if schema_id > position.newest_schema else -1
        return max(unknown_to, position.given_up.get(schema_id, -1))

    def give_up(self, schema_id: int) -> None:
        """The processor decides."""

    def in_vain(self, _: int, /) -> bool:
        """What it knows is waited for as long as it takes."""
        return False


@dataclass(frozen=True)
class _OfParts:
    processor: ProcessorVerdicts
    run: Run

    def dead_to(self, _: int, /) -> int:
        """Parts are read whenever they can be."""
        return -1

    def give_up(self, schema_id: int) -> None:
        """Only what no processor can have written."""
        if self.processor.knows(schema_id):
            raise NotYet(
                f"{self.run.topic}/{self.run.partition}: a part of a window before offset {self.run.next} names the "
                f"schema id {schema_id}, which the processor has and which is not frozen here; waiting for its files"
            )

    def in_vain(self, _: int, /) -> bool:
        """Every start of the sink waits anew."""
        return False

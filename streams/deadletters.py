"""Records that cannot be processed: kept as they came, with a cause, on one topic for the whole city.

Header names are Kafka Connect's. A dead letter replaces an earlier one of the same topic, partition and offset.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

TOPIC = "dead_letters"

Stage = Literal["DECODE", "VALIDATE"]
Headers = list[tuple[str, bytes]]

_PREFIX = "__connect.errors."


@dataclass(frozen=True)
class DeadLetter:
    """The offsets from ``offset`` to ``last_offset`` of a partition; more than one if a batch could not be opened."""

    topic: str
    partition: int
    offset: int
    last_offset: int
    stage: Stage
    cause: str
    key: bytes | None
    value: bytes | None

    def headers(self) -> Headers:
        """Where it came from and why; no content."""
        return [
            (_PREFIX + "topic", self.topic.encode()),
            (_PREFIX + "partition", b"%d" % self.partition),
            (_PREFIX + "offset", b"%d" % self.offset),
            (_PREFIX + "last_offset", b"%d" % self.last_offset),
            (_PREFIX + "stage", self.stage.encode()),
            (_PREFIX + "class.name", b"InvalidRecord"),
            (_PREFIX + "exception.message", self.cause.encode()),
        ]


def parse(headers: Sequence[tuple[str, bytes]], key: bytes | None, value: bytes | None) -> DeadLetter:
    """Read a dead letter back.

    Raises
    ------
    ValueError
        The headers are not those of a dead letter.
    """
    fields = {name.removeprefix(_PREFIX): text.decode() for name, text in headers if name.startswith(_PREFIX)}
    try:
        return DeadLetter(
            fields["topic"],
            int(fields["partition"]),
            int(fields["offset"]),
            int(fields["last_offset"]),
            "DECODE" if fields["stage"] == "DECODE" else "VALIDATE",
            fields["exception.message"],
            key,
            value,
        )
    except KeyError as error:
        raise ValueError(f"no dead letter: the header {_PREFIX}{error.args[0]} is missing") from error

"""Records that cannot be processed: kept as they came, with a cause, on one topic for the whole city.

Header names are Kafka Connect's. A dead letter replaces an earlier one of the same topic, partition and offset.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from schemas.fields import INSTANTS

TOPIC = "dead_letters"

Stage = Literal["DECODE", "VALIDATE"]
Headers = list[tuple[str, bytes]]

_PREFIX = "__connect.errors."
#: Of the headers; letters of version 1 need not say it.
VERSION, VERSION_HEADER = 1, "citystream.version"
#: Offsets that one letter can stand for: anybody can write letters, and a longer range would cost the ledger more than
#: the letter cost its writer. What lost more offsets at once has several letters.
LONGEST = 2**16
#: Bytes that a letter takes in memory beside its content, about.
OVERHEAD = 500


class NotADeadLetter(ValueError):
    """A record in the topic of dead letters is none: another program wrote it."""


@dataclass(frozen=True)
class DeadLetter:
    """The offsets from ``offset`` to ``last_offset`` of a partition; more than one if a batch could not be opened.

    ``arrived_ms`` is when the broker stored the record: its verdict can be asked for again.
    """

    topic: str
    partition: int
    offset: int
    last_offset: int
    stage: Stage
    cause: str
    key: bytes | None
    value: bytes | None
    arrived_ms: int

    @property
    def memory(self) -> int:
        """Bytes it takes in memory, about."""
        return len(self.key or b"") + len(self.value or b"") + len(self.cause) + OVERHEAD

    def headers(self) -> Headers:
        """Where it came from and why; no content."""
        return [
            (_PREFIX + "topic", self.topic.encode()),
            (_PREFIX + "partition", b"%d" % self.partition),
            (_PREFIX + "offset", b"%d" % self.offset),
            (_PREFIX + "last_offset", b"%d" % self.last_offset),
            (_PREFIX + "arrived_ms", b"%d" % self.arrived_ms),
            (_PREFIX + "stage", self.stage.encode()),
            (_PREFIX + "class.name", b"InvalidRecord"),
            (_PREFIX + "exception.message", self.cause.encode()),
            (VERSION_HEADER, b"%d" % VERSION),
        ]


def of_batch(
    topic: str, partition: int, offset: int, last_offset: int, cause: str, arrived_ms: int
) -> Iterator[DeadLetter]:
    """The letters of a batch that could not be opened: without bytes, each for ``LONGEST`` offsets at most."""
    for first in range(offset, last_offset + 1, LONGEST):
        last = min(first + LONGEST - 1, last_offset)
        yield DeadLetter(topic, partition, first, last, "DECODE", cause, None, None, arrived_ms)


def parse(headers: Sequence[tuple[str, bytes | None]], key: bytes | None, value: bytes | None) -> DeadLetter:
    """Read a dead letter back.

    Raises
    ------
    NotADeadLetter
        The headers are not those of a dead letter; says which, and nothing of their content. Or a newer release wrote
        it, or somebody who says so: that stops nobody.
    """
    fields = dict(headers)
    if fields.get(VERSION_HEADER, b"%d" % VERSION) != b"%d" % VERSION:
        raise NotADeadLetter(
            f"no dead letter of version {VERSION}: a newer release wrote it, see Upgrades in docs/operator.md"
        )
    offset = _number(fields, "offset", 0, 2**63 - 1 - LONGEST)
    return DeadLetter(
        _text(fields, "topic"),
        _number(fields, "partition", 0, 2**16 - 1),
        offset,
        _number(fields, "last_offset", offset, offset + LONGEST - 1),
        _stage(fields),
        _text(fields, "exception.message"),
        key,
        value,
        _number(fields, "arrived_ms", 0, INSTANTS[1]),
    )


def _text(fields: Mapping[str, bytes | None], name: str) -> str:
    content = fields.get(_PREFIX + name)
    if content is None:
        raise NotADeadLetter(f"no dead letter: the header {_PREFIX}{name} is missing")
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise NotADeadLetter(f"no dead letter: the header {_PREFIX}{name} is not UTF-8") from None


def _number(fields: Mapping[str, bytes | None], name: str, low: int, high: int) -> int:
    text = _text(fields, name)
    if not text.isdecimal() or len(text) > 19 or not low <= int(text) <= high:
        raise NotADeadLetter(f"no dead letter: the header {_PREFIX}{name} is no number from {low} to {high}")
    return int(text)


def _stage(fields: Mapping[str, bytes | None]) -> Stage:
    match _text(fields, "stage"):
        case "DECODE":
            return "DECODE"
        case "VALIDATE":
            return "VALIDATE"
    raise NotADeadLetter(f"no dead letter: the header {_PREFIX}stage is neither DECODE nor VALIDATE")

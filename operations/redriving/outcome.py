"""What becomes of a quarantined record that is redriven."""

from __future__ import annotations

from enum import StrEnum


class Outcome(StrEnum):
    """What becomes of a quarantined record.

    STORED: the same event has arrived otherwise, and is only noted. REPEATED: another letter of the same event is
    redriven by this run, and it is noted where that one went.
    """

    REDRIVEN = "redriven"
    STORED = "stored already"
    REPEATED = "repeats another"
    BAD = "still bad"


#: Topic, cause, what became of the record, and why it is still bad.
Result = tuple[str, str, Outcome, str | None]

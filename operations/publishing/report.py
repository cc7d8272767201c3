"""What a department is told: how many lines went which way, and which have to be corrected."""

from __future__ import annotations

import csv
import filecmp
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

from operations.printable import printable
from operations.publishing.checking import Problem
from operations.publishing.rows import Row

#: Rejected lines shown on the screen and in JSON; the files beside have them all.
MOST_SHOWN = 20


@dataclass(frozen=True)
class Rejection:
    """A line of the file and everything that is wrong with it."""

    line: int
    reason: str


@dataclass
class Report:
    """``read`` = ``accepted`` + ``rejected``; ``accepted`` = ``acknowledged`` + ``failed``, or nothing is sent.

    ``digest`` is the SHA-256 of the content, uncompressed. ``lines`` of the file are those of the ``header``, ``blank``
    ones, and one for each record with those ``inside`` it. ``finished_at_ms`` is the event time that
    a finished history ends with, which may be ``ends_later`` than now.
    """

    feed: str
    file: str
    digest: str = ""
    lines: int = 0
    header: int = 0
    blank: int = 0
    inside: int = 0
    accepted: int = 0
    rejected: int = 0
    acknowledged: int = 0
    failed: int = 0
    failure: str | None = None
    times_twice: int = 0
    empty_fields: list[str] = field(default_factory=list)
    reasons: dict[str, int] = field(default_factory=dict)
    first_rejections: list[Rejection] = field(default_factory=list)
    rejects_file: str | None = None
    reasons_file: str | None = None
    finished_at_ms: int | None = None
    ends_later: bool = False

    @property
    def read(self) -> int:
        """Records in the file."""
        return self.accepted + self.rejected

    @property
    def unaccounted(self) -> int:
        """Lines that are in no record, which must not be."""
        return self.lines - self.header - self.blank - self.read - self.inside

    def _most_common(self) -> list[tuple[str, int]]:
        return Counter(self.reasons).most_common(MOST_SHOWN)

    def add_rejected(self, row: Row, problems: Sequence[Problem]) -> None:
        """Count a rejected row, under each kind of problem it has."""
        self.rejected += 1
        for kind in {problem.kind for problem in problems}:
            self.reasons[kind] = self.reasons.get(kind, 0) + 1
        if len(self.first_rejections) < MOST_SHOWN:
            self.first_rejections.append(Rejection(row.line, "; ".join(map(str, problems))))

    def text(self) -> str:
        """The report for people."""
        lines = [f"{self.feed} from {printable(self.file)}: {self.read:,} records in {self.lines:,} lines"]
        numbers = ("accepted", "rejected", "acknowledged", "failed")
        lines += [f"  {name:<13}{getattr(self, name):>12,}" for name in numbers]
        if not self.read:
            lines.append("The file has a header line and no record.")
        if self.unaccounted:
            lines.append(f"{self.unaccounted:,} lines are in no record: do not rely on this, and report it.")
        if self.empty_fields:
            lines.append(f"No column for {', '.join(self.empty_fields)}: left empty.")
        if self.times_twice:
            lines.append(f"{self.times_twice:,} local times exist twice, as the clocks went back: the first was taken.")
        if self.rejected:
            lines.append("Rejected, by reason:")
            lines += [f"{count:>9,}  {printable(kind)}" for kind, count in self._most_common()]
            lines.append("The first of them:" if self.rejected > MOST_SHOWN else "Line by line:")
            lines += [f"  line {one.line}: {printable(one.reason)}" for one in self.first_rejections]
            lines.append(f"The rejected lines are in {self.rejects_file}, the reasons in {self.reasons_file}.")
            lines.append(f"Correct {self.rejects_file} and publish it with the same options.")
        if self.finished_at_ms is not None:
            at = datetime.fromtimestamp(self.finished_at_ms / 1000, UTC)
            lines.append(
                f"Its last windows end after now: publish it again with --finished after {at:%Y-%m-%d %H:%M:%S} UTC."
                if self.ends_later
                else f"The history is finished: event time went on to {at:%Y-%m-%d %H:%M:%S} UTC."
            )
        if self.failure:
            lines.append(f"Kafka did not take every record: {self.failure}")
            lines.append("Publish the file again when Kafka answers; what has arrived is not counted twice.")
        return "\n".join(lines)


class Rejects:
    """The rejected lines unchanged, after the file's header line if it has one, and a table of the reasons beside.

    Nothing is written until the first rejection. Files of an earlier run that say something else are kept: the new
    ones get a number.
    """

    def __init__(self, path: Path, header: bytes) -> None:
        self._wanted = path
        self._header = header
        self._opened = ExitStack()
        self._unfinished: list[Path] = []

    def add(self, row: Row, reason: str) -> None:
        """Write a row down."""
        if not self._unfinished:
            self._start()
        self._lines.write(row.raw if row.raw.endswith((b"\n", b"\r")) else row.raw + b"\n")
        self._table.writerow([self._next_line, row.line, reason])
        self._next_line += row.lines

    def _start(self) -> None:
        self._lines, reasons = self._begin("wb"), self._begin("w", encoding="utf-8", newline="")
        self._table = csv.writer(reasons)
        self._lines.write(self._header)
        self._table.writerow(["line", "line_in_original_file", "reason"])
        self._next_line = 1 + len(self._header.splitlines())

    def _begin(self, mode: str, **options: Any) -> Any:
        """A new file of a name that nobody has, for the owner alone."""
        file = tempfile.NamedTemporaryFile(  # noqa: SIM115
            mode, dir=self._wanted.parent, prefix=f"{self._wanted.name}.", suffix=".part", delete=False, **options
        )
        self._opened.enter_context(file)
        self._unfinished.append(Path(file.name))
        return file

    def finish(self) -> tuple[Path, Path] | None:
        """Give the files their names and return them; None if nothing was rejected."""
        if not self._unfinished:
            return None
        self._opened.close()
        for number in count(1):
            stem = self._wanted.stem + (f".{number}" if number > 1 else "")
            names = self._wanted.with_name(stem + self._wanted.suffix), self._wanted.with_name(stem + ".reasons.csv")
            there = [name for name in names if name.exists()]
            if not there or (len(there) == len(names) and all(map(_equal, self._unfinished, names))):
                break
        for file, name in zip(self._unfinished, names, strict=True):
            file.replace(name)
        return names

    def close(self) -> None:
        """Remove what is not finished."""
        self._opened.close()
        for file in self._unfinished:
            file.unlink(missing_ok=True)


def _equal(one: Path, other: Path) -> bool:
    return filecmp.cmp(one, other, shallow=False)


def rejects_path(file: str, feed: str, suffix: str) -> Path:
    """Where rejects go if nothing else is said: the working folder, named after the file, or the feed for '-'."""
    stem = Path(file).name.removesuffix(".gz") if file != "-" else feed + suffix
    path = Path(stem)
    return Path(f"{path.stem}.rejects{path.suffix or suffix}")

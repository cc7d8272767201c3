"""What a department is told: how many lines went which way, and which have to be corrected."""

from __future__ import annotations

import csv
import filecmp
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from citystream.publishing.sources import Row

#: Rejected lines shown on the screen and in JSON; the files beside have them all.
SHOWN = 20


@dataclass(frozen=True)
class Rejection:
    """A line of the file and everything that is wrong with it."""

    line: int
    reason: str


@dataclass
class Report:
    """``read`` = ``accepted`` + ``rejected``; ``accepted`` = ``acknowledged`` + ``failed``."""

    feed: str
    file: str
    accepted: int = 0
    rejected: int = 0
    acknowledged: int = 0
    failed: int = 0
    failure: str | None = None
    empty_fields: list[str] = field(default_factory=list)
    first_rejections: list[Rejection] = field(default_factory=list)
    rejects_file: str | None = None
    reasons_file: str | None = None

    @property
    def read(self) -> int:
        """Records in the file."""
        return self.accepted + self.rejected

    def text(self) -> str:
        """The report for people."""
        lines = [f"{self.feed} from {self.file}: {self.read:,} records"]
        numbers = ("accepted", "rejected", "acknowledged", "failed")
        lines += [f"  {name:<13}{getattr(self, name):>12,}" for name in numbers]
        if self.empty_fields:
            lines.append(f"No column for {', '.join(self.empty_fields)}: left empty.")
        if self.rejected:
            lines.append("Rejected:")
            lines += [f"  line {one.line}: {one.reason}" for one in self.first_rejections]
            if self.rejected > len(self.first_rejections):
                lines.append(f"  and {self.rejected - len(self.first_rejections):,} more")
            lines.append(f"The rejected lines are in {self.rejects_file}, the reasons in {self.reasons_file}.")
            lines.append(f"Correct {self.rejects_file} and publish it with the same options.")
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
        self._parts = (path.with_name(path.name + ".part"), path.with_name(path.name + ".reasons.part"))
        self.count = 0

    def add(self, row: Row, reason: str) -> None:
        """Write a row down."""
        if not self.count:
            self._start()
        self._lines.write(row.raw if row.raw.endswith(b"\n") else row.raw + b"\n")
        self._table.writerow([self._next_line, row.line, reason])
        self._next_line += row.raw.rstrip(b"\n").count(b"\n") + 1
        self.count += 1

    def _start(self) -> None:
        for part in self._parts:
            part.touch(0o600)
        self._lines = self._parts[0].open("wb")
        self._reasons = self._parts[1].open("w", encoding="utf-8", newline="")
        self._table = csv.writer(self._reasons)
        self._lines.write(self._header)
        self._table.writerow(["line", "line_in_original_file", "reason"])
        self._next_line = 1 + self._header.count(b"\n")

    def finish(self) -> tuple[Path, Path] | None:
        """Give the files their names and return them; None if nothing was rejected."""
        if not self.count:
            return None
        self._lines.close()
        self._reasons.close()
        number = 1
        while True:
            stem = self._wanted.stem + (f".{number}" if number > 1 else "")
            lines = self._wanted.with_name(stem + self._wanted.suffix)
            reasons = self._wanted.with_name(stem + ".reasons.csv")
            if not lines.exists() or filecmp.cmp(self._parts[0], lines, shallow=False):
                break
            number += 1
        self._parts[0].replace(lines)
        self._parts[1].replace(reasons)
        return lines, reasons

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.count:
            self._lines.close()
            self._reasons.close()
        for part in self._parts:
            with suppress(FileNotFoundError):
                part.unlink()


def rejects_path(file: str, feed: str, suffix: str) -> Path:
    """Where rejects go if nothing else is said: the working folder, named after the file, or the feed for '-'."""
    stem = Path(file).name.removesuffix(".gz") if file != "-" else feed + suffix
    path = Path(stem)
    return Path(f"{path.stem}.rejects{path.suffix or suffix}")

"""Reading a file line by line: CSV or JSON lines, gzip or not, a path or standard input."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

#: Longest line that is taken for a record, in bytes.
LONGEST = 2**20
#: Most lines a record with line breaks between quotes may have.
MOST_LINES = 50


class FileProblem(ValueError):
    """The file as a whole cannot be read; the message says why."""


@dataclass(frozen=True)
class Row:
    """One record of a file: its columns, or the problem it has. ``raw`` is what stands there, unchanged."""

    line: int
    raw: bytes
    columns: dict[str, Any] = field(default_factory=dict)
    problem: str | None = None


class Unreadable(ValueError):
    """One record cannot be read; the message says why."""


class Source:
    """The rows of a file. ``columns`` is None if every record brings its own (JSON lines).

    ``header`` is the header line as it stands there, empty without one.

    Raises
    ------
    FileProblem
        Here and while reading: the file is empty, damaged or not of a known form.
    """

    def __init__(self, file: io.BufferedReader, name: str, columns: Sequence[str] | None = None) -> None:
        self._name = name
        self._lines = _Lines(_unzipped(file), name)
        self.header = b""
        self.columns: list[str] | None = None
        first = self._lines.peek()
        if not first:
            raise FileProblem(f"{name} is empty")
        start = first.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
        if start == b"[":
            raise FileProblem(f"{name} is a JSON list; JSON lines are needed, one object a line")
        if start == b"{":
            return
        if columns is not None:
            self.columns = list(columns)
            return
        try:
            self.header, values = self._csv_values(self._lines.take()[1])
        except Unreadable as problem:
            raise FileProblem(f"{name}: the header line cannot be read: {problem}") from None
        self.columns = [value.strip() for value in values]

    @property
    def is_json(self) -> bool:
        """JSON lines, else CSV."""
        return self.columns is None

    def __iter__(self) -> Iterator[Row]:
        while self._lines.peek():
            line, raw = self._lines.take()
            if not raw.strip():
                continue
            try:
                yield self._row(line, raw)
            except Unreadable as problem:
                yield Row(line, raw, problem=str(problem))

    def _row(self, line: int, first: bytes) -> Row:
        if self.columns is None:
            return Row(line, first, _json_values(first))
        raw, values = self._csv_values(first)
        if len(values) != len(self.columns):
            return Row(line, raw, problem=f"{len(values)} columns, {len(self.columns)} are expected")
        return Row(line, raw, dict(zip(self.columns, values, strict=True)))

    def _csv_values(self, raw: bytes) -> tuple[bytes, list[str]]:
        """The record that begins with a line: its lines and its values."""
        taken = [raw]
        while True:
            try:
                return b"".join(taken), next(csv.reader(io.StringIO(_text(b"".join(taken)), newline=""), strict=True))
            except csv.Error as error:
                if "unexpected end of data" not in str(error):
                    raise Unreadable(f"no CSV: {error}") from None
                if len(taken) == MOST_LINES or not self._lines.peek():
                    self._lines.give_back(taken[1:])
                    raise Unreadable("a quotation mark is opened and never closed") from None
                taken.append(self._lines.take()[1])


class _Lines:
    """Numbered lines that can be looked at and given back."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file = file
        self._name = name
        self._ahead: deque[bytes] = deque()
        self._number = 0

    def peek(self) -> bytes:
        """The next line, empty at the end."""
        if not self._ahead:
            try:
                line = self._file.readline(LONGEST + 1)
            except (OSError, EOFError, zlib.error) as error:
                raise FileProblem(f"{self._name} is damaged after line {self._number}: {error}") from None
            if len(line) > LONGEST:
                raise FileProblem(
                    f"{self._name}: line {self._number + 1} has over {LONGEST} bytes: no CSV, no JSON lines"
                )
            self._ahead.append(line)
        return self._ahead[0]

    def take(self) -> tuple[int, bytes]:
        """The next line and its number."""
        line = self.peek()
        self._ahead.popleft()
        self._number += 1
        return self._number, line

    def give_back(self, lines: Sequence[bytes]) -> None:
        """Have the last lines taken come again."""
        self._ahead.extendleft(reversed(lines))
        self._number -= len(lines)


def _unzipped(file: io.BufferedReader) -> BinaryIO:
    if file.peek(2)[:2] == b"\x1f\x8b":
        return io.BufferedReader(gzip.GzipFile(fileobj=file))
    return file


def _text(raw: bytes) -> str:
    try:
        return raw.removeprefix(b"\xef\xbb\xbf").decode("utf-8")
    except UnicodeDecodeError as error:
        raise Unreadable(f"byte {error.start + 1} of the line is no UTF-8; save the file as UTF-8") from None


def _json_values(raw: bytes) -> dict[str, Any]:
    try:
        record = json.loads(_text(raw), parse_constant=_no_number)
    except (json.JSONDecodeError, RecursionError) as error:
        raise Unreadable(f"no JSON: {error}") from None
    except ValueError as error:
        raise Unreadable(str(error)) from None
    if not isinstance(record, dict):
        raise Unreadable("no JSON object")
    return _flatten(record)


def _no_number(text: str) -> None:
    raise Unreadable(f"{text} is no JSON number")


def _flatten(record: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in record.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat

"""Reading a file record by record: CSV or JSON lines, gzip or not, a path or standard input.

A line ends with a line feed, a carriage return, or both. ``_Lines`` alone says where, and counts them; a CSV record
ends where the csv module says so.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import re
import zlib
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

#: Longest record, in bytes, and so the longest cell; csv would take 128 KiB.
LONGEST_BYTES = 2**20
csv.field_size_limit(LONGEST_BYTES)
READ_BYTES = 2**16
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
#: How a JSON list or object begins, and a column in brackets does not.
JSON_LIST, JSON_OBJECT = re.compile(rb"\[\s*([{\[\]]|$)"), re.compile(rb"\{\s*([\"}]|$)")


class FileProblem(ValueError):
    """The file as a whole cannot be read; the message says why."""


@dataclass(frozen=True)
class Row:
    """One record of a file: its columns, or the problem it has, with its detail. ``raw`` is what stands there."""

    line: int
    raw: bytes
    columns: dict[str, Any] = field(default_factory=dict)
    problem: str | None = None
    detail: str = ""

    @property
    def lines(self) -> int:
        """How many lines of the file it takes."""
        return len(self.raw.splitlines())


class Unreadable(ValueError):
    """One record cannot be read; ``problem`` says why, alike for all such records, and ``detail`` what this one has."""

    def __init__(self, problem: str, detail: object = "") -> None:
        super().__init__(f"{problem} ({detail})" if detail else problem)
        self.problem = problem
        self.detail = str(detail)


class Rows:
    """The rows of a file. ``columns`` is None if every record brings its own (JSON lines).

    ``header`` is the header line as it stands there, empty without one; ``blank`` counts lines with nothing on them.

    Raises
    ------
    FileProblem
        Here and while reading: the file is empty, damaged or not of a known form.
    """

    def __init__(self, file: io.BufferedReader, name: str, columns: Sequence[str] | None = None) -> None:
        self._lines = _Lines(_unzipped(file), name)
        self.header = b""
        self.blank = 0
        self.columns: list[str] | None = None
        first = self._peek()
        if not first:
            raise FileProblem(f"{name} is empty")
        start = first.removeprefix(BYTE_ORDER_MARK).strip()
        if JSON_LIST.match(start):
            raise FileProblem(f"{name} is a JSON list; JSON lines are needed, one object a line")
        if JSON_OBJECT.match(start):
            return
        if columns is not None:
            self.columns = list(columns)
            return
        self.header, values = self._csv_values()
        if isinstance(values, Unreadable):
            raise FileProblem(f"{name}: the header line cannot be read: {values}")
        self.columns = [value.strip() for value in values]

    @property
    def is_json(self) -> bool:
        """JSON lines, else CSV."""
        return self.columns is None

    @property
    def lines(self) -> int:
        """The lines read so far: those of the header, of rows, and the blank ones."""
        return self._lines.number

    @property
    def digest(self) -> str:
        """SHA-256 of what was read so far, uncompressed."""
        return self._lines.digest.hexdigest()

    def __iter__(self) -> Iterator[Row]:
        while self._peek():
            line = self._lines.number + 1
            raw, values = self._json_values() if self.columns is None else self._csv_values()
            if isinstance(values, Unreadable):
                yield Row(line, raw, problem=values.problem, detail=values.detail)
            elif isinstance(values, dict):
                yield Row(line, raw, values)
            elif self.columns is None or len(values) != len(self.columns):
                yield Row(
                    line,
                    raw,
                    problem=f"{len(self.columns or ())} columns are expected",
                    detail=f"there are {len(values)}",
                )
            else:
                yield Row(line, raw, dict(zip(self.columns, values, strict=True)))

    def _peek(self) -> bytes:
        """The next line that is not blank, empty at the end."""
        while (first := self._lines.peek()) and not first.removeprefix(BYTE_ORDER_MARK).strip():
            self._lines.take()
            self.blank += 1
        return first

    def _json_values(self) -> tuple[bytes, dict[str, Any] | Unreadable]:
        raw = self._lines.take()
        try:
            record = json.loads(_text(raw), parse_constant=_no_number, object_pairs_hook=_once)
            if not isinstance(record, dict):
                return raw, Unreadable("no JSON object")
            return raw, _flatten(record)
        except (json.JSONDecodeError, RecursionError) as error:
            return raw, Unreadable("no JSON", error)
        except Unreadable as problem:
            return raw, problem
        except ValueError as error:
            return raw, Unreadable("a JSON number of too many digits", error)

    def _csv_values(self) -> tuple[bytes, list[str] | Unreadable]:
        """The lines of the next record and its values. What cannot be read is a record of one line."""
        taken: list[bytes] = []
        try:
            values = next(csv.reader(self._texts(taken), strict=True))
            return b"".join(taken), values
        except csv.Error as error:
            problem = Unreadable("no CSV", error)
            if "unexpected end of data" in str(error):
                problem = Unreadable("a quotation mark is opened and never closed")
        except Unreadable as error:
            problem = error
        self._lines.give_back(taken[1:])
        return taken[0], problem

    def _texts(self, taken: list[bytes]) -> Iterator[str]:
        """The next lines, one after the other, as far as a record may be long; each is ``taken``."""
        size = 0
        while raw := self._lines.peek():
            size += len(raw)
            if size > LONGEST_BYTES:
                return
            taken.append(self._lines.take())
            yield _text(raw)


class _Lines:
    """Lines that can be looked at and given back; ``number`` counts those taken, ``digest`` is of what was read."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file = file
        self._name = name
        self._ahead: deque[bytes] = deque()
        self._rest = b""
        self.number = 0
        self.digest = hashlib.sha256()

    def peek(self) -> bytes:
        """The next line, empty at the end."""
        while not self._ahead and (content := self._read()):
            self._ahead.extend((self._rest + content).splitlines(keepends=True))
            # The last line may go on, or its line feed may follow.
            self._rest = b"" if self._ahead[-1].endswith(b"\n") else self._ahead.pop()
            self._check(self._rest)
        if not self._ahead and self._rest:
            self._ahead.append(self._rest)
            self._rest = b""
        if self._ahead:
            self._check(self._ahead[0])
        return self._ahead[0] if self._ahead else b""

    def take(self) -> bytes:
        """The next line."""
        line = self.peek()
        self._ahead.popleft()
        self.number += 1
        return line

    def give_back(self, lines: Sequence[bytes]) -> None:
        """Have the last lines taken come again."""
        self._ahead.extendleft(reversed(lines))
        self.number -= len(lines)

    def _read(self) -> bytes:
        try:
            content = self._file.read(READ_BYTES)
        except (OSError, EOFError, zlib.error) as error:
            raise FileProblem(f"{self._name} is damaged after line {self.number}: {error}") from None
        self.digest.update(content)
        return content

    def _check(self, line: bytes) -> None:
        if len(line) > LONGEST_BYTES:
            raise FileProblem(
                f"{self._name}: line {self.number + 1} has over {LONGEST_BYTES} bytes: no CSV, no JSON lines"
            )


def _unzipped(file: io.BufferedReader) -> BinaryIO:
    if file.peek(2)[:2] == b"\x1f\x8b":
        return io.BufferedReader(gzip.GzipFile(fileobj=file))
    return file


def _text(raw: bytes) -> str:
    try:
        return raw.removeprefix(BYTE_ORDER_MARK).decode("utf-8")
    except UnicodeDecodeError as error:
        raise Unreadable("no UTF-8; save the file as UTF-8", f"byte {error.start + 1} of the line") from None


def _no_number(text: str) -> None:
    raise Unreadable("no JSON number", text)


def _flatten(record: dict[str, Any]) -> dict[str, Any]:
    return _once([*_members(record, "")])


def _members(record: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """Also objects as a whole: a field that takes one for its value has to refuse it."""
    for name, value in record.items():
        yield prefix + name, value
        if isinstance(value, dict):
            yield from _members(value, f"{prefix}{name}.")


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """The pairs as a dictionary; of two of one name nobody can say which is meant."""
    found = dict(pairs)
    if len(found) < len(pairs):
        times = Counter(name for name, _ in pairs)
        raise Unreadable("a name that is there twice", next(name for name, number in times.items() if number > 1))
    return found

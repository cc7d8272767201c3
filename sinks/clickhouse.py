"""Talking to ClickHouse: statements, batch inserts, and which errors pass if one waits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
from clickhouse_driver import Client
from clickhouse_driver.errors import Error, ErrorCodes, NetworkError, ServerException
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_never, wait_exponential

from sinks.sql import literal
from sinks.tables import TableColumn

#: Errors of the server itself rather than of the statement: they pass when the server recovers.
PASSING = {
    ErrorCodes.TIMEOUT_EXCEEDED,
    ErrorCodes.MEMORY_LIMIT_EXCEEDED,
    ErrorCodes.READONLY,
    ErrorCodes.TABLE_IS_READ_ONLY,
    ErrorCodes.NOT_ENOUGH_SPACE,
    ErrorCodes.TOO_MANY_PARTS,
    ErrorCodes.TOO_MANY_SIMULTANEOUS_QUERIES,
    ErrorCodes.CANNOT_WRITE_TO_FILE_DESCRIPTOR,
    ErrorCodes.QUERY_WAS_CANCELLED,
    ErrorCodes.ABORTED,
}


#: A column of this many different texts at most is sent as numbers; they have to fit a statement.
MOST_WORDS, MOST_WORD_BYTES = 4_096, 65_536


#: Name, type and values of a column as it is sent.
Wire = tuple[str, str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Server:
    """Where ClickHouse is and as whom to speak to it."""

    host: str
    port: int
    user: str
    password: str = field(repr=False)

    def connect(self, **settings: Any) -> Client:
        """A client; it connects with its first statement."""
        return Client(
            self.host,
            self.port,
            user=self.user,
            password=self.password,
            connect_timeout=5,
            send_receive_timeout=300,
            settings=settings,
        )


def passes(error: BaseException) -> bool:
    """Whether waiting helps."""
    if isinstance(error, ServerException):
        return error.code in PASSING
    return isinstance(error, NetworkError | EOFError | OSError)


def first_line(error: BaseException | None) -> str:
    """What an error says, without the server's stack trace."""
    text = str(getattr(error, "message", "") or error).split("Stack trace")[0].removeprefix("DB::Exception: ").strip()
    return text.splitlines()[0] if text else type(error).__name__


def patiently(call: Callable[[], Any], say: Callable[[str], None]) -> Any:
    """Call until it does not fail with an error that passes; the pauses grow to 30 s."""

    def report(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        pause = state.next_action.sleep if state.next_action else 0
        say(f"ClickHouse cannot take data ({first_line(error)}); trying again in {pause:.0f} s")

    return Retrying(
        retry=retry_if_exception(passes),
        wait=wait_exponential(min=1, max=30),
        stop=stop_never,
        before_sleep=report,
        reraise=True,
    )(call)


class Writer:
    """Inserts frames into tables, one block an insert."""

    def __init__(self, server: Server, say: Callable[[str], None]) -> None:
        self._client = server.connect(
            use_numpy=True,
            async_insert=0,
            optimize_on_insert=0,
            max_insert_block_size=10_000_000,
            max_query_size=16 * 2**20,
        )
        self._say = say

    def insert(self, table: str, columns: Sequence[TableColumn], rows: pl.DataFrame) -> None:
        """Insert all rows and return when the server has acknowledged them, however long it takes.

        ``rows`` has a column for each name the columns send. The driver would look at each value of a nullable column
        in Python, so such a column is sent as values and flags and joined by the server; and it would encode each text,
        so a column of few different texts is sent as numbers of them, and the texts once, in the statement.
        """
        sent = {name: _sent(name, kind, rows[name]) for column in columns for name, kind in column.sent}
        wires = [wire for found, _ in sent.values() for wire in found]
        statement = (
            f"INSERT INTO {table} ({', '.join(c.name for c in columns)}) "
            f"SELECT {', '.join(_selected(c, sent[c.sent[0][0]][1]) for c in columns)} "
            f"FROM input('{', '.join(f'{name} {kind}' for name, kind, _ in wires)}') FORMAT Native"
        )
        patiently(lambda: self._execute(statement, [array for *_, array in wires]), self._say)

    def _execute(self, statement: str, data: list[np.ndarray[Any, Any]]) -> None:
        try:
            self._client.execute(statement, data, columnar=True)
        except (Error, OSError, EOFError):
            self._client.disconnect()
            raise


def _sent(name: str, kind: str, values: pl.Series) -> tuple[list[Wire], str]:
    """What is sent for a column, and the SQL that makes its values of it, but for null."""
    words, inner = _words(values), kind
    if kind.startswith("Nullable("):
        inner = kind.removeprefix("Nullable(").removesuffix(")")
    if words is None:
        found, value = [(name, inner, _array(values))], name
    else:
        numbers = values.cast(pl.Enum(words)).to_physical().fill_null(0).to_numpy().astype(np.uint16)
        found, value = [(name, "UInt16", numbers)], f"[{', '.join(map(literal, words))}][{name} + 1]"
    if inner != kind:
        found.append((f"{name}_is_null", "UInt8", values.is_null().to_numpy().astype(np.uint8)))
    return found, value


def _words(values: pl.Series) -> pl.Series | None:
    """The different texts of a column, or None if it holds something else or too many of them."""
    if values.dtype != pl.String:
        return None
    words = values.drop_nulls().unique()
    return words if 0 < len(words) <= MOST_WORDS and words.str.len_bytes().sum() <= MOST_WORD_BYTES else None


def _selected(column: TableColumn, value: str) -> str:
    value = column.value or value
    nullable = any(kind.startswith("Nullable(") for _, kind in column.sent)
    return f"if({column.name}_is_null, NULL, {value})" if nullable else value


def _array(values: pl.Series) -> np.ndarray[Any, Any]:
    """A column as the driver takes it, with something in the place of null."""
    if values.dtype.is_nested():
        array = np.empty(len(values), dtype=object)
        array[:] = values.to_list()
        return array
    filler = "" if values.dtype == pl.String else False if values.dtype == pl.Boolean else 0
    return values.fill_null(filler).to_numpy()

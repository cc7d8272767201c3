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
        self._client = server.connect(use_numpy=True, async_insert=0, max_insert_block_size=10_000_000)
        self._say = say

    def insert(self, table: str, columns: Sequence[TableColumn], rows: pl.DataFrame) -> None:
        """Insert all rows and return when the server has acknowledged them, however long it takes.

        ``rows`` has a column for each name the columns send. The driver would look at each value of a nullable column
        in Python, so such a column is sent as values and flags and joined by the server.
        """
        structure, data = [], []
        for name, kind in (wire for column in columns for wire in column.sent):
            inner = kind.removeprefix("Nullable(").removesuffix(")") if kind.startswith("Nullable(") else kind
            structure.append(f"{name} {inner}")
            data.append(_array(rows[name]))
            if inner != kind:
                structure.append(f"{name}_is_null UInt8")
                data.append(rows[name].is_null().to_numpy().astype(np.uint8))
        statement = (
            f"INSERT INTO {table} ({', '.join(c.name for c in columns)}) "
            f"SELECT {', '.join(_selected(c) for c in columns)} FROM input('{', '.join(structure)}') FORMAT Native"
        )
        patiently(lambda: self._execute(statement, data), self._say)

    def _execute(self, statement: str, data: list[np.ndarray[Any, Any]]) -> None:
        try:
            self._client.execute(statement, data, columnar=True)
        except (Error, OSError, EOFError):
            self._client.disconnect()
            raise


def _selected(column: TableColumn) -> str:
    value = column.value or column.name
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

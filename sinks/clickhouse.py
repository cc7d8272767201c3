"""Talking to ClickHouse: statements, batch inserts, and which errors pass if one waits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
import polars as pl
from clickhouse_driver import Client
from clickhouse_driver.errors import Error, ErrorCodes, NetworkError, ServerException, SocketTimeoutError
from tenacity import RetryCallState, Retrying

from sinks.sql import literal
from sinks.tables import TableColumn
from streams.positions import Stop
from streams.waiting import Waiting, always


class NewCodes(IntEnum):
    """Errors of servers newer than the driver."""

    CANNOT_SCHEDULE_TASK = 439
    DEADLOCK_AVOIDED = 473
    USER_SESSION_LIMIT_EXCEEDED = 700
    ASYNC_LOAD_WAIT_FAILED = 722
    TABLE_IS_BEING_RESTARTED = 733
    SERVER_OVERLOADED = 745
    TABLE_IS_PERMANENTLY_READ_ONLY = 774


#: What the server refuses now and may take later: it is too busy, full, read-only, or somebody moves its tables.
PASSING = {
    *NewCodes,
    ErrorCodes.ABORTED,
    ErrorCodes.CANNOT_ALLOCATE_MEMORY,
    ErrorCodes.CANNOT_CLOSE_FILE,
    ErrorCodes.CANNOT_CREATE_DIRECTORY,
    ErrorCodes.CANNOT_FSYNC,
    ErrorCodes.CANNOT_OPEN_FILE,
    ErrorCodes.CANNOT_READ_FROM_FILE_DESCRIPTOR,
    ErrorCodes.CANNOT_WRITE_TO_FILE_DESCRIPTOR,
    ErrorCodes.DNS_ERROR,
    ErrorCodes.KEEPER_EXCEPTION,
    ErrorCodes.MEMORY_LIMIT_EXCEEDED,
    ErrorCodes.NETWORK_ERROR,
    ErrorCodes.NOT_ENOUGH_SPACE,
    ErrorCodes.NO_FREE_CONNECTION,
    ErrorCodes.NO_ZOOKEEPER,
    ErrorCodes.QUERY_WAS_CANCELLED,
    ErrorCodes.QUOTA_EXPIRED,
    ErrorCodes.READONLY,
    ErrorCodes.SOCKET_TIMEOUT,
    ErrorCodes.TABLE_IS_DROPPED,
    ErrorCodes.TABLE_IS_READ_ONLY,
    ErrorCodes.TIMEOUT_EXCEEDED,
    ErrorCodes.TOO_LESS_LIVE_REPLICAS,
    ErrorCodes.TOO_MANY_PARTS,
    ErrorCodes.TOO_MANY_SIMULTANEOUS_QUERIES,
    ErrorCodes.UNKNOWN_DATABASE,
    ErrorCodes.UNKNOWN_STATUS_OF_INSERT,
    ErrorCodes.UNKNOWN_TABLE,
    ErrorCodes.UNSATISFIED_QUORUM_FOR_PREVIOUS_WRITE,
}
#: Errors of libraries under the server, of which only a full disk passes.
OF_LIBRARIES = {ErrorCodes.POCO_EXCEPTION, ErrorCodes.STD_EXCEPTION}
DISK_FULL = "No space left on device"


#: What is mended when the tables are made as the declarations say.
UNPREPARED = {
    ErrorCodes.CANNOT_INSERT_NULL_IN_ORDINARY_COLUMN,
    ErrorCodes.NO_SUCH_COLUMN_IN_TABLE,
    ErrorCodes.UNKNOWN_TABLE,
    ErrorCodes.UNKNOWN_DATABASE,
}

#: A column of this many different texts at most is sent as numbers; they have to fit a statement.
MOST_WORDS, MOST_WORD_BYTES = 4_096, 65_536


#: Seconds between two tries at most.
LONGEST_PAUSE = 5
#: Seconds after which one who waits looks whether the wait is still of use.
NAP = 0.5

CLICKHOUSE_ANSWERS = "ClickHouse takes data again"

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


class Refused(Stop):
    """ClickHouse refuses rows, and waiting does not help."""


class Abandoned(Exception):
    """What was tried again and again is of no use any more."""


def passes(error: BaseException) -> bool:
    """Whether waiting helps."""
    if isinstance(error, ServerException):
        return error.code in PASSING or (error.code in OF_LIBRARIES and DISK_FULL in str(error.message))
    return isinstance(error, NetworkError | SocketTimeoutError | EOFError | OSError)


def first_line(error: BaseException | None) -> str:
    """What an error says, without the server's stack trace."""
    text = str(getattr(error, "message", "") or error).split("Stack trace")[0].removeprefix("DB::Exception: ").strip()
    return text.splitlines()[0] if text else type(error).__name__


def _reason(error: BaseException | None) -> str:
    hint = "; run: citystream init" if getattr(error, "code", None) in UNPREPARED else ""
    return first_line(error) + hint


def waiting(say: Callable[[str], None]) -> Waiting:
    """What waits for ClickHouse, and how it is said that it is over."""
    return Waiting(CLICKHOUSE_ANSWERS, say)


def patiently(call: Callable[[], Any], waits: Waiting, wanted: Callable[[], bool] = always) -> Any:
    """Call until it does not fail with an error that passes; the pauses grow to 5 s.

    Raises
    ------
    Abandoned
        It failed, and is not ``wanted`` any more.
    """

    def give_up(state: RetryCallState) -> None:
        raise Abandoned from state.outcome.exception() if state.outcome else None

    def sleep(seconds: float) -> None:
        until = time.monotonic() + seconds
        while wanted() and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, NAP))

    def words(error: BaseException) -> str:
        return f"ClickHouse cannot take data ({_reason(error)})"

    how = waits.retrying(passes, words, longest=LONGEST_PAUSE, wanted=wanted)
    return Retrying(**how, sleep=sleep, retry_error_callback=give_up)(call)


class Writer:
    """Inserts frames into tables, one block an insert; each thread over a connection of its own."""

    def __init__(self, server: Server, say: Callable[[str], None]) -> None:
        self._server = server
        self._own = threading.local()
        self._waiting = waiting(say)

    @property
    def _client(self) -> Client:
        if not hasattr(self._own, "client"):
            self._own.client = self._server.connect(
                use_numpy=True,
                async_insert=0,
                insert_null_as_default=0,
                optimize_on_insert=0,
                max_insert_block_size=10_000_000,
                max_query_size=16 * 2**20,
            )
        client: Client = self._own.client
        return client

    def insert(
        self,
        table: str,
        columns: Sequence[TableColumn],
        rows: pl.DataFrame,
        wanted: Callable[[], bool] = always,
    ) -> None:
        """Insert all rows and return when the server has acknowledged them, however long it takes.

        ``rows`` has a column for each name the columns send. The driver would look at each value of a nullable column
        in Python, so such a column is sent as values and flags and joined by the server; and it would encode each text,
        so a column of few different texts is sent as numbers of them, and the texts once, in the statement.

        Raises
        ------
        Abandoned
            The server did not take the rows, and they are not ``wanted`` any more.
        Refused
            The server will not take the rows however often they are sent.
        """
        sent = {name: _sent(name, kind, rows[name]) for column in columns for name, kind in column.sent}
        wires = [wire for found, _ in sent.values() for wire in found]
        statement = (
            f"INSERT INTO {table} ({', '.join(c.name for c in columns)}) "
            f"SELECT {', '.join(_selected(c, sent[c.sent[0][0]][1]) for c in columns)} "
            f"FROM input('{', '.join(f'{name} {kind}' for name, kind, _ in wires)}') FORMAT Native"
        )
        arrays = [array for *_, array in wires]
        try:
            patiently(lambda: self._execute(statement, arrays), self._waiting, wanted)
        except ServerException as error:
            raise Refused(
                f"ClickHouse refuses rows for {table}, and nothing of them is committed: {_reason(error)} "
                f"(code {error.code})"
            ) from error

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

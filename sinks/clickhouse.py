"""Talking to ClickHouse: statements, batch inserts, and which errors pass if one waits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any

import polars as pl
from clickhouse_driver import Client
from clickhouse_driver.block import BlockInfo, ColumnOrientedBlock
from clickhouse_driver.defines import DBMS_MIN_PROTOCOL_VERSION_WITH_INCREMENTAL_PROFILE_EVENTS
from clickhouse_driver.errors import Error, ErrorCodes, NetworkError, ServerException, SocketTimeoutError
from clickhouse_driver.protocol import ClientPacketTypes
from clickhouse_driver.varint import write_varint
from clickhouse_driver.writer import write_binary_str
from tenacity import RetryCallState, Retrying

from sinks.blocks import block
from sinks.tables import TableColumn
from streams.ending import Stop
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

#: Seconds between two tries at most.
LONGEST_PAUSE = 5
#: Seconds after which one who waits looks whether the wait is still of use.
NAP = 0.5

CLICKHOUSE_ANSWERS = "ClickHouse takes data again"

#: The last revision of the protocol in which a server does not report what a statement cost it: several times for each
#: insert, in blocks that the driver makes Python objects of. A column of a block is its name, type and values then.
REVISION = DBMS_MIN_PROTOCOL_VERSION_WITH_INCREMENTAL_PROFILE_EVENTS - 1


@dataclass(frozen=True)
class Server:
    """Where ClickHouse is and as whom to speak to it.

    Of several hosts the first that answers is taken. With a ``ca_file``, the certificates of those who vouch for them,
    they are spoken to over TLS.
    """

    hosts: tuple[str, ...]
    port: int
    user: str
    password: str = field(repr=False)
    ca_file: Path | None = None

    def connect(self, kind: type[Client] = Client, **settings: Any) -> Client:
        """A client; it connects with its first statement."""
        first, *others = self.hosts
        tls = {"secure": True, "ca_certs": str(self.ca_file)} if self.ca_file else {}
        return kind(
            first,
            self.port,
            alt_hosts=",".join(address(host, self.port) for host in others) or None,
            **tls,
            user=self.user,
            password=self.password,
            connect_timeout=5,
            send_receive_timeout=300,
            settings=settings,
        )


def address(host: str, port: int) -> str:
    """As one text."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Refused(Stop):
    """ClickHouse refuses rows, and waiting does not help."""


class Abandoned(Exception):
    """What was tried again and again is of no use any more."""


def is_transient(error: BaseException) -> bool:
    """Whether an error of ClickHouse goes away when one waits for it."""
    if isinstance(error, ServerException):
        return error.code in PASSING or (error.code in OF_LIBRARIES and DISK_FULL in str(error.message))
    return isinstance(error, NetworkError | SocketTimeoutError | EOFError | OSError)


def first_line(error: BaseException | None) -> str:
    """What an error says, without the server's stack trace."""
    text = str(getattr(error, "message", "") or error).split("Stack trace")[0].removeprefix("DB::Exception: ").strip()
    return text.splitlines()[0].partition(" Maybe you meant")[0] if text else type(error).__name__


def reason(error: BaseException | None) -> str:
    """What an error says, and the command that helps where something is missing."""
    if getattr(error, "code", None) in UNPREPARED:
        return f"{first_line(error).rstrip('.')}; run: citystream init"
    return first_line(error)


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
        return f"ClickHouse cannot take data ({reason(error)})"

    how = waits.retrying(is_transient, words, longest=LONGEST_PAUSE, wanted=wanted)
    return Retrying(**how, sleep=sleep, retry_error_callback=give_up)(call)


class Sender(Client):
    """A client that inserts what `sinks.blocks.block` made."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, client_revision=REVISION, **options)

    def send_data(self, _: Any, data: list[bytes], **__: Any) -> None:
        """Send the blocks to the server, and that there are no more; called by ``execute``."""
        for one in data:
            write_varint(ClientPacketTypes.DATA, self.connection.fout)
            write_binary_str("", self.connection.fout)
            BlockInfo().write(self.connection.fout)
            self.connection.fout.write(one)
            self.connection.fout.flush()
        self.connection.send_data(ColumnOrientedBlock())


class Writer:
    """Inserts frames into tables, one block an insert; each thread over a connection of its own."""

    def __init__(self, server: Server, say: Callable[[str], None]) -> None:
        self._server = server
        self._own = threading.local()
        self._waiting = waiting(say)
        #: What ClickHouse says of tables of which it does not take the rows.
        self.refusals: dict[str, str] = {}

    @property
    def _client(self) -> Client:
        if not hasattr(self._own, "client"):
            # Of few rows a second thread of the server costs a little more than it saves; of many it saves nothing.
            self._own.client = self._server.connect(Sender, async_insert=0, optimize_on_insert=0, max_threads=1)
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

        ``rows`` has a column for each name the columns send.

        Raises
        ------
        Abandoned
            The server did not take the rows, and they are not ``wanted`` any more.
        Refused
            The server will not take the rows however often they are sent.
        """
        # A null for a column that cannot be null is refused. In this place, as the driver keeps a setting of that name.
        statement = (
            f"INSERT INTO {table} ({', '.join(column.name for column in columns)}) "
            "SETTINGS input_format_null_as_default = 0 FORMAT Native"
        )
        data = block(columns, rows)
        try:
            patiently(lambda: self._execute(table, statement, data), self._waiting, wanted)
        except ServerException as error:
            raise Refused(
                f"ClickHouse refuses rows for {table}, and nothing of them is committed: {reason(error)} "
                f"(code {error.code})"
            ) from error
        finally:
            self.refusals.pop(table, None)

    def _execute(self, table: str, statement: str, data: bytes) -> None:
        try:
            self._client.execute(statement, [data])
        except (Error, OSError, EOFError) as error:
            self.refusals[table] = reason(error)
            self._client.disconnect()
            raise

"""Talking to ClickHouse: as whom, and which errors pass if one waits."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any

from clickhouse_driver import Client
from clickhouse_driver.errors import ErrorCodes, NetworkError, ServerException, SocketTimeoutError
from tenacity import RetryCallState, Retrying

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

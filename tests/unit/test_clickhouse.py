"""Which errors of ClickHouse pass by waiting, and when waiting is given up."""

from __future__ import annotations

import time
from typing import Any
from unittest.mock import create_autospec

import polars as pl
import pytest
from clickhouse_driver.errors import ErrorCodes, NetworkError, ServerException, SocketTimeoutError

from sinks.clickhouse import Abandoned, Server, is_transient, patiently, waiting
from sinks.tables import TableColumn
from sinks.writer import Refused, Writer
from streams.ending import Stop
from streams.waiting import Waiting

FULL = "DB::Exception: std::exception. filesystem error: in rename: No space left on device"


@pytest.fixture(autouse=True)
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long was slept; time stands still but for that."""
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    monkeypatch.setattr(time, "monotonic", lambda: sum(slept))
    return slept


@pytest.mark.parametrize(
    "error",
    [
        ServerException("", ErrorCodes.TOO_MANY_PARTS),
        ServerException("", ErrorCodes.UNKNOWN_TABLE),
        ServerException("", 700),
        ServerException("", 745),
        ServerException(FULL, ErrorCodes.STD_EXCEPTION),
        NetworkError("refused"),
        SocketTimeoutError("the server does not answer"),
        ConnectionResetError(),
        EOFError(),
    ],
    ids=repr,
)
def test_an_error_of_the_server_passes(error: Exception) -> None:
    assert is_transient(error)


@pytest.mark.parametrize(
    "error",
    [
        ServerException("", ErrorCodes.NO_SUCH_COLUMN_IN_TABLE),
        ServerException("", 516),
        ServerException("std::bad_variant_access", ErrorCodes.STD_EXCEPTION),
        ValueError(),
    ],
    ids=repr,
)
def test_an_error_of_the_statement_or_the_password_does_not(error: Exception) -> None:
    assert not is_transient(error)


def failing(*errors: Exception) -> Any:
    """A call that fails so often."""
    return create_autospec(lambda *_: "done", side_effect=[*errors, "done"])


def test_it_is_tried_again_at_growing_pauses_and_said_why(naps: list[float]) -> None:
    said: list[str] = []
    waits = Waiting("it is over", said.append, time.monotonic)
    assert patiently(failing(*[NetworkError("no route")] * 7), waits) == "done"
    assert said.pop() == "it is over"
    assert [line.rpartition(" in ")[2] for line in said] == ["1 s", "2 s", "4 s", "5 s", "5 s", "5 s", "5 s"]
    assert "no route" in said[0]
    assert sum(naps) == 1 + 2 + 4 + 4 * 5


def test_what_is_not_wanted_any_more_is_given_up_within_a_nap(naps: list[float]) -> None:
    call, said = failing(*[NetworkError("no")] * 9), list[str]()
    with pytest.raises(Abandoned):
        patiently(call, waiting(said.append), lambda: sum(naps) < 2)
    assert sum(naps) == 2
    assert call.call_count == 3
    assert all("cannot take data" in line for line in said)


def test_what_was_taken_is_not_given_up() -> None:
    assert patiently(failing(), waiting(print), lambda: False) == "done"


def test_a_refusal_stops_with_a_message_that_names_table_and_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    writer = Writer(Server(("nowhere",), 1, "sink", ""), lambda _: None)
    error = ServerException("DB::Exception: sink: Not enough privileges. Stack trace: ...", 497)
    monkeypatch.setattr(writer, "_execute", failing(error))
    with pytest.raises(
        Refused, match=r"raw\.toy, and nothing .* sink: Not enough privileges\. \(code 497\)"
    ) as refused:
        writer.insert("raw.toy", [TableColumn("n", "Int64", "")], pl.DataFrame({"n": [1]}))
    assert isinstance(refused.value, Stop)

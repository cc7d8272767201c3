import os
import socket
from collections.abc import Iterator

import pytest

from citystream.stack import ports
from citystream.stack.ports import busy, explain, free_ports, is_free


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


def test_tells_which_port_is_taken_and_by_whom(taken: int) -> None:
    (free,) = free_ports(1)
    (found,) = busy({"kafka_port": taken, "clickhouse_port": free})
    assert (found.setting, found.port) == ("kafka_port", taken)
    assert f"process {os.getpid()}" in found.owner


def test_says_how_to_choose_another(taken: int) -> None:
    message = explain(busy({"kafka_port": taken}))
    assert str(taken) in message
    assert "CITYSTREAM_KAFKA_PORT=" in message
    suggested = int(message.partition("CITYSTREAM_KAFKA_PORT=")[2].split()[0])
    assert is_free(suggested)


def test_free_ports_are_different() -> None:
    assert len(set(free_ports(10))) == 10


def test_free_ports_are_apart_from_those_that_are_spoken_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "is_free", lambda _: True)
    *spoken_for, last = ports.BELOW_EPHEMERAL
    assert free_ports(2, apart_from=spoken_for) == [last]

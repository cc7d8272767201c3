"""Commands that look from outside say what they wait for, and give up."""

from __future__ import annotations

from datetime import timedelta

import pytest

from citystream import cli
from citystream.commands import operate, output
from citystream.stack.ports import free_ports


@pytest.mark.parametrize("command", ["lag", "ledger"])
def test_a_kafka_that_is_away_is_named_at_once_and_given_up(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert output.SILENCE <= 2
    assert timedelta(seconds=5) < operate.PATIENCE < timedelta(seconds=30)
    address = f"127.0.0.1:{free_ports(1)[0]}"
    monkeypatch.setenv("CITYSTREAM_KAFKA_BOOTSTRAP", address)
    monkeypatch.setattr(output, "SILENCE", 0)
    monkeypatch.setattr(operate, "PATIENCE", timedelta(milliseconds=1))
    monkeypatch.setattr("sys.argv", ["citystream", command])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr().err
    assert ended.value.code == cli.UNREACHABLE
    assert f"citystream: waiting for Kafka at {address}" in said
    assert "citystream: Kafka does not answer" in said

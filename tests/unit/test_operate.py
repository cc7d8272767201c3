"""Commands that look from outside say what they wait for, and give up."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from functools import partial
from unittest.mock import MagicMock

import pytest
from kafka.errors import LeaderNotAvailableError, UnknownTopicOrPartitionError

from citystream import cli
from citystream.commands import operate, output
from citystream.stack.ports import free_ports
from sinks.ledger import Stretch
from sinks.reconciler import Check
from streams.lag import Observation, PartitionLag, Unknown


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


@pytest.mark.parametrize(
    ("seen", "words", "code"),
    [
        (Observation([PartitionLag("toy", 0, 0, 5, 9, 1)]), [], 0),
        (Observation([PartitionLag("toy", 0, 0, 5, 9, 1)]), ["--at-most", "4"], 0),
        (Observation([PartitionLag("toy", 0, 0, 5, 9, 1)]), ["--at-most", "3"], 1),
        (Observation([PartitionLag("toy", 0, 0, 1000, 0, None), PartitionLag("toy", 1, 0, 0, 1, 1)]), [], 1),
        (Observation([], [Unknown("toy", None, UnknownTopicOrPartitionError)]), ["--at-most", "9"], 1),
        (Observation([], [Unknown("toy", 2, LeaderNotAvailableError)]), ["--at-most", "9"], 1),
    ],
    ids=["a look", "within", "above", "beyond the end", "gone", "no leader"],
)
def test_lag_fails_for_what_is_too_much_wrong_or_not_known(
    seen: Observation, words: list[str], code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    meter = MagicMock()
    meter.__enter__.return_value.look.return_value = seen
    monkeypatch.setattr(operate, "_meter", lambda _: meter)
    monkeypatch.setattr("sys.argv", ["citystream", "lag", *words, "--output", "json"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert (ended.value.code or 0) == code
    rows = json.loads(capsys.readouterr().out)
    assert [row["topic"] for row in rows] == ["toy", "toy"], "of both workers"
    assert all(row["records"] is None or row["records"] > 0 for row in rows)


@pytest.mark.parametrize("form", output.Output)
def test_a_look_is_a_line_and_only_what_went_wrong_since_the_first_is_named(
    form: output.Output, capsys: pytest.CaptureFixture[str]
) -> None:
    first = Check(9, 3, lost=[Stretch("toy", 0, 0, 1)], missing=[], beyond={})
    answers = iter([first, first, replace(first, lost=[Stretch("toy", 0, 0, 2)])])
    operate.watch(lambda: next(answers), lambda: None, partial(operate._line, form))
    said = capsys.readouterr()
    lines = said.out.splitlines()
    if form is output.Output.JSON:
        rows = [json.loads(line) for line in lines]
        assert [(row["lost"], row["known"]) for row in rows] == [(2, 0), (2, 2), (3, 2)]
        assert rows[0].keys() == {"at", "published", "on_its_way", "lost", "known", "missing", "beyond"}
    else:
        assert [line.split(" LOST to retention")[1] for line in lines] == [
            "",
            " (2 of them known)",
            " (2 of them known)",
        ]
    assert said.err.splitlines() == [f"lost to retention: toy/0: offsets {part}" for part in ("0 to 1", "2 to 2")]

"""Commands that look from outside say what they wait for, and give up."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from datetime import timedelta
from functools import partial
from unittest.mock import create_autospec

import pytest
from clickhouse_driver import Client
from clickhouse_driver.errors import ErrorCodes, ServerException
from kafka.errors import LeaderNotAvailableError, UnknownTopicOrPartitionError

from citystream import cli, mistakes
from citystream.commands import operate, output, stack
from citystream.installation import Installation
from citystream.settings import Settings
from citystream.stack.ports import free_ports
from citystream.stack.process import StackError
from citystream.stack.stack import ProcessStatus, Stack, State
from schemas.feed import Feed
from sinks.clickhouse import Server
from sinks.ledger import Account, Stretch
from sinks.queries import newly_quarantined
from sinks.reconciler import Check, Reconciler
from streams.group_positions import GroupPositions
from streams.lag import LagMeter, Observation, PartitionLag, Unobserved
from streams.members import Member, member_name


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
    assert ended.value.code == mistakes.UNREACHABLE
    assert f"citystream: waiting for Kafka at {address}" in said
    assert "citystream: Kafka does not answer" in said


@pytest.mark.parametrize(
    ("seen", "words", "code"),
    [
        (Observation([PartitionLag("toy", 0, 0, 5, 9, 1)]), [], 0),
        (Observation([PartitionLag("toy", 0, 0, 5, 9, 1)]), ["held up"], 1),
        (Observation([PartitionLag("toy", 0, 0, 5, 9, 1)]), ["--at-most", "4"], 0),
        (Observation([PartitionLag("toy", 0, 0, 5, 9, 1)]), ["--at-most", "3"], 1),
        (Observation([PartitionLag("toy", 0, 0, 1000, 0, None), PartitionLag("toy", 1, 0, 0, 1, 1)]), [], 1),
        (Observation([], [Unobserved("toy", None, UnknownTopicOrPartitionError)]), ["--at-most", "9"], 1),
        (Observation([], [Unobserved("toy", 2, LeaderNotAvailableError)]), ["--at-most", "9"], 1),
    ],
    ids=["a look", "held up", "within", "above", "beyond the end", "gone", "no leader"],
)
def test_lag_fails_for_what_is_too_much_wrong_or_not_known(
    seen: Observation, words: list[str], code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    meter = create_autospec(LagMeter, instance=True)
    meter.__enter__.return_value.look.return_value = seen
    monkeypatch.setattr(operate, "_meter", lambda _: meter)
    held_up = {"toy": "its table is missing"} if words == ["held up"] else {}
    monkeypatch.setattr(GroupPositions, "held_up", lambda _: held_up)
    monkeypatch.setattr("sys.argv", ["citystream", "lag", *(w for w in words if w != "held up"), "--output", "json"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert (ended.value.code or 0) == code
    rows = json.loads(capsys.readouterr().out)
    assert [row["topic"] for row in rows] == ["toy", "toy"], "of both workers"
    assert all(row["lag"] is None or row["lag"] > 0 for row in rows)


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


def account(feed: str, **found: int) -> Account:
    names = [one.name for one in fields(Account) if one.name != "feed"]
    return Account(feed, **(dict.fromkeys(names, 0) | found))


@pytest.mark.parametrize(
    ("found", "word"),
    [({}, "yes"), ({"on_its_way": 3}, "on its way"), ({"lost": 1, "on_its_way": 3}, "no"), ({"beyond": 1}, "no")],
)
def test_what_is_only_on_its_way_is_no_fault_of_the_sum(found: dict[str, int], word: str) -> None:
    assert operate.balance(account("toy", **found)) == word


def test_the_ledger_fits_a_hundred_columns(capsys: pytest.CaptureFixture[str]) -> None:
    names = [one.name for one in fields(Account) if one.name != "feed"]
    many = [account(f"police_incident_{n}", **dict.fromkeys(names, 10**11)) for n in range(operate.BESIDE)]
    output.show(operate.sums(many), output.Output.TABLE)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    assert sum("100,000,000,000" in line for line in lines) == len(names)


@pytest.mark.parametrize(
    ("there", "strangers", "held_up", "code", "said"),
    [
        (
            [],
            [],
            {"parking_spot": "old"},
            1,
            ["processor: no worker runs; start one: citystream process", "sink: no worker runs"],
        ),
        ([("processor", True), ("sink", True)], [], {}, 0, []),
        ([("processor", True), ("sink", False)], [], {}, 1, ["sink: nobody reads "]),
        (
            [("processor", True), ("sink", True)],
            [Member("sink", "rogue\x1b[2J", "10.0.0.9", {"traffic_flow": 2})],
            {},
            1,
            [r"sink: an unknown member, rogue\x1b[2J on 10.0.0.9, has 2 partitions of 1 topics. If it is none of your"],
        ),
        (
            [("processor", True), ("sink", True)],
            [],
            {"parking_spot": "too many bad records"},
            1,
            [f"{worker}: parking_spot does not go on: too many bad records" for worker in ("processor", "sink")],
        ),
    ],
    ids=["none", "both", "half", "a stranger", "stopped"],
)
def test_status_shows_the_workers_and_fails_when_a_topic_has_no_reader(
    there: list[tuple[str, bool]],
    strangers: list[Member],
    held_up: dict[str, str],
    code: int,
    said: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def members(_: str, wanted: dict[str, list[str]]) -> list[Member]:
        return [
            Member(group, member_name(f"{group}-1", []), "10.0.0.1", dict.fromkeys(wanted[group][:read], 4))
            for group, whole in there
            for read in [None if whole else 1]
        ] + strangers

    services = [ProcessStatus(name, State.UP, "here") for name in ("kafka", "clickhouse", "registry")]
    servers = create_autospec(Stack, instance=True)
    servers.status.side_effect = lambda: [*services]
    monkeypatch.setattr(stack, "Stack", lambda _: servers)
    monkeypatch.setattr(stack, "members", members)
    monkeypatch.setattr(stack, "standing_still", lambda *_: ["traffic_flow"])
    monkeypatch.setattr(stack, "_of_feeds", lambda *_: ({"parking_spot": 400.0}, {"parking_spot": (7, "\x1b: bad")}))
    monkeypatch.setattr(GroupPositions, "held_up", lambda _: held_up)
    monkeypatch.setattr("sys.argv", ["citystream", "status", "--output", "json"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    printed = capsys.readouterr()
    assert (ended.value.code or 0) == code
    workers = [(row["name"], row["state"]) for row in json.loads(printed.out)["services"][3:]]
    shown = [(group, "up" if there else "down") for group in ("processor", "sink")]
    assert workers == shown + [(one.group, "up") for one in strangers]
    assert json.loads(printed.out)["silent"] == {"parking_spot": 400}
    assert json.loads(printed.out)["quarantined"] == {"parking_spot": {"records": 7, "cause": "\x1b: bad"}}
    *lines, silent, still, dead = printed.err.splitlines()
    assert still == "traffic_flow: no clock runs, so windows end with events alone; start one: citystream clock"
    assert json.loads(printed.out)["still"] == ["traffic_flow"]
    assert dead == (
        r"parking_spot: 7 records became dead letters in the last 10 minutes, the newest for \x1b: bad; "
        "see: citystream dead-letters list parking_spot"
    )
    assert silent.startswith("parking_spot is silent: its newest record came 6 min 40 s ago")
    assert json.loads(printed.out)["problems"] == lines
    assert len(lines) == len(said)
    assert all(line.startswith(start) for line, start in zip(lines, said, strict=True))


def test_a_missing_table_hides_no_other_silent_feed(monkeypatch: pytest.MonkeyPatch) -> None:
    def newest(_: object, feed: Feed) -> int:
        if feed.name == "traffic_flow":
            raise ServerException("no such table", ErrorCodes.UNKNOWN_TABLE)
        return 0

    city = Installation(Settings(operator_password="secret of the test"))
    monkeypatch.setattr(Server, "connect", lambda _: create_autospec(Client, instance=True))
    monkeypatch.setattr(stack, "newest_arrival_ms", newest)
    missing = create_autospec(newly_quarantined, side_effect=ServerException("none", 60))
    monkeypatch.setattr(stack, "newly_quarantined", missing)
    silent, dead = stack._of_feeds(city, 10**12)
    promising = {name for name, feed in city.feeds.items() if feed.silence}
    assert silent.keys() == promising - {"traffic_flow"}
    assert not dead


def test_a_ledger_without_a_table_says_which_is_missing_and_what_helps() -> None:
    said = "DB::Exception: Unknown table expression identifier 'raw.toy' in scope SELECT 1. Maybe you meant city.toy?"
    counting = create_autospec(Reconciler, instance=True)
    counting.accounts.side_effect = ServerException(said, ErrorCodes.UNKNOWN_TABLE)
    with pytest.raises(StackError, match=r"'raw\.toy'; run: citystream init; meanwhile: citystream ledger --every"):
        operate._accounts(counting)


def test_a_command_that_misses_a_table_says_what_makes_it() -> None:
    missing = ServerException("DB::Exception: Unknown table 'raw.shown'", ErrorCodes.UNKNOWN_TABLE)
    assert mistakes.explained(missing) == (
        "ClickHouse refused: Unknown table 'raw.shown'; run: citystream init", mistakes.CHECK_FAILED
    )  # fmt: skip

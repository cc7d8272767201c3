"""ClickHouse refusing rows in every way it has: the sink waits, says why, keeps its partitions and loses nothing."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from time import monotonic
from typing import Any

import pytest
from kafka import KafkaAdminClient

from citystream.secrets import load_secrets
from citystream.stack import clickhouse
from sinks.ledger import accounts
from streams.lag import measure
from tests.campaign.proxy import Proxy
from tests.campaign.refusals import refusals
from tests.city import FEEDS, START, WORKERS, City, made_up, servers

pytestmark = pytest.mark.integration

FEED = FEEDS[0]
TABLE = f"raw.{FEED}"
#: An insert takes two answers and more, so five seconds.
SLOW_SECONDS = 2.5
REFUSALS = refusals(TABLE)
#: Runs a command that finds a folder on a small disk of its own: the folder, the command.
OWN_DISK = ("unshare", "--map-root-user", "--mount", "sh", "-euc",
            'cp -a "$1" "$1.kept"; mount -t tmpfs -o size=512m none "$1"; cp -a "$1.kept/." "$1"; shift; exec "$@"',
            "sh")  # fmt: skip


@pytest.fixture(scope="module")
def network() -> Iterator[list[Proxy]]:
    """The network between the sink and ClickHouse, once there is one."""
    found: list[Proxy] = []
    yield found
    for proxy in found:
        proxy.close()


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory, network: list[Proxy]) -> Iterator[City]:
    """A city whose sink reaches ClickHouse over a network of its own."""
    home = tmp_path_factory.mktemp("city")
    with servers(City(home, made_up(home / "sources"))) as opened:
        network.append(Proxy(opened.settings.clickhouse_port))
        opened.reach_clickhouse_at(network[0].port)
        opened.prepare()
        for name in WORKERS:
            opened.start(name)
        opened.publish([FEED], START, 0, 500)
        opened.drain()
        yield opened


def members(city: City) -> Any:
    """State of the sink's group and its members: a rebalance gives all of them new ids or other partitions."""
    with closing(KafkaAdminClient(**city.installation.cluster.kafka_python())) as admin:
        group = admin.describe_groups(["sink"])["sink"]
        return group["group_state"], [(m["member_id"], m["member_assignment"]) for m in group["members"]]


@contextmanager
def undisturbed(city: City) -> Iterator[None]:
    """The same process with the same partitions before and after, and every record stored."""
    running, group = city.process("sink").running(), members(city)
    assert group[0] == "Stable"
    yield
    city.drain()
    still = city.process("sink").running()
    assert running is not None
    assert still is not None
    assert still.pid == running.pid
    assert members(city) == group
    client = city.installation.server("operator").connect()
    feeds = {FEED: city.installation.feeds[FEED]}
    (account,) = accounts(client, feeds, measure(city.installation.cluster, "sink", [FEED]))
    client.disconnect()
    assert account.balances


def refused(city: City, said: int, reason: str) -> None:
    """Wait until the sink has said, behind so many characters of its log, that it waits for this reason."""

    def waits() -> bool:
        lines = city.process("sink").log.read_text()[said:].splitlines()
        words = "ClickHouse cannot take data", reason, "trying again in"
        return any(all(word in line for word in words) for line in lines)

    city.wait(waits)
    assert sum(p.records for p in measure(city.installation.cluster, "sink", [FEED])) > 0


def said(city: City) -> int:
    """How much the sink has said."""
    return len(city.process("sink").log.read_text())


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_is_waited_out(city: City, name: str) -> None:
    refusal = REFUSALS[name]
    owner = city.installation.server("owner").connect()
    with undisturbed(city):
        for statement in refusal.stage:
            owner.execute(statement)
        try:
            before = said(city)
            city.publish([FEED], START + timedelta(hours=1 + list(REFUSALS).index(name)), 1, 500)
            refused(city, before, refusal.reason)
        finally:
            for statement in refusal.mend:
                owner.execute(statement)
    owner.disconnect()


def test_answers_that_take_seconds_only_slow_it_down(city: City, network: list[Proxy]) -> None:
    with undisturbed(city):
        network[0].slow(SLOW_SECONDS)
        begun = monotonic()
        city.publish([FEED], START + timedelta(hours=9), 2, 500)
        city.wait(lambda: sum(p.records for p in measure(city.installation.cluster, "sink", [FEED])) == 0, 300)
        assert monotonic() - begun > 2 * SLOW_SECONDS
        assert network[0].slowed >= 2
        network[0].mend()


def may_mount() -> bool:
    """Whether this machine lets anybody mount a disk in a namespace of their own."""
    return subprocess.run(("unshare", "--map-root-user", "--mount", "true"), check=False).returncode == 0


@pytest.mark.skipif(not may_mount(), reason="this machine lets nobody mount a disk of their own")
def test_a_disk_that_is_full_is_waited_out(city: City) -> None:
    """A real one, until somebody makes room. The last thing that happens to this city, which goes with its disk."""
    folder = city.settings.data_of(clickhouse.NAME)
    launch = clickhouse.launch(city.settings, load_secrets(city.settings))
    with undisturbed(city):
        city.kill(clickhouse.NAME)
        server = subprocess.Popen(
            [*OWN_DISK, str(folder), *launch.command],
            env={**os.environ, **launch.environment}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        city.wait(lambda: clickhouse.ready(city.settings))
        there = ("nsenter", f"--target={server.pid}", "--user", "--preserve-credentials", "--mount", "sh", "-c")
        filled = subprocess.run((*there, f"cat /dev/zero > {folder}/ballast"), check=False, capture_output=True)
        assert b"No space left" in filled.stderr
        before = said(city)
        city.publish([FEED], START + timedelta(hours=12), 3, 500)
        refused(city, before, "enough free space")
        subprocess.run((*there, f"rm {folder}/ballast"), check=True)
    os.killpg(server.pid, signal.SIGKILL)
    server.wait()

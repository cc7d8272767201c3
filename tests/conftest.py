"""A real Kafka and a real ClickHouse for the tests that need them: own ports, own home, gone afterwards."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from clickhouse_driver import Client

from citystream.secrets import Secrets, load_secrets
from citystream.settings import Settings
from citystream.stack import ports
from citystream.stack.ports import free_ports
from citystream.stack.stack import Stack

# Processes of one run choose ports before they listen on them: each has some of its own.
_worker, _workers = (os.environ.get(f"PYTEST_XDIST_WORKER{what}", "") for what in ("", "_COUNT"))
ports.BELOW_EPHEMERAL = ports.BELOW_EPHEMERAL[int(_worker.removeprefix("gw") or 0) :: int(_workers or 1)]
# Most brokers here live for seconds: what is compiled fast is better than what runs fast.
os.environ.setdefault("JDK_JAVA_OPTIONS", "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC")


def settings_in(home: Path) -> Settings:
    """Settings of a local stack in this folder, on ports nobody uses."""
    kafka, native, http, registry = free_ports(4)
    return Settings(
        home=home, kafka_port=kafka, clickhouse_port=native, clickhouse_http_port=http, registry_port=registry
    )


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Settings of the stack that all integration tests share."""
    return settings_in(tmp_path_factory.mktemp("stack"))


@pytest.fixture(scope="session")
def stack(settings: Settings) -> Iterator[Stack]:
    """The shared stack, started at first use."""
    shared = Stack(settings)
    try:
        shared.up(lambda _: None)
        yield shared
    finally:
        shared.down()


@pytest.fixture(scope="session")
def secrets(stack: Stack) -> Secrets:
    """The passwords of the shared stack."""
    return load_secrets(stack.settings)


@pytest.fixture
def connect(settings: Settings, secrets: Secrets) -> Iterator[Callable[[str], Any]]:
    """Connect to the shared ClickHouse as one of its users; closed after the test."""
    with ExitStack() as opened:

        def as_user(user: str) -> Any:
            client = Client(
                settings.clickhouse_hosts[0],
                port=settings.clickhouse_port,
                user=user,
                password=secrets.password(user),
            )
            opened.callback(client.disconnect)
            return client

        yield as_user


@pytest.hookimpl(tryfirst=True)  # xdist's own hook, which reads the marks, is called before those of a conftest
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let tests that share a stack or what a module has opened run in one process, others in whichever is free."""
    for item in items:
        assert isinstance(item, pytest.Function)
        opened = item._fixtureinfo.name2fixturedefs
        if "stack" in opened or any(one.scope == "module" for found in opened.values() for one in found):
            item.add_marker(pytest.mark.xdist_group(item.path.name))

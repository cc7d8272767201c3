"""ClickHouse: the program on the PATH, else the shared library of the npm package in a process of its own."""

from __future__ import annotations

import http.client
import shutil
import sys
from pathlib import Path

from citystream.secrets import Secrets
from citystream.settings import LOCALHOST, PROJECT, Settings
from citystream.stack.process import Launch, StackError

NAME = "clickhouse"
CONFIG = PROJECT / "deploy" / NAME / "config.xml"


def launch(settings: Settings, secrets: Secrets) -> Launch:
    """How the server would be started now."""
    places = {
        "path": f"{settings.data_of(NAME)}/",
        "listen_host": LOCALHOST,
        "tcp_port": str(settings.clickhouse_port),
        "http_port": str(settings.clickhouse_http_port),
    }
    environment = secrets.clickhouse_environment()
    if shutil.which(NAME):
        command = (NAME, "server", f"--config-file={CONFIG}", "--", *(f"--{key}={at}" for key, at in places.items()))
        # The watchdog would answer for a server that has died.
        return Launch(command, environment | {"CLICKHOUSE_WATCHDOG_ENABLE": "0"})
    options = tuple(word for key, at in places.items() for word in (f"--{key}", at))
    start = (sys.executable, "-P", "-m", "citystream.stack.chdb_server", str(_library(settings)))
    return Launch((*start, "--config-file", str(CONFIG), *options), environment)


def prepare(settings: Settings) -> None:
    """Make sure there is a program to start and a folder for its data."""
    if not shutil.which(NAME) and not _library(settings).exists():
        raise StackError(f"ClickHouse is neither on the PATH nor in {settings.packages / NAME}: run make setup")
    settings.data_of(NAME).mkdir(mode=0o700, parents=True, exist_ok=True)


def ready(settings: Settings) -> bool:
    """Whether the HTTP interface answers; it is opened after the native one."""
    connection = http.client.HTTPConnection(LOCALHOST, settings.clickhouse_http_port, timeout=2)
    try:
        connection.request("GET", "/ping")
        return connection.getresponse().read() == b"Ok.\n"
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _library(settings: Settings) -> Path:
    return settings.packages / NAME / "node_modules" / "@chdb" / "lib-linux-x64-gnu" / "libchdb.so"

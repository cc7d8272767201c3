"""ClickHouse: the program on the PATH, else the shared library of the npm package in a process of its own."""

from __future__ import annotations

import http.client
import shutil
import sys
from pathlib import Path
from xml.etree import ElementTree

from citystream.secrets import Secrets
from citystream.settings import LOCALHOST, PROJECT, Settings
from citystream.stack.process import Launch, StackError

NAME = "clickhouse"
CONFIG = PROJECT / "deploy" / NAME / "config.xml"
USERS = CONFIG.with_name("users.xml")

#: Folders that a server may read for its users, and what they are called below its data; nothing is put into them.
EMPTY = {"user_files_path": "user_files", "format_schema_path": "format_schemas"}

#: The user as whom the library opens its ports, without a password, as it cannot be told one. The only session that
#: this user may have is the library's own, so nobody else can be it.
INTERNAL_USER = """
<clickhouse>
  <profiles>
    <internal><profile>default</profile><max_sessions_for_user>1</max_sessions_for_user></internal>
  </profiles>
  <users>
    <default>
      <password></password>
      <networks><ip>127.0.0.1</ip></networks>
      <profile>internal</profile>
      <quota>default</quota>
      <grants><query>GRANT SYSTEM LISTEN ON *.*</query></grants>
    </default>
  </users>
</clickhouse>
"""

#: In the library `file()` reads every file of this machine, for everybody. A function of ours of that name goes first.
NO_FILES = "CREATE FUNCTION file AS path -> toString(throwIf(1, 'file() is closed'))\n"


def launch(settings: Settings, secrets: Secrets) -> Launch:
    """How the server would be started now."""
    data, log = settings.data_of(NAME), settings.home / "log" / "clickhouse-server.log"
    places = {
        "path": f"{data}/",
        "listen_host": LOCALHOST,
        "tcp_port": str(settings.clickhouse_port),
        "http_port": str(settings.clickhouse_http_port),
    }
    # The server turns its log over by itself; what it prints is its start.
    places |= {"logger.log": str(log), "logger.console": "0", "log-level": "warning"}
    # Times without a zone are the city's.
    environment = secrets.clickhouse_environment() | {"TZ": settings.timezone}
    if shutil.which(NAME):
        places |= {name: f"{data}/{folder}/" for name, folder in EMPTY.items()}
        command = (NAME, "server", f"--config-file={CONFIG}", "--", *(f"--{key}={at}" for key, at in places.items()))
        # The watchdog would answer for a server that has died.
        return Launch(command, environment | {"CLICKHOUSE_WATCHDOG_ENABLE": "0"})
    options = tuple(word for key, at in places.items() for word in (f"--{key}", at))
    start = (sys.executable, "-P", "-m", "citystream.stack.chdb_server", str(_library(settings)))
    command = (*start, "--config-file", str(data / "config" / CONFIG.name), *options)
    return Launch(command, environment, CONFIG.read_text() + USERS.read_text())


def prepare(settings: Settings) -> None:
    """Make sure there is a program to start and a folder for its data, with what the library needs to be closed."""
    if not shutil.which(NAME) and not _library(settings).exists():
        raise StackError(f"ClickHouse is neither on the PATH nor in {settings.packages / NAME}: run make setup")
    data = settings.data_of(NAME)
    for folder in (data, data / "config", data / "user_defined"):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    shutil.copyfile(CONFIG, data / "config" / CONFIG.name)
    users = ElementTree.parse(USERS)  # noqa: S314 - our own files, both
    for section in ElementTree.fromstring(INTERNAL_USER):  # noqa: S314
        users.getroot().find(section.tag).extend(section)  # type: ignore[union-attr]
    users.write(data / "config" / USERS.name)
    (data / "user_defined" / "function_file.sql").write_text(NO_FILES)


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

"""docker-compose.yml run for real, where a Docker engine is there: make containers

Up, healthy, events to SQL, workers killed, down and up with the data kept. It has a project, ports and volumes of its
own and removes them. Images that cannot be pulled are built as stand-ins, of Debian, Maven and npm parts, and kept.
"""

from __future__ import annotations

import base64
import json
import os
import resource
import secrets
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from citystream.settings import LOCALHOST, PROJECT, load_settings, variable
from citystream.stack import clickhouse
from citystream.stack.ports import free_ports

ENGINE = 25
STANDINS = PROJECT / "deploy" / "standins"
COMPOSE = PROJECT / "docker-compose.yml"
NAME = "citystream-containers"
OPEN_FILES = 262_144
WAIT_SECONDS = 300
EVENTS = 2_000
LOG = PROJECT / ".citystream" / "containers.log"
KILL_ALL = "import os, signal; os.kill(-1, signal.SIGKILL)"


class NotRun(Exception):
    """What keeps the containers from running, and what to do about it."""


@contextmanager
def step(what: str) -> Iterator[None]:
    """Say what is done and, after it, how long it took."""
    print(f"{what} ... ", end="", flush=True)
    start = time.monotonic()
    yield
    print(f"{time.monotonic() - start:.1f} s", flush=True)


def command(*words: str | Path, environment: dict[str, str] | None = None) -> str:
    """Run a program with its output in the log; returns what it printed."""
    done = subprocess.run(
        words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    with LOG.open("a") as log:
        log.write(f"$ {' '.join(map(str, words))}\n{done.stdout}\n")
    if done.returncode:
        last = "\n".join(done.stdout.splitlines()[-15:])
        raise NotRun(f"{words[0]} {words[1]} ended with {done.returncode}; the whole output is in {LOG}:\n{last}")
    return done.stdout


def until(holds: Callable[[], bool], what: str) -> None:
    """Ask again until something holds."""
    end = time.monotonic() + WAIT_SECONDS
    while not holds():
        if time.monotonic() > end:
            raise NotRun(f"after {WAIT_SECONDS} s there is still not what was waited for: {what}; see {LOG}")
        time.sleep(0.5)


def engine() -> str:
    """The version of the engine, which has to be one that the compose file can use."""
    advice = "As root on Debian 13: apt-get install docker.io docker-cli docker-compose, then start dockerd"
    try:
        version = command("docker", "version", "--format", "{{.Server.Version}}").strip()
        command("docker", "compose", "version")
    except (FileNotFoundError, NotRun) as error:
        raise NotRun(f"No Docker engine with Compose answers here. {advice}.\n{error}") from error
    if int(version.split(".")[0]) < ENGINE:
        raise NotRun(f"This Docker engine is {version}, and Docker Engine {ENGINE} or later is needed. {advice}.")
    return version


def standin(name: str, files: tuple[Path, ...]) -> str:
    """Build the stand-in of an image out of files, of which the engine keeps what has not changed; returns its tag."""
    tag = f"citystream-standin/{name}"
    with step(f"  {tag}, a stand-in"), TemporaryDirectory() as folder:
        for file in files:
            (shutil.copytree if file.is_dir() else shutil.copy)(file, Path(folder) / file.name)
        recipe = STANDINS / f"{name}.Dockerfile"
        command("docker", "build", "--network", "host", "--file", recipe, "--tag", tag, folder)
    return tag


def there(image: str) -> bool:
    """Whether the engine has an image."""
    return subprocess.run(("docker", "image", "inspect", image), capture_output=True, check=False).returncode == 0


def debian() -> None:
    """The base of the stand-ins, made by debootstrap."""
    if there("citystream-standin/debian"):
        return
    if not shutil.which("debootstrap"):
        raise NotRun(
            "Images cannot be pulled, and to build stand-ins debootstrap is missing: apt-get install debootstrap"
        )
    with step("  citystream-standin/debian, a stand-in"), TemporaryDirectory() as folder:
        root, packed = Path(folder) / "root", Path(folder) / "root.tar"
        command("debootstrap", "--variant=minbase", "--include=ca-certificates", "bookworm", root)
        command("tar", "-C", root, "-cf", packed, ".")
        command("docker", "import", packed, "citystream-standin/debian")


def images() -> dict[str, str]:
    """The images that stand in for those that are neither here nor to be pulled, by their names under ``x-images``."""
    packages = load_settings({}).packages
    library = packages / "clickhouse" / "node_modules" / "@chdb" / "lib-linux-x64-gnu" / "libchdb.so"
    parts = {
        "python": (Path("/etc/ssl/certs/ca-certificates.crt"),),
        "kafka": (packages / "kafka" / "libs", STANDINS / "kafka.sh"),
        "clickhouse": (library, PROJECT / "citystream" / "stack" / "chdb_server.py", STANDINS / "clickhouse.sh"),
    }
    missing = []
    for name, image in yaml.safe_load(COMPOSE.read_text())["x-images"].items():
        if not there(image):
            try:
                command("docker", "pull", image)
            except NotRun:
                missing.append(name)
                print(f"  {image} cannot be pulled: a stand-in takes its place", flush=True)
    if not missing:
        return {}
    debian()
    built = {name: standin(name, parts[name]) for name in parts if name in missing or name == "python"}
    return {name: built[name] for name in missing}


def override(standing_in: dict[str, str], folder: Path) -> dict[str, Any]:
    """What differs from the compose file: stand-ins, and no more open files than this machine allows.

    The library that stands in for ClickHouse gets what it gets in the local stack to be closed, from the folder.
    """
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    services: dict[str, Any] = {"clickhouse": {"ulimits": {"nofile": min(hard, OPEN_FILES)}}}
    for name in ("kafka", "clickhouse"):
        if name in standing_in:
            services.setdefault(name, {})["image"] = standing_in[name]
    if "clickhouse" in standing_in:
        settings = load_settings({"CITYSTREAM_HOME": str(folder)})
        clickhouse.prepare(settings)
        data = settings.data_of(clickhouse.NAME)
        (data / "user_defined").chmod(0o755)
        services["clickhouse"]["volumes"] = [
            f"{data}/config/users.xml:/etc/clickhouse-server/users.xml:ro",
            f"{data}/user_defined:/var/lib/clickhouse/user_defined:ro",
        ]
    if "python" in standing_in:
        services["init"] = {"build": {"network": "host", "args": {"PYTHON_IMAGE": standing_in["python"]}}}
    return {"services": services}


class City:
    """The compose file under a name, ports and passwords of its own."""

    def __init__(self, folder: Path, standing_in: dict[str, str]) -> None:
        ports = dict(zip(load_settings({}).ports(), free_ports(len(load_settings({}).ports())), strict=True))
        self.password = secrets.token_hex(16)
        users = ("OWNER", "SINK", "OPERATOR", "ANALYST")
        outside = {name: value for name, value in os.environ.items() if not name.startswith("CITYSTREAM_")}
        self.environment = outside | {variable(name): str(port) for name, port in ports.items()}
        self.environment |= {f"CITYSTREAM_{user}_PASSWORD": self.password for user in users}
        self.environment |= {"CITYSTREAM_HOME": str(folder), "CITYSTREAM_CLICKHOUSE_HOST": LOCALHOST}
        self.environment["CITYSTREAM_KAFKA_BOOTSTRAP"] = f"{LOCALHOST}:{ports['kafka_port']}"
        self.http = f"http://{LOCALHOST}:{ports['clickhouse_http_port']}/"
        changes = folder / "compose.json"
        changes.write_text(json.dumps(override(standing_in, folder)))
        self._compose = ("docker", "compose", "-p", NAME, "-f", str(COMPOSE), "-f", str(changes))

    def compose(self, *words: str) -> str:
        return command(*self._compose, *words, environment=self.environment)

    def up(self) -> None:
        """Start everything and wait until it is healthy."""
        self.compose("up", "--detach")
        until(self.healthy, "all services healthy, and init ended")

    def healthy(self) -> bool:
        lines = self.compose("ps", "--all", "--format", "json").splitlines()
        found = {service["Service"]: service for service in map(json.loads, lines)}
        init = found.pop("init", {"ExitCode": 1})
        return init["ExitCode"] == 0 and all(service["Health"] == "healthy" for service in found.values())

    def publish(self, seed: int) -> None:
        """Publish events from the host, as a department would."""
        words = ("simulate", "traffic_flow", "--rate", "flat-out", "--events", str(EVENTS), "--seed", str(seed))
        program = Path(sys.executable).parent / "citystream"
        command(program, *words, "--start", "2026-03-18", environment=self.environment)

    def rows(self) -> int:
        """How many events the analyst sees."""
        request = urllib.request.Request(self.http, b"SELECT count() FROM city.traffic_flow")  # noqa: S310 - loopback
        login = base64.b64encode(f"analyst:{self.password}".encode()).decode()
        request.add_header("Authorization", f"Basic {login}")
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310 - loopback
            return int(answer.read())

    def kill(self, service: str) -> None:
        """Kill every process of a service's container but its first, and wait until the engine has started it again."""
        (container,) = self.compose("ps", "--quiet", service).split()
        inspect = ("docker", "inspect", "--format", "{{.RestartCount}}", container)
        command("docker", "exec", "--detach", container, "python", "-c", KILL_ALL)
        until(lambda: int(command(*inspect)) > 0, f"{service} started again by the engine")


def run(city: City) -> None:
    """The whole course; raises what went wrong."""
    with step("image of citystream"):
        city.compose("build")
    with step("up and healthy"):
        city.up()
    with step(f"{EVENTS} events from the host to SQL"):
        city.publish(seed=1)
        until(lambda: city.rows() == EVENTS, f"{EVENTS} rows")
    for service in ("processor", "sink"):
        with step(f"{service} killed, started again"):
            city.kill(service)
    with step(f"{EVENTS} further events to SQL, and healthy"):
        city.publish(seed=2)
        until(lambda: city.rows() == 2 * EVENTS, f"{2 * EVENTS} rows")
        until(city.healthy, "all services healthy")
    with step("down"):
        city.compose("down")
    with step("up and healthy again"):
        city.up()
    if (rows := city.rows()) != 2 * EVENTS:
        raise NotRun(f"after down and up there are {rows} rows, not {2 * EVENTS}")
    print(f"{rows} rows were kept")


def main() -> int:
    """Run it; exit code 1 with a message if it could not be, or something did not hold."""
    LOG.parent.mkdir(exist_ok=True)
    LOG.write_text("")
    try:
        print(f"Docker Engine {engine()}; output of all programs: {LOG}")
        with TemporaryDirectory() as folder:
            city = City(Path(folder), images())
            try:
                run(city)
            except NotRun:
                city.compose("logs", "--timestamps")
                raise
            finally:
                with step("removed"):
                    city.compose("down", "--volumes", "--remove-orphans")
    except NotRun as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The stack on a container host is the local stack: same versions, settings, ports, users and commands."""

import json
import re
import socket
import struct
import subprocess
import sys
import threading
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest
import typer
import yaml
from numba.core.dispatcher import Dispatcher

import feeds
import processors
import sinks
from bench import made_up
from citystream.cli import build
from citystream.secrets import Secrets, secret
from citystream.settings import LOCALHOST, PROJECT, Settings, load_settings, variable
from citystream.stack import clickhouse, kafka
from citystream.stack.ports import free_ports
from deploy import containers
from streams import topics
from streams.cluster import Cluster
from streams.topics import MAX_BATCH
from streams.transport.sending import LARGEST_BODY
from tests.kernels_used import KERNELS

TEXT = (PROJECT / "docker-compose.yml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, Any] = COMPOSE["services"]
DOCKERFILE = (PROJECT / "deploy/docker/Dockerfile").read_text()
PASSWORDS = {f"CITYSTREAM_{user}_PASSWORD": f"password of {user}" for user in ("OWNER", "SINK", "OPERATOR", "ANALYST")}
SECRETS = PASSWORDS | {"CITYSTREAM_PSEUDONYM_KEY": "k" * 32}
OWN_IMAGE = {name for name, service in SERVICES.items() if service["image"].startswith("citystream:")}
DEFAULTS = load_settings({})
VARIABLE = re.compile(r"\$\{(\w+)(?::(.)([^}]*))?\}")

#: What depends on names and addresses: a container has its own.
ADDRESSES = {
    "controller.quorum.voters", "listeners", "advertised.listeners", "listener.security.protocol.map", "log.dirs",
}  # fmt: skip


def environment(service: str) -> dict[str, str]:
    """A service's environment as its process gets it, with secrets given and nothing else."""
    values = SERVICES[service].get("environment", {})
    return {name: VARIABLE.sub(lambda m: SECRETS.get(m[1]) or m[3], value) for name, value in values.items()}


def test_services() -> None:
    assert set(SERVICES) == {"kafka", "clickhouse", "init", "processor", "sink", "clock", "registry"}
    assert {"init", "processor", "sink", "clock", "registry"} == OWN_IMAGE


def test_versions_are_pinned_and_those_of_the_local_stack() -> None:
    assert all(SERVICES[name]["image"] == COMPOSE["x-images"][name] for name in ("kafka", "clickhouse"))
    assert all(re.fullmatch("[^@]+@sha256:[0-9a-f]{64}", image) for image in COMPOSE["x-images"].values())
    images = {name: image.partition("@")[0] for name, image in COMPOSE["x-images"].items()}
    pom = (PROJECT / "deploy/kafka/pom.xml").read_text()
    (version,) = re.findall(r"kafka_2.13</artifactId>\s*<version>(.*)</version>", pom)
    assert images["kafka"] == f"apache/kafka:{version}"

    package = json.loads((PROJECT / "deploy/clickhouse/package.json").read_text())
    year, month, _ = package["dependencies"]["@chdb/lib-linux-x64-gnu"].split(".", 2)
    assert re.fullmatch(rf"clickhouse/clickhouse-server:{year}\.{month}\.\d+\.\d+", images["clickhouse"])

    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    assert {SERVICES[name]["image"] for name in OWN_IMAGE} == {f"citystream:{project['version']}"}
    assert re.fullmatch(r"python:3\.11\.\d+-slim-\w+", images["python"])
    assert re.findall("^FROM (.*)$", DOCKERFILE, re.MULTILINE) == ["${PYTHON_IMAGE}"]


def test_the_broker_is_set_as_the_local_one() -> None:
    local = dict(line.split("=", 1) for line in kafka._properties(DEFAULTS, 9093).splitlines())
    values = environment("kafka")
    heap = values.pop("KAFKA_HEAP_OPTS").split()
    container = {name.removeprefix("KAFKA_").lower().replace("_", "."): value for name, value in values.items()}
    assert container.keys() == local.keys()
    assert {name for name, value in container.items() if value != local[name]} == ADDRESSES
    assert set(heap) <= set(kafka.launch(DEFAULTS).command)


def test_the_largest_request_of_the_platform_fits_with_the_broker() -> None:
    """A batch of the largest size; of a worker, a batch of each partition it writes windows to, and a dead letter."""
    windows = [feed.partitions for feed in feeds.load().values() for _ in feed.aggregates]
    around = 2**20
    assert max(MAX_BATCH, sum(windows) * LARGEST_BODY) + around < kafka.LARGEST_REQUEST
    assert 8 * kafka.LARGEST_REQUEST < kafka.REQUESTS_BYTES


def test_the_broker_is_found_from_inside_and_outside() -> None:
    values = environment("kafka")
    advertised = dict(part.split("://") for part in values["KAFKA_ADVERTISED_LISTENERS"].split(","))
    listening = dict(part.split("://") for part in values["KAFKA_LISTENERS"].split(","))
    protocols = dict(part.split(":") for part in values["KAFKA_LISTENER_SECURITY_PROTOCOL_MAP"].split(","))
    assert advertised["HOST"] == str(DEFAULTS.cluster)
    assert advertised["PLAINTEXT"] == environment("processor")["CITYSTREAM_KAFKA_BOOTSTRAP"]
    assert listening.keys() == protocols.keys() == advertised.keys() | {"CONTROLLER"}
    assert values["KAFKA_CONTROLLER_QUORUM_VOTERS"].partition("@")[2] == listening["CONTROLLER"]
    assert all(listening[name].endswith(address[-5:]) for name, address in advertised.items())


def test_clickhouse_reads_the_same_files_and_options() -> None:
    service = SERVICES["clickhouse"]
    mounts = dict(volume.split(":", 1) for volume in service["volumes"])
    for name in ("config.xml", "users.xml"):
        assert (PROJECT / f"deploy/clickhouse/{name}").exists()
        assert mounts[f"./deploy/clickhouse/{name}"] == f"/etc/clickhouse-server/{name}:ro"
    assert service["command"][0] == "--"
    options = {word.partition("=")[0] for word in service["command"][1:]}
    local = clickhouse.launch(DEFAULTS, Secrets.model_validate(secret_fields()))
    written = {"--config-file", "--logger.log", "--logger.console", "--log-level"}
    assert options == {word.partition("=")[0] for word in local.command if word.startswith("--")} - written
    assert local.environment["TZ"] == environment("clickhouse")["TZ"] == DEFAULTS.timezone
    path = next(word.partition("=")[2] for word in service["command"] if word.startswith("--path="))
    assert f"clickhouse:{path.rstrip('/')}" in service["volumes"]


def test_clickhouse_names_its_users_as_the_official_entrypoint_asks() -> None:
    config = ElementTree.parse(clickhouse.CONFIG)
    assert config.findtext("user_directories/users_xml/path") == "users.xml"
    assert config.find("users_config") is None


def test_the_container_has_no_user_without_password_and_reads_no_file_for_anybody() -> None:
    users, config = ElementTree.parse(clickhouse.USERS), ElementTree.parse(clickhouse.CONFIG)
    assert {user.tag for user in users.findall("users/*")} == {"owner", "sink", "operator", "analyst"}
    for user in users.findall("users/*"):
        assert user.find("password") is None
        assert (user.find("password_sha256_hex").get("from_env") or "").endswith("_PASSWORD_SHA256")  # type: ignore[union-attr]
    assert {config.findtext(name) for name in clickhouse.EMPTY} == {
        f"/var/lib/clickhouse/{folder}/" for folder in clickhouse.EMPTY.values()
    }
    handlers = {rule.findtext("url"): rule.findtext("methods") for rule in config.findall("http_handlers/rule")}
    assert handlers == {"/": "GET,HEAD,POST", "/ping": "GET,HEAD"}
    refused = users.find("profiles/default/constraints")
    assert refused is not None
    assert refused.find("add_http_cors_header/const") is not None


def test_clickhouse_has_sessions_for_two_sinks_of_many_feeds() -> None:
    users, config = ElementTree.parse(clickhouse.USERS), ElementTree.parse(clickhouse.CONFIG)
    sessions = {one.tag: int(one.findtext("max_sessions_for_user") or 0) for one in users.findall("profiles/*")}
    assert 2 * len(topics.stored([*feeds.load().values(), *made_up.FEEDS.values()])) <= sessions["sink"]
    assert sum(sessions.values()) < int(config.findtext("max_connections") or 0)


def secret_fields() -> dict[str, str]:
    return {name.removeprefix("CITYSTREAM_").lower(): value for name, value in SECRETS.items()}


def test_clickhouse_knows_the_users_of_the_local_stack() -> None:
    script = PROJECT / "deploy/docker/clickhouse.sh"
    assert (
        f"./deploy/docker/{script.name}:{SERVICES['clickhouse']['entrypoint'][1]}:ro"
        in SERVICES["clickhouse"]["volumes"]
    )
    given = {name: value for name, value in environment("clickhouse").items() if name.startswith("CITYSTREAM_")}
    assert given == PASSWORDS
    done = subprocess.run(
        ["bash", script, "env"], env={"PATH": "/usr/bin:/bin"} | given, capture_output=True, text=True, check=True
    )
    seen = dict(line.split("=", 1) for line in done.stdout.splitlines() if line.startswith("CITYSTREAM_"))
    assert seen == Secrets.model_validate(secret_fields()).clickhouse_environment()
    users = ElementTree.parse(PROJECT / "deploy/clickhouse/users.xml")
    assert {node.get("from_env") for node in users.iter("password_sha256_hex")} == seen.keys()


def test_ports_are_those_of_the_settings_on_this_machine_alone() -> None:
    published = {}
    for service in SERVICES.values():
        for port in service.get("ports", []):
            found = re.fullmatch(rf"{re.escape(LOCALHOST)}:\$\{{(\w+):-(\d+)\}}:(\d+)", port)
            assert found, port
            published[found[1]] = int(found[2])
    assert published == {variable(name): port for name, port in DEFAULTS.ports().items()}


def test_published_ports_lead_to_where_the_services_listen() -> None:
    inside = {name: {port.rpartition(":")[2] for port in SERVICES[name].get("ports", [])} for name in SERVICES}
    values, options = environment("sink"), SERVICES["clickhouse"]["command"]
    assert inside["kafka"] == {environment("kafka")["KAFKA_LISTENERS"].split(",")[1].rpartition(":")[2]}
    assert inside["clickhouse"] == {values["CITYSTREAM_CLICKHOUSE_PORT"], values["CITYSTREAM_CLICKHOUSE_HTTP_PORT"]}
    assert inside["clickhouse"] == {word.partition("_port=")[2] for word in options if "_port=" in word}
    assert inside["registry"] == {str(load_settings(environment("registry")).registry_port)}
    assert f"http://127.0.0.1:{min(inside['registry'])}/" in SERVICES["registry"]["healthcheck"]["test"][-1]


def test_secrets_have_no_default() -> None:
    fields = Settings.model_fields
    for name, kind, value in VARIABLE.findall(TEXT):
        field = name.removeprefix("CITYSTREAM_").lower()
        assert field in fields, name
        assert kind == ("?" if field in Secrets.model_fields else "-"), name
        if kind == "-":
            assert value == str(fields[field].default), name
    assert not re.search("(PASSWORD|KEY): (?!\\${)", TEXT)


@pytest.mark.parametrize("service", sorted(OWN_IMAGE))
def test_the_settings_of_a_service_make_sense(service: str, tmp_path: Path) -> None:
    settings = load_settings({**environment(service), "CITYSTREAM_HOME": str(tmp_path)})
    if service != "registry":
        assert settings.cluster == Cluster(("kafka:9092",))
        assert (settings.clickhouse_hosts, settings.clickhouse_port) == (("clickhouse",), 9000)
        assert settings.timezone == DEFAULTS.timezone
    needed = {"init": {"CITYSTREAM_OWNER_PASSWORD"}, "sink": {"CITYSTREAM_SINK_PASSWORD"}}.get(service, set())
    assert environment(service).keys() & SECRETS.keys() == needed
    for name in needed:
        assert secret(settings, name.removeprefix("CITYSTREAM_").lower()) == PASSWORDS[name]


@pytest.mark.parametrize("service", sorted(OWN_IMAGE))
def test_a_service_runs_a_command_there_is(service: str) -> None:
    name, *words = SERVICES[service]["command"]
    commands: Any = typer.main.get_command(build())
    commands.commands[name].make_context(name, words)


def test_topics_and_tables_come_from_init_alone() -> None:
    assert SERVICES["init"]["command"] == ["init"]
    assert set(SERVICES["init"]["depends_on"]) == {"kafka", "clickhouse"}
    assert {wait["condition"] for wait in SERVICES["init"]["depends_on"].values()} == {"service_healthy"}
    for name in ("processor", "sink", "clock"):
        assert SERVICES[name]["depends_on"] == {"init": {"condition": "service_completed_successfully"}}
    assert environment("kafka")["KAFKA_AUTO_CREATE_TOPICS_ENABLE"] == "false"


def test_what_runs_on_is_watched_and_started_again() -> None:
    for name in SERVICES.keys() - {"init"}:
        assert SERVICES[name]["restart"] == "unless-stopped"
        assert SERVICES[name]["healthcheck"]["test"][0] == "CMD"
    groups = {name: SERVICES[name]["healthcheck"]["test"][-1] for name in ("processor", "sink")}
    assert groups == {"processor": processors.GROUP, "sink": sinks.GROUP}


def test_what_a_service_prints_is_kept_within_bounds() -> None:
    for name, service in SERVICES.items():
        assert service["logging"]["driver"] == "json-file", name
        assert service["logging"]["options"].keys() == {"max-size", "max-file"}, name


def test_what_the_local_broker_logs_is_kept_within_bounds() -> None:
    path = PROJECT / "deploy/kafka/log4j2.xml"
    appenders = ElementTree.parse(path).findall("Appenders/*")
    assert [one.tag for one in appenders] == ["RollingFile"]
    for one in appenders:
        assert [policy.get("size") for policy in one.iter("SizeBasedTriggeringPolicy")] == ["10 MB"]
        assert [strategy.get("max") for strategy in one.iter("DefaultRolloverStrategy")] == ["1"]
        assert one.get("fileName") == "${sys:citystream.log}"
    log = DEFAULTS.home / "log" / "kafka.log"
    assert {f"-Dlog4j2.configurationFile={path}", f"-Dcitystream.log={log}"} <= set(kafka.launch(DEFAULTS).command)


def test_the_image_has_what_it_needs_and_no_more() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())
    packages = set(project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"])
    sources = set(re.findall(r"^COPY (\S+) ", DOCKERFILE, re.MULTILINE))
    files = {"requirements.lock", "healthy.py", "compile.py"}
    assert sources == packages | {f"deploy/docker/{name}" for name in files}
    ignored = (PROJECT / "deploy/docker/Dockerfile.dockerignore").read_text().splitlines()
    assert ignored[1] == "*"
    assert {line[1:] for line in ignored if line.startswith("!")} == sources
    assert "pip install --no-cache-dir --require-hashes --requirement requirements.lock" in DOCKERFILE
    *_, user, folder, compiled, start = DOCKERFILE.strip().splitlines()
    assert (user, folder) == ("USER citystream", "WORKDIR /home/citystream")
    assert compiled == "RUN python /opt/citystream/compile.py"
    assert start == 'ENTRYPOINT ["python", "-m", "citystream"]'
    for name in OWN_IMAGE:
        assert SERVICES[name]["cap_drop"] == ["ALL"]
        assert SERVICES[name]["security_opt"] == ["no-new-privileges:true"]


def test_one_service_builds_the_image_of_all() -> None:
    assert {name: service["build"] for name, service in SERVICES.items() if "build" in service} == {
        "init": {
            "context": ".",
            "dockerfile": "deploy/docker/Dockerfile",
            "args": {"PYTHON_IMAGE": COMPOSE["x-images"]["python"]},
        }
    }


def test_an_init_that_fails_is_given_up() -> None:
    assert SERVICES["init"]["restart"] == "on-failure:3"


def test_the_broker_has_time_to_start_and_to_end() -> None:
    assert SERVICES["kafka"]["stop_grace_period"] == "60s"
    assert SERVICES["kafka"]["healthcheck"]["start_period"] == "300s"


@pytest.mark.parametrize("answers", [True, False])
def test_the_broker_is_probed_with_one_request(answers: bool) -> None:
    (port,) = free_ports(1)
    *program, script = (word.replace("$$", "$") for word in SERVICES["kafka"]["healthcheck"]["test"][1:])
    asked = []

    def serve(listening: socket.socket) -> None:
        connection, _ = listening.accept()
        with connection:
            asked.append(connection.recv(14, socket.MSG_WAITALL))
            if answers:
                connection.sendall(struct.pack(">iih", 6, 0, 0))

    with socket.create_server((LOCALHOST, port)) as listening:
        broker = threading.Thread(target=serve, args=(listening,))
        broker.start()
        done = subprocess.run([*program, script.replace("/19092", f"/{port}")], check=False)
        broker.join()
    assert (done.returncode == 0) is answers
    assert asked == [struct.pack(">ihhih", 10, kafka.API_VERSIONS, 0, 0, -1)]


def test_the_image_has_the_locked_versions_without_the_tools_of_developers() -> None:
    everything, image = pins(PROJECT / "requirements.lock"), pins(PROJECT / "deploy/docker/requirements.lock")
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    assert image.items() <= everything.items()
    assert {line.partition("==")[0] for line in project["dependencies"]} <= image.keys()
    assert not {line.partition("==")[0].lower() for line in project["optional-dependencies"]["dev"]} & image.keys() - {
        "pyyaml"
    }
    assert "://" not in (PROJECT / "deploy/docker/requirements.lock").read_text()


def pins(lock: Path) -> dict[str, tuple[str, tuple[str, ...]]]:
    """The version and the hashes of each package of a lock."""
    found = re.findall(r"^(\S+)==(\S+) \\\n((?: +--hash=.*\n)+)", lock.read_text(), re.MULTILINE)
    return {name: (version, tuple(sorted(re.findall("sha256:[0-9a-f]+", hashes)))) for name, version, hashes in found}


def test_a_new_container_finds_the_kernels_compiled(tmp_path: Path) -> None:
    def python(*words: str | Path) -> str:
        where = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(PROJECT), "NUMBA_CACHE_DIR": str(tmp_path)}
        return subprocess.run([sys.executable, *words], env=where, check=True, stdout=subprocess.PIPE, text=True).stdout

    python(PROJECT / "deploy/docker/compile.py")
    compiled = {path.name.partition("-")[0] for path in tmp_path.rglob("*.nbi")}
    assert {
        "kernel.walk_batches", "kernel.walk_values", "kernel.fill_texts", "kernel.fill_longs",
        "column_writer.write_records", "tables.number_rows", "tables.number_texts", "windows.merge_events",
    } <= compiled  # fmt: skip
    assert not python("-m", "tests.kernels_used")


@pytest.mark.parametrize("module", KERNELS, ids=lambda module: module.__name__)
def test_a_kernel_calls_none_of_another_module(module: ModuleType) -> None:
    """What numba has kept of a kernel stays in use until the kernel's own file changes."""
    kernels = [one for one in vars(module).values() if isinstance(one, Dispatcher)]
    assert kernels
    assert {one.py_func.__module__ for one in kernels} == {module.__name__}


def test_without_an_engine_it_is_said_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(containers, "LOG", tmp_path / "log")
    with pytest.raises(containers.NotRun, match="No Docker engine with Compose answers here"):
        containers.engine()


def test_each_image_has_a_stand_in() -> None:
    recipes = {path.name.removesuffix(".Dockerfile") for path in containers.STANDINS.glob("*.Dockerfile")}
    assert recipes == COMPOSE["x-images"].keys()

"""Apache Kafka in KRaft mode: one node, reachable from this machine only."""

from __future__ import annotations

import base64
import os
import socket
import struct
import subprocess
import uuid
from pathlib import Path

from citystream.settings import LOCALHOST, PROJECT, Settings
from citystream.stack.ports import free_ports, is_free
from citystream.stack.process import Launch, Process, StackError

NAME = "kafka"
FORMAT_SECONDS = 120
API_VERSIONS = 18
#: Bytes of a request at most, and of all requests that the broker holds: it reads no further one until there is room.
LARGEST_REQUEST = 10 * 2**20
REQUESTS_BYTES = 128 * 2**20
#: Connections from one address at most: those of others still get in.
CONNECTIONS_OF_AN_ADDRESS = 512


def launch(settings: Settings) -> Launch:
    """How the broker would be started now."""
    properties = settings.data_of(NAME) / "server.properties"
    command = (*java(settings), "-Xms256m", "-Xmx512m", "kafka.Kafka", str(properties))
    return Launch(command, configuration=f"port {settings.kafka_port}")


def prepare(settings: Settings) -> None:
    """Write the configuration and, before the very first start, format the storage."""
    if not list(_jars(settings).glob("kafka_*.jar")):
        raise StackError(f"Kafka is not in {_jars(settings)}: run make setup")
    folder = settings.data_of(NAME)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    properties = folder / "server.properties"
    properties.write_text(_properties(settings, _controller_port(settings)))
    if not (folder / "log" / "meta.properties").exists():
        _format(settings, properties)


def ready(settings: Settings) -> bool:
    """Whether the broker answers a request, not merely accepts a connection."""
    request = struct.pack(">hhih", API_VERSIONS, 0, 1, -1)
    try:
        with socket.create_connection((LOCALHOST, settings.kafka_port), timeout=2) as connection:
            connection.sendall(struct.pack(">i", len(request)) + request)
            return len(connection.recv(8)) > 0
    except OSError:
        return False


def _jars(settings: Settings) -> Path:
    return settings.packages / NAME / "libs"


def java(settings: Settings) -> tuple[str, ...]:
    """The words of a JVM that has Kafka; its options and the class follow."""
    log4j, log = PROJECT / "deploy" / NAME / "log4j2.xml", Process(NAME, settings.home).log
    options = ("-Djava.awt.headless=true", f"-Dlog4j2.configurationFile={log4j}", f"-Dcitystream.log={log}")
    shared = (f"-XX:SharedArchiveFile={archive(settings)}",) if archive(settings).exists() else ()
    return "java", "-cp", f"{_jars(settings)}/*", *shared, *options


def archive(settings: Settings) -> Path:
    """What the JVM keeps of Kafka's classes, made by ``make setup``."""
    return settings.packages / NAME / "classes.jsa"


def _controller_port(settings: Settings) -> int:
    """The port chosen at the first start, another one if it is taken meanwhile."""
    kept = settings.data_of(NAME) / "controller.port"
    port = int(kept.read_text()) if kept.exists() else 0
    if not port or not is_free(port):
        (port,) = free_ports(1, apart_from=settings.ports().values())
        kept.write_text(str(port))
    return port


def _properties(settings: Settings, controller_port: int) -> str:
    values = {
        "process.roles": "broker,controller",
        "node.id": 1,
        "controller.quorum.voters": f"1@{LOCALHOST}:{controller_port}",
        "listeners": f"PLAINTEXT://{LOCALHOST}:{settings.kafka_port},CONTROLLER://{LOCALHOST}:{controller_port}",
        "advertised.listeners": f"PLAINTEXT://{LOCALHOST}:{settings.kafka_port}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "controller.listener.names": "CONTROLLER",
        "inter.broker.listener.name": "PLAINTEXT",
        "log.dirs": settings.data_of(NAME) / "log",
        "auto.create.topics.enable": "false",
        "default.replication.factor": 1,
        "min.insync.replicas": 1,
        "offsets.topic.replication.factor": 1,
        "offsets.topic.num.partitions": 4,
        # Positions must outlive every topic's retention: a year.
        "offsets.retention.minutes": 525600,
        "transaction.state.log.replication.factor": 1,
        "transaction.state.log.min.isr": 1,
        "transaction.state.log.num.partitions": 4,
        "share.coordinator.state.topic.replication.factor": 1,
        "share.coordinator.state.topic.min.isr": 1,
        "group.initial.rebalance.delay.ms": 0,
        "log.retention.check.interval.ms": 60000,
        # A killed broker may come back once its old session is over: after 4 s instead of 9.
        "broker.session.timeout.ms": 4000,
        "broker.heartbeat.interval.ms": 1000,
        "num.network.threads": 2,
        "num.io.threads": 4,
        # A request takes the memory it announces: the largest batch of a topic fits, and the heap holds them all.
        "socket.request.max.bytes": LARGEST_REQUEST,
        "queued.max.request.bytes": REQUESTS_BYTES,
        "max.connections.per.ip": CONNECTIONS_OF_AN_ADDRESS,
        "max.connections": 2 * CONNECTIONS_OF_AN_ADDRESS,
    }
    return "".join(f"{name}={value}\n" for name, value in values.items())


def _format(settings: Settings, properties: Path) -> None:
    cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
    # A cluster id that starts with a dash would be taken for an option.
    words = ("kafka.tools.StorageTool", "format", f"--cluster-id={cluster}", "--config", str(properties))
    try:
        done = subprocess.run(
            [*java(settings), "-XX:TieredStopAtLevel=1", *words],
            capture_output=True,
            text=True,
            timeout=FORMAT_SECONDS,
            check=False,
            env=dict(os.environ),
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StackError(f"Kafka's storage was not formatted: {error}") from error
    if done.returncode != 0:
        raise StackError(f"Kafka's storage was not formatted: {(done.stderr or done.stdout).strip()}")

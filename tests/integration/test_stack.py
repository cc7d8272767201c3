import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import psutil
import pytest
from clickhouse_driver import Client
from kafka import KafkaConsumer, KafkaProducer
from kafka.admin import KafkaAdminClient, NewTopic

import feeds
from citystream.secrets import load_secrets
from citystream.settings import Settings, variable
from citystream.stack import kafka
from citystream.stack.ports import free_ports
from citystream.stack.process import Launch, Process, StackError
from citystream.stack.stack import Stack, State
from streams.publisher import Producer

pytestmark = pytest.mark.integration


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Stack]:
    """A stack of its own, to be ill-treated."""
    kafka, native, http, registry = free_ports(4)
    stack = Stack(
        Settings(
            home=tmp_path, kafka_port=kafka, clickhouse_port=native, clickhouse_http_port=http, registry_port=registry
        )
    )
    try:
        yield stack
    finally:
        stack.down()


def states(stack: Stack) -> dict[str, State]:
    return {one.name: one.state for one in stack.status()}


def clickhouse(stack: Stack) -> Any:
    password = load_secrets(stack.settings).password("owner")
    return Client("127.0.0.1", port=stack.settings.clickhouse_port, user="owner", password=password)


def write(stack: Stack) -> None:
    admin = KafkaAdminClient(**stack.settings.cluster.kafka_python())
    admin.create_topics([NewTopic("kept", 1, 1)])
    admin.close()
    producer = KafkaProducer(**stack.settings.cluster.kafka_python(), acks="all")
    producer.send("kept", b"there").get(timeout=10)
    producer.close()
    client = clickhouse(stack)
    for statement in (
        "CREATE DATABASE raw",
        "CREATE TABLE raw.kept (a Int32) ENGINE = MergeTree ORDER BY a",
        "INSERT INTO raw.kept VALUES (1)",
    ):
        client.execute(statement)
    client.disconnect()


def read(stack: Stack) -> tuple[bytes, list[tuple[int]]]:
    consumer = KafkaConsumer(
        "kept",
        **stack.settings.cluster.kafka_python(),
        auto_offset_reset="earliest",
        consumer_timeout_ms=20_000,
    )
    value = next(consumer).value
    consumer.close()
    client = clickhouse(stack)
    rows = client.execute("SELECT a FROM raw.kept")
    client.disconnect()
    return value, rows


def test_life_of_a_stack(own: Stack) -> None:
    lines: list[str] = []
    assert states(own) == {"kafka": State.DOWN, "clickhouse": State.DOWN, "registry": State.DOWN}

    own.up(lines.append)
    assert states(own) == {"kafka": State.UP, "clickhouse": State.UP, "registry": State.UP}
    assert all(one.pid and one.uptime is not None and one.uptime < 60 for one in own.status())
    write(own)

    lines.clear()
    own.up(lines.append)
    assert sorted(line.partition(" at ")[0] for line in lines) == [
        f"{name} is already up" for name in ("clickhouse", "kafka", "registry")
    ]

    for one in own.status():
        assert one.pid is not None
        os.killpg(one.pid, signal.SIGKILL)
    until = time.monotonic() + 10
    while time.monotonic() < until and State.UP in states(own).values():
        time.sleep(0.05)
    assert states(own) == {"kafka": State.DOWN, "clickhouse": State.DOWN, "registry": State.DOWN}

    own.up(lines.append)
    assert read(own) == (b"there", [(1,)])

    own.down()
    assert states(own) == {"kafka": State.DOWN, "clickhouse": State.DOWN, "registry": State.DOWN}
    own.up(lines.append)
    assert read(own) == (b"there", [(1,)])


def demo(stack: Stack) -> subprocess.Popen[str]:
    """A demo in the home of a stack."""
    names = ("home", "packages", "kafka_port", "clickhouse_port", "clickhouse_http_port", "registry_port")
    environment = {variable(name): str(getattr(stack.settings, name)) for name in names}
    return subprocess.Popen(
        [sys.executable, "-m", "citystream.cli", "demo"],
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def running(stack: Stack) -> set[str]:
    """What runs of a home."""
    notes = [Process(note.stem, stack.settings.home) for note in stack.settings.home.glob("run/*.json")]
    return {process.name for process in notes if process.running()}


def until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_a_demo_started_ends_with_it(own: Stack) -> None:
    services = {"kafka", "clickhouse", "registry"}
    crew = {"processor", "sink", *(f"simulator-{name}" for name, feed in feeds.load().items() if feed.is_source)}
    first = demo(own)
    try:
        until(lambda: running(own) == services | crew)
        second = demo(own)
        assert "a demo runs in" in second.communicate(timeout=30)[1]
        assert second.returncode == 3
        first.send_signal(signal.SIGHUP)
        first.communicate(timeout=60)
        assert running(own) == set()

        first = demo(own)
        until(lambda: running(own) == services | crew)
        first.kill()
        until(lambda: running(own) == services)
    finally:
        first.kill()
        first.communicate()
    Process("sink", own.settings.home).start(Launch(("sleep", "600")))
    own.down()
    assert running(own) == set()


def test_a_foreign_process_id_is_left_alone(own: Stack) -> None:
    note = own.settings.home / "run" / "kafka.json"
    note.parent.mkdir()
    note.write_text(f'{{"pid": {os.getpid()}, "command": ["java", "kafka.Kafka"], "fingerprint": ""}}')
    assert states(own)["kafka"] is State.DOWN
    own.down()
    assert not note.exists()


def test_a_taken_port_is_named_with_the_way_out(own: Stack) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", own.settings.kafka_port))
        server.listen()
        with pytest.raises(StackError, match=rf"port {own.settings.kafka_port} is taken by .* CITYSTREAM_KAFKA_PORT="):
            own.up(lambda _: None)
    assert states(own) == {"kafka": State.DOWN, "clickhouse": State.DOWN, "registry": State.DOWN}


@pytest.mark.parametrize("setting", ["kafka_port", "clickhouse_port", "clickhouse_http_port"])
def test_other_settings_do_not_pass_for_the_running_stack(stack: Stack, setting: str) -> None:
    (port,) = free_ports(1)
    moved = Stack(stack.settings.model_copy(update={setting: port}))
    with pytest.raises(StackError, match="runs with other settings"):
        moved.up(lambda _: None)
    assert set(states(stack).values()) == {State.UP}


def test_elsewhere_starts_the_registry_alone(tmp_path: Path, stack: Stack) -> None:
    nobody, registry = free_ports(2)
    elsewhere = Stack(
        Settings(
            home=tmp_path,
            kafka_bootstrap=str(stack.settings.cluster),
            clickhouse_host="127.0.0.1",
            clickhouse_port=nobody,
            registry_port=registry,
        )
    )
    lines: list[str] = []
    try:
        elsewhere.up(lines.append)
        assert states(elsewhere) == {"kafka": State.UP, "clickhouse": State.UNREACHABLE, "registry": State.UP}
    finally:
        elsewhere.down()
    assert [line.partition(" ")[0] for line in lines] == ["registry"]


@pytest.mark.parametrize(
    "bytes_sent",
    [b"", b"\xff" * 100, b"GET / HTTP/1.1\r\n\r\n", b"\x00\x05cut"],
    ids=["nothing", "garbage", "HTTP", "half a greeting"],
)
def test_clickhouse_outlives_odd_clients(stack: Stack, bytes_sent: bytes) -> None:
    for port in (stack.settings.clickhouse_port, stack.settings.clickhouse_http_port):
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(bytes_sent)
            time.sleep(0.2)
    time.sleep(0.2)
    assert states(stack)["clickhouse"] is State.UP


def announcing(stack: Stack, size: int, count: int) -> list[socket.socket]:
    """Connections that announce a request of so many bytes, and never send it."""
    opened = []
    for _ in range(count):
        opened.append(socket.create_connection(("127.0.0.1", stack.settings.kafka_port), timeout=20))
        opened[-1].sendall(size.to_bytes(4))
    return opened


def publishes(stack: Stack) -> bool:
    """Whether a publisher that comes now is served."""
    topic = f"limits-{time.monotonic_ns()}"
    with closing(KafkaAdminClient(**stack.settings.cluster.kafka_python())) as admin:
        admin.create_topics([NewTopic(topic, 1, 1)])
        admin.wait_for_topics([topic])
    with closing(Producer(stack.settings.cluster)) as producer:
        done: bool = producer.send(topic, b"there").get(timeout=20) is not None
    return done


def test_announced_requests_do_not_end_the_broker(stack: Stack) -> None:
    with ExitStack() as held:
        for client in announcing(stack, 95 * 2**20, 8):
            held.enter_context(client)
            assert client.recv(1) == b"", "it is too large"
        for client in announcing(stack, kafka.LARGEST_REQUEST, 8):
            held.enter_context(client)
        assert publishes(stack)
    with ExitStack() as held:
        for client in announcing(stack, kafka.LARGEST_REQUEST, 100):
            held.enter_context(client)
    assert publishes(stack)
    assert states(stack)["kafka"] is State.UP
    assert "OutOfMemory" not in Process("kafka", stack.settings.home).log.read_text()


def test_one_address_does_not_take_all_connections(stack: Stack) -> None:
    """Idle connections from another address of this machine."""
    with ExitStack() as held:
        opened = [
            held.enter_context(
                socket.create_connection(("127.0.0.1", stack.settings.kafka_port), 20, source_address=("127.0.0.2", 0))
            )
            for _ in range(kafka.CONNECTIONS_OF_AN_ADDRESS + 1)
        ]
        assert opened[-1].recv(1) == b"", "it is one too many"
        assert publishes(stack)


def test_only_this_machine_can_connect(stack: Stack) -> None:
    ours = {*stack.settings.ports().values()}
    listening = [one.laddr for one in psutil.net_connections("tcp") if one.status == psutil.CONN_LISTEN]
    mine = [address for address in listening if address and address.port in ours]
    assert {address.port for address in mine} == ours
    assert {address.ip for address in mine} <= {"127.0.0.1", "::ffff:127.0.0.1"}

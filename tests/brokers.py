"""Three real brokers that know each other by certificates and let in who logs in, set as docs/operator.md says."""

from __future__ import annotations

import base64
import os
import shutil
import signal
import subprocess
import uuid
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from kafka.admin import ScramMechanism, UserScramCredentialUpsertion
from kafka.errors import KafkaError

from citystream.settings import LOCALHOST, PROJECT, Settings
from citystream.stack import kafka
from citystream.stack.ports import free_ports
from citystream.stack.process import Launch, Process
from streams.clients import new_admin
from streams.cluster import Cluster

OWNER = "owner"
NUMBERS = (1, 2, 3)
LISTENERS = ("CLIENTS", "BROKERS", "CONTROLLERS")
RECOMMENDED = PROJECT / "deploy/kafka/cluster.properties"
#: Of the key that all brokers of a test share, which no one else gets.
KEY_PASSWORD = "only-for-a-test"
#: What a test has beside what is recommended: tokens that are believed without a signature, and fast starts.
OF_TESTS = {
    "listener.name.clients.sasl.enabled.mechanisms": "SCRAM-SHA-512,OAUTHBEARER",
    "listener.name.clients.oauthbearer.sasl.jaas.config":
        "org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required;",
    "group.initial.rebalance.delay.ms": 0,
    "offsets.topic.num.partitions": 4,
    "broker.session.timeout.ms": 4000,
    "broker.heartbeat.interval.ms": 1000,
    "num.network.threads": 2,
    "num.io.threads": 4,
}  # fmt: skip


class Brokers:
    """Three brokers in a home; ``password`` is that of every user."""

    def __init__(self, home: Path, password: str) -> None:
        self.home = home
        self._password = password
        self._java = kafka.java(Settings(home=home))
        ports = iter(free_ports(len(NUMBERS) * len(LISTENERS)))
        self._ports = {number: {name: next(ports) for name in LISTENERS} for number in NUMBERS}
        self.ca_file = home / "ca.pem"
        home.mkdir()
        self._make_key()

    def cluster(self, user: str | None = None, token_file: Path | None = None) -> Cluster:
        """These brokers for a user, or for whoever has a token."""
        servers = tuple(f"{LOCALHOST}:{ports['CLIENTS']}" for ports in self._ports.values())
        return Cluster(servers, self.ca_file, user, self._password if user else "", token_file, 3, 2)

    def environment(self, user: str) -> dict[str, str]:
        """Settings with which a process speaks to them as a user."""
        cluster = self.cluster(user)
        return {
            "CITYSTREAM_KAFKA_BOOTSTRAP": str(cluster),
            "CITYSTREAM_KAFKA_CA_FILE": str(cluster.ca_file),
            "CITYSTREAM_KAFKA_USER": user,
            "CITYSTREAM_KAFKA_PASSWORD": cluster.password,
            "CITYSTREAM_KAFKA_REPLICATION": str(cluster.replication),
            "CITYSTREAM_KAFKA_MIN_INSYNC_REPLICAS": str(cluster.min_insync_replicas),
        }

    def up(self, users: Sequence[str]) -> None:
        """Start them, and let these users log in."""
        for number in NUMBERS:
            self._settings_file(number).write_text(self._settings(number))
        identity = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        first, *others = NUMBERS
        self._format(first, identity)
        for number in others:
            self._format_alike(first, number)
        for number in NUMBERS:
            self.start(number)
        self.process(1).wait_until(self._answers)
        with closing(new_admin(self.cluster(OWNER))) as admin:
            made = admin.alter_user_scram_credentials(
                [UserScramCredentialUpsertion(u, ScramMechanism.SCRAM_SHA_512, self._password) for u in users]
            )
        assert not any(made.values()), made

    def start(self, number: int) -> None:
        """Start one."""
        command = (
            *self._java,
            f"-Dcitystream.log={self.process(number).log}",
            "-Xmx256m",
            "kafka.Kafka",
            str(self._settings_file(number)),
        )
        self.process(number).start(Launch(command))

    def kill(self, number: int) -> None:
        """SIGKILL one."""
        running = self.process(number).running()
        assert running is not None
        os.kill(running.pid, signal.SIGKILL)

    def down(self) -> None:
        """End them."""
        for number in NUMBERS:
            if self.process(number).running() is not None:
                self.kill(number)

    def process(self, number: int) -> Process:
        """One of them."""
        return Process(f"kafka-{number}", self.home)

    def _answers(self) -> bool:
        try:
            with closing(new_admin(self.cluster(OWNER), bootstrap_timeout_ms=1000)) as admin:
                return len(admin.describe_cluster()["brokers"]) == len(NUMBERS)
        except KafkaError:
            return False

    def _settings_file(self, number: int) -> Path:
        return self.home / f"{number}.properties"

    def _settings(self, number: int) -> str:
        listeners = ",".join(f"{name}://{LOCALHOST}:{port}" for name, port in self._ports[number].items())
        voters = ",".join(f"{n}@{LOCALHOST}:{ports['CONTROLLERS']}" for n, ports in self._ports.items())
        own = {
            "node.id": number,
            "controller.quorum.voters": voters,
            "listeners": listeners,
            "advertised.listeners": listeners.rpartition(",")[0],
            "log.dirs": self.home / str(number),
            "ssl.keystore.location": self.home / "key.p12",
            "ssl.keystore.password": KEY_PASSWORD,
            "ssl.truststore.location": self.ca_file,
            "ssl.truststore.type": "PEM",
        }
        return RECOMMENDED.read_text() + "".join(f"{name}={value}\n" for name, value in (own | OF_TESTS).items())

    def _make_key(self) -> None:
        store = ("-keystore", str(self.home / "key.p12"), "-storepass", KEY_PASSWORD, "-alias", "kafka")
        _run(
            "keytool", "-genkeypair", "-dname", "CN=kafka", "-keyalg", "EC", "-ext", f"san=ip:{LOCALHOST}",
            "-ext", "bc=ca:true", "-validity", "2", *store,
        )  # fmt: skip
        _run("keytool", "-exportcert", "-rfc", "-file", str(self.ca_file), *store)

    def _format(self, number: int, identity: str) -> None:
        owner = f"--add-scram=SCRAM-SHA-512=[name={OWNER},password={self._password}]"
        config = ("--config", str(self._settings_file(number)))
        _run(*self._java, "kafka.tools.StorageTool", "format", f"--cluster-id={identity}", owner, *config)

    def _format_alike(self, number: int, other: int) -> None:
        """The same as formatting another one, which takes a JVM seconds."""
        shutil.copytree(self.home / str(number), self.home / str(other))
        kept = self.home / str(other) / "meta.properties"
        values = dict(line.split("=", 1) for line in kept.read_text().splitlines() if "=" in line)
        values |= {"node.id": str(other), "directory.id": base64.urlsafe_b64encode(uuid.uuid4().bytes).decode()[:22]}
        kept.write_text("".join(f"{name}={value}\n" for name, value in values.items()))


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr or done.stdout

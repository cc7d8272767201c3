import asyncio
from pathlib import Path
from typing import Any

import pytest
from faust.transport.drivers import aiokafka as driver
from kafka.errors import TopicAuthorizationFailedError

from citystream.settings import Settings, SettingsError, load_settings, secret_variables
from streams.cluster import Cluster
from streams.group_positions import GroupPositions
from streams.transport.app import BatchApp
from streams.waiting import kafka_away

ELSEWHERE = {"CITYSTREAM_KAFKA_BOOTSTRAP": "kafka-1:9092, kafka-2:9092,10.0.0.3:9093"}
SERVERS = ["kafka-1:9092", "kafka-2:9092", "10.0.0.3:9093"]
PASSWORD = "what-nobody-sees"
CERTIFICATE = """\
-----BEGIN CERTIFICATE-----
MIIBOzCB4qADAgECAgkAk3Q+6G5Xh1wwCgYIKoZIzj0EAwIwETEPMA0GA1UEAxMG
bm9ib2R5MCAXDTI2MTEyODE1MDY1N1oYDzIxMjYxMTA0MTUwNjU3WjARMQ8wDQYD
VQQDEwZub2JvZHkwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAATz+ga5cN2X2wf/
iq3T/mge+MNNWKv2+TtZoGud/1AK96LwWTYXLd3IIjCgOVaz+2pIAlcSmXkovA/B
o7fTgaNGoyEwHzAdBgNVHQ4EFgQUbsdtirgsO53nijJeevr+AfaLNUkwCgYIKoZI
zj0EAwIDSAAwRQIgGVw1ytDCktMIc5goMCUX2L9Iukq0E+o9TwJXdgM3+ogCIQCy
RPJBPdZcVzuLi8MAhNj6C7OwqkSHor2NclXsV5lI8Q==
-----END CERTIFICATE-----
"""


@pytest.fixture
def ca(tmp_path: Path) -> Path:
    """A certificate, of a key that nobody has."""
    file = tmp_path / "ca.pem"
    file.write_text(CERTIFICATE)
    return file


@pytest.fixture
def token(tmp_path: Path) -> Path:
    file = tmp_path / "token"
    file.write_text("the-first\n")
    return file


def of_worker(cluster: Cluster) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the consumer and the producer of a worker are opened with."""

    async def opened() -> tuple[dict[str, Any], dict[str, Any]]:
        app = BatchApp(GroupPositions(cluster, "processor", {}), [])
        producer = {**app.producer._settings_default(), **app.producer._settings_auth()}
        return (
            {
                "bootstrap_servers": driver.server_list(app.transport.url, 0),
                **driver.credentials_to_aiokafka_auth(app.conf.broker_credentials, app.conf.ssl_context),
            },
            producer,
        )

    return asyncio.run(opened())


def test_every_kind_of_client_is_given_every_server() -> None:
    cluster = load_settings(ELSEWHERE).cluster
    assert str(cluster) == ",".join(SERVERS)
    for found in (cluster.kafka_python(), cluster.aiokafka(), *of_worker(cluster)):
        assert found["bootstrap_servers"] == SERVERS
        assert found["security_protocol"] == "PLAINTEXT"


def test_every_kind_of_client_logs_in_over_tls(ca: Path) -> None:
    given = {"KAFKA_CA_FILE": str(ca), "KAFKA_USER": "sink", "KAFKA_PASSWORD": PASSWORD}
    cluster = load_settings(ELSEWHERE | {f"CITYSTREAM_{name}": value for name, value in given.items()}).cluster
    for found in (cluster.kafka_python(), cluster.aiokafka(), *of_worker(cluster)):
        assert found["security_protocol"] == "SASL_SSL"
        assert found["sasl_mechanism"] == "SCRAM-SHA-512"
        assert (found["sasl_plain_username"], found["sasl_plain_password"]) == ("sink", PASSWORD)
        assert found["ssl_context"].check_hostname


def test_a_token_is_read_for_each_connection(ca: Path, token: Path) -> None:
    cluster = Cluster(("kafka:1",), ca, token_file=token)
    for found in (cluster.aiokafka(), *of_worker(cluster)):
        assert found["sasl_mechanism"] == "OAUTHBEARER"
        assert asyncio.run(found["sasl_oauth_token_provider"].token()) == "the-first"
    provider = cluster.kafka_python()["sasl_oauth_token_provider"]
    token.write_text("the-second")
    assert provider.token() == "the-second"


def test_tls_needs_no_login(ca: Path) -> None:
    cluster = Cluster(("kafka:1",), ca)
    for found in (cluster.kafka_python(), cluster.aiokafka(), *of_worker(cluster)):
        assert found["security_protocol"] == "SSL"


def test_a_password_is_in_nothing_that_is_printed(ca: Path) -> None:
    settings = Settings(kafka_bootstrap="kafka:1", kafka_ca_file=ca, kafka_user="sink", kafka_password=PASSWORD)
    assert PASSWORD not in f"{settings!r} {settings} {settings.cluster!r} {settings.cluster} {settings.cluster.faust()}"
    assert "CITYSTREAM_KAFKA_PASSWORD" in secret_variables(), "children are not given it"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"KAFKA_USER": "sink"}, "CITYSTREAM_KAFKA_PASSWORD"),
        ({"KAFKA_PASSWORD": PASSWORD}, "CITYSTREAM_KAFKA_USER"),
        ({"KAFKA_USER": "sink", "KAFKA_PASSWORD": PASSWORD, "KAFKA_TOKEN_FILE": __file__}, "not both"),
        ({"KAFKA_TOKEN_FILE": __file__}, "needs CITYSTREAM_KAFKA_CA_FILE"),
        ({"KAFKA_TOKEN_FILE": "/nothing"}, "CITYSTREAM_KAFKA_TOKEN_FILE"),
        ({"KAFKA_CA_FILE": asyncio.__file__}, "PEM"),
        ({"KAFKA_MIN_INSYNC_REPLICAS": "2"}, "CITYSTREAM_KAFKA_REPLICATION"),
        ({"KAFKA_BOOTSTRAP": None, "KAFKA_REPLICATION": "3"}, "CITYSTREAM_KAFKA_BOOTSTRAP"),
    ],
)
def test_what_makes_no_cluster_is_refused(given: dict[str, str | None], said: str) -> None:
    environment = ELSEWHERE | {f"CITYSTREAM_{name}": value for name, value in given.items()}
    with pytest.raises(SettingsError) as refused:
        load_settings({name: value for name, value in environment.items() if value is not None})
    assert said in str(refused.value)
    assert PASSWORD not in str(refused.value)


def test_who_is_not_allowed_is_told_so() -> None:
    words = kafka_away(Cluster(("kafka:1",), user="sink", password=PASSWORD))
    assert "does not allow it" in words(TopicAuthorizationFailedError("traffic_flow"))
    assert "traffic_flow" in words(TopicAuthorizationFailedError("traffic_flow"))
    assert "does not let us in" in words(OSError("no"))
    assert "does not let us in" not in kafka_away(Cluster(("kafka:1",)))(OSError("no"))

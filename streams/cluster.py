"""Where Kafka is and how one is let in: what every client of it is opened with."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

SCRAM = "SCRAM-SHA-512"


@dataclass(frozen=True)
class Cluster:
    """The brokers of one Kafka; as text their addresses, as ``host:port,host:port``.

    With a ``ca_file``, the certificates of those who vouch for the brokers, it is spoken to over TLS. One logs in as a
    ``user`` by SCRAM, or by OAUTHBEARER with the token that stands in a file whenever a connection is made, or not at
    all. Topics that are created get so many copies of each partition, ``replication``; a record is acknowledged when
    ``min_insync_replicas`` of them have it.
    """

    servers: tuple[str, ...]
    ca_file: Path | None = None
    user: str | None = None
    password: str = field(default="", repr=False)
    token_file: Path | None = None
    replication: int = 1
    min_insync_replicas: int = 1

    def __str__(self) -> str:
        return ",".join(self.servers)

    @cached_property
    def tls(self) -> ssl.SSLContext | None:
        """How brokers prove who they are; their names are checked."""
        return ssl.create_default_context(cafile=str(self.ca_file)) if self.ca_file else None

    def kafka_python(self) -> dict[str, Any]:
        """What a client of kafka-python is opened with."""
        from kafka.net.sasl.oauth import AbstractTokenProvider  # noqa: PLC0415

        class Tokens(AbstractTokenProvider):
            def token(_) -> str:  # noqa: N805
                return self._token()

        return self._opened_with(Tokens)

    def aiokafka(self) -> dict[str, Any]:
        """What a client of aiokafka is opened with."""
        from aiokafka.abc import AbstractTokenProvider  # noqa: PLC0415

        class Tokens(AbstractTokenProvider):
            async def token(_) -> str:  # noqa: N805
                return self._token()

        return self._opened_with(Tokens)

    def faust(self) -> dict[str, Any]:
        """What a Faust application is opened with."""
        from faust.auth import OAuthCredentials, SASLCredentials, SSLCredentials  # noqa: PLC0415

        found = self.aiokafka()
        credentials = None
        if self.user:
            credentials = SASLCredentials(
                username=self.user, password=self.password, ssl_context=self.tls, mechanism=SCRAM
            )
        elif self.token_file:
            credentials = OAuthCredentials(oauth_cb=found["sasl_oauth_token_provider"], ssl_context=self.tls)
        elif self.tls:
            credentials = SSLCredentials(self.tls)
        return {"broker": [f"kafka://{server}" for server in self.servers], "broker_credentials": credentials}

    def _opened_with(self, tokens: type[Any]) -> dict[str, Any]:
        """The two libraries agree on the words, but for how a token is asked for."""
        login: dict[str, Any] = {}
        if self.user:
            login = {"sasl_mechanism": SCRAM, "sasl_plain_username": self.user, "sasl_plain_password": self.password}
        elif self.token_file:
            login = {"sasl_mechanism": "OAUTHBEARER", "sasl_oauth_token_provider": tokens()}
        protocol = f"{'SASL_' if login else ''}{'SSL' if self.tls else 'PLAINTEXT'}"
        return {
            "bootstrap_servers": list(self.servers),
            "security_protocol": protocol,
            "ssl_context": self.tls,
            **login,
        }

    def _token(self) -> str:
        assert self.token_file
        return self.token_file.read_text().strip()

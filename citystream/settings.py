"""Everything that can be set from outside: environment variables named CITYSTREAM_ and the field in capitals."""

from __future__ import annotations

import difflib
import os
import re
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Self
from zoneinfo import ZoneInfo

from pydantic import Field, FilePath, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from schemas.alerts import Status
from streams.cluster import Cluster

PREFIX = "CITYSTREAM_"
PROJECT = Path(__file__).resolve().parent.parent
LOCALHOST = "127.0.0.1"

Port = Annotated[int, Field(ge=1, le=65535)]


#: What only a Kafka elsewhere has.
OF_A_CLUSTER = ("kafka_ca_file", "kafka_user", "kafka_token_file", "kafka_replication", "kafka_min_insync_replicas")


class SettingsError(Exception):
    """A setting makes no sense or is missing; the message names it and says what is allowed."""


class Settings(BaseSettings):
    """The settings of one run. An address that is not set means the local stack."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True, hide_input_in_errors=True)

    home: Path = Field(Path(".citystream"), description="Folder of the local stack's data, logs and secrets.")
    packages: Path = Field(
        PROJECT / ".citystream", description="Folder into which `make setup` installed Kafka and ClickHouse."
    )
    kafka_bootstrap: str | None = Field(
        None, description="A Kafka elsewhere, as host:port[,host:port]; then no local Kafka is started."
    )
    kafka_ca_file: FilePath | None = Field(
        None,
        description="Certificates (PEM) of who vouches for the servers of that Kafka; set, it is spoken to over TLS.",
    )
    kafka_user: str | None = Field(None, min_length=1, description="User that logs in there, by SCRAM-SHA-512.")
    kafka_password: SecretStr | None = Field(None, min_length=1, description="Password of that user.")
    kafka_token_file: FilePath | None = Field(
        None,
        description="File with the token that logs in there, by OAUTHBEARER, instead of a user; it is read for each "
        "connection, so who renews the token replaces the file.",
    )
    kafka_replication: int = Field(1, ge=1, description="How many brokers there keep a copy of each new topic.")
    kafka_min_insync_replicas: int = Field(
        1, ge=1, description="How many of these have to have a record of a new topic before it is acknowledged."
    )
    kafka_port: Port = Field(19092, description="Port of the local Kafka, 1 to 65535.")
    clickhouse_host: str | None = Field(
        None,
        description="Name or address of a ClickHouse elsewhere, or of several with copies of the same tables, as "
        "host[,host]; then no local ClickHouse is started.",
    )
    clickhouse_ca_file: FilePath | None = Field(
        None, description="Certificates (PEM) of who vouches for that ClickHouse; set, it is spoken to over TLS."
    )
    clickhouse_cluster: str | None = Field(
        None,
        pattern=r"^\w+$",
        description="Name of the cluster in the configuration of several ClickHouse: each keeps a copy of all tables.",
    )
    clickhouse_port: Port = Field(19000, description="Port of ClickHouse's native protocol, 1 to 65535.")
    clickhouse_http_port: Port = Field(18123, description="Port of ClickHouse's HTTP interface, 1 to 65535.")
    registry_port: Port = Field(18081, description="Port of the schema registry, 1 to 65535.")
    alert_status: Status = Field(
        Status.EXERCISE,
        description="What alerts say of themselves: Exercise for what is simulated, Actual when departments publish.",
    )
    timezone: str = Field(
        "Asia/Shanghai", description="Time zone of displayed times, an IANA name such as Asia/Shanghai."
    )
    owner_password: SecretStr | None = Field(None, description="Password of the ClickHouse user owner (migrations).")
    sink_password: SecretStr | None = Field(None, description="Password of the ClickHouse user sink.")
    operator_password: SecretStr | None = Field(None, description="Password of the ClickHouse user operator.")
    analyst_password: SecretStr | None = Field(None, description="Password of the ClickHouse user analyst.")
    pseudonym_key: SecretStr | None = Field(
        None,
        description="Key that turns identities into pseudonyms, at least 32 characters: the city's, or what "
        "`citystream feeds key` printed for one department; a new key breaks all links.",
    )

    @field_validator("home", "packages")
    @classmethod
    def _folder(cls, value: Path) -> Path:
        folder = value.expanduser().absolute()
        if folder.exists() and not folder.is_dir():
            raise ValueError("a folder is needed, this is something else")
        return folder

    @field_validator("kafka_bootstrap")
    @classmethod
    def _addresses(cls, value: str | None) -> str | None:
        for address in value.split(",") if value is not None else []:
            found = re.fullmatch(r"\s*[\w.-]+:(\d{1,5})\s*", address, re.ASCII)
            if not found or not 1 <= int(found.group(1)) <= 65535:
                raise ValueError("host:port[,host:port] is needed, such as kafka-1:9092,kafka-2:9092")
        return value

    @field_validator("clickhouse_host")
    @classmethod
    def _host(cls, value: str | None) -> str | None:
        for host in value.split(",") if value is not None else []:
            if not re.fullmatch(r"\s*([\w.-]+|[0-9A-Fa-f]*(:[0-9A-Fa-f]*){2,})\s*", host, re.ASCII):
                raise ValueError("host[,host] is needed, each without a port; the port is CITYSTREAM_CLICKHOUSE_PORT")
        return value

    @field_validator("timezone")
    @classmethod
    def _zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (KeyError, ValueError, OSError) as error:
            raise ValueError("an IANA time zone is needed, such as Asia/Shanghai") from error
        return value

    @field_validator("owner_password", "sink_password", "operator_password", "analyst_password")
    @classmethod
    def _password(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and len(value.get_secret_value()) < 12:
            raise ValueError("at least 12 characters are needed")
        return value

    @field_validator("pseudonym_key")
    @classmethod
    def _key(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and len(value.get_secret_value()) < 32:
            raise ValueError("at least 32 characters are needed")
        return value

    @field_validator("kafka_ca_file", "clickhouse_ca_file")
    @classmethod
    def _certificates(cls, value: Path | None) -> Path | None:
        try:
            ssl.create_default_context(cafile=value)
        except (ssl.SSLError, OSError) as error:
            raise ValueError("a file of certificates in PEM form is needed") from error
        return value

    @model_validator(mode="after")
    def _kafka_is_one_cluster(self) -> Self:
        if (self.kafka_user is None) != (self.kafka_password is None):
            raise ValueError(f"{variable('kafka_user')} and {variable('kafka_password')} are needed, or none of them")
        if self.kafka_token_file and self.kafka_user:
            raise ValueError(f"{variable('kafka_token_file')} or {variable('kafka_user')} is needed, not both")
        if self.kafka_token_file and not self.kafka_ca_file:
            raise ValueError(
                f"{variable('kafka_token_file')} needs {variable('kafka_ca_file')}: without TLS anybody reads it"
            )
        if self.kafka_min_insync_replicas > self.kafka_replication:
            raise ValueError(
                f"{variable('kafka_min_insync_replicas')} is {self.kafka_min_insync_replicas} of "
                f"{self.kafka_replication} copies: set {variable('kafka_replication')} to as many at least"
            )
        given = [name for name in OF_A_CLUSTER if getattr(self, name) != type(self).model_fields[name].default]
        if given and self.kafka_bootstrap is None:
            raise ValueError(
                f"{', '.join(map(variable, given))}: this is for a Kafka elsewhere, {variable('kafka_bootstrap')}"
            )
        return self

    @model_validator(mode="after")
    def _clickhouse_is_one_cluster(self) -> Self:
        host, cluster = variable("clickhouse_host"), variable("clickhouse_cluster")
        if self.clickhouse_host is None and (self.clickhouse_cluster or self.clickhouse_ca_file):
            raise ValueError(f"{cluster} and {variable('clickhouse_ca_file')} are for a ClickHouse elsewhere, {host}")
        if len(self.clickhouse_hosts) > 1 and not self.clickhouse_cluster:
            raise ValueError(f"{host} names several hosts: {cluster} has to say which cluster keeps their tables alike")
        return self

    @model_validator(mode="after")
    def _ports_differ(self) -> Self:
        seen: dict[int, str] = {}
        for name, port in self.ports().items():
            if port in seen:
                raise ValueError(f"{variable(seen[port])} and {variable(name)} are both {port}: two ports are needed")
            seen[port] = name
        return self

    def data_of(self, service: str) -> Path:
        """Where a service of the local stack keeps its data."""
        return self.home / "data" / service

    def ports(self) -> dict[str, int]:
        """The ports used on this machine, by the name of their setting."""
        names = ["registry_port"]
        names += [] if self.kafka_bootstrap else ["kafka_port"]
        names += [] if self.clickhouse_host else ["clickhouse_port", "clickhouse_http_port"]
        return {name: getattr(self, name) for name in names}

    @property
    def cluster(self) -> Cluster:
        """Kafka, wherever it is."""
        servers = self.kafka_bootstrap or f"{LOCALHOST}:{self.kafka_port}"
        return Cluster(
            tuple(server.strip() for server in servers.split(",")),
            self.kafka_ca_file,
            self.kafka_user,
            self.kafka_password.get_secret_value() if self.kafka_password else "",
            self.kafka_token_file,
            self.kafka_replication,
            self.kafka_min_insync_replicas,
        )

    @property
    def clickhouse_hosts(self) -> tuple[str, ...]:
        """Host names or addresses, without a port, wherever ClickHouse is."""
        return tuple(host.strip() for host in (self.clickhouse_host or LOCALHOST).split(","))


def variable(field: str) -> str:
    """The environment variable of a setting."""
    return PREFIX + field.upper()


def secret_variables() -> set[str]:
    """The environment variables that hold a secret."""
    return {variable(name) for name, field in Settings.model_fields.items() if field.annotation == SecretStr | None}


def load_settings(environment: Mapping[str, str] | None = None) -> Settings:
    """Read the settings; ``SettingsError`` with a message for people when one makes no sense."""
    _refuse_unknown(environment if environment is not None else os.environ)
    try:
        if environment is None:
            return Settings()
        given = {
            key.removeprefix(PREFIX).lower(): value for key, value in environment.items() if key.startswith(PREFIX)
        }
        return Settings.model_validate(given)
    except ValidationError as error:
        raise SettingsError("\n".join(_explain(one["loc"], one["msg"]) for one in error.errors())) from None


def _refuse_unknown(environment: Mapping[str, str]) -> None:
    known = {variable(name) for name in Settings.model_fields}
    for name in environment:
        # The hashes are read by ClickHouse, from the environment of its own process.
        if name.startswith(PREFIX) and name not in known and not name.endswith("_PASSWORD_SHA256"):
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; {near[0]} is meant, perhaps" if near else ""
            raise SettingsError(f"{name}: there is no such setting{hint}")


def _explain(location: tuple[int | str, ...], message: str) -> str:
    message = message.removeprefix("Value error, ")
    if not location:
        return message
    name = str(location[0])
    return f"{variable(name)}: {message[0].lower() + message[1:]} ({Settings.model_fields[name].description})"

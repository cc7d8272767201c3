"""Where Kafka is: every client of it, of whichever library, is opened with what its cluster says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Cluster:
    """The brokers of one Kafka; as text their addresses, as ``host:port,host:port``."""

    servers: tuple[str, ...]

    def __str__(self) -> str:
        return ",".join(self.servers)

    def kafka_python(self) -> dict[str, Any]:
        """What a client of kafka-python is opened with."""
        return {"bootstrap_servers": list(self.servers)}

    def aiokafka(self) -> dict[str, Any]:
        """What a client of aiokafka is opened with."""
        return {"bootstrap_servers": list(self.servers)}

    def faust(self) -> dict[str, Any]:
        """What a Faust application is opened with."""
        return {"broker": [f"kafka://{server}" for server in self.servers]}

    def librdkafka(self) -> dict[str, Any]:
        """What a client of librdkafka is opened with."""
        return {"bootstrap.servers": str(self)}

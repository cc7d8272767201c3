"""Clients of kafka-python that leave nothing behind when no broker answers.

Their constructors start a thread with sockets of its own, and raise without ending it: a worker that asks again and
again while the brokers are away would run out of files.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kafka import KafkaAdminClient, KafkaConsumer

#: How long an attempt to reach a broker takes, in ms.
PATIENCE_MS = 30_000


def new_admin(bootstrap: str, patience_ms: int = PATIENCE_MS) -> KafkaAdminClient:
    """Kafka's administration, to be closed.

    Raises
    ------
    KafkaTimeoutError
        No broker has answered.
    """
    return _connected(KafkaAdminClient, bootstrap_servers=bootstrap, bootstrap_timeout_ms=patience_ms)


def new_consumer(bootstrap: str, patience_ms: int = PATIENCE_MS, **settings: Any) -> KafkaConsumer:
    """A consumer that commits nothing, to be closed.

    Raises
    ------
    KafkaTimeoutError
        No broker has answered.
    """
    return _connected(
        KafkaConsumer,
        bootstrap_servers=bootstrap,
        bootstrap_timeout_ms=patience_ms,
        enable_auto_commit=False,
        **settings,
    )


def _connected(kind: Callable[..., Any], **settings: Any) -> Any:
    networks: list[Any] = []

    def network(**own: Any) -> Any:
        networks.append(kind.DEFAULT_CONFIG["kafka_client"](**own))  # type: ignore[attr-defined]
        return networks[-1]

    try:
        return kind(kafka_client=network, **settings)
    except BaseException:
        for one in networks:
            one.close()
        raise

"""What waits for a server says so, and in one line when it is over."""

from __future__ import annotations

import asyncio
from typing import Any
from unittest.mock import create_autospec

import pytest
from aiokafka.errors import KafkaTimeoutError, NodeNotReadyError
from kafka import KafkaAdminClient
from kafka.errors import KafkaConnectionError
from tenacity import AsyncRetrying, wait_none

from streams import topics, waiting
from streams.cluster import Cluster
from streams.waiting import KAFKA_ANSWERS, Waiting, kafka_away, until_kafka_answers

HERE = Cluster(("here:1",))


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "wait_exponential", lambda **_: wait_none())


def failing(*errors: Exception) -> Any:
    """A call that fails so often."""
    left = list(errors)

    def call() -> str:
        if left:
            raise left.pop(0)
        return "done"

    return call


def test_a_wait_is_said_at_each_attempt_and_its_end_once() -> None:
    said: list[str] = []
    waits = Waiting("it is back", said.append, clock=iter(range(0, 99, 10)).__next__)
    for _ in range(2):
        assert until_kafka_answers(HERE, failing(OSError("refused"), KafkaConnectionError("no")), waits) == "done"
    assert said == 2 * [
        "Kafka at here:1 does not answer (refused); trying again in 0 s",
        "Kafka at here:1 does not answer (KafkaConnectionError: no); trying again in 0 s",
        "it is back",
    ]


def test_what_several_wait_for_is_over_when_the_last_one_has_it() -> None:
    said: list[str] = []
    waits = Waiting("it is back", said.append, clock=lambda: 0.0)
    waits.end("one")
    for who in ("one", "two", "two"):
        waits.begin(who, "it is away")
    waits.begin("three")
    waits.end("two")
    waits.end("one")
    assert said == ["it is away"]
    waits.end("three")
    waits.end("three")
    assert said == ["it is away", "it is back"]


def test_what_is_not_wanted_any_more_is_no_wait_that_is_over() -> None:
    said: list[str] = []
    waits = Waiting("it is back", said.append)
    waits.begin("one", "it is away")
    with pytest.raises(OSError, match="refused"):
        until_kafka_answers(HERE, failing(OSError("refused")), waits, lambda: False)
    waits.end("one")
    assert said == ["it is away", "it is back"]


def test_the_workers_own_calls_say_it_in_the_same_words() -> None:
    said: list[str] = []
    waits = Waiting("it is back", said.append)
    again = failing(NodeNotReadyError("1"), KafkaTimeoutError())

    async def call() -> str:
        return str(again())

    how = waits.retrying(lambda _: True, kafka_away(HERE))
    assert asyncio.run(AsyncRetrying(**how)(call)) == "done"
    assert said[0].startswith("Kafka at here:1 does not answer (NodeNotReadyError")
    assert said[-1] == "it is back"


def test_a_start_that_waited_for_kafka_says_that_it_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    connecting = failing(KafkaConnectionError("no"))

    def admin(*_: Any, **__: Any) -> Any:
        connecting()
        return create_autospec(KafkaAdminClient, instance=True)

    monkeypatch.setattr(topics, "new_admin", admin)
    topics.wait_for_kafka(HERE, said.append)
    assert said[1:] == [KAFKA_ANSWERS]
    topics.wait_for_kafka(HERE, said.append)
    assert said[2:] == []

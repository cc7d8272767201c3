"""Kafka and ClickHouse killed in the middle: workers wait, say so, and go on without a loss."""

from __future__ import annotations

from pathlib import Path

import pytest

from citystream.stack import clickhouse, kafka
from citystream.stack.stack import Stack
from sinks.clickhouse import CLICKHOUSE_ANSWERS
from streams.waiting import KAFKA_ANSWERS
from tests.city import FEEDS, START, WORKERS, City, own_city

pytestmark = pytest.mark.integration

EVENTS = 5_000


def pids(city: City) -> list[int]:
    """Process ids of the workers."""
    return [running.pid for name in WORKERS if (running := city.process(name).running()) is not None]


def logged(city: City, name: str, words: str) -> bool:
    """Whether a worker has said something."""
    return words in city.process(name).log.read_text()


def test_servers_away(tmp_path: Path) -> None:
    """First ClickHouse, then Kafka, both while there is work; the same worker processes go on when they are back."""
    with own_city(tmp_path) as city:
        city.publish(FEEDS, START, 1, EVENTS)
        city.drain()
        before = pids(city)

        city.kill(clickhouse.NAME)
        city.publish(FEEDS, START, 2, EVENTS)
        city.wait(lambda: logged(city, "sink", "ClickHouse cannot take data"))
        Stack(city.settings).up(lambda _: None)
        city.drain()
        city.wait(lambda: logged(city, "sink", CLICKHOUSE_ANSWERS))

        city.publish(FEEDS, START, 3, EVENTS)
        said = {name: city.process(name).log.read_text().count(KAFKA_ANSWERS) for name in WORKERS}
        city.kill(kafka.NAME)
        city.wait(lambda: not city.process(kafka.NAME).running())
        Stack(city.settings).up(lambda _: None)
        city.publish(FEEDS, START, 4, EVENTS)
        city.drain()
        for name in WORKERS:
            city.wait(lambda name=name: city.process(name).log.read_text().count(KAFKA_ANSWERS) > said[name])  # type: ignore[misc]

        ledger = city.snapshot()["ledger"]
        assert pids(city) == before
        assert sum(account.published for account, _ in ledger) == 4 * EVENTS
        assert all(balances for _, balances in ledger), ledger
        assert len(ledger) == len(FEEDS)

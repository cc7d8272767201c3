"""ClickHouse away while events keep coming: the sink holds bounded memory, keeps its partitions, and catches up."""

from __future__ import annotations

import asyncio
import time
from contextlib import closing
from itertools import islice
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from kafka import KafkaAdminClient

from bench.process import resident_mib
from citystream.stack import clickhouse
from citystream.stack.stack import Stack
from schemas.record_codec import encode
from simulation import simulator
from simulation.world import World
from sinks.ledger import accounts
from streams.lag import measure
from streams.transport.sending import Packed, Sender
from streams.wire.column_writer import Body
from streams.wire.record_batch import HEADER
from tests.city import START, City, own_city
from tests.transport import Ready

pytestmark = pytest.mark.integration

FEED = "made_up_f"
#: Records of a batch; a batch a partition each second, for so many seconds: 25,000 events/s, 1,750,000 in all.
RECORDS, SECONDS = 6_250, 70
#: What the sink may hold beside what it takes when it has nothing to do, and what it may still grow by in the second
#: half of an outage, in MiB.
MOST_MIB, FLAT_MIB = 768, 64


def body(city: City) -> Body:
    """Records of a batch; sent again and again, they are repeats."""
    feed, frozen = city.installation.feeds[FEED], city.installation.catalogue.latest(FEED)
    builder = DefaultRecordBatchBuilder(2, 0, 0, -1, -1, -1, 2**20)
    for number, record in enumerate(islice(simulator(feed)(World(START, 1)), RECORDS)):
        taken = builder.append(number, 0, getattr(record, feed.key).encode(), encode(frozen, record), [])
        assert taken is not None
    return Body(bytes(builder.build())[HEADER.size :], RECORDS)


async def publish(city: City, data: Body, seconds: int) -> None:
    """Publish at an even rate."""
    producer = AIOKafkaProducer(**city.installation.cluster.aiokafka(), acks="all")
    await producer.start()
    began = time.monotonic()
    for second in range(seconds):
        sender = Sender(Ready(producer))
        for partition in range(city.installation.feeds[FEED].partitions):
            await sender.send_packed(FEED, partition, [Packed(data)])
        await sender.settle()
        await asyncio.sleep(max(0, began + second + 1 - time.monotonic()))
    await producer.stop()


def behind(city: City) -> int:
    return sum(p.records for p in measure(city.installation.cluster, "sink", [FEED]))


def assignments(city: City) -> int:
    """How often partitions were given to the sink."""
    return city.process("sink").log.read_text().count("sink reads ")


def test_memory_stays_bounded_and_a_backlog_goes_twice_as_fast_as_it_came(tmp_path: Path) -> None:
    with own_city(tmp_path) as city:
        city.process("processor").stop()
        data = body(city)
        asyncio.run(publish(city, data, 1))
        city.wait(lambda: behind(city) == 0)
        running = city.process("sink").running()
        assert running is not None
        idle = resident_mib(running.pid)
        away: list[int] = []
        back: list[int] = []

        async def outage() -> float:
            city.kill(clickhouse.NAME)
            began = time.monotonic()
            publishing = asyncio.create_task(publish(city, data, SECONDS))
            while not publishing.done():
                away.append(resident_mib(running.pid))
                await asyncio.sleep(0.2)
            await publishing
            return time.monotonic() - began

        coming = asyncio.run(outage())
        assert behind(city) > 0
        with closing(KafkaAdminClient(**city.installation.cluster.kafka_python())) as admin:
            assert admin.describe_groups(["sink"])["sink"]["group_state"] == "Stable"
        Stack(city.settings).up(lambda _: None)
        began = time.monotonic()
        while behind(city):
            back.append(resident_mib(running.pid))
            assert time.monotonic() - began < 300
            time.sleep(0.1)
        going = time.monotonic() - began

        first, second, draining = (max(part) for part in (away[: len(away) // 2], away[len(away) // 2 :], back))
        print(f"idle {idle} MiB, away {first} and {second}, back {draining}; in {coming:.0f} s, out {going:.0f} s")
        assert second - first < FLAT_MIB, "what comes in is not held"
        assert max(second, draining) - idle < MOST_MIB
        assert going * 2 <= coming
        still = city.process("sink").running()
        assert still is not None
        assert (still.pid, assignments(city)) == (running.pid, 1)
        client = city.installation.server("operator").connect()
        feeds = {FEED: city.installation.feeds[FEED]}
        (account,) = accounts(client, feeds, measure(city.installation.cluster, "sink", [FEED]))
        client.disconnect()
        assert account.balances
        assert account.published == (SECONDS + 1) * feeds[FEED].partitions * RECORDS
        assert account.stored == RECORDS


def test_a_worker_told_to_end_ends_though_servers_are_away(tmp_path: Path) -> None:
    """It tries to commit for a few seconds and does not wait for what cannot come."""
    with own_city(tmp_path) as city:
        city.publish([FEED], START, 1, 500)
        city.drain()
        city.kill(clickhouse.NAME)
        city.publish([FEED], START, 2, 500)
        city.wait(lambda: "ClickHouse cannot take data" in city.process("sink").log.read_text())
        city.process("sink").stop()
        city.kill("kafka")
        city.process("processor").stop()
        for name in ("sink", "processor"):
            said = city.process(name).log.read_text()
            assert f"{name} was told to end" in said
            assert f"{name} ended" in said, "it had to be killed"
            assert "Traceback" not in said

"""Every offset of a topic is accounted for, whatever was written to it and by whom."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from itertools import islice
from threading import Event
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from kafka import KafkaProducer

from schemas.feed import milliseconds
from schemas.fields import INSTANTS, Record
from schemas.record_codec import encode, prefix
from simulation import simulator
from simulation.world import World
from sinks.ledger import Account, accounts
from sinks.queries import quarantine
from streams.deadletters import LONGEST, TOPIC, DeadLetter
from streams.decode import LARGEST_LETTER, Decoder
from streams.lag import measure
from streams.transport.sending import Sender
from tests.city import START, City, own_city
from tests.reference.batches import CODECS, batch, batch_of, record_bytes, run
from tests.transport import Ready

pytestmark = pytest.mark.integration

FEED, OTHER, HISTOGRAMS = "made_up_j", "made_up_f", "made_up_g"


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Iterator[City]:
    """A city that the tests of this module share, each with records of its own."""
    with own_city(tmp_path_factory.mktemp("city")) as opened:
        yield opened


def simulated(city: City, seed: int, count: int) -> list[Any]:
    """Records of the feed in a window of their own for each seed."""
    simulate = simulator(city.installation.feeds[FEED])
    return list(islice(simulate(World(START + seed * timedelta(hours=1), seed)), count))


def producer(city: City, transaction: str | None = None) -> KafkaProducer:
    """A producer, of transactions if they have a name."""
    return KafkaProducer(**city.installation.cluster.kafka_python(), acks="all", transactional_id=transaction)


def send(city: City, to: KafkaProducer, records: Sequence[Record]) -> None:
    """Send records and wait until the broker has them."""
    frozen, key = city.installation.catalogue.latest(FEED), city.installation.feeds[FEED].key
    for record in records:
        to.send(FEED, key=getattr(record, key).encode(), value=encode(frozen, record))
    to.flush()


def account(city: City) -> Account:
    """The feed's account, once the workers have read all there is."""
    city.drain()
    client = city.installation.server("operator").connect()
    log = measure(city.installation.cluster, "sink", [FEED])
    (found,) = accounts(client, {FEED: city.installation.feeds[FEED]}, log)
    client.disconnect()
    return found


def ask(city: City, query: str, user: str = "analyst") -> Any:
    """A query."""
    client = city.installation.server(user).connect()
    try:
        return client.execute(query)
    finally:
        client.disconnect()


def test_a_topic_written_in_transactions_balances(city: City) -> None:
    """Records of an aborted transaction, between others, are neither stored nor counted into windows."""
    records = simulated(city, 0, 1500)
    committed, aborted, plain = (records[n::3] for n in range(3))
    before = account(city)
    with (
        closing(producer(city)) as alone,
        closing(producer(city, "kept")) as kept,
        closing(producer(city, "dropped")) as dropped,
    ):
        for one in (kept, dropped):
            one.init_transactions()
            one.begin_transaction()
        for part in range(3):
            send(city, kept, committed[part::3])
            send(city, dropped, aborted[part::3])
            send(city, alone, plain[part::3])
        dropped.abort_transaction()
        kept.commit_transaction()

    found = account(city)
    assert found.balances
    assert found.stored - before.stored == len(committed + plain)
    markers = found.published - before.published - len(records)
    assert markers > 0
    assert found.control - before.control == len(aborted) + markers
    stored = ask(city, f"SELECT toString(event_id) FROM city.{FEED}")
    assert {event for (event,) in stored} >= {record.event_id for record in committed + plain}
    assert not {event for (event,) in stored} & {record.event_id for record in aborted}
    windows = Counter((r.zone, r.observed_at.replace(second=0, microsecond=0)) for r in committed + plain)
    shown = ask(
        city,
        f"SELECT zone, toTimeZone(window_start, 'UTC'), events FROM city.{FEED}_1m_zone "
        f"WHERE window_start < fromUnixTimestamp({START.timestamp() + 3600:.0f})",
    )
    assert {(zone, start): events for zone, start, events in shown} == windows

    again = "INSERT INTO raw.control SELECT topic, source_partition, source_offset"
    ask(city, f"{again}, last_offset FROM raw.control", "sink")
    ask(city, f"{again}, source_offset FROM raw.control", "sink")
    assert account(city) == found, "a replay, cut in another way, changes nothing"


def test_one_event_id_under_another_key_or_time_is_a_conflict(city: City) -> None:
    """Both events count, exact repeats are no conflict, and the ledger balances."""
    first, moved, later, twice, *_ = simulated(city, 1, 10)
    moved = moved.model_copy(update={"event_id": first.event_id})
    again = later.model_copy(update={"observed_at": later.observed_at + timedelta(seconds=1)})
    before = account(city)
    with closing(producer(city)) as to:
        send(city, to, [first, moved, later, again, again, twice, twice])
    found = account(city)
    assert found.balances
    assert (found.conflicts - before.conflicts, found.duplicate - before.duplicate) == (2, 2)
    assert found.stored - before.stored == 5
    rows = ask(
        city,
        f"SELECT toString(event_id), device_id, toTimeZone(observed_at, 'UTC') FROM city.{FEED}_conflicts ORDER BY ALL",
    )
    assert rows == sorted((r.event_id, r.device_id, r.observed_at) for r in (first, moved, later, again))
    ((places,),) = ask(city, f"SELECT uniqExact(source_partition, source_offset) FROM city.{FEED}_conflicts")
    assert places == 4


def test_what_is_no_dead_letter_is_kept_counted_and_shown(city: City) -> None:
    """Junk, a tombstone and another tool's letter in the topic of dead letters: the sink goes on."""
    ((known,),) = ask(city, f"SELECT count() FROM raw.quarantine FINAL WHERE topic = '{TOPIC}'", "operator")
    good, bad, *_ = simulated(city, 2, 4)
    with closing(producer(city)) as to:
        to.send(TOPIC, b"junk")
        to.send(TOPIC, key=b"key", value=None)
        to.send(TOPIC, b"x", headers=[("__connect.errors.topic", b"other"), ("__connect.errors.offset", b"?")])
        to.flush()
        to.send(FEED, key=bad.device_id.encode(), value=b"no record")
        send(city, to, [good])
    before = account(city)
    assert before.balances
    assert before.quarantined == 1

    own = f"topic = '{TOPIC}'"
    found = quarantine(city.installation.server("operator").connect(), [TOPIC], 10)
    assert len(found) == known + 3
    assert [row["cause"].rpartition(".")[2] for row in sorted(found, key=lambda row: row["offset"])] == [
        "offset is missing", "offset is missing", f"offset is no number from 0 to {2**63 - 1 - LONGEST}",
    ]  # fmt: skip
    ((counted,),) = ask(city, f"SELECT groupBitmapMerge(offsets) FROM raw.ledger WHERE {own}", "operator")
    assert counted == len(found)
    assert all(row["partition"] == 0 for row in found)


def test_every_kind_of_dead_letter_is_written_and_stored(city: City) -> None:
    """A record with neither key nor value among them, which kills no worker; and what has no bytes of its own."""
    feed, catalogue = city.installation.feeds[FEED], city.installation.catalogue
    good, bad, *_ = simulated(city, 3, 4)
    frozen, other = catalogue.latest(FEED), catalogue.latest(OTHER)
    key, value = good.device_id.encode(), encode(frozen, good)
    records = [
        (None, None), (None, value), (key, None), (key, b""), (key, b'{"event_id": 1}'), (key, prefix(2**31 - 1)),
        (key, prefix(other.id)), (key, value[:-3]), (key, value + b"\0"), (b"other", encode(frozen, bad)),
        (key, prefix(frozen.id) + b"\1" * (LARGEST_LETTER + 1)),
    ]  # fmt: skip
    empty, number = batch_of(b"".join(record_bytes(n, None, None) for n in range(9)), 9, 50), len(records)
    now_ms = round(time.time() * 1000)
    logged = [batch([(*one, [])], offset, arrived_ms=now_ms) for offset, one in enumerate(records)] + [
        batch_of(b"no gzip", 2, 20, CODECS["gzip"]),
        batch_of(b"\1 no records", 2, 30),
        empty,
        batch_of(b"", 2**18, 90),
    ]
    dead = Decoder(catalogue, FEED, feed, topic="elsewhere").read(run(*logged, topic="elsewhere"), 0).dead
    assert [letter.offset for letter in dead[:number]] == list(range(number))
    before = account(city)

    async def write() -> None:
        here = AIOKafkaProducer(**city.installation.cluster.aiokafka(), acks="all", max_request_size=2**21)
        async with here:
            sender = Sender(Ready(here))
            await sender.send_letters(TOPIC, dead)
            for one in records:
                built = here.create_batch()
                built.append(timestamp=None, key=one[0], value=one[1])
                await (await here.send_batch(built, FEED, partition=0))

    asyncio.run(write())
    after = account(city)
    assert after.balances
    assert after.quarantined - before.quarantined == number
    columns = "source_offset, last_offset, stage, cause, unhex(key), unhex(value), isNull(key), isNull(value)"
    found = ask(city, f"SELECT {columns} FROM raw.quarantine FINAL WHERE topic = 'elsewhere' ORDER BY 1", "owner")
    assert [(*row[:4], None if row[6] else row[4].encode(), row[7]) for row in found] == [
        (letter.offset, letter.last_offset, letter.stage, letter.cause, letter.key, letter.value is None)
        for letter in dead
    ]  # fmt: skip
    own = f"topic = '{FEED}' AND source_partition = 0 ORDER BY source_offset DESC LIMIT {number}"
    causes = ask(city, f"SELECT cause, isNull(key), isNull(value) FROM raw.quarantine FINAL WHERE {own}", "owner")
    expected = [(letter.cause, letter.key is None, letter.value is None) for letter in dead[:number]]
    assert causes == expected[::-1]


def test_letters_that_anybody_wrote_cost_the_ledger_little(city: City) -> None:
    """A thousand that claim 67 million offsets each, and a thousand at the ends of what a letter may claim."""

    def forged(number: int, first: int, last: int) -> DeadLetter:
        return DeadLetter(f"forged_{number % 3}", number % 7, first, last, "DECODE", "forged", None, b"", 1)

    far = 2**63 - 1 - 2 * LONGEST
    letters = [forged(n, n * 2**26, (n + 1) * 2**26) for n in range(1000)]
    letters += [forged(n, far - n * LONGEST, far - (n - 1) * LONGEST - 1) for n in range(1000)]

    async def write() -> None:
        async with AIOKafkaProducer(**city.installation.cluster.aiokafka(), acks="all") as here:
            sender = Sender(Ready(here))
            await sender.send_letters(TOPIC, letters)
            await sender.settle()

    began = time.monotonic()
    asyncio.run(write())
    assert account(city).balances
    assert time.monotonic() - began < 60
    count = "SELECT count() FROM raw.quarantine FINAL WHERE cause"
    assert ask(city, f"{count} = 'forged'", "operator") == [(1000,)]
    impossible = ask(city, f"{count} LIKE '%last_offset is no number from%'", "operator")
    assert impossible == [(1000,)]


def test_parts_of_windows_that_anybody_wrote_stop_neither_the_sink_nor_a_view(city: City) -> None:
    """Each value of a part at the ends of what Avro can carry, and at the ends of what the sink lets pass."""
    aggregate, _ = city.installation.feeds[HISTOGRAMS].aggregates
    window_ms = milliseconds(aggregate.window)
    frozen = city.installation.catalogue.latest(aggregate.topic)
    start = round(START.timestamp()) * 1000
    ends = {
        "window_start": [-(2**63), INSTANTS[0] // window_ms * window_ms, 2**63 - window_ms],
        "source_partition": [-(2**31), 2**31 - 1],
        "watermark": [-(2**63), 2**63 - 1, INSTANTS[0]],
    }
    common: dict[str, Any] = {"window_start": start, "source_partition": 0, "since": 0, "version": 2, "events": 1}
    default = {
        field["name"]: common.get(field["name"], "forged" if field["type"] == "string" else 1)
        for field in frozen.schema["fields"]
    }
    for name in (name for name in default if name.endswith(("_buckets", "_counts"))):
        default[name] = []
    numbers = [name for name, value in default.items() if isinstance(value, int) and name not in ends]
    lists = [name for name in default if name.endswith("_buckets")]
    changes: list[dict[str, Any]] = [{name: value} for name, values in ends.items() for value in values]
    changes += [{name: end} for name in numbers for end in (-(2**63), 2**63 - 1)]
    changes += [{name: [2**31 - 1, 0]} for name in lists] + [
        {name: [-1], f"{name[:-8]}_counts": [2**63 - 1]} for name in lists
    ]
    forged = [{**default, **change, "version": change.get("version", 2 * n)} for n, change in enumerate(changes)]
    with closing(producer(city)) as to:
        for part in forged:
            to.send(aggregate.topic, key=b"forged", value=encode(frozen, part))
        to.flush()
    city.drain()
    names = ", ".join(r.name for measure in aggregate.measures for r in measure.results)
    assert ask(city, f"SELECT window_start, {names}, final, as_of FROM city.{aggregate.name}")


def test_final_is_never_claimed_of_parts_that_cannot_be_seen(city: City) -> None:
    """Readers that ask without a pause while parts and progress are inserted, as the sink does it."""
    aggregate, disorder = f"{OTHER}_5m", milliseconds(city.installation.feeds[OTHER].disorder)
    rounds, stop = 400, Event()

    def read() -> int:
        client = city.installation.server("operator").connect()
        query = f"SELECT events, toUnixTimestamp64Milli(as_of) FROM city.{aggregate} WHERE device_id = 's5'"
        early = 0
        while not stop.is_set():
            early += sum(as_of + disorder > events for events, as_of in client.execute(query))
        client.disconnect()
        return early

    sink = city.installation.server("sink").connect()
    with ThreadPoolExecutor() as pool:
        readers = [pool.submit(read) for _ in range(3)]
        try:
            for number in range(1, rounds + 1):
                sink.execute(
                    f"INSERT INTO raw.{aggregate} (device_id, window_start, version, events) "
                    f"SELECT concat('s', toString(number)), toDateTime(0), {number}, {number} FROM numbers(3000)"
                )
                sink.execute(f"INSERT INTO raw.progress VALUES ('{aggregate}', 0, {number})")
        finally:
            stop.set()
        assert [reader.result() for reader in readers] == [0, 0, 0]
    sink.disconnect()

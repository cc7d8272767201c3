"""Every offset of a topic is accounted for, whatever was written to it and by whom."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from itertools import islice
from random import Random
from threading import Event
from typing import Any

import pytest
from kafka import KafkaProducer

from schemas.fields import Record
from schemas.rowcodec import encode
from sinks.ledger import Account, accounts
from sinks.queries import quarantine
from streams.deadletters import LONGEST, TOPIC
from streams.lag import measure
from tests.city import START, City, own_city

pytestmark = pytest.mark.integration

FEED = "traffic_flow"


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Iterator[City]:
    """A city that the tests of this module share, each with records of its own."""
    with own_city(tmp_path_factory.mktemp("city")) as opened:
        yield opened


def simulated(city: City, seed: int, count: int) -> list[Any]:
    """Records of the feed in a window of their own for each seed."""
    return list(islice(city.installation.feeds[FEED].simulate(START + seed * timedelta(hours=1), Random(seed)), count))


def producer(city: City, transaction: str | None = None) -> KafkaProducer:
    """A producer, of transactions if they have a name."""
    return KafkaProducer(bootstrap_servers=city.installation.bootstrap, acks="all", transactional_id=transaction)


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
    log = measure(city.installation.bootstrap, "sink", [FEED])
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
    records = simulated(city, 0, 900)
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
    windows = Counter((r.segment_id, r.date_observed_to.replace(second=0, microsecond=0)) for r in committed + plain)
    shown = ask(
        city,
        "SELECT segment_id, toTimeZone(window_start, 'UTC'), events FROM city.traffic_flow_1m "
        f"WHERE window_start < fromUnixTimestamp({START.timestamp() + 3600:.0f})",
    )
    assert {(segment, start): events for segment, start, events in shown} == windows

    again = "INSERT INTO raw.control SELECT topic, source_partition, source_offset"
    ask(city, f"{again}, last_offset FROM raw.control", "sink")
    ask(city, f"{again}, source_offset FROM raw.control", "sink")
    assert account(city) == found, "a replay, cut in another way, changes nothing"


def test_one_event_id_under_another_key_or_time_is_a_conflict(city: City) -> None:
    """Both events count, exact repeats are no conflict, and the ledger balances."""
    first, moved, later, twice, *_ = simulated(city, 1, 10)
    moved = moved.model_copy(update={"event_id": first.event_id})
    again = later.model_copy(update={"date_observed_to": later.date_observed_to + timedelta(seconds=1)})
    before = account(city)
    with closing(producer(city)) as to:
        send(city, to, [first, moved, later, again, again, twice, twice])
    found = account(city)
    assert found.balances
    assert (found.conflicts - before.conflicts, found.duplicate - before.duplicate) == (2, 2)
    assert found.stored - before.stored == 5
    rows = ask(
        city,
        f"SELECT toString(event_id), segment_id, toTimeZone(date_observed_to, 'UTC') FROM city.{FEED}_conflicts "
        "ORDER BY ALL",
    )
    assert rows == sorted((r.event_id, r.segment_id, r.date_observed_to) for r in (first, moved, later, again))
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
        to.send(FEED, key=bad.segment_id.encode(), value=b"no record")
        send(city, to, [good])
    before = account(city)
    assert before.balances
    assert before.quarantined == 1

    own = f"topic = '{TOPIC}'"
    found = quarantine(city.installation.server("operator").connect(), TOPIC, 10)
    assert len(found) == known + 3
    assert [row["cause"].rpartition(".")[2] for row in sorted(found, key=lambda row: row["offset"])] == [
        "offset is missing", "offset is missing", f"offset is no number from 0 to {2**63 - 1 - LONGEST}",
    ]  # fmt: skip
    ((counted,),) = ask(city, f"SELECT groupBitmapMerge(offsets) FROM raw.ledger WHERE {own}", "operator")
    assert counted == len(found)
    assert all(row["partition"] == 0 for row in found)


def test_final_is_never_claimed_of_parts_that_cannot_be_seen(city: City) -> None:
    """Readers that ask without a pause while parts and progress are inserted, as the sink does it."""
    aggregate = "parking_spot_15m"
    rounds, stop = 400, Event()

    def read() -> int:
        client = city.installation.server("operator").connect()
        query = f"SELECT events, toUnixTimestamp64Milli(as_of) FROM city.{aggregate} WHERE site_id = 's5'"
        early = 0
        while not stop.is_set():
            early += sum(as_of + disorder > events for events, as_of in client.execute(query))
        client.disconnect()
        return early

    disorder = city.installation.feeds["parking_spot"].disorder // timedelta(milliseconds=1)
    sink = city.installation.server("sink").connect()
    with ThreadPoolExecutor() as pool:
        readers = [pool.submit(read) for _ in range(3)]
        try:
            for number in range(1, rounds + 1):
                sink.execute(
                    f"INSERT INTO raw.{aggregate} (site_id, window_start, version, events) "
                    f"SELECT concat('s', toString(number)), toDateTime(0), {number}, {number} FROM numbers(3000)"
                )
                sink.execute(f"INSERT INTO raw.progress VALUES ('{aggregate}', 0, {number})")
        finally:
            stop.set()
        assert [reader.result() for reader in readers] == [0, 0, 0]
    sink.disconnect()

"""Publishers that are killed, run beside each other or send again: rows and windows are those of one clean publishing.

Every way of publishing has a day of its own, with the same events on it.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from itertools import islice
from random import Random
from typing import Any
from unittest.mock import create_autospec
from uuid import UUID

import psutil
import pytest
from clickhouse_driver import Client
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.producer import producer_batch, record_accumulator, sender
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt

from citystream.stack import kafka
from citystream.stack.process import StackError
from citystream.stack.stack import Stack
from schemas.record_codec import encode
from schemas.verdict import instant_ms
from simulation import simulator
from simulation.faults import parse_faults
from simulation.running import Simulation, SystemClock
from simulation.world import World
from sinks.ledger import Account, accounts
from streams.lag import measure
from streams.publisher import OnResult, Producer, Publisher
from tests.city import City, made_up, own_city

pytestmark = pytest.mark.integration

#: Two made-up feeds; the windows of the second hold shares, as those of car parks do.
FEED, SITES = "made_up_j", "made_up_b"
IN_SHARES = f"""
from dataclasses import replace
from datetime import timedelta

from bench.made_up import FEEDS
from schemas.expressions import Column
from schemas.feed import Aggregate
from schemas.measures import share, spread

LEVEL = Column("outward") / Column("inward")

FEED = replace(
    FEEDS[{SITES!r}],
    aggregates=(
        Aggregate(
            name="{SITES}_15m",
            by=("device_id",),
            window=timedelta(minutes=15),
            measures=(
                spread("level", LEVEL, unit="1", scale=1_000_000, description="outward over inward"),
                share("full", LEVEL >= 0.95, description="Share with a level of 0.95 or more"),
            ),
            description="Levels by device_id in 15 min",
        ),
    ),
)
"""
SEED, EVENTS, APART = 20260407, 6_000, timedelta(milliseconds=300)
FIRST_DAY = datetime(2024, 3, 4, 7, tzinfo=UTC)

#: Takes a publication back, and dies after so many of its steps.
DIES = """
import os, signal, sys, time
from citystream.installation import Installation
from operations.withdrawal import past, take_back
from sinks.withdrawal import Withdrawal
from streams.publications import read
def hear(step, done, total):
    if done == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
city = Installation.load()
(one,) = [one for one in read(city.cluster) if one.id.startswith(sys.argv[1])]
feed = city.feeds[one.feed]
positions = past(city.cluster, feed, one, time.time_ns() // 1_000_000)
with city.server("owner").connect() as client:
    take_back(Withdrawal(client, feed, one, positions, city.dialect), hear)
"""

#: How often a publisher is killed while it is publishing, and how often that is tried: first when its first record has
#: arrived, then at random ones.
KILLS, MOST_KILLS = 2, 12


#: Runs a command that publishes. When the brokers have its first records and half of all are handed over, it stops.
STOPS = f"""
import os, signal
from streams.publisher import Publisher
send, sent = Publisher.send, []
def stops(publisher, *arguments):
    send(publisher, *arguments)
    sent.append(arguments)
    if len(sent) == {EVENTS // 10}:
        publisher.flush()
    if len(sent) == {EVENTS // 2}:
        os.kill(os.getpid(), signal.SIGSTOP)
Publisher.send = stops
from citystream.cli import main
main()
"""


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Iterator[City]:
    """A city with one clean publishing, on the first day."""
    home = tmp_path_factory.mktemp("publishers")
    with own_city(home, made_up(home / "sources", FEED, **{SITES: IN_SHARES})) as opened:
        finish(opened.begin(*publishing(opened, 0)))
        yield opened


def events(city: City, day: int) -> Iterator[Any]:
    """The same events on each day, at equal distances."""
    simulated = islice(simulator(city.installation.feeds[FEED])(World(FIRST_DAY, SEED)), EVENTS)
    for number, record in enumerate(simulated):
        yield record.model_copy(update={"observed_at": FIRST_DAY + timedelta(days=day) + number * APART})


def publishing(city: City, day: int) -> Sequence[str]:
    """The words that publish the events of a day from a file; there, they have no ids."""
    path = city.settings.home / f"{day}.jsonl"
    lines = (json.dumps(record.model_dump(mode="json", exclude={"event_id"})) + "\n" for record in events(city, day))
    path.write_text("".join(lines))
    return "publish", FEED, str(path), "-o", "json"


def finish(publisher: subprocess.Popen[bytes]) -> None:
    """Wait for a publisher that has to succeed."""
    said, _ = publisher.communicate(timeout=300)
    assert publisher.returncode == 0, said.decode()


@contextmanager
def counting(city: City) -> Iterator[Callable[[], int]]:
    """How many offsets of the feed there are."""
    places = [TopicPartition(FEED, number) for number in range(city.installation.feeds[FEED].partitions)]
    with closing(KafkaConsumer(**city.installation.cluster.kafka_python())) as consumer:
        yield lambda: sum(consumer.end_offsets(places).values())


def killed_until_it_ends(city: City, words: Sequence[str]) -> None:
    """Kill a publisher when the broker has so many of its records, again and again; then let it end."""
    random, parts = Random(SEED), []
    with counting(city) as published:
        for kill in range(MOST_KILLS):
            before, few = published(), random.randrange(EVENTS // 3) if kill else 1
            publisher = city.begin(*words)
            while publisher.poll() is None and published() < before + few:
                time.sleep(0.002)
            publisher.kill()
            publisher.communicate()
            parts.append(published() - before)
            if sum(0 < part < EVENTS for part in parts) >= KILLS:
                break
        else:
            pytest.fail(f"too few were killed while they were publishing: {parts}")
    finish(city.begin(*words))


@contextmanager
def operator(city: City) -> Iterator[Client]:
    """A connection to ClickHouse."""
    client = city.installation.server("operator").connect()
    try:
        yield client
    finally:
        client.disconnect()


def account(city: City) -> Account:
    """The feed's account once all is stored."""
    city.drain()
    with operator(city) as client:
        log = measure(city.installation.cluster, "sink", [FEED])
        (found,) = accounts(client, {FEED: city.installation.feeds[FEED]}, log)
    return found


def shown(city: City, day: int) -> dict[str, list[Any]]:
    """Rows and windows of a day as if it was the first; without the ids, which are made of all the rest."""
    feed, begin = city.installation.feeds[FEED], FIRST_DAY + timedelta(days=day)
    views = {FEED: ("observed_at", "event_id, source_partition, source_offset, arrived_at")}
    views |= {aggregate.name: ("window_start", "final, as_of") for aggregate in feed.aggregates}
    found = {}
    with operator(city) as client:
        for view, (at, left_out) in views.items():
            found[view] = client.execute(
                f"SELECT * EXCEPT ({left_out}) REPLACE ({at} - INTERVAL {day} DAY AS {at}) FROM city.{view} "
                f"WHERE toUnixTimestamp64Milli({view}.{at}) / 1000 - {begin.timestamp()} BETWEEN -900 AND 43200 "
                "ORDER BY ALL"
            )
    return found


def check(city: City, day: int, before: Account, published: int | None) -> None:
    """A day's events are those of the first, none of them late, and the ledger shows how often they came."""
    after, found, expected = account(city), shown(city, day), shown(city, 0)
    assert len(expected[FEED]) == EVENTS
    for view, rows in expected.items():
        assert found[view] == rows, f"{view} differs"
    assert after.balances
    assert after.stored - before.stored == EVENTS
    assert (after.quarantined, after.late) == (0, 0)
    if published is None:
        assert after.duplicate > before.duplicate
    else:
        assert after.duplicate - before.duplicate == published - EVENTS


def test_two_publishers_of_one_file_at_the_same_time(city: City) -> None:
    before, words = account(city), publishing(city, 1)
    for publisher in [city.begin(*words), city.begin(*words)]:
        finish(publisher)
    check(city, 1, before, 2 * EVENTS)


def test_a_publisher_killed_again_and_again_until_it_ends(city: City) -> None:
    before = account(city)
    killed_until_it_ends(city, publishing(city, 2))
    check(city, 2, before, None)


def test_a_publisher_whose_broker_is_killed_and_comes_back(city: City) -> None:
    """What it had sent and was not acknowledged is sent again, and the broker knows it by its number."""
    before = account(city)
    publisher = city.begin(*publishing(city, 3), code=STOPS)
    city.wait(lambda: psutil.Process(publisher.pid).status() == psutil.STATUS_STOPPED)
    city.kill(kafka.NAME)
    publisher.send_signal(signal.SIGCONT)
    for attempt in Retrying(retry=retry_if_exception_type(StackError), stop=stop_after_attempt(5), reraise=True):
        with attempt:
            Stack(city.settings).up(lambda _: None)
    finish(publisher)
    check(city, 3, before, EVENTS)


def test_a_producer_that_sends_everything_three_times(city: City) -> None:
    """Each record at once, and all of a hundred again."""
    before, frozen = account(city), city.installation.catalogue.latest(FEED)
    records = [(record.device_id.encode(), encode(frozen, record)) for record in events(city, 4)]
    with closing(KafkaProducer(**city.installation.cluster.kafka_python(), enable_idempotence=False)) as producer:
        for start in range(0, EVENTS, 100):
            some = records[start : start + 100]
            for key, value in [one for one in some for _ in range(2)] + some:
                producer.send(FEED, key=key, value=value)
        producer.flush()
    check(city, 4, before, 3 * EVENTS)


def test_a_simulation_killed_and_run_again_sends_each_event_once(city: City) -> None:
    """The same seed and start: what it has sent already are repeats."""
    start = FIRST_DAY + timedelta(days=5)
    before = account(city)
    killed_until_it_ends(
        city,
        [
            *("simulate", FEED, "--rate", "flat-out", "--events", str(EVENTS), "--faults", "duplicates,disorder"),
            *("--seed", str(SEED), "--start", start.isoformat()),
        ],
    )
    after = account(city)
    assert after.balances
    assert after.duplicate > before.duplicate
    with operator(city) as client:
        stored = client.execute(
            f"SELECT toString(event_id), toUnixTimestamp64Milli(observed_at) FROM city.{FEED} "
            f"WHERE observed_at >= fromUnixTimestamp64Milli({instant_ms(start)})"
        )
    assert sorted(stored) == sorted(sent_by_a_simulation(city, start))


def test_a_publisher_goes_on_after_an_hour_without_its_broker(
    city: City, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An hour in which what was sent once, and what waited behind it, would have expired."""
    before = account(city)
    clock = HourHand()
    for module in (sender, record_accumulator, producer_batch):
        monkeypatch.setattr(module, "time", clock)
    feed, frozen = city.installation.feeds[FEED], city.installation.catalogue.latest(FEED)
    with closing(Producer(city.installation.cluster, request_timeout_ms=500)) as producer:
        publisher = Publisher(producer, feed, frozen, None)
        day = list(events(city, 6))
        publisher.publish(day[0])
        publisher.flush()
        city.signal(kafka.NAME, signal.SIGSTOP)
        try:
            for record in day[1 : EVENTS // 2]:
                publisher.publish(record)
            city.wait(lambda: "Error sending produce request" in caplog.text)
            clock.ahead = 3600.0
        finally:
            city.signal(kafka.NAME, signal.SIGCONT)
        for record in day[EVENTS // 2 :]:
            publisher.publish(record)
        producer.flush(timeout=60)
    assert (publisher.acknowledged, publisher.failed) == (EVENTS, 0)
    check(city, 6, before, EVENTS)


class HourHand:
    """The machine's clock, for modules that look at it as ``time``, ahead by seconds."""

    ahead = 0.0
    sleep = staticmethod(time.sleep)

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead


def test_a_simulation_told_to_end_without_its_broker_says_what_was_not_sent(city: City) -> None:
    start = FIRST_DAY + timedelta(days=7)
    with counting(city) as published:
        before = published()
        simulation = city.begin("simulate", FEED, "--rate", "flat-out", "--start", start.isoformat(), "-o", "json")
        city.wait(lambda: published() > before)
    city.signal(kafka.NAME, signal.SIGSTOP)
    try:
        running = psutil.Process(simulation.pid)
        used = running.cpu_times().user
        city.wait(lambda: running.cpu_times().user > used + 0.1)  # it has published more, which waits
        simulation.terminate()
        said, _ = simulation.communicate(timeout=30)
    finally:
        city.signal(kafka.NAME, signal.SIGCONT)
    assert simulation.returncode == 1, said.decode()
    (report,) = json.loads(said[said.index(b"[\n") :])
    assert report["acknowledged"] > 0
    assert report["failed"] == report["sent"] - report["acknowledged"] > 0


def test_the_windows_of_a_finished_history_are_final_though_nothing_follows(city: City) -> None:
    """Also those of groups that span partitions, of which some never had an event."""
    *words, output, kind = publishing(city, 8)
    before = account(city)
    finish(city.begin(*words, output, kind))
    feed = city.installation.feeds[FEED]
    still_open = "SELECT " + ", ".join(f"(SELECT countIf(NOT final) FROM city.{a.name})" for a in feed.aggregates)
    city.drain()
    with operator(city) as client:
        assert all(client.execute(still_open)[0])
        finish(city.begin(*words, "--finished", output, kind))
        after = account(city)
        assert after.control - before.control == feed.partitions
        assert client.execute(still_open)[0] == (0,) * len(feed.aggregates)
    assert shown(city, 8) == shown(city, 0)
    assert (after.balances, after.late, after.quarantined) == (True, 0, 0)


def sent_by_a_simulation(city: City, start: datetime) -> set[tuple[str, int]]:
    """Id and event time of what a simulation that nobody disturbs sends."""
    sent: set[tuple[str, int]] = set()

    class Noting(Publisher):
        def encode(self, record: Any) -> tuple[bytes, bytes]:
            sent.add((record.event_id, instant_ms(record.observed_at)))
            return b"", b""

        def send(self, key: bytes | None, value: bytes | None, on_result: OnResult | None = None) -> None:
            """Nowhere."""

    feed = city.installation.feeds[FEED]
    noting = Noting(create_autospec(Producer, instance=True), feed, city.installation.catalogue.latest(FEED), None)
    simulation = Simulation(
        [feed], {FEED: noting}, world=World(start, SEED), rate=None,
        faults=parse_faults("duplicates,disorder"), clock=SystemClock(),
    )  # fmt: skip
    simulation.run(EVENTS)
    return sent


HISTORY = datetime(2024, 6, 3, 7, tzinfo=UTC)


def report(site: str, minute: float, occupied: int, number: int) -> dict[str, Any]:
    """A line of a file that gives its events ids of its own."""
    return {
        "event_id": str(UUID(int=number)), "device_id": site, "zone": "east", "inward": 100, "outward": occupied,
        "observed_at": (HISTORY + timedelta(minutes=minute)).isoformat(),
    }  # fmt: skip


def publish_sites(city: City, name: str, reports: Sequence[dict[str, Any]], *words: str) -> str:
    """Publish such a file, wait until all is stored, and give the id of its publication."""
    path = city.settings.home / name
    path.write_text("".join(json.dumps(one) + "\n" for one in reports))
    finish(city.begin("publish", SITES, str(path), "-o", "json", *words))
    city.drain()
    listed = json.loads(city.command("publications", "list", SITES, "-o", "json").stdout)
    return next(str(one["id"]) for one in listed if one["file"].endswith(name))


def sites_are(city: City, reports: Sequence[dict[str, Any]]) -> None:
    """Hold rows, windows and ledger to what Python makes of the events that are to count."""
    windows = defaultdict(list)
    for one in reports:
        at = datetime.fromisoformat(one["observed_at"])
        share = one["outward"] / 100
        windows[one["device_id"], at - timedelta(minutes=at.minute % 15, seconds=at.second)].append(share)
    with operator(city) as client:
        rows = client.execute(f"SELECT toString(event_id), outward FROM city.{SITES}")
        found = client.execute(
            "SELECT device_id, window_start, events, level_min, level_max, level_mean, full, final "
            f"FROM city.{SITES}_15m"
        )
        log = measure(city.installation.cluster, "sink", [SITES])
        (books,) = accounts(client, {SITES: city.installation.feeds[SITES]}, log)
    assert sorted(rows) == sorted((one["event_id"], one["outward"]) for one in reports)
    assert {(site, start): numbers for site, start, *numbers in found} == {
        key: [
            len(of), min(of), max(of), pytest.approx(sum(of) / len(of)),
            pytest.approx(sum(one >= 0.95 for one in of) / len(of)), True,
        ]
        for key, of in windows.items()
    }  # fmt: skip
    assert books.balances
    assert books.published == books.stored + books.duplicate + books.withdrawn + books.control


def test_a_wrong_file_is_taken_back_and_the_corrected_one_counts(city: City) -> None:
    """One file is killed between all steps. The other shares windows with it, and lost them at the same position."""
    wrong = [report(f"s{n % 7}", n % 5, 99, 1_000 + n) for n in range(60)]
    other = [report(f"s{n % 3 + 5}", 5, 98, 2_000 + n) for n in range(20)]
    right = [report(f"s{n % 4}", 3 + n % 10, n % 90, 3_000 + n) for n in range(80)]
    first = publish_sites(city, "wrong.jsonl", wrong)
    refused = city.command("publications", "withdraw", first, "--yes")
    assert refused.returncode == 1
    assert "not final yet" in refused.stderr
    second = publish_sites(city, "other.jsonl", other)
    publish_sites(city, "right.jsonl", right)
    publish_sites(city, "repeats.jsonl", wrong[:3], "--finished")
    sites_are(city, wrong + other + right)
    with operator(city) as client:
        of_stream = client.execute(f"SELECT * FROM raw.{SITES}_15m FINAL")

    looked = city.command("publications", "withdraw", first, "--dry-run")
    assert looked.returncode == 0
    assert re.search(r"60 rows.*\n.*7 windows\nnothing was changed", looked.stdout), looked.stdout
    sites_are(city, wrong + other + right)
    for step in ("1", "2", "3"):
        killed = city.python("-c", DIES, first, step)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
    sites_are(city, other + right)
    assert "nothing was changed" in city.command("publications", "withdraw", first, "--yes").stdout
    assert city.command("publications", "withdraw", second, "--yes").returncode == 0
    sites_are(city, right)
    owner = city.installation.server("owner").connect()
    owner.execute(f"INSERT INTO raw.{SITES}_15m VALUES", of_stream)
    owner.disconnect()
    sites_are(city, right)

    corrected = [one | {"outward": 50} for one in wrong]
    publish_sites(city, "corrected.jsonl", corrected)
    sites_are(city, right + corrected)
    listed = json.loads(city.command("publications", "list", SITES, "-o", "json").stdout)
    assert {one["id"] for one in listed if one["withdrawn_by"]} == {first, second}
    unknown = city.command("publications", "withdraw", "nobody")
    assert unknown.returncode != 0
    assert "there is no publication nobody" in unknown.stderr

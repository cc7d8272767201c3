"""Topics that change under running workers: they notice, commit nothing of it, and say what happened and what to do."""

from __future__ import annotations

import signal
from datetime import timedelta
from pathlib import Path

import pytest
from kafka.admin import NewPartitions

from tests.city import FEEDS, START, WORKERS, City, Snapshot, own_city
from tests.reference.whole import compare

pytestmark = pytest.mark.integration

EVENTS = 3_000
AGAIN, GONE, GROWN = FEEDS[:3]


def publish(city: City, number: int, *names: str) -> None:
    """Records of these feeds, each in a time of its own."""
    for name in names:
        city.publish([name], START + number * timedelta(minutes=8), number, EVENTS)


def delete(city: City, topic: str) -> None:
    """Delete a topic."""
    with city.admin() as admin:
        admin.delete_topics([topic])
        city.wait(lambda: topic not in admin.list_topics())


def stopped(city: City, said: str) -> None:
    """Both workers have said this and go on with the other feeds; they end when they are told to."""
    for name in WORKERS:
        city.wait(lambda name=name: city.logged(name, said))  # type: ignore[misc]
        assert city.process(name).running() is not None, city.process(name).log.read_text()
        city.stops_for(name, said)


def start(city: City) -> None:
    """Start both workers."""
    for name in WORKERS:
        city.start(name)


def parts(city: City, feed: str) -> dict[object, int]:
    """The ends of the topics of a feed's windows."""
    return dict(city.ends(*(aggregate.topic for aggregate in city.installation.feeds[feed].aggregates)))


def rows(found: Snapshot) -> Snapshot:
    """What is stored, without what the brokers say."""
    return {name: there for name, there in found.items() if name != "ledger"}


def get_more_partitions(city: City) -> None:
    """A topic gets some, and records in them, of which the workers take nothing; then it is created again."""
    before = city.snapshot()
    commits = {name: city.commits(name) for name in WORKERS}
    for name in WORKERS:
        city.signal(name, signal.SIGSTOP)
    with city.admin() as admin:
        admin.create_partitions({GROWN: NewPartitions(6)})
    publish(city, 4, GROWN)
    assert all(end for tp, end in city.ends(GROWN).items() if tp.partition >= 4)
    for name in WORKERS:
        city.signal(name, signal.SIGCONT)
    stopped(city, f"topic {GROWN} has 6 partitions and had 4: keys have moved")
    assert {name: city.commits(name) for name in WORKERS} == commits
    assert rows(city.snapshot()) == rows(before)
    city.stops("processor", f"topic {GROWN} has 6 partitions and is declared with 4; the number is fixed")
    delete(city, GROWN)
    city.installation.prepare(lambda _: None)
    publish(city, 5, GROWN)
    city.choose("clear", GROWN, "--yes")
    start(city)
    city.drain()
    assert [str(one) for one in compare(city.installation, FEEDS).differences] == []


def test_a_topic_that_is_not_what_it_was_stops_the_workers(tmp_path: Path) -> None:
    """One is deleted and created again and soon as long as before, one is deleted, one gets more partitions."""
    with own_city(tmp_path) as city:
        publish(city, 0, *FEEDS)
        city.drain()
        before, written = city.snapshot(), parts(city, AGAIN)
        city.refused("clear", AGAIN, "--yes", reason="is running, or ended less than a session ago")
        for name in WORKERS:
            city.signal(name, signal.SIGSTOP)
        delete(city, AGAIN)
        city.installation.prepare(lambda _: None)
        publish(city, 1, AGAIN)
        publish(city, 2, AGAIN)
        for name in WORKERS:
            city.signal(name, signal.SIGCONT)
        stopped(city, f"topic {AGAIN} was deleted and created again, its offsets mean other records now")
        for name in WORKERS:
            assert not [tp for tp, commit in city.commits(name).items() if tp.topic == AGAIN and commit.offset >= 0]
        assert parts(city, AGAIN) == written
        assert rows(city.snapshot()) == rows(before)
        for name in WORKERS:
            city.stops(name, "the topic was deleted and created again")
            city.refused("reset", name, AGAIN, reason=f"citystream positions clear {AGAIN}")
        city.choose("clear", AGAIN, "--yes")
        start(city)
        city.drain()

        delete(city, GONE)
        stopped(city, f"topic {GONE} was deleted. If it does not come back: citystream init creates it again")
        city.stops("processor", f"topic {GONE} does not exist; run: citystream up")
        city.installation.prepare(lambda _: None)
        publish(city, 3, GONE)
        city.choose("clear", GONE, "--yes")
        start(city)
        city.drain()
        found = city.snapshot()
        assert all(found[name] for name in found if name != "quarantine")
        assert all(balances for _, balances in found["ledger"]), found["ledger"]
        assert [str(one) for one in compare(city.installation, FEEDS).differences] == []

        get_more_partitions(city)

"""Positions destroyed on a real broker: the worker stops and says what to choose, and each choice does what it says."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaAdminClient, OffsetAndMetadata, TopicPartition
from kafka.errors import NoError

from citystream.faults import Fault
from streams import checkpoints
from streams.worker import EX_CONFIG
from tests.city import FEEDS, START, WORKERS, City, own_city

pytestmark = pytest.mark.integration

SPAN = timedelta(minutes=8)
EVENTS = 3_000
#: A repeat of an event from before a freeze is not recognised after it.
NO_REPEATS = [fault for fault in Fault if fault is not Fault.DUPLICATES]

Commits = Mapping[TopicPartition, OffsetAndMetadata]


@contextmanager
def admin_of(city: City) -> Iterator[KafkaAdminClient]:
    with closing(KafkaAdminClient(bootstrap_servers=city.installation.bootstrap)) as admin:
        yield admin


def commits(city: City, group: str) -> Commits:
    with admin_of(city) as admin:
        found: Commits = admin.list_group_offsets(group)[group]
        return found


def wait_until_left(city: City, group: str) -> None:
    """A member with a name stays in its group until its session ends."""
    with admin_of(city) as admin:
        city.wait(lambda: not admin.describe_groups([group])[group]["members"])


def alter(city: City, group: str, change: Callable[[str], str]) -> None:
    """Commit a group's offsets with other metadata."""
    changed = {tp: OffsetAndMetadata(c.offset, change(c.metadata), -1) for tp, c in commits(city, group).items()}
    wait_until_left(city, group)
    with admin_of(city) as admin:
        assert set(admin.alter_group_offsets(group, changed).values()) == {NoError}


def delete(city: City, group: str) -> None:
    """Delete a group."""
    wait_until_left(city, group)
    with admin_of(city) as admin:
        assert admin.delete_groups([group]) == {group: "OK"}


def empty_checkpoints(city: City) -> None:
    """Delete their topic and create it again: records of a compacted one cannot be deleted."""
    with admin_of(city) as admin:
        admin.delete_topics([checkpoints.TOPIC])
        city.wait(lambda: checkpoints.TOPIC not in admin.list_topics())
    city.installation.prepare(lambda _: None)


def stops(city: City, name: str, message: str) -> None:
    """Start a worker that has to stop by itself, and change nothing."""
    before = city.snapshot()
    ended = city.command(*city.worker(name))
    assert ended.returncode == EX_CONFIG, ended.stderr
    assert message in ended.stderr
    assert city.snapshot() == before


def choose(city: City, choice: str, worker: str, *topics: str) -> None:
    wait_until_left(city, worker)
    done = city.command("positions", choice, worker, *topics)
    assert done.returncode == 0, done.stderr


def refused(city: City, choice: str, worker: str, topic: str, reason: str) -> None:
    done = city.command("positions", choice, worker, topic)
    assert done.returncode == 1
    assert reason in done.stderr


def publish(city: City, number: int, **more: Any) -> None:
    for name in FEEDS:
        city.publish([name], START + number * SPAN, number, EVENTS, **more)


def test_restored_and_reset_workers_end_as_if_nothing_had_been(tmp_path: Path) -> None:
    """Metadata blanked in both groups and restored, then the processor's group deleted and reset."""
    with own_city(tmp_path) as city:
        publish(city, 0)
        city.drain()
        for name in WORKERS:
            city.process(name).stop()
        publish(city, 1)
        committed = {name: commits(city, name) for name in WORKERS}
        for name in WORKERS:
            alter(city, name, lambda _: "")
            stops(city, name, "carries no position; stop the workers, then run: citystream positions restore")
        for name in WORKERS:
            choose(city, "restore", name)
            assert commits(city, name) == committed[name]
            choose(city, "freeze", name)
            assert commits(city, name) == committed[name]
            city.start(name)
        city.drain()

        city.process("processor").stop()
        publish(city, 2)
        delete(city, "processor")
        stops(city, "processor", "there is no commit, but a checkpoint at")
        assert city.command("positions", "show", "processor").returncode == 1
        choose(city, "reset", "processor", *FEEDS)
        assert city.command("positions", "show", "processor").returncode == 0
        city.start("processor")
        city.drain()
        disturbed = city.snapshot()
        assert disturbed == city.undisturbed()

        for name in WORKERS:
            city.process(name).stop()
        alter(city, "processor", lambda text: json.dumps(json.loads(text) | {"def": "other"}))
        stops(city, "sink", "the processor works by another definition of the feed")


def test_frozen_windows_are_added_to(tmp_path: Path) -> None:
    """Metadata blanked, checkpoints emptied, frozen; then records its open windows need deleted, and frozen again."""
    with own_city(tmp_path) as city:
        publish(city, 0, faults=NO_REPEATS)
        city.drain()
        city.kill("processor")
        publish(city, 1, faults=NO_REPEATS)
        alter(city, "processor", lambda _: "")
        empty_checkpoints(city)
        stops(city, "processor", "carries no position")
        refused(city, "restore", "processor", FEEDS[0], "there is no checkpoint")
        choose(city, "freeze", "processor")
        refused(city, "reset", "processor", FEEDS[0], "it was frozen at offset")
        city.start("processor")
        city.drain()
        disturbed = city.snapshot()
        assert disturbed == city.undisturbed()

        city.process("processor").stop()
        ends = {tp: commit.offset for tp, commit in commits(city, "processor").items() if tp.topic == FEEDS[0]}
        with admin_of(city) as admin:
            admin.delete_records(ends)
        publish(city, 2, faults=NO_REPEATS)
        alter(city, "processor", lambda text: text)
        stops(city, "processor", "after the rewind offset")
        refused(city, "restore", "processor", FEEDS[0], "after the rewind offset")
        refused(city, "reset", "processor", FEEDS[0], "the log begins at offset")
        choose(city, "freeze", "processor", FEEDS[0])
        city.start("processor")
        city.drain()
        client = city.installation.server("operator").connect()
        for name in FEEDS:
            ((rows,),) = client.execute(f"SELECT count() FROM raw.{name} FINAL")
            for aggregate in city.installation.feeds[name].aggregates:
                assert client.execute(f"SELECT sum(events) FROM city.{aggregate.name}") == [(rows,)]

"""Positions destroyed on a real broker: the worker stops and says what to choose, and each choice does what it says."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from kafka import OffsetAndMetadata
from kafka.errors import NoError

from simulation.faults import Fault
from streams import checkpoints, deadletters
from streams.lag import measure
from tests.city import FEEDS, START, WORKERS, City, own_city
from tests.reference.city import Log, Schemas, read_topic
from tests.reference.finished import watched
from tests.reference.whole import compare

pytestmark = pytest.mark.integration

SPAN = timedelta(minutes=8)
EVENTS = 1_500
#: A repeat of an event from before a freeze is not recognised after it.
NO_REPEATS = [fault for fault in Fault if fault is not Fault.DUPLICATES]
#: Damaged bytes may name a schema id that may come, and then the sink waits for the processor's verdict.
NO_DAMAGE = [fault for fault in Fault if fault is not Fault.CORRUPT]
NEITHER = [fault for fault in NO_REPEATS if fault in NO_DAMAGE]


def alter(city: City, group: str, change: Callable[[str], str], move: Callable[[int], int] = int) -> None:
    """Commit a group's offsets with other metadata, or other ones."""
    changed = {tp: OffsetAndMetadata(move(c.offset), change(c.metadata), -1) for tp, c in city.commits(group).items()}
    city.dismiss(group)
    with city.admin() as admin:
        assert set(admin.alter_group_offsets(group, changed).values()) == {NoError}


def delete(city: City, group: str) -> None:
    """Delete a group."""
    city.dismiss(group)
    with city.admin() as admin:
        assert admin.delete_groups([group]) == {group: "OK"}


def empty_checkpoints(city: City) -> None:
    """Delete their topic and create it again: records of a compacted one cannot be deleted."""
    with city.admin() as admin:
        admin.delete_topics([checkpoints.TOPIC])
        city.wait(lambda: checkpoints.TOPIC not in admin.list_topics())
    city.installation.prepare(lambda _: None)


def publish(city: City, number: int, **more: Any) -> None:
    for name in FEEDS:
        city.publish([name], START + number * SPAN, number, EVENTS, **more)


@contextmanager
def finished(city: City) -> Iterator[None]:
    """No final window becomes less meanwhile, at any time."""
    aggregates = [aggregate for name in FEEDS for aggregate in city.installation.feeds[name].aggregates]
    with watched(city.installation.server("operator"), aggregates) as seen:
        yield
    assert seen.windows
    assert seen.worse == []


def test_restored_and_reset_workers_end_as_if_nothing_had_been(tmp_path: Path) -> None:
    """Both groups moved as Kafka's own tool does it, and restored, then the processor's group deleted and reset, then
    the end of every log lost.
    """
    with own_city(tmp_path) as city:
        publish(city, 0)
        city.drain()
        with finished(city):
            restore_and_reset(city)
        assert [str(one) for one in compare(city.installation, FEEDS).differences] == []
        disturbed = city.snapshot()
        lose_the_end_of_every_log(city)
        assert disturbed == city.snapshot(), "what was cleared is built from the same logs"

        for name in WORKERS:
            city.process(name).stop()
        alter(city, "processor", lambda text: json.dumps(json.loads(text) | {"def": "other"}))
        city.stops("sink", "the processor works by another definition of the feed")


def restore_and_reset(city: City) -> None:
    """No checkpoints, which are written again; then commits without metadata, then none at all."""
    for name in WORKERS:
        city.process(name).stop()
    empty_checkpoints(city)
    for name in WORKERS:
        city.start(name)
    publish(city, 1)
    city.drain()
    assert any(city.ends(checkpoints.TOPIC).values())
    for name in WORKERS:
        city.process(name).stop()
    publish(city, 2)
    committed = {name: city.commits(name) for name in WORKERS}
    for name, move in (("processor", lambda at: at // 2), ("sink", lambda at: at + 7)):
        alter(city, name, lambda _: "", move)
        city.stops(name, "carries no position; stop the workers, then run: citystream positions restore")
    for name in WORKERS:
        city.choose("restore", name)
        assert city.commits(name) == committed[name]
        city.choose("freeze", name)
        assert city.commits(name) == committed[name]
        city.start(name)
    city.drain()

    city.process("processor").stop()
    publish(city, 3, faults=NO_DAMAGE)
    city.drain("sink")
    delete(city, "processor")
    city.stops("processor", "there is no commit, but a checkpoint at")
    assert city.command("positions", "show", "processor").returncode == 1
    city.choose("reset", "processor", *FEEDS)
    assert city.command("positions", "show", "processor").returncode == 0
    city.start("processor")
    city.drain()


def lose_the_end_of_every_log(city: City) -> None:
    """Commits from beyond it, as a machine without power leaves them: refused, and what is named is the way on."""
    for name in WORKERS:
        city.process(name).stop()
        alter(city, name, lambda text: text, lambda at: at + 7)
    for name, refused in (("processor", "freeze"), ("sink", "reset")):
        city.stops(name, "up to which it was read: the brokers have lost 7 offsets")
        city.refused(refused, name, FEEDS[0], reason=f"then run: citystream positions clear {FEEDS[0]}")
    for feed in FEEDS:
        city.choose("clear", feed, "--yes")
    reset = f"then run: citystream positions reset sink {deadletters.TOPIC}"
    city.refused("restore", "sink", deadletters.TOPIC, reason=reset)
    city.choose("reset", "sink", deadletters.TOPIC)
    for name in WORKERS:
        city.start(name)
    city.drain()


def test_frozen_windows_are_added_to(tmp_path: Path) -> None:
    """Metadata blanked, checkpoints emptied, frozen; then records its open windows need deleted, and frozen again."""
    with own_city(tmp_path) as city:
        publish(city, 0, faults=NO_REPEATS)
        city.drain()
        with finished(city):
            freeze_without_a_trace(city)
        assert [str(one) for one in compare(city.installation, FEEDS).differences] == []
        disturbed = city.snapshot()
        assert disturbed == city.undisturbed()

        whole = logs(city)
        with finished(city):
            freeze_behind_retention(city)
        joined = {name: list(map(join, whole[name], later)) for name, later in logs(city).items()}
        assert [str(one) for one in compare(city.installation, FEEDS, logs=joined).differences] == []


def logs(city: City) -> dict[str, list[Log]]:
    """What the topics of the feeds hold."""
    schemas = Schemas(city.installation.catalogue.folder)
    return {name: list(read_topic(city.installation.cluster, name, schemas, whole=False)) for name in FEEDS}


def join(before: Log, later: Log) -> Log:
    """A partition's log that has lost its beginning, with it."""
    number, end, records = later
    begin = records[0].offset if records else end
    return number, end, [*(record for record in before[2] if record.offset < begin), *records]


def freeze_without_a_trace(city: City) -> None:
    """The processor's commits have lost their metadata, and its checkpoints are gone."""
    city.kill("processor")
    publish(city, 1, faults=NEITHER)
    alter(city, "processor", lambda _: "")
    city.process("sink").stop()
    empty_checkpoints(city)
    city.start("sink")
    city.drain("sink")
    city.stops("processor", "carries no position")
    city.refused("restore", "processor", FEEDS[0], reason="there is no checkpoint")
    city.choose("freeze", "processor")
    city.refused("reset", "processor", FEEDS[0], reason="it was frozen at offset")
    city.start("processor")
    city.drain()


def freeze_behind_retention(city: City) -> None:
    """Records that open windows of a feed need are deleted."""
    city.process("processor").stop()
    ends = {tp: commit.offset for tp, commit in city.commits("processor").items() if tp.topic == FEEDS[0]}
    with city.admin() as admin:
        admin.delete_records(ends)
    publish(city, 2, faults=NEITHER)
    city.drain("sink")
    alter(city, "processor", lambda text: text)
    city.stops("processor", "after the rewind offset")
    city.refused("restore", "processor", FEEDS[0], reason="after the rewind offset")
    city.refused("reset", "processor", FEEDS[0], reason="the log begins at offset")
    city.choose("freeze", "processor", FEEDS[0])
    city.start("processor")
    city.drain()


def rows_and_events(city: City) -> dict[str, tuple[int, int]]:
    """Stored rows of each feed, and the events all its windows show."""
    client = city.installation.server("operator").connect()
    found = {}
    for name in FEEDS:
        aggregate = city.installation.feeds[name].aggregates[0].name
        ((rows,),) = client.execute(f"SELECT count() FROM raw.{name} FINAL")
        ((events,),) = client.execute(f"SELECT sum(events) FROM city.{aggregate}")
        found[name] = rows, events
    return found


def lost(city: City) -> int:
    """Offsets the ledger shows as lost; none may be missing."""
    ledger = [account for account, _ in city.snapshot()["ledger"]]
    assert [account.missing for account in ledger] == [0] * len(FEEDS), ledger
    return sum(account.lost for account in ledger)


def publish_and_delete(city: City, number: int) -> int:
    """Records that are deleted before anybody reads them; how many."""
    before = city.ends(*FEEDS)
    publish(city, number, faults=NO_REPEATS)
    ends = city.ends(*FEEDS)
    with city.admin() as admin:
        admin.delete_records(ends)
    return sum(ends.values()) - sum(before.values())


def freeze_both(city: City) -> None:
    """The sink goes first: it says what the processor's parts have counted."""
    parts = [a.topic for feed in FEEDS for a in city.installation.feeds[feed].aggregates]
    city.choose("freeze", "sink")
    city.start("sink")
    city.wait(lambda: not any(p.records for p in measure(city.installation.cluster, "sink", parts)))
    city.choose("freeze", "processor")
    city.start("processor")


def test_what_retention_deleted_before_it_was_read_is_said_and_counted_as_lost(tmp_path: Path) -> None:
    """While the workers run and are behind, while they are stopped, and when every trace of them is gone, too."""
    with own_city(tmp_path) as city:
        publish(city, 0)
        city.drain()
        for name in WORKERS:
            city.signal(name, signal.SIGSTOP)
        deleted = publish_and_delete(city, 1)
        for name in WORKERS:
            city.signal(name, signal.SIGCONT)
        for name in WORKERS:
            city.stops_for(name, "which was to be read next: retention deleted records")
        freeze_both(city)
        publish(city, 2, faults=NO_REPEATS)
        city.drain()
        assert 0 < lost(city) <= deleted, "a fetch may have been on its way"

        for number, traces in ((3, "positions"), (5, "nothing")):
            for name in WORKERS:
                city.process(name).stop()
            known, before = lost(city), rows_and_events(city)
            deleted = publish_and_delete(city, number)
            said = "after the rewind offset"
            if traces == "nothing":
                for name in WORKERS:
                    delete(city, name)
                empty_checkpoints(city)
                said = "there is no position, and the log begins at offset"
            for name in WORKERS:
                city.stops(name, said)
            freeze_both(city)
            publish(city, number + 1, faults=NO_REPEATS)
            city.drain()
            assert lost(city) == known + deleted
            for name, (rows, events) in rows_and_events(city).items():
                assert rows > before[name][0]
                assert events - before[name][1] == rows - before[name][0], name

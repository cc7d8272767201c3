"""Poison: a feed that is all bad stops alone; what became dead letters is published again, once."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from kafka import KafkaProducer

from citystream.secrets import load_secrets
from schemas.catalogue import AHEAD, Catalogue, FrozenSchema, freeze
from schemas.fields import Record
from schemas.record_codec import encode, prefix
from simulation import simulator
from simulation.world import World
from sinks.ledger import Account, accounts
from streams.lag import measure
from streams.publisher import Producer, Publisher
from tests.city import START, WORKERS, City, copy_sources, feed_file, feeds_in, made_up, own_city

pytestmark = pytest.mark.integration

#: Made up, each of another kind.
POISONED, CORRECTED, COMING, JUNK = "made_up_k", "made_up_j", "made_up_l", "made_up_m"
#: Whose records go all the way whatever happens to others, and the first of its windows.
FRESH, WINDOWS = CORRECTED, f"{CORRECTED}_1m_zone"
#: The one that is poisoned tells of persons.
OF_PERSONS = """
from dataclasses import replace
from typing import Annotated

from pydantic import Field

from bench.made_up import FEEDS, Call
from schemas.fields import Personal, Text


class NamedCall(Call):
    '''A call of somebody.'''

    caller: Annotated[Text, Field(description="Who called, as a pseudonym"), Personal()]


FEED = replace(FEEDS["made_up_k"], record=NamedCall)
"""
#: What makes another schema of the declaration of a feed.
LATER = """
from dataclasses import replace

FEED = replace(FEED, description=f"{FEED.description}, and from where")
"""
#: Each time other ones.
HOURS = iter(range(1_000))
#: More than half a block of each partition.
BAD, MANY = 2_600, 3_000

#: Redrives what has a cause, and ends itself with SIGKILL when its second lot is published and not noted.
KILLED = """
import os, signal, sys
from citystream.installation import Installation
from operations.redriving.redrive import Redrive
from sinks.quarantine import Quarantine, Selection
from streams.publisher import Producer

class Killed(Producer):
    lots = 0

    def flush(self, timeout=None):
        super().flush(timeout)
        self.lots += 1
        if self.lots == 2:
            os.kill(os.getpid(), signal.SIGKILL)

city = Installation.load()
redrive = Redrive(Quarantine(city.server("owner")), city.feeds, city.catalogue)
redrive.run(Selection([sys.argv[1]], cause=sys.argv[2]), lambda: Killed(city.cluster))
"""


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Iterator[City]:
    """A city that the tests of this module share, each with a feed of its own."""
    home = tmp_path_factory.mktemp("city")
    feeds = made_up(home / "sources", CORRECTED, COMING, JUNK, **{POISONED: OF_PERSONS})
    with own_city(home, feeds) as opened:
        yield opened


def simulated(city: City, feed: str, seed: int, count: int, hours: int) -> list[Record]:
    start = START + timedelta(hours=hours)
    return list(islice(simulator(city.installation.feeds[feed])(World(start, seed)), count))


def publish(city: City, feed: str, frozen: FrozenSchema, records: list[Record]) -> None:
    """Publish records under a version of their schema, and wait until the broker has them."""
    key = load_secrets(city.settings).pseudonym_key.get_secret_value().encode()
    with closing(Producer(city.installation.cluster)) as producer:
        with Publisher(producer, city.installation.feeds[feed], frozen, key) as publisher:
            for record in records:
                publisher.publish(record)
        assert publisher.failed == 0


def account(city: City, feed: str) -> Account:
    """The feed's account once the workers have read all there is."""
    city.drain()
    client = city.installation.server("operator").connect()
    log = measure(city.installation.cluster, "sink", [feed])
    (found,) = accounts(client, {feed: city.installation.feeds[feed]}, log)
    client.disconnect()
    assert found.balances, found
    return found


def ask(city: City, query: str) -> Any:
    client = city.installation.server("operator").connect()
    try:
        return client.execute(query)
    finally:
        client.disconnect()


def outcomes(city: City, *words: str, code: int = 0) -> dict[str, int]:
    """Run a redrive; how many records became what."""
    done = city.command("dead-letters", "redrive", *words, "--output", "json")
    assert done.returncode == code, done.stdout + done.stderr
    found: dict[str, int] = {}
    for row in json.loads(done.stdout):
        found[row["outcome"]] = found.get(row["outcome"], 0) + row["records"]
    return found


def results(city: City) -> dict[str, Any]:
    """Rows and windows, whatever offsets they came from and however far event time is."""
    found = {}
    for name in city.feeds:
        feed = city.installation.feeds[name]
        of_log = "arrived_at, source_partition, source_offset, seen_before"
        found[name] = ask(city, f"SELECT * EXCEPT ({of_log}) FROM raw.{name} FINAL ORDER BY ALL")
        for aggregate in feed.aggregates:
            found[aggregate.name] = ask(city, f"SELECT * EXCEPT (final, as_of) FROM city.{aggregate.name} ORDER BY ALL")
    return found


def wrong(city: City, feed: str, records: list[Record], **values: Any) -> None:
    """Publish records with values that a model would refuse."""
    declared, frozen = city.installation.feeds[feed], city.installation.catalogue.latest(feed)
    with closing(KafkaProducer(**city.installation.cluster.kafka_python(), acks="all")) as producer:
        for record in records:
            content = encode(frozen, record.model_dump() | values)
            producer.send(feed, key=getattr(record, declared.key).encode(), value=content)
        producer.flush()


def exported(city: City, *words: str) -> list[dict[str, Any]]:
    done = city.command("dead-letters", "export", *words)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def lines(path: Path, said: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(line) + "\n" for line in said))
    return str(path)


def test_corrected_records_are_published_once_and_count(city: City, tmp_path: Path) -> None:
    """Values out of bounds among good records, some sent twice; windows have passed when they come corrected."""
    records = simulated(city, CORRECTED, 1, 900, 0)
    publish(city, CORRECTED, city.installation.catalogue.latest(CORRECTED), records[:600] + records[660:])
    for lot in (records[600:660], records[620:630]):
        wrong(city, CORRECTED, lot, inward=-1)
    before = account(city, CORRECTED)
    assert (before.stored, before.quarantined, before.redriven) == (840, 70, 0)

    said = exported(city, CORRECTED, "--cause", "INWARD")
    assert len(said) == 70
    truth = {record.event_id: record.inward for record in records}  # type: ignore[attr-defined]
    for line in said:
        line["record"]["inward"] = truth[line["record"]["event_id"]]
    broken = [*said[:7], said[7] | {"record": {"inward": -2}}, *said[8:]]
    refused = city.command("dead-letters", "redrive", "--corrected", lines(tmp_path / "broken.jsonl", broken))
    assert refused.returncode == 1
    assert "line 8: inward: " in refused.stderr
    assert account(city, CORRECTED) == before, "nothing is published of a file with a wrong line"

    file = lines(tmp_path / "corrected.jsonl", said)
    assert outcomes(city, "--corrected", file, "--dry-run") == {"can be redriven": 60, "repeats another": 10}
    assert outcomes(city, "--corrected", file, "--until", "2020-01-01") == {}
    each_option_chooses(city, CORRECTED)
    assert outcomes(city, "--corrected", file) == {"redriven": 60, "repeats another": 10}
    found = account(city, CORRECTED)
    assert (found.published, found.stored, found.duplicate) == (970, 900, 0)
    assert (found.quarantined, found.redriven) == (70, 70)
    assert outcomes(city, "--corrected", file) == {}
    assert account(city, CORRECTED) == found
    stored = ask(city, f"SELECT toString(event_id), inward FROM city.{CORRECTED}")
    assert dict(stored) == truth
    (counted,) = ask(city, f"SELECT sum(events), sum(inward) FROM city.{WINDOWS}")
    assert counted == (900, sum(truth.values()))


def each_option_chooses(city: City, feed: str) -> None:
    """A record published at the bound itself is one since then, and none until then."""
    letters = ask(
        city,
        "SELECT source_partition, source_offset, published_at FROM raw.quarantine FINAL "
        f"WHERE topic = '{feed}' ORDER BY published_at",
    )
    partitions, offsets, times = (list(column) for column in zip(*letters, strict=True))
    bound = sorted(set(times))[len(set(times)) // 2]
    of_city = bound.astimezone(ZoneInfo(city.settings.timezone)).replace(tzinfo=None)
    place = min(zip(partitions, offsets, strict=True))
    expected = {
        ("--since", bound.isoformat()): sum(at >= bound for at in times),
        ("--until", of_city.isoformat()): sum(at < bound for at in times),
        ("--partition", str(place[0])): partitions.count(place[0]),
        ("--partition", str(place[0]), "--offset", str(place[1])): 1,
    }
    assert all(0 < count < len(letters) for count in expected.values()), expected
    for words, count in expected.items():
        assert outcomes(city, feed, *words, "--dry-run", code=1) == {"still bad": count}, words


def test_no_name_gets_onto_a_topic_by_a_correction(city: City, tmp_path: Path) -> None:
    wrong(city, POISONED, simulated(city, POISONED, 2, 1, 0), caller="0123456789abcdef" * 2, waited=-1)
    before = account(city, POISONED)
    ((line),) = exported(city, POISONED)
    assert "caller" not in line["record"]
    line["record"] |= {"waited": 1, "caller": "Wen Shan"}
    refused = city.command("dead-letters", "redrive", "--corrected", lines(tmp_path / "named.jsonl", [line]))
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "line 1: caller: is personal" in refused.stderr
    assert "Wen Shan" not in refused.stderr
    assert account(city, POISONED) == before


def test_a_name_from_a_foreign_client_reaches_nobody_but_the_owner(city: City) -> None:
    before = account(city, POISONED)
    wrong(city, POISONED, simulated(city, POISONED, 8, 1, 0), caller="Wen Shan")
    found = account(city, POISONED)
    assert (found.stored, found.quarantined) == (before.stored, before.quarantined + 1)
    place, cause = f"topic = '{POISONED}' AND cause = 'caller: is no pseudonym'", "is no pseudonym"
    ((partition, offset, value),) = ask(
        city, f"SELECT source_partition, source_offset, value FROM raw.quarantine_masked WHERE {place}"
    )
    assert value is None
    owner = city.installation.server("owner").connect()
    assert owner.execute(f"SELECT position(unhex(value), 'Wen Shan') > 0 FROM raw.quarantine WHERE {place}") == [(1,)]
    owner.disconnect()

    shown = city.command("dead-letters", "show", POISONED, str(partition), str(offset))
    assert shown.returncode == 0, shown.stderr
    assert "masked" in shown.stdout
    assert not re.search(f"Wen Shan|{b'Wen Shan'.hex()}", shown.stdout)
    (line,) = exported(city, POISONED, "--cause", cause)
    assert "caller" not in line["record"]
    assert outcomes(city, POISONED, "--cause", cause, code=1) == {"still bad": 1}
    assert account(city, POISONED) == found


def test_a_poisoned_feed_stops_and_is_redriven_once(city: City, tmp_path: Path) -> None:
    """The publisher uses a schema whose files come only after its records became dead letters, and while the windows
    they belong to are open: the processor reads them again with the files there.

    The redrive is killed when it has published what it did not note.
    """
    newer = later_version(city, POISONED, tmp_path / "later")
    old = city.installation.catalogue.latest(POISONED)
    start = account(city, POISONED)
    publish(city, POISONED, old, simulated(city, POISONED, 3, 500, 1))
    city.drain()

    publish(city, POISONED, newer, simulated(city, POISONED, 4, BAD, 2))
    stopped(city, POISONED, newer)
    city.process("processor").stop()
    city.start("processor")
    stopped(city, POISONED, newer)
    city.process("processor").stop()
    city.options["processor"] = ["--accept-bad", POISONED]
    city.start("processor")
    city.drain()
    city.kill("processor")
    del city.options["processor"]
    city.start("processor")
    poisoned = account(city, POISONED)
    assert (poisoned.stored - start.stored, poisoned.quarantined - start.quarantined) == (500, BAD)

    of_them = (POISONED, "--cause", "NOT in the catalogue")
    assert outcomes(city, *of_them, code=1) == {"still bad": BAD}
    city.deploy(tmp_path / "later")
    for name in WORKERS:
        city.process(name).stop()
        city.start(name)
    publish(city, POISONED, old, simulated(city, POISONED, 5, 500, 9))
    poisoned = account(city, POISONED)
    assert (poisoned.stored - start.stored, poisoned.quarantined - start.quarantined) == (1_000, BAD)
    assert outcomes(city, *of_them, "--dry-run") == {"can be redriven": BAD}
    assert account(city, POISONED) == poisoned

    killed = city.python("-c", KILLED, POISONED, of_them[-1])
    assert killed.returncode == -9, killed.stderr
    after = account(city, POISONED)
    published = after.published - poisoned.published
    assert 0 < after.redriven - poisoned.redriven < published < BAD
    again = outcomes(city, *of_them)
    assert again == {
        "stored already": published - (after.redriven - poisoned.redriven),
        "redriven": BAD - published,
    }
    done = account(city, POISONED)
    assert done.published - poisoned.published == done.stored - poisoned.stored == done.redriven - poisoned.redriven
    assert (done.redriven - poisoned.redriven, done.duplicate) == (BAD, poisoned.duplicate)
    assert done.late > poisoned.late, "windows had passed"
    assert outcomes(city, *of_them) == {}
    assert account(city, POISONED) == done
    ((lost,),) = ask(
        city,
        f"SELECT count() FROM raw.redriven FINAL WHERE topic = '{POISONED}' AND (to_partition, to_offset) NOT IN "
        f"(SELECT source_partition, source_offset FROM raw.{POISONED})",
    )
    assert lost == 0, "the note says where each record is"


def test_a_poisoned_feed_whose_schema_comes_loses_nothing(city: City, tmp_path: Path) -> None:
    """The processor has stopped; the files come, and the workers are started again, as the message says."""
    newer = later_version(city, COMING, tmp_path / "later")
    start = account(city, COMING)
    publish(city, COMING, city.installation.catalogue.latest(COMING), simulated(city, COMING, 6, 300, 1))
    city.drain()
    publish(city, COMING, newer, simulated(city, COMING, 7, MANY, 2))
    stopped(city, COMING, newer)
    city.wait(lambda: city.logged("sink", f"names the schema id {newer.id}, which the processor does not know yet"))

    city.deploy(tmp_path / "later")
    city.process("processor").stop()
    city.start("processor")
    city.process("sink").stop()
    city.start("sink")
    found = account(city, COMING)
    dead = found.quarantined - start.quarantined
    assert found.stored - start.stored == 300 + MANY - dead
    redriven = outcomes(city, COMING)
    stored_already = redriven.pop("stored already", 0)  # written when it stopped, and not committed
    assert redriven == ({"redriven": dead} if dead else {})
    assert dead + stored_already < MANY
    assert account(city, COMING).stored - start.stored == 300 + MANY


def test_in_the_end_it_is_as_if_the_schemas_had_been_known_all_along(city: City) -> None:
    """Rows and windows of all feeds are those of a run over the same topics with the schemas that are there now."""
    assert ask(city, "SELECT uniq(topic) FROM raw.redriven") >= [(2,)], "it is about what the tests before it did"
    found = results(city)
    city.undisturbed()
    known_all_along = results(city)
    for name, rows in known_all_along.items():
        assert found[name] == rows, f"{name} differs"


def later_version(city: City, name: str, folder: Path) -> FrozenSchema:
    """The platform as it will be deployed: a feed has another description, and so a newer schema."""
    copy_sources(folder, "feeds", "schemas", origin=city.sources)
    with feed_file(folder, name).open("a") as file:
        file.write(LATER)
    freeze(feeds_in(folder), folder / "schemas" / "frozen")
    newer = Catalogue.load(folder / "schemas" / "frozen").latest(name)
    assert newer.id not in city.installation.catalogue.by_id
    return newer


def paused_in(city: City, worker: str) -> set[str]:
    """The topics in which a worker's commits say that it is paused."""
    return {one.topic for one in city.installation.positions(worker).read() if one.paused}


def stopped(city: City, feed: str, newer: FrozenSchema) -> None:
    """Wait until the processor has stopped this feed; it says why, and what to do, and so does its commit.

    What is published of another feed meanwhile gets all the way.
    """
    city.wait(lambda: city.logged("processor", f"{feed} is stopped"), 180)
    others_are_fresh(city)
    assert paused_in(city, "processor") == {feed}
    said = city.process("processor").log.read_text()
    assert f"schema id {newer.id} is not in the catalogue" in said, said
    assert "more than 50% of a block of 1," in said
    assert f"citystream process --accept-bad {feed}" in said


def others_are_fresh(city: City) -> None:
    """Records of another feed become rows, and windows are counted of them."""
    asked = f"SELECT (SELECT count() FROM raw.{FRESH}), (SELECT sum(events) FROM city.{WINDOWS})"
    ((rows, events),) = ask(city, asked)
    hours = 12 + next(HOURS)
    publish(city, FRESH, city.installation.catalogue.latest(FRESH), simulated(city, FRESH, hours, 50, hours))

    def arrived() -> bool:
        ((rows_now, events_now),) = ask(city, asked)
        return bool(rows_now >= rows + 50 and events_now >= events + 50)

    city.wait(arrived)


def test_junk_and_a_missing_table_hit_their_own_feed_alone(city: City) -> None:
    """Ids that nobody knows on a feed and on one of its topics of windows, and the feed's table moved away."""
    feed, catalogue = city.installation.feeds[JUNK], city.installation.catalogue
    windows, table = feed.aggregates[0].topic, f"raw.{JUNK}"
    start = account(city, JUNK)
    owner = city.installation.server("owner").connect()
    owner.execute(f"RENAME TABLE {table} TO raw.away")
    publish(city, JUNK, catalogue.latest(JUNK), simulated(city, JUNK, 8, 100, 1))
    city.wait(lambda: city.logged("sink", f"rows yet (Table {table} does not exist; run: citystream init)"))
    others_are_fresh(city)
    with closing(KafkaProducer(**city.installation.cluster.kafka_python(), acks="all")) as producer:
        for topic, ids in ((JUNK, AHEAD), (windows, 1)):
            for number in range(ids):
                producer.send(topic, key=b"junk", value=prefix(catalogue.newest_id + 1 + number) + b"\x00", partition=0)
        producer.flush()
    city.wait(lambda: city.logged("processor", f"{JUNK}/0 at offset") and city.logged("sink", f"{windows}/0 at offset"))
    others_are_fresh(city)
    city.wait(lambda: city.logged("sink", "are no parts of windows"), 60)
    city.wait(lambda: not any(p.records for p in measure(city.installation.cluster, "processor", [JUNK])), 60)
    assert city.process("processor").log.read_text().count(" did not come (") == 1
    others_are_fresh(city)
    assert paused_in(city, "sink") == {JUNK}
    owner.execute(f"RENAME TABLE raw.away TO {table}")
    found = account(city, JUNK)
    assert (found.stored - start.stored, found.quarantined - start.quarantined) == (100, AHEAD)
    owner.disconnect()

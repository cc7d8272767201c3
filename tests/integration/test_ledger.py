"""The ledger in SQL and the reconciler on real servers: what is on its way, missing, lost, and where."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import timedelta
from random import Random
from typing import Any

import pytest
from kafka import KafkaAdminClient, KafkaProducer, TopicPartition

from citystream.installation import Installation
from citystream.settings import PROJECT
from citystream.stack.stack import Stack
from sinks.ledger import EVERYWHERE, Stretch, absent, arrived
from sinks.queries import quarantine, quarantined_record
from sinks.reconciler import Check, Reconciler
from sinks.tables import LEDGER_BLOCK
from streams import deadletters
from streams.deadletters import LONGEST
from streams.lag import PartitionLag, measure
from tests.city import FEEDS, START, City, own_city

pytestmark = pytest.mark.integration

TOPIC, FEED, OTHER = "odd", *FEEDS[:2]
#: Where logs begin once retention has deleted something.
CUT = 5
#: Columns of the ledger without the times.
SETS = "topic, source_partition, kind, block, offsets"
QUERIES = re.findall(r"^```sql\n(.*?)^```", (PROJECT / "docs/operator.md").read_text(), re.MULTILINE | re.DOTALL)
(SUM,) = (query for query in QUERIES if "AS complete" in query)
(HOLES,) = (query for query in QUERIES if "FROM raw.holes" in query)


@pytest.fixture(scope="module")
def installation(stack: Stack) -> Installation:
    """An installation with every table and view."""
    found = Installation(stack.settings)
    found.prepare(lambda _: None)
    return found


@pytest.fixture
def sink(installation: Installation, connect: Callable[[str], Any]) -> Any:
    """A connection that may insert, to a ledger with nothing in it."""
    owner = connect("owner")
    for table in ("ledger", "quarantine", "control"):
        owner.execute(f"TRUNCATE TABLE raw.{table}")
    return connect("sink")


def put(sink: Any, table: str, ranges: list[tuple[int, int]], **settings: Any) -> set[int]:
    """Insert ranges of offsets; the offsets."""
    columns = "(topic, source_partition, source_offset, last_offset)"
    sink.execute(f"INSERT INTO raw.{table} {columns} VALUES", [(TOPIC, 3, *one) for one in ranges], settings=settings)
    return {o for first, last in ranges for o in range(first, last + 1)} if not settings else set()


def test_a_redriven_letter_looks_redriven(sink: Any, connect: Callable[[str], Any]) -> None:
    put(sink, "quarantine", [(1, 1), (2, 2)])
    connect("owner").execute(
        "INSERT INTO raw.redriven (topic, source_partition, source_offset) VALUES", [(TOPIC, 3, 2)]
    )
    operator = connect("operator")
    assert [(row["offset"], row["redriven"]) for row in quarantine(operator, [TOPIC], 9)] == [(2, "yes"), (1, "no")]
    found = [quarantined_record(operator, TOPIC, 3, offset) for offset in (1, 2)]
    assert [row["redriven"] for row in found if row] == ["no", "yes"]
    assert [list(row)[:3] for row in found if row] == 2 * [["topic", "partition", "offset"]]


@pytest.mark.parametrize("seed", range(3))
def test_the_views_say_what_sets_of_offsets_say(sink: Any, seed: int) -> None:
    """Ranges that overlap, of one offset and of several blocks, inserted in any order and twice."""
    random = Random(seed)
    lengths = (1, 1, 2, 1000, LEDGER_BLOCK - 1, LEDGER_BLOCK, LEDGER_BLOCK + 1, 3 * LEDGER_BLOCK)
    ranges: dict[str, list[tuple[int, int]]] = {"quarantine": [], "control": []}
    for _ in range(25):
        first = random.choice((random.randrange(20 * LEDGER_BLOCK), random.randrange(20) * LEDGER_BLOCK))
        ranges[random.choice(list(ranges))].append((first, first + random.choice(lengths) - 1))
    bad, control = (put(sink, table, ranges[table]) for table in ranges)
    received = set(random.sample(range(20 * LEDGER_BLOCK), 5_000))
    sink.execute(
        f"INSERT INTO raw.ledger ({SETS}) SELECT %(topic)s, 3, 'received', intDiv(o, %(block)s) AS block, "
        "groupBitmapState(toUInt32(o % %(block)s)) FROM (SELECT arrayJoin(%(offsets)s) AS o) GROUP BY block".replace(
            "o % %", "o %% %"
        ),
        {"topic": TOPIC, "block": LEDGER_BLOCK, "offsets": sorted(received)},
        settings={"max_query_size": 2**20},
    )
    put(sink, "quarantine", ranges["quarantine"][:10])

    everything = received | bad | control
    (account,) = sink.execute(
        "SELECT offsets, stored, duplicate, quarantined, control, holes, disputed FROM raw.accounts"
    )
    assert account == (
        max(everything) + 1,
        0,
        len(received),
        len(bad - received),
        len(control - bad - received),
        max(everything) + 1 - len(everything),
        len(received) + len(bad) + len(control) - len(everything),
    )
    found = arrived(sink)
    assert found.highest == {(TOPIC, 3): max(everything)}
    holes = [o for first, last in found.holes[TOPIC, 3] for o in range(first, last + 1)]
    assert holes == sorted(set(range(max(everything))) - everything)
    log = PartitionLag(TOPIC, 3, 0, 0, max(everything) + 1, None)
    here = (
        range(1_000, 3 * LEDGER_BLOCK),
        range(7 * LEDGER_BLOCK, 7 * LEDGER_BLOCK + 9),
        range(800_000, EVERYWHERE.stop),
    )
    assert [
        o for one in absent(arrived(sink, {(TOPIC, 3): here}), log).stretches for o in range(one.first, one.last + 1)
    ] == [o for o in holes if any(o in part for part in here)]


def test_a_few_offsets_in_any_order_have_no_holes_between_them(sink: Any) -> None:
    """A small set is kept as it came."""
    put(sink, "control", [(5, 5), (0, 2)])
    put(sink, "quarantine", [(7, 7), (3, 4)])
    assert arrived(sink).holes == {(TOPIC, 3): [(6, 6)]}


class Looks:
    """Checks one after the other, while the log of a partition goes on and no dead letter is on its way."""

    def __init__(self, client: Any) -> None:
        self.log: list[PartitionLag] = []
        self.reconciler = Reconciler(client, self, {}, "processor")  # type: ignore[arg-type]

    def measure(self, group: str, topics: Sequence[str], *, waiting: bool) -> list[PartitionLag]:
        return [] if deadletters.TOPIC in topics else self.log

    def check(self, start: int, committed: int, end: int) -> Check:
        self.log = [PartitionLag(TOPIC, 3, start, committed, end, None)]
        return self.reconciler.check()


def test_a_look_behind_a_full_block_finds_it_settled(sink: Any) -> None:
    looks, end = Looks(sink), LEDGER_BLOCK
    put(sink, "control", [(0, end - 1)])
    for _ in range(2):
        assert str(looks.check(0, end, end)) == "65,536 published, all accounted for"
    for _ in range(2):
        assert str(looks.check(0, end, end + 64)) == "65,600 published, 64 on their way"
    assert str(looks.check(0, end + 64, end + 64)) == "65,600 published, 64 MISSING"
    put(sink, "quarantine", [(end, end + 63)])
    for _ in range(2):
        assert str(looks.check(0, end + 64, end + 64)) == "65,600 published, all accounted for"
    assert looks.check(0, end, end - 10).beyond == {(TOPIC, 3): 74}


def test_a_partition_that_appears_later_is_looked_at(sink: Any) -> None:
    looks = Looks(sink)
    put(sink, "control", [(0, 4)])
    looks.log = [PartitionLag(TOPIC, 2, 0, 0, 0, None)]
    looks.reconciler.check()
    looks.log.append(PartitionLag(TOPIC, 3, 0, 5, 5, None))
    assert str(looks.reconciler.check()) == "5 published, all accounted for"


def test_what_was_lost_is_found_at_each_look_until_it_comes(sink: Any) -> None:
    """A worker that had read it before retention deleted it may still store it."""
    looks, start, end = Looks(sink), 2_500 * LEDGER_BLOCK, 5_000 * LEDGER_BLOCK
    put(sink, "control", [(0, 99), (start, end - 1)], max_memory_usage=2**30)
    lost = Stretch(TOPIC, 3, 100, start - 1)
    for _ in range(3):
        assert looks.check(start, end, end).lost == [lost]
    assert looks.check(start, end, end + 9).lost == [lost]
    assert looks.check(end + 5, end + 9, end + 9).lost == [lost, Stretch(TOPIC, 3, end, end + 4)]
    put(sink, "control", [(100, start - 2), (end, end + 8)], max_memory_usage=2**30)
    for _ in range(2):
        assert looks.check(end + 5, end + 9, end + 9).lost == [Stretch(TOPIC, 3, start - 1, start - 1)]


@pytest.mark.parametrize(
    ("table", "last", "mib"), [("quarantine", LONGEST, 64), ("control", 2**30, 1024)], ids=["letter", "gap"]
)
def test_a_long_range_takes_little_memory(sink: Any, table: str, last: int, mib: int) -> None:
    put(sink, table, [(7, last + 7)], max_memory_usage=mib * 2**20)
    assert sink.execute("SELECT offsets, quarantined + control, holes FROM raw.accounts") == [(last + 8, last + 1, 7)]
    assert arrived(sink).holes == {(TOPIC, 3): [(0, 6)]}


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: re.sub(r"\W+", " ", query)[:40])
def test_a_query_of_the_page_is_answered(sink: Any, connect: Callable[[str], Any], query: str) -> None:
    put(sink, "quarantine", [(0, 4), (9, 9)])
    rows = connect("operator").execute(query)
    assert rows
    assert rows[0][0] == TOPIC


def test_the_queries_of_the_page_say_what_is_there_and_what_is_not(sink: Any, connect: Callable[[str], Any]) -> None:
    ask = connect("operator").execute
    put(sink, "quarantine", [(0, 4), (9, 9)])
    assert ask(SUM) == [(TOPIC, 3, 10, 0, 0, 0, 6, 0, 4, False)]
    assert ask(HOLES) == [(TOPIC, 3, 5, 8, 4)]
    put(sink, "control", [(5, 7)])
    assert ask(SUM) == [(TOPIC, 3, 10, 0, 0, 0, 6, 3, 1, False)]
    assert ask(HOLES) == [(TOPIC, 3, 8, 8, 1)]
    put(sink, "control", [(8, 8)])
    assert ask(SUM) == [(TOPIC, 3, 10, 0, 0, 0, 6, 4, 0, True)]
    assert ask(HOLES) == []


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Iterator[City]:
    """A city that the following tests share, in their order."""
    with own_city(tmp_path_factory.mktemp("city")) as opened:
        opened.publish(FEEDS, START, 1, 2_000)
        opened.drain()
        yield opened


def ledger(city: City, *words: str) -> tuple[int, dict[str, Any], str]:
    """Exit code of the command, the feed's account or what is watched, and what it names."""
    done = city.command("ledger", "-o", "json", *words)
    assert done.returncode in {0, 1}, done.stderr
    found = json.loads(done.stdout)
    account = found if isinstance(found, dict) else next(row for row in found if row["feed"] == FEED)
    return done.returncode, account, done.stderr


def send_bad(city: City, count: int) -> None:
    """Publish what is no record."""
    with closing(KafkaProducer(**city.installation.cluster.kafka_python(), acks="all")) as to:
        for number in range(count):
            to.send(FEED, key=b"%d" % number, value=b"no record")


@dataclass(frozen=True)
class Summed:
    """A line of the page's query of the sum."""

    offsets: int
    stored: int
    duplicate: int
    withdrawn: int
    quarantined: int
    control: int
    holes: int
    complete: bool


def summed(city: City) -> dict[tuple[str, int], Summed]:
    """What the page's query of the sum says of each partition that anything arrived of."""
    operator = city.installation.server("operator").connect()
    found = {(topic, partition): Summed(*numbers) for topic, partition, *numbers in operator.execute(SUM)}
    operator.disconnect()
    return found


def behind(city: City, group: str, topic: str) -> int:
    return sum(p.records for p in measure(city.installation.cluster, group, [topic]))


def test_when_all_is_stored_it_balances(city: City) -> None:
    code, account, _ = ledger(city)
    assert (code, account["balances"], account["on_its_way"]) == (0, True, 0)
    parts = ("stored", "duplicate", "withdrawn", "quarantined", "control", "on_its_way", "lost", "missing")
    assert account["published"] == sum(account[part] for part in parts)
    found = summed(city)
    log = measure(city.installation.cluster, "sink", FEEDS)
    assert {place: one.offsets for place, one in found.items()} == {(p.topic, p.partition): p.end for p in log if p.end}
    assert all(one.complete for one in found.values()), found
    for part in ("stored", "duplicate", "withdrawn", "quarantined", "control"):
        assert sum(getattr(one, part) for (topic, _), one in found.items() if topic == FEED) == account[part]


def test_records_nobody_has_committed_are_on_their_way(city: City) -> None:
    city.process("sink").stop()
    city.publish([FEED], START + timedelta(hours=1), 2, 500)
    code, account, _ = ledger(city)
    assert (code, account["on_its_way"], account["balances"]) == (0, 500, False)
    city.start("sink")
    city.drain()
    assert ledger(city)[0] == 0


def test_a_dead_letter_nobody_has_written_yet_is_on_its_way(city: City) -> None:
    """The sink has passed the records, and leaves it to the processor, which is away, to judge them."""
    _, before, _ = ledger(city)
    city.process("processor").stop()
    send_bad(city, 20)
    city.wait(lambda: behind(city, "sink", FEED) == 0)
    code, account, _ = ledger(city)
    assert (code, account["on_its_way"], account["missing"]) == (0, 20, 0)
    city.start("processor")
    city.drain()
    code, account, _ = ledger(city)
    assert (code, account["balances"]) == (0, True)
    assert account["quarantined"] - before["quarantined"] == 20


def test_what_is_not_there_though_all_committed_it_is_missing(city: City) -> None:
    """As if a worker had committed rows that ClickHouse never took."""
    partition = next(p for p in measure(city.installation.cluster, "sink", [OTHER]) if p.committed > 5)
    owner = city.installation.server("owner").connect()
    place = f"topic = '{OTHER}' AND source_partition = {partition.partition}"
    owner.execute(f"CREATE TABLE raw.kept ENGINE = Memory AS SELECT {SETS} FROM raw.ledger WHERE NOT ({place})")
    owner.execute(
        "INSERT INTO raw.kept SELECT topic, source_partition, kind, block, "
        "bitmapAndnot(offsets, bitmapBuild([toUInt32(2), 3])) FROM raw.ledger WHERE " + place
    )
    owner.execute("TRUNCATE TABLE raw.ledger")
    owner.execute(f"INSERT INTO raw.ledger ({SETS}) SELECT * FROM raw.kept")
    incomplete = {place: one.holes for place, one in summed(city).items() if not one.complete}
    assert incomplete == {(OTHER, partition.partition): 2}
    code, _, named = ledger(city)
    assert code == 1
    place = f"missing: {OTHER}/{partition.partition}: offsets 2 to 3"
    assert place in named
    code, watched, named = ledger(city, "--every", "1")
    assert (code, watched["missing"]) == (1, 2)
    assert place in named
    owner.execute(
        f"INSERT INTO raw.ledger ({SETS}) SELECT '{OTHER}', {partition.partition}, 'received', 0, "
        "groupBitmapState(o) FROM (SELECT toUInt32(arrayJoin([2, 3])) AS o)"
    )
    owner.disconnect()
    assert all(one.complete for one in summed(city).values())
    assert ledger(city)[0] == 0


def delete(city: City, topic: str, partition: int, before: int) -> None:
    """What retention does."""
    with closing(KafkaAdminClient(**city.installation.cluster.kafka_python())) as admin:
        admin.delete_records({TopicPartition(topic, partition): before})


def test_what_clickhouse_lost_is_stored_again_though_the_log_has_lost_its_beginning(city: City) -> None:
    """As after a crash of its machine: rows and ledger lack what the sink had committed.

    While the rows alone are gone they count as duplicates, and the sum stays complete.
    """
    city.drain()
    for p in measure(city.installation.cluster, "sink", [FEED]):
        delete(city, FEED, p.partition, min(CUT, p.end))
    before = city.snapshot()
    assert before[f"raw.{FEED}"]
    sums = {place: one for place, one in summed(city).items() if place[0] == FEED}
    owner = city.installation.server("owner").connect()
    owner.execute(f"ALTER TABLE raw.{FEED} DELETE WHERE source_offset > {CUT} SETTINGS mutations_sync = 2")
    left = dict(owner.execute(f"SELECT source_partition, count() FROM raw.{FEED} FINAL GROUP BY source_partition"))
    gone = {place: one.stored - left.get(place[1], 0) for place, one in sums.items()}
    assert sum(gone.values()) > 0
    assert {place: one for place, one in summed(city).items() if place[0] == FEED} == {
        place: replace(one, stored=one.stored - gone[place], duplicate=one.duplicate + gone[place], complete=True)
        for place, one in sums.items()
    }
    rows = f"topic = '{FEED}' AND kind = 'received'"
    lacking = f"if({rows}, bitmapSubsetInRange(offsets, toUInt32(0), toUInt32({CUT + 1})), offsets)"
    owner.execute("DROP TABLE IF EXISTS raw.kept")
    owner.execute(
        "CREATE TABLE raw.kept ENGINE = Memory AS "
        f"SELECT topic, source_partition, kind, block, {lacking} AS offsets FROM raw.ledger"
    )
    owner.execute("TRUNCATE TABLE raw.ledger")
    owner.execute(f"INSERT INTO raw.ledger ({SETS}) SELECT * FROM raw.kept")
    owner.execute("DROP TABLE raw.kept")
    owner.disconnect()
    code, account, _ = ledger(city)
    assert code == 1
    assert account["missing"] > 0

    city.process("sink").stop()
    city.choose("reset", "sink", FEED)
    city.start("sink")
    city.drain()
    assert ledger(city)[0] == 0
    assert city.snapshot() == before


def test_what_retention_deleted_before_it_was_stored_is_lost(city: City) -> None:
    """A watch goes on after what was lost before it began, and ends when more is lost."""
    city.drain()
    city.process("sink").stop()
    log = measure(city.installation.cluster, "sink", [FEED])
    city.publish([FEED], START + timedelta(hours=2), 3, 500)
    grown = {p.partition: p.end for p in measure(city.installation.cluster, "sink", [FEED])}
    partition, end = next((p.partition, p.end) for p in log if grown[p.partition] - p.end >= 8)
    delete(city, FEED, partition, end + 3)
    lost = f"lost to retention: {FEED}/{partition}: offsets {end:,} to {end + 2:,}\n"
    code, account, named = ledger(city)
    assert (code, account["lost"], account["missing"]) == (1, 3, 0)
    assert lost in named

    watching = city.begin("ledger", "--every", "1")
    assert watching.stdout is not None
    said = [watching.stdout.readline().decode() for _ in range(4)]
    assert said[0].endswith(", 3 LOST to retention\n")
    assert said[1] == lost
    assert all(line.endswith(", 3 LOST to retention (3 of them known)\n") for line in said[2:])
    delete(city, FEED, partition, end + 8)
    *_, last, named = watching.communicate(timeout=60)[0].decode().splitlines()
    assert watching.returncode == 1
    assert last.endswith(", 8 LOST to retention (3 of them known)")
    assert named == f"lost to retention: {FEED}/{partition}: offsets {end + 3:,} to {end + 7:,}"
    code, watched, named = ledger(city)
    assert (code, watched["lost"]) == (1, 8)
    assert f"offsets {end:,} to {end + 7:,}" in named


def test_the_server_does_not_log_that_its_tasks_wait_for_their_turn(city: City) -> None:
    assert "Temporarily pause scheduling" not in (city.settings.home / "log" / "clickhouse-server.log").read_text()

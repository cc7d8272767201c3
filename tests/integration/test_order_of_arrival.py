"""What ClickHouse shows depends on what was written: not on its order, nor how often, nor on what is merged of it."""

from __future__ import annotations

import asyncio
import struct
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import groupby, islice, repeat
from random import Random
from typing import Any, cast
from uuid import UUID
from zlib import crc32

import polars as pl
import pytest

from citystream.installation import Installation
from citystream.secrets import load_secrets, make_secrets
from citystream.settings import Settings
from citystream.stack import clickhouse
from citystream.stack.process import Process
from processors.partition import Output
from schemas.catalogue import Catalogue
from schemas.feed import Feed
from schemas.verdict import instant_ms
from simulation import simulator
from simulation.faults import Fault, corrupted, plan
from simulation.incidents import USUAL
from simulation.world import World
from sinks.ledger import accounts
from sinks.migrate import migrate
from sinks.tables import TableColumn
from sinks.topic_rows import readers
from sinks.worker import Sink
from sinks.writer import Writer
from streams import deadletters
from streams.assignment import TopicPartition
from streams.decode import Decoder
from streams.history import History
from streams.lag import PartitionLag
from streams.positions import NO_EVENT_TIME, Position
from streams.publisher import Publisher
from streams.wire.column_writer import encode_bodies
from streams.wire.fetched_batches import Run
from streams.wire.record_batch import packed, split
from tests.columns import Staged, process
from tests.conftest import settings_in
from tests.reference.batches import CODECS, Record, batch, stamped
from tests.transport import Here, begun

pytestmark = pytest.mark.integration

SEED = 20260518
#: How long ago the events of the first half and of the second arrive: in two months, whose rows are never merged, and
#: the second within the time that conflicts are shown for.
ARRIVALS = timedelta(days=40), timedelta(hours=3)
#: Events of each half, how far apart they are, and how many of them share an event id.
EVENTS, APART, CONFLICTING = 300, timedelta(seconds=10), 3
LARGEST_BODY = 4096
#: Of a feed that allows more, hardly an event of so few is late.
ON_TIME = EVENTS * APART / 6
#: What holds sets of offsets.
LEDGERS = ("ledger", "ledger_blocks", "withdrawn")

#: A block of an insert: its table, the table's columns, the rows.
Insert = tuple[str, Sequence[TableColumn], pl.DataFrame]
Snapshot = dict[str, list[Any]]


@dataclass
class Log:
    """Topics as the brokers have them: batches behind each other, some offsets between them without a record."""

    random: Random
    batches: dict[TopicPartition, list[bytes]] = field(default_factory=lambda: defaultdict(list))
    ends: Counter[TopicPartition] = field(default_factory=Counter)
    letters: Counter[tuple[str, int, int]] = field(default_factory=Counter)
    now_ms: int = instant_ms(datetime.now(UTC)) - 3_600_000

    def append(self, tp: TopicPartition, raw: bytes, arrived_ms: int | None = None, *, base: int | None = None) -> None:
        """A batch of a producer; its offset and its arrival are the broker's."""
        self.now_ms += 1
        base = self.ends[tp] + self.random.choice((0, 0, 0, 1, 3)) if base is None else base
        self.batches[tp].append(stamped(raw, base, self.now_ms if arrived_ms is None else arrived_ms))
        (added,) = split(tp.partition, self.batches[tp][-1])
        self.ends[tp] = added.last_offset + 1

    def runs(self, tp: TopicPartition, start: int) -> Iterator[Run]:
        """All from an offset on, in runs of some batches each."""
        left = [one for one in split(tp.partition, b"".join(self.batches[tp])) if one.last_offset >= start]
        while left:
            size = self.random.randint(1, 6)
            taken, left = tuple(left[:size]), left[size:]
            yield Run(tp.topic, tp.partition, start, taken[-1].last_offset + 1, taken)
            start = taken[-1].last_offset + 1


def events(feed: Feed, start: datetime, half: int) -> Iterator[Any]:
    """Simulated events at equal distances."""
    instants = [declared.name for declared in feed.fields if declared.kind == "instant"]
    for number, record in enumerate(simulator(feed)(World(start, half, USUAL))):
        moved = start + number * APART - getattr(record, feed.event_time)
        changed = {name: at + moved for name in instants if (at := getattr(record, name)) is not None}
        yield record.model_copy(update=changed)


def publish(city: Installation, feed: Feed, log: Log) -> None:
    """Events with all faults, by a careless producer: the first ones go to every partition, at one offset, and the
    first ones without a fault have one event id."""
    publisher = Publisher(cast("Any", None), feed, city.catalogue.latest(feed.name), b"key")
    partitions = [TopicPartition(feed.name, number) for number in range(feed.partitions)]
    for half, ago in enumerate(ARRIVALS):
        arrived = datetime.now(UTC) - ago
        start = (arrived - timedelta(hours=2)).replace(microsecond=0)
        sendings = plan(
            feed, events(feed, start, half), dict.fromkeys(Fault, 0.04), Random(SEED), repeat(arrived).__next__
        )
        records: list[Record] = []
        conflicting = iter(range(CONFLICTING))
        for sending in islice((one for one in sendings if one.fault is not Fault.SILENT), EVENTS):
            alike = sending.fault is None and next(conflicting, None) is not None
            changed = {"event_id": str(UUID(int=half))} if alike else {}
            key, value = publisher.encode(sending.record.model_copy(update=changed))
            records.append((key, corrupted(value, log.random) if sending.fault is Fault.CORRUPT else value, []))
        base = max(log.ends[tp] for tp in partitions)
        for tp in partitions:
            log.append(tp, batch(records[:CONFLICTING], 0), instant_ms(arrived), base=base)
            mine = [one for one in records if crc32(one[0] or b"") % feed.partitions == tp.partition]
            while mine:
                size = log.random.randint(1, 60)
                log.append(tp, batch(mine[:size], 0, log.random.choice(list(CODECS))), instant_ms(arrived))
                mine = mine[size:]


def closed(catalogue: Catalogue) -> Catalogue:
    """The same schemas, to which none comes: a schema id that a corrupt record names is not waited for."""
    return Catalogue(catalogue.by_id)


def process_all(city: Installation, feed: Feed, log: Log) -> None:
    """What a processor writes that is killed again and again, often after a flush that it could not commit."""
    decoder = Decoder(closed(city.catalogue), feed.name, feed)
    for number in range(feed.partitions):
        tp = TopicPartition(feed.name, number)
        position = Position(0, 0, NO_EVENT_TIME, "id", feed.definition)
        while position.processed < log.ends[tp]:
            partition = Staged(
                feed, number, decoder, position, accept_bad=True,
                histories=lambda name, _: History(city.references[name], []),
            )  # fmt: skip
            for run in log.runs(tp, position.rewind):
                process(partition, run)
                if log.random.random() < 0.5 and run.next < log.ends[tp]:
                    continue
                output = partition.flush()
                if output is not None:
                    write(city, feed, log, output, number)
                    position = output.position if log.random.random() < 0.7 else position
                if log.random.random() < 0.2:
                    break


def write(city: Installation, feed: Feed, log: Log, output: Output, number: int) -> None:
    """As the processor writes; a letter written again says another cause, as if the program was a newer one."""
    for aggregate in feed.aggregates:
        parts = output.parts[aggregate.name]
        for body in encode_bodies(city.catalogue.latest(aggregate.topic), aggregate.by, parts, LARGEST_BODY):
            log.append(TopicPartition(aggregate.topic, number), packed(body.data, body.count))
    for letter in output.dead:
        place = letter.topic, letter.partition, letter.offset
        log.letters[place] += 1
        told = replace(letter, cause=f"{letter.cause} ({log.letters[place]})")
        log.append(
            TopicPartition(deadletters.TOPIC, 0), batch([(letter.key, letter.value, cast("Any", told.headers()))], 0)
        )


class Inserts:
    """Stands in for the writer: keeps what the sink inserts."""

    def __init__(self) -> None:
        self.blocks: list[Insert] = []

    def insert(
        self, table: str, columns: Sequence[TableColumn], rows: pl.DataFrame, wanted: Callable[[], bool]
    ) -> None:
        """A block."""
        self.blocks.append((table, columns, rows))


async def sink_from_zero(city: Installation, log: Log) -> list[Insert]:
    """What the sink inserts that reads all topics from their beginnings, in runs and flushes as they come."""
    start = {tp: Position(0, 0, NO_EVENT_TIME, "id", "definition") for tp in sorted(log.ends)}
    kept: Any = Inserts()
    sink = Sink(Here(), readers(city.feeds, closed(city.catalogue), city.settings.timezone), kept)
    assigned = {tp: begun(sink, tp, position) for tp, position in start.items()}
    waiting = {tp: log.runs(tp, 0) for tp in start}
    while waiting:
        tp = log.random.choice(list(waiting))
        run = next(waiting[tp], None)
        if run is None:
            del waiting[tp]
        else:
            sink._read_and_take([(assigned[tp].state, run)])
        if log.random.random() < 0.1 or not waiting:
            for _, same in groupby(assigned.values(), lambda one: one.place.topic):
                await sink.flush([*same])
    return list(kept.blocks)


def shuffled(inserts: Sequence[Insert], random: Random) -> list[Insert]:
    """The same rows in any order, in blocks of any size."""
    by_table: dict[str, list[Insert]] = defaultdict(list)
    for one in inserts:
        by_table[one[0]].append(one)
    blocks: list[Insert] = []
    for table, members in by_table.items():
        rows = pl.concat([rows for *_, rows in members])
        rows = rows.sample(fraction=1, shuffle=True, seed=random.getrandbits(32))
        while rows.height:
            size = random.randint(1, max(1, rows.height // 2))
            blocks.append((table, members[0][1], rows.head(size)))
            rows = rows.slice(size)
    random.shuffle(blocks)
    return blocks


def store(city: Installation, blocks: Sequence[Insert], merging: Random | None = None) -> None:
    """Insert into empty tables, in this order; with merges of some of it now and then."""
    owner = city.server("owner").connect()
    for database in ("city", "raw"):
        owner.execute(f"DROP DATABASE IF EXISTS {database} SYNC")
    migrate(city.server("owner"), city.feeds.values(), [], [], city.dialect, pytest.fail)
    writer = Writer(city.server("sink"), pytest.fail)
    for table, columns, rows in blocks:
        writer.insert(table, columns, rows)
        if merging is not None and merging.random() < 0.15:
            owner.execute(f"OPTIMIZE TABLE {merging.choice((table, 'raw.ledger'))} {merging.choice(('', 'FINAL'))}")
    owner.disconnect()


def shown(city: Installation, log: Log) -> Snapshot:
    """All views, all that survives in the tables below them, and the accounts; numbers as their bits."""
    client = city.server("owner").connect()
    tables = client.execute(
        "SELECT database, name, engine = 'View' FROM system.tables "
        "WHERE database IN ('raw', 'city') AND engine != 'MaterializedView' "
        "AND empty(parameterized_view_parameters) "
        # When tables and views were made, and how old all is by now, which is nothing of the log.
        "AND name NOT IN ('layout', 'shown', 'catalogue', 'catalogue_batches')"
    )
    found = {}
    for database, name, is_view in tables:
        select = "* EXCEPT offsets, arraySort(bitmapToArray(offsets))" if name in LEDGERS else "*"
        final = "" if is_view else "FINAL"
        rows = client.execute(f"SELECT {select} FROM {database}.{name} {final} ORDER BY ALL")
        found[f"{database}.{name}"] = [bits(row) for row in rows]
    ends = [PartitionLag(tp.topic, tp.partition, 0, end, end, None) for tp, end in log.ends.items()]
    found["accounts"] = accounts(client, city.feeds, ends)
    client.disconnect()
    return found


def bits(value: Any) -> Any:
    """A value with numbers as their bits, so that -0.0 is not 0.0 and nothing is rounded."""
    if isinstance(value, tuple | list):
        return [bits(one) for one in value]
    return struct.pack(">d", value) if isinstance(value, float) else value


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """A ClickHouse of its own, without Kafka."""
    settings: Settings = settings_in(tmp_path_factory.mktemp("city"))
    make_secrets(settings)
    clickhouse.prepare(settings)
    process = Process(clickhouse.NAME, settings.home)
    try:
        process.start(clickhouse.launch(settings, load_secrets(settings)))
        process.wait_until(lambda: clickhouse.ready(settings))
        yield Installation(settings)
    finally:
        process.stop()


def test_the_sink_replayed_twice_in_any_order_shows_the_same(city: Installation) -> None:
    log = Log(Random(SEED))
    for feed in city.feeds.values():
        publish(city, feed, log)
        process_all(city, feed, log)
    store(city, asyncio.run(sink_from_zero(city, log)))
    expected = shown(city, log)
    for account in expected["accounts"]:
        assert account.balances, account
        assert min(account.duplicate, account.quarantined, account.control, account.conflicts), account
        feed = city.feeds[account.feed]
        assert account.late or not feed.aggregates or feed.allowance > ON_TIME, account
    assert all(rows for name, rows in expected.items() if name not in ("raw.holes", "raw.redriven", "raw.withdrawn"))
    again = [one for _ in range(2) for one in asyncio.run(sink_from_zero(city, log))]
    store(city, shuffled(again, log.random), log.random)
    found = shown(city, log)
    assert found.keys() == expected.keys()
    for name, rows in expected.items():
        assert found[name] == rows, f"{name} differs"

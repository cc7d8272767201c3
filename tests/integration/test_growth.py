"""A feed outgrows its topic: 4 to 6 partitions by the procedure in docs/operator.md, and what may go wrong in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import pytest

from schemas.catalogue import Catalogue, freeze
from schemas.feed import Feed
from schemas.fields import Record
from simulation import Simulator
from simulation.faults import Fault
from simulation.running import Simulation, SystemClock
from simulation.world import World, event_id
from streams.feed_topics import feed_topics
from streams.lag import LagMeter
from streams.positions import parse
from streams.publisher import OnResult, Producer, Publisher
from streams.topics import stored
from tests.city import WORKERS, City, copy_sources, declare_only, servers
from tests.reference.city import Log, Schemas, read_feed
from tests.reference.whole import KINDS, compare

pytestmark = pytest.mark.integration

PROJECT = Path(__file__).parents[2]
SEED = 20261121
#: Simulated seconds of the topic that is outgrown, at 50 events each.
BEFORE = 40
#: Seconds in which the next one is published to, each at its time.
AFTER = 10
RATE = 50

DECLARATION = '''"""Meters, in windows so short that many of them open and close within seconds."""

from datetime import UTC, datetime, timedelta
from typing import Annotated

from pydantic import Field

from schemas.department import Department
from schemas.expressions import Column
from schemas.feed import Aggregate, Feed, Outgrown
from schemas.fields import EventId, Instant, Record, Text
from schemas.measures import spread, total


class Meter(Record):
    """One reading."""

    event_id: EventId
    meter_id: Annotated[Text, Field(description="Meter")]
    zone: Annotated[Text, Field(description="Zone")]
    read_at: Annotated[Instant, Field(description="When it was read")]
    level: Annotated[int, Field(ge=0, le=1000, description="Level")]


MEASURES = (
    total("level", Column("level"), unit="1", description="Level"),
    spread("levels", Column("level"), unit="1", scale=1, description="Levels"),
)


FEED = Feed(
    name="meter",
    description="Readings of meters",
    record=Meter,
    key="meter_id",
    event_time="read_at",
    department=Department(name="Tests", contact="tests@city.example", purpose="Tests"),
    batch=1,
    rate=50.0,
    silence=timedelta(seconds=1),
    disorder=timedelta(seconds=1),
    lateness=timedelta(seconds=1),
    aggregates=(
        Aggregate(name="meter_2s", by=("meter_id",), window=timedelta(seconds=2), measures=MEASURES, description="M"),
        Aggregate(name="meter_3s_zone", by=("zone",), window=timedelta(seconds=3), measures=MEASURES, description="Z"),
    ),
    PARTITIONS
)
'''
NAME = "meter"


def readings(feed: Feed) -> Simulator:
    """Fifty readings a second."""

    def simulate(world: World) -> Iterator[Record]:
        random, at = world.random(feed.name), world.start
        while True:
            meter = random.randrange(40)
            values: dict[str, Any] = {"event_id": event_id(random), "read_at": at, "level": random.randrange(1000)}
            values |= {"meter_id": f"m-{meter}", "zone": f"z-{meter % 3}"}
            yield feed.record(**values)
            at += timedelta(milliseconds=20)

    return simulate


#: Group and start of the window: the rest of the view's row.
Windows = dict[tuple[str, datetime], tuple[Any, ...]]


class Deployment(City):
    """Sources of a city's own, of one feed, from which commands and workers run."""

    def __init__(self, home: Path, sources: Path) -> None:
        super().__init__(home, sources)
        self._sources = sources
        copy_sources(sources, "citystream", "schemas", "simulation", "streams", "processors", "sinks")
        self.feed = self.declare("")
        self._frozen = sources / "schemas" / "frozen"
        freeze({NAME: self.feed}, self._frozen)
        self.catalogue = Catalogue.load(self._frozen)

    def declare(self, partitions: str) -> Feed:
        """Change the feed's file; gives the feed as it is now."""
        declare_only(self._sources, **{NAME: DECLARATION.replace("PARTITIONS", partitions)})
        self.deploy(self._sources)
        self.feed = self.installation.feeds[NAME]
        return self.feed

    def worker(self, name: str) -> list[str]:
        return [WORKERS[name], "--instance", f"{name}-1"]

    def done(self, *words: str) -> str:
        """A command that has to succeed."""
        done = self.command(*words)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def denied(self, reason: str, code: int, *words: str) -> None:
        done = self.command(*words)
        assert (done.returncode, reason in done.stderr) == (code, True), done.stderr

    def drain(self, *groups: str) -> None:
        feeds, results = list(feed_topics(self.feed)), [topic.name for topic in stored([self.feed])]
        with LagMeter(self.installation.cluster) as meter:
            for group, topics in (("processor", feeds), ("sink", results)):
                self.wait(lambda: not any(p.records for p in meter.measure(group, topics, waiting=False)), 90)  # noqa: B023

    def ask(self, query: str) -> list[tuple[Any, ...]]:
        client = self.installation.server("operator").connect()
        try:
            found: list[tuple[Any, ...]] = client.execute(query)
            return found
        finally:
            client.disconnect()

    def shown(self, aggregate: str, by: str) -> tuple[Windows, set[tuple[str, datetime]]]:
        """Windows as the view has them, without how far they are complete, and which of them are final."""
        rows = self.ask(
            f"SELECT final, {by}, toTimeZone(window_start, 'UTC'), * EXCEPT ({by}, window_start, final, as_of) "
            f"FROM city.{aggregate}"
        )
        windows = {(group, start): tuple(rest) for _, group, start, *rest in rows}
        return windows, {(group, start) for final, group, start, *_ in rows if final}

    def logs(self) -> list[Log]:
        """Every partition of all topics of the feed, as the brokers have it."""
        return list(read_feed(self.installation.cluster, self.feed, Schemas(self._frozen)))

    def agrees(self, published: int) -> None:
        """ClickHouse shows what the reference makes of all that was published, row for row."""
        logs = self.logs()
        assert sum(end for _, end, _ in logs) == published
        found = compare(self.installation, [NAME], logs={NAME: logs})
        assert [str(one) for one in found.differences] == []
        assert all(found.kinds[kind] for kind in KINDS), found.kinds


@contextmanager
def deployment(folder: Path) -> Iterator[Deployment]:
    with servers(Deployment(folder / "home", folder / "sources")) as city:
        city.done("init")
        yield city


class Noting(Publisher):
    """A publisher that keeps what it sends."""

    sent: list[tuple[bytes, bytes]]

    def send(self, key: bytes | None, value: bytes | None, on_result: OnResult | None = None) -> None:
        assert key is not None
        assert value is not None
        self.sent.append((key, value))
        super().send(key, value, on_result)


@contextmanager
def publisher(city: Deployment, feed: Feed, sent: list[tuple[bytes, bytes]]) -> Iterator[Noting]:
    with closing(Producer(city.installation.cluster)) as producer:
        with Noting(producer, feed, city.catalogue.latest(NAME), None) as opened:
            opened.sent = sent
            yield opened
        assert opened.failed == 0


def simulate(opened: Noting, feed: Feed, start: datetime, seed: int, seconds: int) -> None:
    """Events of so many seconds from ``start`` on, with all faults, none before its time."""
    faults = dict.fromkeys(Fault, 0.03)
    Simulation(
        [feed],
        {NAME: opened},
        world=World(start, seed),
        rate=None,
        faults=faults,
        clock=SystemClock(),
        simulator=readings,
    ).run(seconds * RATE)


def last_arrival(city: Deployment) -> datetime:
    """When the brokers got the newest record."""
    newest = max(record.arrived_ms for *_, records in city.logs() for record in records)
    return datetime.fromtimestamp(newest / 1000, UTC)


def grown(until: datetime) -> str:
    return (
        f"partitions=6,\n    outgrown=(Outgrown(partitions=4, until=datetime.fromisoformat({until.isoformat()!r})),),"
    )


def grow(city: Deployment) -> Feed:
    """The procedure, and what it refuses."""
    newest = last_arrival(city)
    until = newest + timedelta(milliseconds=1)
    city.declare(grown(newest))
    city.denied("records came after", 3, "init")
    city.declare(grown(newest + timedelta(hours=1)))
    city.denied("is still to come", 3, "init")
    city.declare(grown(until))
    city.denied("is running", 1, "init")
    for name in WORKERS:
        city.process(name).stop()
        city.dismiss(name)
    city.done("init")
    city.declare("")
    for name in WORKERS:
        city.refuses(name, "definition")
    return city.declare(grown(until))


def go_on(city: Deployment, old: Feed, sent: list[tuple[bytes, bytes]]) -> datetime:
    """Publish to the next topic and, from a publisher nobody stopped, to the old one; kill workers meanwhile.

    The next topic also gets again what the old one had, and events from before the switch that nobody had published.
    Gives the time of the last event, of which every meter has one.
    """
    random, ended = Random(SEED), city.feed.outgrown[0].until
    again = [*sent[-2 * RATE :], *random.sample(sent, 5 * RATE)]
    with publisher(city, city.feed, sent) as opened, publisher(city, old, sent) as forgotten:
        for key, value in again:
            opened.send(key, value)
        for belated in islice(readings(city.feed)(World(ended - timedelta(seconds=1), SEED)), RATE):
            opened.publish(belated)
        start = datetime.now(UTC) - timedelta(seconds=1)
        for number in range(AFTER):
            at, count = start + timedelta(seconds=number), len(sent)
            simulate(opened, city.feed, at, SEED + number + 1, 1)
            simulate(forgotten, old, at, SEED - number - 1, 1)
            for key, value in random.sample(sent[count:], RATE // 2):
                random.choice((opened, forgotten)).send(key, value)
            if number in (2, 5):
                name = list(WORKERS)[number % 2]
                city.kill(name)
                city.start(name)
        last = datetime.fromtimestamp(int(datetime.now(UTC).timestamp()), UTC)
        for meter, reading in enumerate(islice(readings(city.feed)(World(last, SEED)), 40)):
            opened.publish(reading.model_copy(update={"meter_id": f"m-{meter}", "read_at": last}))
    return last


def test_a_feed_grows(tmp_path: Path) -> None:
    """Windows open at the switch, repeats from one topic to the other, a publisher that was not stopped, kill -9."""
    sent: list[tuple[bytes, bytes]] = []
    with deployment(tmp_path) as city:
        old = city.feed
        for name in WORKERS:
            city.start(name)
        with publisher(city, old, sent) as opened:
            simulate(opened, old, datetime.now(UTC) - timedelta(seconds=BEFORE), SEED, BEFORE)
        city.drain()
        before = {a.name: city.shown(a.name, a.by[0]) for a in old.aggregates}
        assert all(0 < len(final) < len(windows) for windows, final in before.values())

        feed = grow(city)
        ended = feed.outgrown[0].until
        for aggregate in old.aggregates:
            windows, final = city.shown(aggregate.name, aggregate.by[0])
            assert windows == before[aggregate.name][0]
            assert final == {key for key in windows if key[1] + aggregate.window <= ended}
            assert final >= before[aggregate.name][1], "what was final stays final"
        city.agrees(len(sent))
        positions = [parse("", c.offset, c.metadata) for c in city.commits("processor").values()]
        assert all(p is not None and p.rewind == p.processed for p in positions), "retention may empty the old topic"

        for name in WORKERS:
            city.start(name)
        last = go_on(city, old, sent)
        city.drain()
        city.agrees(len(sent))
        for aggregate in feed.aggregates:
            windows, final = city.shown(aggregate.name, aggregate.by[0])
            closed = last - aggregate.window - feed.allowance
            assert {key for key in windows if key[1] <= closed} == final
            assert final >= before[aggregate.name][1]
        ((streamed,),) = city.ask("SELECT sum(events) FROM raw.meter_2s FINAL WHERE source_partition >= 4")
        assert streamed > AFTER * RATE // 2, "the next topic counts what happened after the switch"
        for partitions in ("source_partition < 4", "source_partition >= 4"):
            ((bad,),) = city.ask(f"SELECT count() FROM raw.quarantine FINAL WHERE {partitions}")
            assert bad > 0, "both topics got what is no record"
        city.done("ledger")
        city.done("positions", "show", "processor")

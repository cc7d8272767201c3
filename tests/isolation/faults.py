"""What is done to one feed, what has to be said of it, and how it is mended."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from schemas.catalogue import AHEAD
from schemas.record_codec import encode, prefix
from streams.deadletters import TOPIC, DeadLetter
from streams.publisher import Producer
from tests.isolation import made
from tests.isolation.district import MENDED, District
from tests.isolation.made import RATE, report
from tests.reference.compare import Difference

#: A flood is so many times the usual rate; records are sent every so often (s).
FLOOD, FLOOD_EVERY = 200, 0.05
#: Loads that 64 bits hold no sum of: each 2^52 steps of a thousandth, but for a few.
LOAD, LOADS = 4.5e12, 2_100
#: More bad records than a block of a partition may have.
BAD = 350
#: How long an insert takes (s): ClickHouse sleeps three seconds at most at a time.
SLEEPS = (2.6, 2.4)
#: Pause of a publisher between two records of unknown schemas (s): too few of them to stop the feed.
UNKNOWN_EVERY = 0.5
NO_FEED = "nobody"


def nothing(_: District) -> None:
    """Nothing has to be done."""


@dataclass(frozen=True)
class Fault:
    """Something that is done to a feed of its own.

    ``says`` are, by worker, words of what status and lag say of the feed while it lasts, and ``letters``, by topic,
    words of what status says of dead letters; where nothing waits the feed goes on. It ``lasts`` so long (s). ``mend``
    is done while those workers are stopped that ``restarts`` names, which are started again with these options.
    ``explains`` says of a difference from the reference that it has to be there afterwards; by itself nothing differs.
    """

    name: str
    feed: str
    stage: Callable[[District], None]
    says: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    letters: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    lasts: float = 30
    mend: Callable[[District], None] = nothing
    restarts: Mapping[str, list[str]] = field(default_factory=dict)
    explains: Callable[[Difference], bool] | None = None


def flood(city: District) -> None:
    """Many times the feed's rate, until it is mended."""

    def run(stop: threading.Event) -> None:
        made_ahead = [
            encode(city.frozen[made.FLOODED], report(city.random, f"device-{n}", datetime.now(UTC)))
            for n in range(int(RATE * FLOOD * FLOOD_EVERY))
        ]
        with closing(Producer(city.installation.cluster)) as producer:
            while not stop.wait(FLOOD_EVERY):
                for number, value in enumerate(made_ahead):
                    producer.send(made.FLOODED, key=b"device-%d" % number, value=value)

    city.disturb(run)


def drop_table(city: District) -> None:
    """The feed comes before its table."""
    city.ask(f"DROP TABLE raw.{made.TABLELESS} SYNC")
    city.traffic.feeds.add(made.TABLELESS)


def overflow(city: District) -> None:
    """More in one window than 64 bits hold."""
    at = datetime.now(UTC)
    with city.producer() as producer:
        for _ in range(LOADS):
            city.send(producer, made.SUMMED, report(city.random, "heavy", at, load=LOAD))


def forge(city: District) -> None:
    """Another program writes to the topics that belong to the workers."""
    windows = f"{made.FORGED}_10s"
    frozen = city.installation.catalogue.latest(windows)
    now_ms = time.time_ns() // 1_000_000
    part: dict[str, Any] = {one["name"]: "forged" if one["type"] == "string" else 1 for one in frozen.schema["fields"]}
    part |= {"window_start": now_ms // 10_000 * 10_000, "source_partition": 0, "since": 0, "version": 2**62}
    wrong = [{"window_start": 1}, {"source_partition": 7}, {"version": -1}, {"since": -1}, {"watermark": 2**62}]
    claimed = [
        DeadLetter(NO_FEED, 0, 2**40, 2**40 + 2**16 - 1, "DECODE", "forged", b"key", b"value", now_ms),
        DeadLetter(made.FORGED, 0, 2**40, 2**41, "DECODE", "forged", b"key", b"value", now_ms),
    ]
    with city.producer() as producer:
        for change in wrong:
            producer.send(windows, key=b"forged", value=encode(frozen, part | change))
        for value in (b"noise", prefix(city.installation.catalogue.newest_id + 1) + b"\1", b"", None):
            producer.send(windows, key=b"forged", value=value)
            producer.send(TOPIC, key=b"forged", value=value)
        for letter in claimed:
            producer.send(TOPIC, key=letter.key, value=letter.value, headers=letter.headers())


def slow_down(city: District) -> None:
    """Each insert takes seconds: a view that somebody hung on the feed's table."""
    sleeps = " + ".join(f"sleep({seconds})" for seconds in SLEEPS)
    city.ask("CREATE TABLE raw.slow (slept UInt16) ENGINE = Null")
    city.ask(f"CREATE MATERIALIZED VIEW raw.slowly TO raw.slow AS SELECT {sleeps} AS slept FROM raw.{made.SLOWED}")


def speed_up(city: District) -> None:
    """The view goes."""
    city.ask("DROP TABLE raw.slowly SYNC")
    city.ask("DROP TABLE raw.slow SYNC")


def spoil(city: District) -> None:
    """A publisher sends what breaks a rule, of one device."""
    with city.producer() as producer:
        for _ in range(BAD):
            city.send(producer, made.SPOILED, report(city.random, "bad", datetime.now(UTC)), level=-1)


def name_unknown_schemas(city: District) -> None:
    """A publisher uses one schema after the other that nobody froze, until it is ended."""
    newest = city.installation.catalogue.newest_id

    def run(stop: threading.Event) -> None:
        number = 0
        with city.producer() as producer:
            while not stop.wait(UNKNOWN_EVERY):
                producer.send(made.UNKNOWN, key=b"new", value=prefix(newest + 1 + number % AHEAD) + b"\1\2")
                number += 1

    city.disturb(run)


def curse(city: District) -> None:
    """A record that the code does not survive."""
    with city.producer() as producer:
        city.send(producer, made.RAISING, report(city.random, "cursed", datetime.now(UTC), level=made.CURSED))


def mend_code(city: District) -> None:
    """The code is mended; workers that start from now on run it."""
    city.code = MENDED


def delete_topic(city: District) -> None:
    """The feed's topic goes, with all that is in it."""
    city.traffic.feeds.discard(made.DELETED)
    with city.admin() as admin:
        admin.delete_topics([made.DELETED])


def start_over(city: District) -> None:
    """The topic comes back empty, and what is kept under the old one's offsets goes, as the messages say."""
    city.prepare()
    city.choose("clear", made.DELETED, "--yes")
    city.traffic.feeds.add(made.DELETED)


def is_not_known(difference: Difference) -> bool:
    """A sum that 64 bits do not hold is null, and nothing else of its window."""
    return (
        difference.table == f"city.{made.SUMMED}_10s"
        and difference.kind == "wrong"
        and "('heavy', " in difference.detail
        and "{'load': (None, " in difference.detail
        and "'level" not in difference.detail
    )


def is_of_nobody(difference: Difference) -> bool:
    """What another program wrote to the topic of dead letters is kept as its own, or as that of the feed it names."""
    return difference.table == "raw.quarantine" and difference.feed in (NO_FEED, TOPIC)


FAULTS = (
    Fault("flooded at 200 times its rate", made.FLOODED, flood, lasts=60),
    Fault(
        "its table missing", made.TABLELESS, drop_table,
        says={"sink": (f"Table raw.{made.TABLELESS} does not exist", "citystream init")},
        mend=District.prepare,
    ),
    Fault("records whose sums overflow", made.SUMMED, overflow, explains=is_not_known),
    Fault(
        "forged dead letters and window parts", made.FORGED, forge,
        says={"sink": ("names the schema id", "citystream schemas freeze")},
        letters={
            TOPIC: ("header", f"citystream dead-letters list {TOPIC}"),
            NO_FEED: ("forged", f"citystream dead-letters list {NO_FEED}"),
        },
        explains=is_of_nobody,
    ),
    Fault(
        "its insert slow (5 s)", made.SLOWED, slow_down,
        says={"sink": (f"raw.{made.SLOWED} takes them slowly", "citystream sql --user operator 'SHOW PROCESSLIST'")},
        mend=speed_up,
    ),
    Fault(
        "too many bad records", made.SPOILED, spoil,
        says={"processor": ("are bad, more than 5%", f"citystream process --accept-bad {made.SPOILED}")},
        restarts={"processor": ["--accept-bad", made.SPOILED]},
    ),
    Fault(
        "unknown schema ids, again and again", made.UNKNOWN, name_unknown_schemas,
        says={"processor": ("names the schema id", "waiting for its files", "citystream schemas freeze")},
        letters={made.UNKNOWN: ("schema id", f"citystream dead-letters list {made.UNKNOWN}")},
    ),
    Fault(
        "a record that makes the code raise", made.RAISING, curse,
        says={
            "processor": ("ZeroDivisionError", "says where", "citystream process"),
            "sink": ("ZeroDivisionError", "says where", "citystream sink"),
        },
        mend=mend_code,
        restarts={"processor": [], "sink": []},
    ),
    Fault(
        "its topic deleted", made.DELETED, delete_topic,
        says=dict.fromkeys(("processor", "sink"), ("does not exist", "citystream ")),
        mend=start_over,
        restarts={"processor": [], "sink": []},
    ),
)  # fmt: skip

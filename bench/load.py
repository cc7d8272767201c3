"""The records of a city at its real rate: made once, then sent at their moments, the same bytes each time.

Usage: python -m bench.load make FILE SECONDS EVERY      all feeds, of the records every EVERY-th
       python -m bench.load send FILE BOOTSTRAP          until the file ends

A sender prints ``Marked`` lines: records that a view has to show, about one a second of each feed.
"""

from __future__ import annotations

import heapq
import pickle
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from bench import made_up
from citystream.installation import Installation
from schemas.feed import Feed
from schemas.pseudonyms import replaced
from schemas.record_codec import encode
from schemas.verdict import instant_ms
from simulation import simulator
from simulation.faults import Fault, Sending, corrupted_history, plan
from simulation.world import World
from streams.publisher import topic_for

#: Event time at which it begins: seven in the morning of a weekday in the city.
START = datetime(2026, 3, 1, 23, tzinfo=UTC)
SEED = 1
#: Personal values are the same in every run.
KEY = b"the key of the bench, kept by nobody"
SHARES = {Fault.DISORDER: 0.05, Fault.DUPLICATES: 0.005, Fault.LATE: 0.005, Fault.CORRUPT: 0.001}
#: Faults whose records a view shows as it shows any other.
SHOWN = (None, Fault.DISORDER)
#: Seconds between two marked records of a feed, drawn anew each time: in step with nothing.
MARK_AFTER_SECONDS = (0.5, 1.5)
#: A sender looks at the clock so often (s); what is due by then goes out.
TICK_SECONDS = 0.005
#: How long a record waits for others of its partition: as with the platform's publishers, whichever one is measured.
LINGER_MS = 100


class Made(NamedTuple):
    """A record as it is sent, ``due`` so many seconds after the start. It is in a view under key, time and id.

    Without an ``event_id`` no view has to show it.
    """

    due: float
    topic: str
    key: bytes
    value: bytes
    event_ms: int
    event_id: str


@dataclass(frozen=True)
class Marked:
    """A record that was just given to its producer, at ``sent`` of the machine's monotonic clock."""

    feed: str
    key: str
    event_ms: int
    event_id: str
    sent: float

    def line(self) -> str:
        """As a sender prints it."""
        return "\t".join([self.feed, self.key, str(self.event_ms), self.event_id, repr(self.sent)])

    @classmethod
    def read(cls, line: str) -> Marked:
        """What a sender printed."""
        feed, key, event_ms, event_id, sent = line.rstrip("\n").split("\t")
        return cls(feed, key, int(event_ms), event_id, float(sent))


def make(city: Installation, file: Path, seconds: float, every: int) -> None:
    """Write what is due in so many seconds, in its order."""
    streams = [_made(city, feed, every) for feed in city.feeds.values() if feed.is_source]
    with file.open("wb") as out:
        for made in heapq.merge(*streams, key=lambda one: one.due):
            if made.due > seconds:
                return
            pickle.dump(tuple(made), out)


def _made(city: Installation, feed: Feed, every: int) -> Iterator[Made]:
    world = World(START, SEED)
    harm = world.random(f"{feed.name}/harm")
    frozen, topic = city.catalogue.latest(feed.name), topic_for(feed)
    simulate = made_up.SIMULATORS.get(feed.name) or simulator(feed)
    records = (record for number, record in enumerate(simulate(world)) if number % every == 0)
    for sending in plan(feed, records, SHARES, harm, lambda: START):
        values = replaced(feed, KEY, sending.record.model_dump())
        value = encode(frozen, values)
        yield Made(
            (sending.due - START).total_seconds(),
            topic,
            values[feed.key].encode(),
            corrupted_history(city.catalogue, feed, value, harm) if sending.fault is Fault.CORRUPT else value,
            instant_ms(values[feed.event_time]),
            _shown(sending, values),
        )


def _shown(sending: Sending, values: dict[str, Any]) -> str:
    return str(values["event_id"]) if sending.fault in SHOWN else ""


def read(file: Path) -> Iterator[Made]:
    """What was made."""
    with file.open("rb") as source:
        while True:
            try:
                yield Made(*pickle.load(source))
            except EOFError:
                return


def send(city: Installation, file: Path) -> None:
    """Send each record at its moment, as the platform's publishers do: acknowledged by all, one after the other."""
    from confluent_kafka import Producer  # noqa: PLC0415  where records are only made, no producer is wanted

    failed: Counter[str] = Counter()

    def note(error: Any, _: Any) -> None:
        if error is not None:
            failed[str(error)] += 1

    producer = Producer(
        {
            "bootstrap.servers": str(city.cluster),
            "enable.idempotence": True,
            "compression.type": "lz4",
            "linger.ms": LINGER_MS,
            "batch.size": 256 * 1024,
            "partitioner": "murmur2_random",
            "log_level": 3,
        }
    )
    draw, mark_at = Random(SEED), defaultdict[str, float](float)
    began = time.monotonic()
    for one in read(file):
        while (left := began + one.due - time.monotonic()) > 0:
            producer.poll(0)
            time.sleep(min(left + TICK_SECONDS, TICK_SECONDS * 2))
        now = time.monotonic()
        if one.event_id and now >= mark_at[one.topic]:
            mark_at[one.topic] = now + draw.uniform(*MARK_AFTER_SECONDS)
            print(Marked(one.topic, one.key.decode(), one.event_ms, one.event_id, now).line(), flush=True)
        producer.produce(one.topic, one.value, one.key, on_delivery=note)
    producer.flush()
    if failed:
        sys.exit(f"not taken by Kafka: {dict(failed)}")


def main(action: str, file: Path, *words: str) -> None:
    """Make or send."""
    city = Installation.load()
    if action == "make":
        make(city, file, float(words[0]), int(words[1]))
    else:
        send(city, file)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])

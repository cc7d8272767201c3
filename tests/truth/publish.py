"""Publish so many hours of a feed of a world in which everything is staged, with faults: python -m tests.truth.publish

Prints what the faults kept from the rules, a line of JSON for each record: its time in ms, and the texts in it.
"""

from __future__ import annotations

import json
import sys
from contextlib import closing
from datetime import UTC, datetime, timedelta
from itertools import takewhile
from zoneinfo import ZoneInfo

from citystream.installation import Installation
from citystream.secrets import pseudonym_key
from schemas.pseudonyms import replaced
from schemas.verdict import instant_ms
from simulation import simulator
from simulation.faults import USUAL as USUAL_FAULTS
from simulation.faults import Fault, corrupted_history, plan
from simulation.incidents import USUAL
from simulation.world import Kind, World
from streams.publisher import Producer, Publisher

#: A Wednesday before the rush.
START = datetime(2026, 3, 18, 6, 30, tzinfo=ZoneInfo("Asia/Shanghai"))
#: More happens in an hour than usual, and on roads most, as there are fewer hours of them.
INCIDENTS = {kind: 5 * often for kind, often in USUAL.items()} | {Kind.CONCERT: 0.2, Kind.STANDSTILL: 60.0}
#: Few of those that no rule can see through.
FAULTS = USUAL_FAULTS | {Fault.LATE: 0.001, Fault.SKEW: 0.0005, Fault.CORRUPT: 0.0005, Fault.SILENT: 0.001}
#: Faults that keep a record from the rules.
HARMFUL = (Fault.LATE, Fault.SKEW, Fault.CORRUPT, Fault.SILENT)


def main(name: str, hours: float, seed: int) -> None:
    """Publish one feed."""
    city = Installation.load()
    feed, key = city.feeds[name], pseudonym_key(city.settings, city.feeds[name])
    world, end = World(START, seed, INCIDENTS), START + timedelta(hours=hours)
    records = takewhile(lambda record: getattr(record, feed.event_time) < end, simulator(feed)(world))
    shares = {} if name == "truth" else FAULTS
    harm = world.random(f"{name}/harm")
    with (
        closing(Producer(city.cluster)) as producer,
        Publisher(producer, feed, city.catalogue.latest(name), key) as publisher,
    ):
        for sending in plan(feed, records, shares, world.random(f"{name}/faults"), lambda: datetime.now(UTC)):
            if sending.fault in HARMFUL:
                values = sending.record.model_dump()
                values = replaced(feed, key, values) if key else values
                texts = [str(values[field.name]) for field in feed.fields if field.kind in ("string", "enum")]
                print(json.dumps([instant_ms(min(values[feed.event_time], sending.due)), texts]))
            if sending.fault is not Fault.SILENT:
                sent, value = publisher.encode(sending.record)
                if sending.fault is Fault.CORRUPT:
                    value = corrupted_history(city.catalogue, feed, value, harm)
                publisher.send(sent, value)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]))

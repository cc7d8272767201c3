"""From publishing an event to seeing it in a view, at the city's real rate."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from random import Random
from uuid import UUID

from bench.process import FEED
from citystream.installation import Installation
from simulation import simulator
from simulation.world import World
from streams.publisher import Producer, Publisher

LOOK_EVERY_SECONDS = 0.02
PAUSE_SECONDS = 0.5


def probe(city: Installation, probes: int) -> list[float]:
    """Seconds each of some probes took from publishing to being counted in the view of a one-minute window."""
    feed, random = city.feeds[FEED], Random(1)
    client = city.server("operator").connect()
    template = next(simulator(feed)(World(datetime.now(UTC), 1)))
    waits = []
    with Publisher(Producer(city.cluster), feed, city.catalogue.latest(FEED), None) as publisher:
        for number in range(probes):
            now = datetime.now(UTC)
            segment = f"probe-{number}"
            event = template.model_copy(
                update={
                    "event_id": str(UUID(int=random.getrandbits(128), version=4)),
                    feed.key: segment,
                    "date_observed_from": now - timedelta(minutes=1),
                    feed.event_time: now,
                }
            )
            sent = time.monotonic()
            publisher.publish(event)
            query = f"SELECT count() FROM city.{feed.aggregates[0].name} WHERE {feed.key} = %(segment)s"
            while not client.execute(query, {"segment": segment})[0][0]:
                time.sleep(LOOK_EVERY_SECONDS)
            if number:  # the first one waits for the workers to start
                waits.append(time.monotonic() - sent)
            time.sleep(PAUSE_SECONDS * random.random())
    return sorted(waits)

"""The same work in a plain Faust agent, an event at a time: decode, validate, drop repeats, aggregate, publish.

Usage: python -m bench.plain_faust EVENTS
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sys
import time
import traceback
from dataclasses import asdict
from typing import Any

import faust

from bench.process import FEED, Timing
from citystream.installation import Installation
from schemas.rowcodec import decode, encode
from schemas.verdict import instant_ms, problems

FLUSH_SECONDS = 1.0


class Agent:
    """State and work of the agent."""

    def __init__(self, city: Installation, app: faust.App, events: int) -> None:
        self.city, self.app, self.events, self.feed = city, app, events, city.feeds[FEED]
        self.windows: dict[str, dict[tuple[str, int], dict[str, Any]]] = {a.name: {} for a in self.feed.aggregates}
        self.changed: dict[str, set[tuple[str, int]]] = {a.name: set() for a in self.feed.aggregates}
        self.seen: set[tuple[str, Any, str]] = set()

    async def work(self, stream: Any) -> None:
        """Take events one at a time; report and end the process after the last, or at the first error."""
        try:
            await self._work(stream)
        except Exception:  # noqa: BLE001 - whatever it is, Faust would go on behind it
            traceback.print_exc()
            os._exit(1)

    async def _work(self, stream: Any) -> None:
        count, began, flushed = 0, (0.0, 0.0), 0.0
        async for event in stream.events():
            if not count:
                began, flushed = (time.monotonic(), time.process_time()), time.monotonic()
            count += 1
            self.take(event)
            if time.monotonic() - flushed > FLUSH_SECONDS or count == self.events:
                await self.flush()
                flushed = time.monotonic()
            if count == self.events:
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
                timing = Timing(began[0], time.monotonic(), time.process_time() - began[1], peak)
                print(json.dumps(asdict(timing)), flush=True)
                os._exit(0)

    def take(self, event: Any) -> None:
        """Decode, validate, drop a repeat, aggregate."""
        record = decode(self.city.catalogue, event.value)
        if problems(self.feed, record, event.key, int(event.message.timestamp * 1000)):
            return
        identity = (record[self.feed.key], record[self.feed.event_time], record["event_id"])
        if identity not in self.seen:
            self.seen.add(identity)
            self.add(record, event.message.partition, event.message.offset)

    def add(self, record: dict[str, Any], partition: int, offset: int) -> None:
        """Count an event into its windows."""
        event_ms = instant_ms(record[self.feed.event_time])
        vehicles, speed, free = record["intensity"], record["average_vehicle_speed"], record["free_flow_speed"]
        for aggregate in self.feed.aggregates:
            size = int(aggregate.window.total_seconds() * 1000)
            group, start = record[aggregate.by[0]], event_ms - event_ms % size
            part = self.windows[aggregate.name].get((group, start))
            if part is None:
                part = self.windows[aggregate.name][group, start] = {
                    aggregate.by[0]: group, "window_start": start, "source_partition": partition, "since": 0,
                    "version": 0, "watermark": None, "events": 0, "vehicles_sum": 0, "speed_over": 0, "speed_under": 0,
                    "delay_index_over": 0, "delay_index_under": 0,
                }  # fmt: skip
            self.changed[aggregate.name].add((group, start))
            part["version"] = 2 * offset
            part["events"] += 1
            part["vehicles_sum"] += vehicles
            if speed is not None:
                part["speed_over"] += int(speed * vehicles * 100 + 0.5)
                part["speed_under"] += vehicles * 100
                if free is not None:
                    part["delay_index_over"] += int(free * vehicles * 100 + 0.5)
                    part["delay_index_under"] += int(speed * vehicles * 100 + 0.5)

    async def flush(self) -> None:
        """Publish the windows that changed."""
        for name, keys in self.changed.items():
            frozen = self.city.catalogue.latest(name)
            for group, start in keys:
                value = encode(frozen, self.windows[name][group, start])
                await self.app.producer.send(name, group.encode(), value, None, None, None)
            keys.clear()
        await self.app.producer.flush()


def main(events: int) -> None:
    """Work until so many events are aggregated and sent, then report and end."""
    city = Installation.load()
    app = faust.App(
        "plain",
        broker=f"kafka://{city.bootstrap}",
        store="memory://",
        web_enabled=False,
        topic_disable_leader=True,
        consumer_auto_offset_reset="earliest",
        producer_acks=-1,
    )
    app.agent(app.topic(FEED, key_serializer="raw", value_serializer="raw"))(Agent(city, app, events).work)

    async def serve() -> None:
        await app.start()
        await asyncio.Event().wait()

    asyncio.get_event_loop().run_until_complete(serve())


if __name__ == "__main__":
    main(int(sys.argv[1]))

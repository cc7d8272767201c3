"""The same work in a plain Faust agent, an event at a time: decode, validate, drop repeats, aggregate, publish.

Usage: python -m bench.plain_faust EVENTS     so many traffic events from the begin of the log on, then its timing
       python -m bench.plain_faust live       all feeds, what comes from now on, until a signal ends it
"""

from __future__ import annotations

import asyncio
import json
import math
import operator
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import Any

import faust

from bench.process import FEED, PLAIN, Timing
from citystream.installation import Installation
from schemas.catalogue import FrozenSchema
from schemas.expressions import LARGEST, Binary, Column, Constant, Expression, Present, Scaled, When
from schemas.feed import Aggregate, Feed, milliseconds
from schemas.measures import NO_BUCKET, Partial
from schemas.record_codec import NotDecodable, decode, encode
from schemas.verdict import instant_ms, problems

FLUSH_SECONDS = 1.0

Values = Mapping[str, Any]
Value = Callable[[Values], Any]

_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": lambda over, under: over / under if under else None,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
}


def value_of(expression: Expression, kinds: Mapping[str, str]) -> Value:
    """An expression as a function of a decoded record, as one would write it by hand."""
    match expression:
        case Column(name):
            return (lambda r: _ms(r[name])) if kinds[name] == "instant" else operator.itemgetter(name)
        case Constant(value):
            return lambda _: value
        case Binary("and", left, right):
            return _both(value_of(left, kinds), value_of(right, kinds))
        case Binary(symbol, left, right):
            return _joined(_OPERATORS[symbol], value_of(left, kinds), value_of(right, kinds))
        case When(condition, then):
            holds, taken = value_of(condition, kinds), value_of(then, kinds)
            return lambda r: taken(r) if holds(r) else None
        case Present(operand):
            found = value_of(operand, kinds)
            return lambda r: found(r) is not None
        case Scaled(operand, scale):
            return _scaled(value_of(operand, kinds), scale)
    raise TypeError(f"not an expression: {expression!r}")


def _ms(instant: Any) -> int | None:
    return None if instant is None else instant_ms(instant)


def _joined(join: Callable[[Any, Any], Any], left: Value, right: Value) -> Value:
    def joined(r: Values) -> Any:
        a, b = left(r), right(r)
        return None if a is None or b is None else join(a, b)

    return joined


def _both(left: Value, right: Value) -> Value:
    def both(r: Values) -> bool | None:
        a, b = left(r), right(r)
        return False if a is False or b is False else None if a is None or b is None else True

    return both


def _scaled(operand: Value, scale: int) -> Value:
    def scaled(r: Values) -> int | None:
        value = operand(r)
        steps = None if value is None else math.floor(value * scale + 0.5)
        return None if steps is None or abs(steps) > LARGEST else steps

    return scaled


def _bucket(value: int) -> int:
    if value <= 0:
        return NO_BUCKET
    mantissa, exponent = math.frexp(value)
    return 64 * (exponent - 1) + int((2 * mantissa - 1) * 64)


class Windows:
    """The windows of one aggregate."""

    def __init__(self, feed: Feed, aggregate: Aggregate, frozen: FrozenSchema) -> None:
        kinds = {field.name: field.kind for field in feed.fields}
        partials: list[Partial] = [p for measure in aggregate.measures for p in measure.partials]
        self.topic = aggregate.topic
        self._by, self._size, self._frozen = aggregate.by, milliseconds(aggregate.window), frozen
        self._partials = [(p.name, p.merge, value_of(p.value, kinds)) for p in partials]
        self._open: dict[tuple[Any, ...], dict[str, Any]] = {}
        self._changed: set[tuple[Any, ...]] = set()

    def add(self, record: Values, event_ms: int, partition: int, offset: int) -> None:
        """Count an event into its window."""
        start = event_ms - event_ms % self._size
        window = (*(record[name] for name in self._by), start, partition)
        part = self._open.get(window)
        if part is None:
            part = self._open[window] = self._new(record, start, partition)
        self._changed.add(window)
        part["version"] = 2 * offset
        part["events"] += 1
        for name, merge, value in self._partials:
            number = value(record)
            if number is None:
                continue
            if merge == "sum":
                part[name] += number
            elif merge == "histogram":
                counts, bucket = part[name], _bucket(number)
                counts[bucket] = counts.get(bucket, 0) + 1
            elif part[name] is None:
                part[name] = number
            else:
                part[name] = min(part[name], number) if merge == "min" else max(part[name], number)

    def _new(self, record: Values, start: int, partition: int) -> dict[str, Any]:
        part = {name: record[name] for name in self._by}
        part |= {"window_start": start, "source_partition": partition, "since": 0, "version": 0, "watermark": None}
        part["events"] = 0
        for name, merge, _ in self._partials:
            part[name] = {} if merge == "histogram" else 0 if merge == "sum" else None
        return part

    def changed(self) -> Iterable[tuple[bytes, bytes]]:
        """Key and value of each window that changed since it was asked last."""
        for window in self._changed:
            part = self._open[window]
            lists = {
                f"{name}_{which}": list(of(part[name]))
                for name, merge, _ in self._partials
                if merge == "histogram"
                for which, of in (("buckets", dict.keys), ("counts", dict.values))
            }
            yield str(window[0]).encode(), encode(self._frozen, {**part, **lists})
        self._changed.clear()


class Agent:
    """State and work of the agent of one feed; after so many ``events``, if given, it reports and ends the process."""

    def __init__(self, city: Installation, app: faust.App, feed: Feed, events: int | None = None) -> None:
        self.city, self.app, self.events, self.feed = city, app, events, feed
        self.windows = [Windows(feed, a, city.catalogue.latest(a.topic)) for a in feed.aggregates]
        self.seen: set[tuple[str, Any, str]] = set()

    async def work(self, stream: Any) -> None:
        """Take events one at a time; at the first error end the process."""
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
        try:
            record = decode(self.city.catalogue, event.value)
        except NotDecodable:
            return
        if problems(self.feed, record, event.key, int(event.message.timestamp * 1000)):
            return
        identity = (record[self.feed.key], record[self.feed.event_time], record["event_id"])
        if identity not in self.seen:
            self.seen.add(identity)
            event_ms = instant_ms(record[self.feed.event_time])
            for windows in self.windows:
                windows.add(record, event_ms, event.message.partition, event.message.offset)

    async def flush(self) -> None:
        """Publish the windows that changed."""
        for windows in self.windows:
            for key, value in windows.changed():
                await self.app.producer.send(windows.topic, key, value, None, None, None)
        await self.app.producer.flush()


def main(events: int | None) -> None:
    """Work until so many traffic events are aggregated and sent, then report and end; or live on all feeds."""
    city = Installation.load()
    app = faust.App(
        PLAIN,
        **city.cluster.faust(),
        store="memory://",
        web_enabled=False,
        topic_disable_leader=True,
        consumer_auto_offset_reset="latest" if events is None else "earliest",
        producer_acks=-1,
    )
    for feed in [city.feeds[FEED]] if events else city.feeds.values():
        topic = app.topic(feed.name, key_serializer="raw", value_serializer="raw")
        app.agent(topic, name=f"{PLAIN}.{feed.name}")(Agent(city, app, feed, events).work)

    async def serve() -> None:
        await app.start()
        await asyncio.Event().wait()

    asyncio.get_event_loop().run_until_complete(serve())


if __name__ == "__main__":
    main(None if sys.argv[1] == "live" else int(sys.argv[1]))

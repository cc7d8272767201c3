"""Measurements of a running installation, and how they look on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from citystream.installation import Installation
from operations.printable import printable
from processors import GROUP as PROCESSOR
from sinks import GROUP as SINK
from sinks.queries import newest_arrival_ms, newest_windows, quarantined
from streams.lag import LagMeter, TopicLag, by_topic

NEWEST_WINDOWS = 2
#: Columns of the live view that a narrow terminal cuts off.
CUT = ("group", "measures")


@dataclass(frozen=True)
class FeedLine:
    """One feed now. Ages are in seconds; None where nothing was stored yet, or where Kafka does not say it.

    ``silent`` is longer than is normal.
    """

    name: str
    published: int | None
    per_second: float
    processor: TopicLag
    sink: TopicLag
    freshness: float | None
    silent: bool
    quarantined: int


@dataclass(frozen=True)
class WindowLine:
    """A window of an aggregate as its view shows it."""

    aggregate: str
    values: dict[str, Any]


@dataclass(frozen=True)
class Snapshot:
    """Everything the live view shows at one moment."""

    at_ms: int
    feeds: Sequence[FeedLine]
    windows: Sequence[WindowLine]


class Monitor:
    """Takes snapshots; rates are over the time since the snapshot before."""

    def __init__(self, city: Installation) -> None:
        self._city = city
        self._meter = LagMeter(city.cluster)
        self._clickhouse = city.server("operator").connect()
        self._before: Snapshot | None = None

    def take(self, now_ms: int) -> Snapshot:
        """Measure everything now."""
        names = self._city.feed_topics
        processor = self._meter.look(PROCESSOR, names).by_feed()
        sink = self._meter.look(SINK, names, waiting=False).by_feed()
        ends = {
            name: None
            if any(one.topic == name for one in sink.unobserved)
            else sum(p.end for p in sink.partitions if p.topic == name)
            for name in self._city.feeds
        }
        behind = {
            group: {lag.topic: lag for lag in by_topic(found, now_ms)}
            for group, found in ((PROCESSOR, processor), (SINK, sink))
        }
        bad = quarantined(self._clickhouse)
        newest = {name: newest_arrival_ms(self._clickhouse, feed) for name, feed in self._city.feeds.items()}
        feeds = [
            FeedLine(
                name,
                ends[name],
                self._rate(name, ends[name], now_ms),
                behind[PROCESSOR][name],
                behind[SINK][name],
                _age(newest[name], now_ms),
                feed.is_silent(newest[name], now_ms),
                bad.get(name, 0),
            )
            for name, feed in self._city.feeds.items()
        ]
        windows = [
            WindowLine(aggregate.name, values)
            for feed in self._city.feeds.values()
            for aggregate in feed.aggregates[-1:]
            for values in newest_windows(self._clickhouse, aggregate, NEWEST_WINDOWS)
        ]
        self._before = Snapshot(now_ms, feeds, windows)
        return self._before

    def _rate(self, name: str, end: int | None, now_ms: int) -> float:
        if self._before is None or now_ms <= self._before.at_ms:
            return 0.0
        before = next(feed.published for feed in self._before.feeds if feed.name == name)
        return 0.0 if end is None or before is None else (end - before) * 1000 / (now_ms - self._before.at_ms)

    def close(self) -> None:
        """Close the connections."""
        self._meter.close()
        self._clickhouse.disconnect()


def _age(then_ms: int | None, now_ms: int) -> float | None:
    """Seconds since a moment; what was stored after the look at the clock is of no age."""
    return None if then_ms is None else max(0, now_ms - then_ms) / 1000


def render(snapshot: Snapshot, note: str) -> RenderableType:
    """The live view."""
    feeds = Table(title="Feeds", title_justify="left", box=box.SIMPLE_HEAD, padding=0)
    feeds.add_column("feed")
    for title in ("records/s", "published", "lag", "lag s", "sink lag", "age s", "quarantined"):
        feeds.add_column(title, justify="right")
    for feed in snapshot.feeds:
        feeds.add_row(
            feed.name,
            f"{feed.per_second:,.0f}",
            _number(feed.published),
            _number(feed.processor.records),
            _number(feed.processor.seconds),
            _number(feed.sink.records),
            _number(feed.freshness) + (" silent" if feed.silent else ""),
            _number(feed.quarantined),
        )
    windows = Table(title="Newest windows in city", title_justify="left", box=box.SIMPLE_HEAD)
    for title in ("view", "window", "group", "events", "final", "measures"):
        windows.add_column(title, no_wrap=title not in CUT)
    for line in snapshot.windows:
        windows.add_row(*_window_cells(line))
    return Group(feeds, windows, Text(note))


def _window_cells(line: WindowLine) -> list[RenderableType]:
    values = dict(line.values)
    start, final, events = values.pop("window_start"), values.pop("final"), values.pop("events")
    values.pop("as_of")
    group = " ".join(value for value in values.values() if isinstance(value, str))
    measures = "  ".join(f"{name} {_short(value)}" for name, value in values.items() if isinstance(value, float))
    return [
        f"city.{line.aggregate}",
        f"{start:%H:%M}",
        _cut(group),
        f"{events:,}",
        "yes" if final else "open",
        _cut(measures),
    ]


def _cut(text: str) -> Text:
    return Text(printable(text), no_wrap=True, overflow="ellipsis")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}" if isinstance(value, float) else f"{value:,}"


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"

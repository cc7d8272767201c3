"""Running simulators: several feeds in order of event time, at any pace, never ahead of the clock."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from queue import Empty, SimpleQueue
from random import Random
from typing import Protocol

from schemas.feed import Feed
from simulation import Simulator, simulator
from simulation.faults import Fault, Sending, corrupted, plan
from simulation.world import World, whole_ms
from streams.publisher import Publisher


class Clock(Protocol):
    """Where time comes from."""

    def now(self) -> datetime:
        """The time, with a zone."""

    def sleep(self, seconds: float) -> None:
        """Wait so long, or less when there is a reason to look again."""


class SystemClock:
    """The machine's clock; ``stop`` ends every sleep, and may be called by a signal's handler in the middle of one."""

    def __init__(self) -> None:
        self.stopped = False
        self._wake: SimpleQueue[None] = SimpleQueue()  # an Event's lock may be held by what the handler interrupts

    def now(self) -> datetime:
        """The time in UTC."""
        return datetime.now(UTC)

    def sleep(self, seconds: float) -> None:
        """Wait so long, or until ``stop``."""
        if not self.stopped:
            with suppress(Empty):
                self._wake.get(timeout=seconds)

    def stop(self) -> None:
        """End the sleep that is, and all that follow."""
        self.stopped = True
        self._wake.put(None)


@dataclass
class Tally:
    """What was done so far with one feed."""

    publisher: Publisher
    harm: Random
    sent: int = 0
    faults: Counter[Fault] = field(default_factory=Counter)


@dataclass(frozen=True)
class Report:
    """What was done with one feed. ``faults`` counts those injected; SILENT ones are events that were not sent."""

    feed: str
    sent: int
    acknowledged: int
    failed: int
    faults: dict[Fault, int]


class Simulation:
    """One run of some feeds.

    ``rate`` is how many times faster than reality it goes, None for as fast as can be. The same ``world`` gives the
    same events. An event is sent when its time has come on the clock, never before: a start in the past publishes
    history until it has caught up, and goes on at the pace of the clock.
    """

    def __init__(
        self,
        feeds: Iterable[Feed],
        publishers: Mapping[str, Publisher],
        *,
        world: World,
        rate: float | None,
        faults: Mapping[Fault, float],
        clock: Clock,
        simulator: Callable[[Feed], Simulator] = simulator,
    ) -> None:
        self._world = replace(world, start=whole_ms(world.start))
        self._rate = rate
        self._faults = faults
        self._clock = clock
        self._simulator = simulator
        self._feeds = list(feeds)
        self._tallies = {
            feed.name: Tally(publishers[feed.name], self._world.random(f"{feed.name}/harm")) for feed in self._feeds
        }

    def run(self, events: int | None = None, stopped: Callable[[], bool] = lambda: False) -> None:
        """Send until so many events are sent or ``stopped``; returns when all are acknowledged or have failed."""
        left = events
        begun = self._clock.now()
        streams = [self._sendings(feed) for feed in self._feeds]
        for sending, tally in heapq.merge(*streams, key=lambda one: one[0].due):
            if left == 0 or not self._wait(self._moment(sending.due, begun), stopped):
                break
            if _send(sending, tally) and left is not None:
                left -= 1
        for tally in self._tallies.values():
            tally.publisher.flush()

    def report(self) -> list[Report]:
        """What was done so far, by feed."""
        return [
            Report(name, t.sent, t.publisher.acknowledged, t.publisher.failed, dict(t.faults))
            for name, t in self._tallies.items()
        ]

    def _sendings(self, feed: Feed) -> Iterator[tuple[Sending, Tally]]:
        records, tally = self._simulator(feed)(self._world), self._tallies[feed.name]
        for sending in plan(feed, records, self._faults, self._world.random(f"{feed.name}/faults"), self._clock.now):
            yield sending, tally

    def _moment(self, due: datetime, begun: datetime) -> datetime:
        """When something is sent that is due in the simulation."""
        if self._rate is None:
            return due
        return max(due, begun + (due - self._world.start) / self._rate)

    def _wait(self, moment: datetime, stopped: Callable[[], bool]) -> bool:
        """Wait for a moment; false if the run was stopped."""
        while not stopped():
            pause = (moment - self._clock.now()) / timedelta(seconds=1)
            if pause <= 0:
                return True
            self._clock.sleep(pause)
        return False


def _send(sending: Sending, tally: Tally) -> bool:
    """Send one record as its fault wants it; false if it is withheld."""
    if sending.fault is not None:
        tally.faults[sending.fault] += 1
    if sending.fault is Fault.SILENT:
        return False
    key, value = tally.publisher.encode(sending.record)
    tally.publisher.send(key, corrupted(value, tally.harm) if sending.fault is Fault.CORRUPT else value)
    tally.sent += 1
    return True

"""The campaign: events of all feeds and a clock, a fault a round, and at the end the comparison with the reference.

A fault begins when records come in, and every third one before the city has caught up with the one before.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from time import monotonic, sleep

from streams.lag import LagMeter
from tests.campaign.arena import Arena, Offsets, Stuck, arena
from tests.campaign.faults import Fault, NotStaged
from tests.reference.compare import Difference
from tests.reference.finished import Finished, watched
from tests.reference.whole import KINDS, Comparison, compare

#: Shares of what is wrong with the events themselves, mixed into all of them.
DIRT = "duplicates=0.03,disorder=0.05,late=0.01,skew=0.005,corrupt=0.01"
START = datetime(2024, 5, 6, 7, tzinfo=UTC)
STEP = timedelta(minutes=4)
#: Every so many rounds publish history, and every so many what an earlier one published.
HISTORY_EVERY, AGAIN_EVERY = 5, 9
RECOVER_SECONDS = 300.0
#: Every so many faults the city is not given the time to catch up before the next one.
PILED_EVERY = 3
#: Records of a round before its fault: any number up to this share of them.
BEFORE_FAULT = 0.3
#: Of so many final windows one is watched.
WATCHED = 16
#: How often a fault is tried that did not come about, and how long a round may take.
TRIES, ROUND_SECONDS = 3, 900.0

Say = Callable[[str], None]


@dataclass
class Round:
    """A fault, the offsets published around it, when its publishing was over, and how long from then until the city had
    caught up (s; if ``piled``, the next fault lies in between); the memory of the largest worker until then, or until
    ``over`` if ``piled``, once a second (MiB)."""

    fault: str
    before: Offsets
    after: Offsets = field(default_factory=dict)
    over: float = 0.0
    piled: bool = False
    recovered: float | None = None
    memory: list[int] = field(default_factory=list)

    @property
    def events(self) -> int:
        """Records published."""
        return sum(self.after.values()) - sum(self.before.values())

    def holds(self, difference: Difference) -> bool:
        """Whether what differs was published in this round."""
        if difference.place is None:
            return False
        number, offset = difference.place
        place = difference.feed, number
        return self.before.get(place, 0) <= offset < self.after.get(place, 0)


@dataclass
class Line:
    """One line of the table at the end."""

    fault: str
    times: int
    events: int
    lost: int
    doubled: int
    wrong: int
    recover: float | None
    recover_most: float | None
    peak: int


@dataclass
class Outcome:
    """What came of a campaign: what differs, what was seen of the windows that were final, and who ended by itself."""

    seed: int
    rounds: list[Round]
    comparison: Comparison
    finished: Finished
    ended: list[str]
    kills: int

    @property
    def holds(self) -> bool:
        """Whether nothing differs, nothing became worse, and no worker ended by itself."""
        return not (self.comparison.differences or self.finished.worse or self.ended)

    @property
    def events(self) -> int:
        """Records published."""
        return sum(one.events for one in self.rounds)

    @property
    def absent(self) -> list[str]:
        """What a campaign needs and had not: records of each kind, and windows that were final at a look."""
        kinds = self.comparison.kinds
        needed = {**{f"a {kind} record": kinds[kind] for kind in KINDS}, "a final window": self.finished.windows}
        needed["a tick"] = self.comparison.control
        return [name for name, times in needed.items() if not times]

    def table(self) -> list[Line]:
        """A line a fault."""
        lines, differences = [], self.comparison.differences
        for fault in dict.fromkeys(one.fault for one in self.rounds):
            rounds = [one for one in self.rounds if one.fault == fault]
            lines.append(_line(fault, rounds, [d for d in differences if any(one.holds(d) for one in rounds)]))
        if elsewhere := [d for d in differences if not any(one.holds(d) for one in self.rounds)]:
            lines.append(_line("in no single round", [], elsewhere))
        return lines


def _line(name: str, rounds: Sequence[Round], found: Sequence[Difference]) -> Line:
    alone = [one for one in rounds if not one.piled]
    times = [one.recovered for one in alone or rounds if one.recovered is not None]
    return Line(
        name,
        len(rounds),
        sum(one.events for one in rounds),
        sum(one.events for one in found if one.kind == "lost"),
        sum(one.events for one in found if one.kind == "doubled"),
        sum(one.kind == "wrong" for one in found),
        statistics.median(times) if times else None,
        max(times, default=None),
        max((mib for one in rounds for mib in one.memory), default=0),
    )


def run(
    home: Path, seed: int, faults: Sequence[tuple[str, Fault]], events: int, say: Say, broken: str | None = None
) -> Outcome:
    """Run a campaign: each fault in this order, while events are published, so many or as long as it takes.

    With ``broken``, the workers work by rules broken on purpose.

    Raises
    ------
    Stuck
        A fault was not staged, or the city does not get on.
    """
    random = Random(seed)
    rounds: list[Round] = []
    with arena(home) as city:
        city.broken = broken
        for name in ("processor-1", "sink-1"):
            city.start(name)
        aggregates = [aggregate for feed in city.installation.feeds.values() for aggregate in feed.aggregates]
        with watched(city.installation.server("operator"), aggregates, WATCHED) as seen, _last_words(city, say):
            for number, (name, fault) in enumerate(faults):
                rounds.append(_round(city, random, number, name, fault, events, say))
                if not rounds[-1].piled:
                    _recover(city, rounds, rounds[-1].after, say)
            city.kill_clock()
            say("all faults are over; waiting until all is stored")
            _recover(city, rounds, {}, say)
        found = compare(city.installation, city.feeds, say)
        return Outcome(seed, rounds, found, seen, city.ended, city.kills)


@contextmanager
def _last_words(city: Arena, say: Say) -> Iterator[None]:
    """Say what the workers said last if the campaign cannot go on: their logs go with the city."""
    try:
        yield
    except Stuck:
        for words in city.last_words():
            say(f"      the last words of {words}")
        raise


def _round(city: Arena, random: Random, number: int, name: str, fault: Fault, events: int, say: Say) -> Round:
    one = Round(name, city.ends(*city.feeds))
    start, seed = START + number * STEP, random.randrange(2**32)
    if number % AGAIN_EVERY == AGAIN_EVERY - 1:
        start, seed = city.published[random.randrange(len(city.published))]
    elif number % HISTORY_EVERY == HISTORY_EVERY - 1:
        start -= random.random() * timedelta(hours=6)
    city.published.append((start, seed))
    city.start_clock(start)
    city.publish_all(seed, start, DIRT)
    until = monotonic() + ROUND_SECONDS
    _publish(city, one.before, random.randint(1, int(events * BEFORE_FAULT)), until)
    say(f"{number + 1:>4}  {name}")
    done = _stage(city, random, fault, say)
    _publish(city, one.before, events, until)
    city.end_publishing()
    one.after, one.over = city.ends(*city.feeds), monotonic()
    one.piled = number % PILED_EVERY == PILED_EVERY - 1
    one.memory = city.memory()
    say(f"      {done}; {one.events:,} events" + ", not waited for" * one.piled)
    return one


def _stage(city: Arena, random: Random, fault: Fault, say: Say) -> str:
    for _ in range(TRIES - 1):
        try:
            return fault(city, random)
        except NotStaged as reason:
            say(f"      {reason}, once more")
            city.tend_publisher()
    return fault(city, random)


def _publish(city: Arena, before: Offsets, events: int, until: float) -> None:
    """Wait until so many records are there beyond these ends."""
    while city.published_since(before) < events:
        city.tend_publisher()
        city.tend()
        if monotonic() > until:
            raise Stuck(f"the publisher does not get on: {city.process('publisher').last_words()}")
        sleep(0.1)


def _recover(city: Arena, rounds: Sequence[Round], ends: Offsets, say: Say) -> None:
    """Wait until both workers have taken everything before these ends, or everything; note how long it took."""
    until = monotonic() + RECOVER_SECONDS
    with LagMeter(city.installation.cluster) as meter:
        while city.behind(meter, ends):
            city.tend()
            if monotonic() > until:
                raise Stuck("the city does not catch up")
            sleep(0.2)
    rounds[-1].memory += city.memory()
    for one in rounds:
        if one.recovered is None:
            one.recovered = monotonic() - one.over
            say(f"      caught up {one.recovered:.1f} s after {one.fault}")

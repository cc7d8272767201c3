"""Stages faults, looks at the other feeds meanwhile, mends, and holds everything to the reference."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tests.city import WORKERS
from tests.isolation.district import District, Freshness
from tests.isolation.faults import Fault
from tests.isolation.made import FEEDS, OTHERS
from tests.reference.whole import compare

#: How long status and lag may take to say what has to be said of all faults, on a machine that others keep busy (s).
PATIENCE = 180


@dataclass(frozen=True)
class Round:
    """What was seen of the other feeds while some faults ``lasted`` (s): how fresh they were, their largest lag (s),
    and what status and lag said of them, which has to be nothing. ``said`` are the lines about each fault.
    """

    before: Freshness
    during: Freshness
    lag: float
    disturbed: Sequence[str]
    said: Mapping[str, Sequence[str]]
    lasted: float

    @property
    def hurt(self) -> bool:
        """Whether something was said of another feed, or half of its records took more than twice as long."""
        return bool(self.disturbed) or self.during.median > self.before.twice.median

    @property
    def slowed(self) -> bool:
        """Whether any of their records took more than twice as long, which programs beside may do, too."""
        return max(self.lag, self.during.longest) > self.before.twice.longest


def usual(city: District, records: int) -> Freshness:
    """How fresh the other feeds are before something is done to one; so many records are followed.

    Both commands are asked meanwhile as they are later, as they take a part of the machine.
    """
    city.wait(lambda: city.probe.is_seen)
    since = time.monotonic()

    def were_followed() -> bool:
        city.lag()
        city.status()
        return len(city.probe.ages(since)) >= records

    city.wait(were_followed)
    return freshness(city, since)


def freshness(city: District, since: float) -> Freshness:
    """That of all records sent from a moment until now, once they are shown."""
    until = time.monotonic()
    city.wait(lambda: city.probe.is_shown_up_to(until))
    return city.probe.freshness(since, until)


def stage(city: District, faults: Sequence[Fault], before: Freshness, seconds: float) -> Round:
    """Do this to feeds, side by side, for so long, and until both commands have said all they have to."""
    since = time.monotonic()
    for fault in faults:
        fault.stage(city)
    said: dict[str, list[str]] = {fault.name: [] for fault in faults}
    disturbed, lag = list[str](), 0.0
    while (lasted := time.monotonic() - since) < seconds or (left := unsaid(faults, said)):
        assert lasted < seconds + PATIENCE, f"not said: {left}; but: {said}"
        rows = city.lag()
        lines = [f"status: {line}" for line in city.status()]
        lines += [f"lag: {row['worker']}: {row['topic']} {row['problem']}" for row in rows if row["problem"]]
        disturbed += [line for line in lines if any(f": {name}" in line for name in OTHERS)]
        lag = max([lag, *(row["lag_seconds"] for row in rows if row["topic"].startswith(OTHERS))])
        for fault in faults:
            said[fault.name] += [line for line in lines if is_about(fault, line) and line not in said[fault.name]]
    return Round(before, freshness(city, since), lag, disturbed, said, lasted)


def is_about(fault: Fault, line: str) -> bool:
    """Whether a line is about a fault's feed, or about what its publisher wrote elsewhere."""
    return any(f": {name}" in line for name in (fault.feed, *fault.letters))


def unsaid(faults: Sequence[Fault], said: Mapping[str, Sequence[str]]) -> list[str]:
    """What has to be said of faults and is not yet."""
    return [
        f"{start} ... {words}"
        for fault in faults
        for start, words in wanted(fault)
        if not any(line.startswith(start) and all(word in line for word in words) for line in said[fault.name])
    ]


def wanted(fault: Fault) -> Iterator[tuple[str, tuple[str, ...]]]:
    """How lines begin that have to come of a fault, and which words they have."""
    for worker, words in fault.says.items():
        for command in ("status", "lag"):
            yield f"{command}: {worker}: {fault.feed}", words
    for topic, words in fault.letters.items():
        yield f"status: {topic}: ", words


def mend(city: District, faults: Sequence[Fault]) -> None:
    """What goes on by itself first, then what needs workers started again; each feed catches up."""
    city.calm()
    for part in ([f for f in faults if not f.restarts], [f for f in faults if f.restarts]):
        workers = {name for fault in part for name in fault.restarts}
        for name in workers:
            city.process(name).stop()
        for fault in part:
            fault.mend(city)
        for name in workers:
            city.options[name] = [word for fault in part for word in fault.restarts.get(name, [])]
            city.start(name, city.code)
        catch_up(city, [fault.feed for fault in part])


def catch_up(city: District, feeds: Sequence[str]) -> None:
    """Wait until all is processed and stored that came of these feeds up to now."""
    ends = city.ends(*feeds)

    def caught_up() -> bool:
        commits = {name: city.commits(name) for name in WORKERS}
        return all(tp in commit and commit[tp].offset >= end for commit in commits.values() for tp, end in ends.items())

    city.wait(caught_up)


def differences(city: District, faults: Sequence[Fault]) -> list[str]:
    """What is not as the reference computes it, but for what has to be so after these faults, and is."""
    found = compare(city.installation, [*FEEDS]).differences
    explained = {fault.name: [one for one in found if fault.explains(one)] for fault in faults if fault.explains}
    left = [str(one) for one in found if not any(one in some for some in explained.values())]
    return left + [f"nothing differs after: {name}" for name, some in explained.items() if not some]

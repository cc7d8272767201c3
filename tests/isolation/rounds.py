"""Stages faults, looks at the other feeds meanwhile, mends, and holds everything to the reference."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tests.city import WORKERS
from tests.isolation.district import District, Freshness
from tests.isolation.faults import Fault
from tests.isolation.made import FEEDS, OTHERS
from tests.reference.city import Schemas
from tests.reference.whole import compare

#: How long status and lag may take to say what has to be said of all faults (s).
PATIENCE = 60


@dataclass
class Round:
    """What was seen while some faults lasted; ``said`` are the lines of status and lag, by fault."""

    faults: Sequence[str]
    before: Freshness
    during: Freshness
    said: Mapping[str, list[str]] = field(default_factory=dict)
    disturbed: list[str] = field(default_factory=list)


def usual(city: District, records: int) -> Freshness:
    """How fresh the other feeds are while nothing is done to any; so many records are followed."""
    city.wait(lambda: city.probe.is_seen)
    since = time.monotonic()
    city.wait(lambda: len(city.probe.ages(since)) >= records)
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
    disturbed: list[str] = []
    while (lasted := time.monotonic() - since) < seconds or (left := unsaid(faults, said)):
        assert lasted < seconds + PATIENCE, f"not said: {left}; but: {said}"
        lines, of_others = look(city)
        disturbed += of_others
        for fault in faults:
            said[fault.name] += [line for line in lines if is_about(fault, line) and line not in said[fault.name]]
    return Round([fault.name for fault in faults], before, freshness(city, since), said, disturbed)


def look(city: District) -> tuple[list[str], list[str]]:
    """What both commands say, and what of it is about the feeds that nothing is done to."""
    lines = [f"status: {line}" for line in city.status()]
    lines += [f"lag: {r['worker']}: {r['topic']} {r['problem']}" for r in city.lag() if r["problem"]]
    return lines, [line for line in lines if any(f": {name}" in line for name in OTHERS)]


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
    stopping = [fault for fault in faults if fault.restarts]
    for fault in faults:
        if not fault.restarts:
            fault.mend(city)
    catch_up(city, [fault.feed for fault in faults if not fault.restarts])
    workers = {name for fault in stopping for name in fault.restarts}
    for name in workers:
        city.process(name).stop()
    for fault in stopping:
        fault.mend(city)
    for name in workers:
        city.options[name] = [word for fault in stopping for word in fault.restarts.get(name, [])]
        city.start(name)
    catch_up(city, [fault.feed for fault in stopping])


def catch_up(city: District, feeds: Sequence[str]) -> None:
    """Wait until all is processed and stored that came of these feeds up to now."""
    ends = city.ends(*feeds)

    def caught_up() -> bool:
        commits = {name: city.commits(name) for name in WORKERS}
        return all(tp in commit and commit[tp].offset >= end for commit in commits.values() for tp, end in ends.items())

    city.wait(caught_up)


def differences(city: District, faults: Sequence[Fault]) -> list[str]:
    """What is not as the reference computes it, but for what has to be so after these faults."""
    schemas = Schemas((city.version or city.settings.home) / "schemas" / "frozen")
    found = compare(city.installation, [*FEEDS], schemas=schemas).differences
    return [str(one) for one in found if not any(fault.explains(one) for fault in faults)]

"""A city in which incidents are staged, its processor killed meanwhile; then all alerts once more, from the log.

Rules about cases are not scored: what they say follows from other alerts, and from people, of whom there are none here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from kafka import TopicPartition

from citystream.secrets import pseudonym_key
from citystream.settings import PROJECT
from operations.rules import DeclaredRule, declared
from schemas.alerts import FEED_NAME, Kind
from schemas.pseudonyms import pseudonym
from schemas.record_codec import decode
from simulation.faults import Fault
from streams.clients import new_consumer
from tests.city import City, servers
from tests.truth.publish import FAULTS, START
from tests.truth.scoring import Harm, Raised, Score, Staged, decided, score

TRUTH = "truth"
#: What is decided so shortly before the end of a feed may not be said yet.
UNDECIDED = timedelta(minutes=5)
#: Alerts of a rule that are shown where something is wrong.
SHOWN = 20


@dataclass
class Outcome:
    """What was staged and found; ``differ`` are messages that were said in two ways, or once only in a replay."""

    scores: list[Score]
    staged: Counter[str]
    records: int
    messages: int
    differ: list[str]
    wrong: list[str] = field(default_factory=list)
    faults: Mapping[Fault, float] = field(default_factory=lambda: FAULTS)


def run(home: Path, hours: Mapping[str, float], seed: int, say: Callable[[str], None]) -> Outcome:
    """Stage, kill, find, replay and compare."""
    with servers(City(home, PROJECT)) as city:
        city.installation.prepare(lambda _: None)
        for name in ("processor", "sink"):
            city.start(name)
        harms = list(_published(city, {**hours, TRUTH: max(hours.values())}, seed, say))
        city.drain()
        first = _messages(city, {})
        say(f"{len(first):,} messages about alerts; all of them once more")
        before = city.ends(FEED_NAME)
        for name in ("processor", "sink"):
            city.process(name).stop()
        city.forget()
        city.start("processor")
        city.drain("processor")
        again = _messages(city, before)
        differ = sorted(str(one) for one in first.items() ^ again.items())
        feed_of = {name: one.feed.name for name, one in _rules(city).items()}
        ends = {rule: START + timedelta(hours=hours.get(name, 0)) - UNDECIDED for rule, name in feed_of.items()}
        truth = list(_truth(city))
        raised = [one for one in _raised(city, first.values()) if feed_of[one.rule] in hours]
        records = sum(end for place, end in city.ends(*hours).items())
    staged, raised = decided(truth, raised, ends)
    kinds = Counter(f"{one.kind}: {one.rule or 'nothing'}" for one in staged)
    return Outcome(score(staged, raised, harms), kinds, records, len(first), differ, list(_wrong(staged, raised)))


def _published(city: City, hours: Mapping[str, float], seed: int, say: Callable[[str], None]) -> Iterator[Harm]:
    """Publish all feeds at the same time, and kill the processor when the first one is done."""
    folder, running = city.settings.home, dict[str, subprocess.Popen[bytes]]()
    try:
        for name, long in hours.items():
            command = sys.executable, "-P", "-m", "tests.truth.publish", name, str(long), str(seed)
            with (folder / f"{name}.harms").open("wb") as out:
                running[name] = subprocess.Popen(command, env={**os.environ, **city.environment}, stdout=out)
        for name in sorted(hours, key=lambda name: (name == TRUTH, hours[name])):
            assert running[name].wait() == 0, name
            say(f"{name}: {hours[name]:g} h published")
            if name == min(hours, key=lambda name: hours[name]):
                city.kill("processor")
                city.start("processor")
    finally:
        for process in running.values():
            process.kill()
            process.wait()
    for name in hours:
        for line in (folder / f"{name}.harms").read_text().splitlines():
            at_ms, texts = json.loads(line)
            yield from (Harm(text, datetime.fromtimestamp(at_ms / 1000, UTC)) for text in texts)


def _messages(city: City, since: Mapping[TopicPartition, int]) -> dict[str, bytes]:
    """Every message on the topic of alerts from there on, by its id; one that is written twice is the same."""
    found: dict[str, bytes] = {}
    for value in _values(city, FEED_NAME, since):
        known = found.setdefault(decode(city.installation.catalogue, value)["event_id"], value)
        assert known == value, "a message was said in two ways"
    return found


def _values(city: City, topic: str, since: Mapping[TopicPartition, int]) -> Iterator[bytes]:
    ends = {place: end for place, end in city.ends(topic).items() if end > since.get(place, 0)}
    with closing(new_consumer(city.installation.cluster)) as consumer:
        consumer.assign(list(ends))
        for place in ends:
            consumer.seek(place, since.get(place, 0))
        while any(consumer.position(place) < end for place, end in ends.items()):
            for records in consumer.poll(timeout_ms=500).values():
                yield from (record.value for record in records if record.key is not None)


def _rules(city: City) -> dict[str, DeclaredRule]:
    return {one.rule.name: one for one in declared(city.installation.feeds)}


def _truth(city: City) -> Iterator[Staged]:
    """What was staged, with entities as rules know them."""
    rules, installation = _rules(city), city.installation
    for value in _values(city, TRUTH, {}):
        told = decode(installation.catalogue, value)
        entity, rule = told["entity"], told["rule"]
        if rule is not None:
            feed = rules[rule].feed
            if any(feed.field(name).personal for name in rules[rule].of):
                entity = pseudonym(pseudonym_key(installation.settings, feed) or b"", entity)
        yield Staged(told["kind"], rule, entity, told["begins"], told["ends"], told["found_by"])


def _raised(city: City, messages: Iterable[bytes]) -> Iterator[Raised]:
    """Alerts that began."""
    for value in messages:
        told = decode(city.installation.catalogue, value)
        if told["msg_type"] == Kind.ALERT.value:
            yield Raised(told["rule"], told["entity"], told["sent"])


def _wrong(staged: list[Staged], raised: list[Raised]) -> Iterator[str]:
    """For whoever has to find out: what was staged and not found, and what was found and not staged."""
    told = {(one.rule, one.entity) for one in raised}
    known = {(one.rule, one.entity) for one in staged}
    for rule in sorted({one.rule for one in staged if one.rule} | {one.rule for one in raised}):
        missed = [one for one in staged if one.rule == rule and (rule, one.entity) not in told]
        more = [one for one in raised if one.rule == rule and (rule, one.entity) not in known]
        yield from [f"not found: {one}" for one in missed][:SHOWN]
        yield from [f"not staged: {one}" for one in more][:SHOWN]

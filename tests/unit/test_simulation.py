"""Running simulators: pace, order, faults and the account of it, on a clock of the test's own."""

from __future__ import annotations

import sys
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import count, islice, pairwise
from random import Random
from types import FrameType
from typing import Annotated, Any

import pytest
from kafka.errors import KafkaTimeoutError
from kafka.future import Future
from pydantic import Field

import feeds
from schemas.avro import feed_schema
from schemas.catalogue import Catalogue, FrozenSchema
from schemas.department import Department
from schemas.feed import Feed
from schemas.fields import EventId, Instant, Personal, Record, Text
from schemas.record_codec import NotDecodable, decode
from schemas.verdict import instant_ms, problems
from simulation import Simulator
from simulation.faults import (
    OF_DEVICES,
    USUAL,
    Fault,
    FaultsError,
    Sending,
    corrupted,
    corrupted_history,
    parse_faults,
    plan,
)
from simulation.incidents import MOST, IncidentsError, parse_incidents
from simulation.incidents import USUAL as USUAL_INCIDENTS
from simulation.running import Simulation, SystemClock
from simulation.world import Kind, World, event_id
from streams.publisher import Publisher

NOW = datetime(2026, 3, 18, 2, tzinfo=UTC)
HOUR = timedelta(hours=1)
SECRET = "Wensan Road 7"


class Fix(Record):
    event_id: EventId
    device: Annotated[Text, Field(description="Device")]
    at: Annotated[Instant, Field(description="When")]
    address: Annotated[Text, Field(description="Where"), Personal()]


def of_fixes(feed: Feed) -> Simulator:
    """Ten devices in turn, one event a second."""

    def simulate(world: World) -> Iterator[Fix]:
        random = world.random(feed.name)
        for number in count():
            at = world.start + timedelta(seconds=number)
            yield Fix(event_id=event_id(random), device=f"d{number % 10}", at=at, address=SECRET)

    return simulate


def declare(name: str) -> Feed:
    return Feed(
        name=name,
        description="Fixes",
        record=Fix,
        key="device",
        event_time="at",
        department=Department(name="Test", contact="test@city.example", purpose="Tests"),
        batch=1,
        rate=1,
        silence=timedelta(seconds=30),
        disorder=timedelta(seconds=10),
        lateness=timedelta(seconds=20),
    )


FIRST, SECOND = declare("first"), declare("second")
CATALOGUE = Catalogue({n: FrozenSchema(n, f.name, 1, feed_schema(f)) for n, f in enumerate((FIRST, SECOND), 1)})


class FakeClock:
    def __init__(self, now: datetime = NOW) -> None:
        self._now = now
        self.sleeps: list[float] = []

    def now(self) -> datetime:
        return self._now

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self._now += timedelta(seconds=seconds)


class FakeProducer:
    """Acknowledges at once, or fails every record."""

    def __init__(self, clock: FakeClock, *, fail: bool = False) -> None:
        self.sent: list[tuple[str, bytes, bytes]] = []
        self.at: list[datetime] = []
        self._clock = clock
        self._fail = fail

    def send(self, topic: str, key: bytes, value: bytes) -> Any:
        self.sent.append((topic, key, value))
        self.at.append(self._clock.now())
        future = Future()
        return future.failure(KafkaTimeoutError()) if self._fail else future.success(None)

    def flush(self) -> None:
        pass


class Run:
    """A finished simulation."""

    def __init__(
        self,
        *chosen: Feed,
        start: datetime = NOW,
        rate: float | None = 1,
        seed: int = 1,
        faults: str | None = None,
        events: int = 200,
        fail: bool = False,
    ) -> None:
        self.clock = FakeClock()
        self.producer = FakeProducer(self.clock, fail=fail)
        shares = parse_faults(faults) if faults else {}
        publishers = {f.name: Publisher(self.producer, f, CATALOGUE.latest(f.name), b"key") for f in chosen}
        simulation = Simulation(
            chosen, publishers, world=World(start, seed), rate=rate, faults=shares, clock=self.clock, simulator=of_fixes
        )
        simulation.run(events)
        self.report = {report.feed: report for report in simulation.report()}

    @property
    def events(self) -> list[dict[str, Any]]:
        return [decode(CATALOGUE, value) for _, _, value in self.producer.sent]


def planned(shares: str, count: int = 20_000) -> list[Sending]:
    records = of_fixes(FIRST)(World(NOW, 1))
    return list(islice(plan(FIRST, records, parse_faults(shares), Random(2), lambda: NOW), count))


def test_at_the_real_rate_an_event_is_sent_the_moment_it_happens() -> None:
    run = Run(FIRST)
    assert [event["at"] for event in run.events] == run.producer.at


def test_feeds_are_interleaved_by_event_time() -> None:
    run = Run(FIRST, SECOND)
    times = [event["at"] for event in run.events]
    assert times == sorted(times)
    assert Counter(topic for topic, _, _ in run.producer.sent) == {"first": 100, "second": 100}


def test_sixty_times_the_real_rate_is_an_hour_a_minute() -> None:
    run = Run(FIRST, start=NOW - 2 * HOUR, rate=60, events=3601)
    assert run.clock.now() - NOW == timedelta(minutes=1)


def test_half_the_real_rate_takes_twice_as_long() -> None:
    run = Run(FIRST, rate=0.5, events=61)
    assert run.clock.now() - NOW == timedelta(minutes=2)


def test_history_flat_out_takes_no_time() -> None:
    run = Run(FIRST, start=NOW - HOUR, rate=None, events=3600)
    assert run.clock.sleeps == []


@pytest.mark.parametrize("rate", [60, None], ids=["an hour a minute", "flat out"])
def test_what_has_caught_up_goes_on_at_the_real_rate(rate: float | None) -> None:
    run = Run(FIRST, start=NOW - timedelta(minutes=1), rate=rate, events=200)
    assert all(event["at"] <= at for event, at in zip(run.events, run.producer.at, strict=True))
    assert [event["at"] for event in run.events[-100:]] == run.producer.at[-100:]


def test_seed_and_start_decide_what_is_sent() -> None:
    first = Run(FIRST, faults="all").producer.sent
    assert Run(FIRST, faults="all").producer.sent == first
    assert Run(FIRST, faults="all", seed=2).producer.sent != first


def test_another_start_gives_other_event_ids() -> None:
    ids = {event["event_id"] for event in Run(FIRST).events}
    assert ids.isdisjoint(event["event_id"] for event in Run(FIRST, start=NOW - HOUR).events)


def test_no_two_events_have_one_id() -> None:
    events = Run(FIRST, SECOND).events
    assert len({event["event_id"] for event in events}) == len(events)


def test_a_feed_is_the_same_whatever_runs_beside_it() -> None:
    faults = "duplicates=0.1,disorder=0.1,corrupt=0.1,silent=0.1"
    alone = Run(FIRST, faults=faults, events=300).producer.sent
    beside = [sent for sent in Run(FIRST, SECOND, faults=faults, events=300).producer.sent if sent[0] == "first"]
    assert beside == alone[: len(beside)]
    assert len(beside) > 100


def test_it_ends_when_stopped() -> None:
    clock = FakeClock()
    producer = FakeProducer(clock)
    publisher = Publisher(producer, FIRST, CATALOGUE.latest("first"), b"key")
    simulation = Simulation(
        [FIRST], {"first": publisher}, world=World(NOW, 1), rate=1, faults={}, clock=clock, simulator=of_fixes
    )
    simulation.run(stopped=lambda: clock.now() >= NOW + timedelta(seconds=5))
    assert len(producer.sent) == 5


def test_a_stopped_clock_does_not_sleep() -> None:
    clock = SystemClock()
    clock.stop()
    clock.sleep(3600)
    assert clock.stopped


def test_a_stop_ends_a_sleep() -> None:
    clock = SystemClock()
    waker = threading.Timer(0.05, clock.stop)
    waker.start()
    clock.sleep(3600)
    waker.join()
    assert clock.stopped


def test_a_clock_can_be_stopped_between_any_two_lines_of_its_sleep() -> None:
    """As by the handler of a signal, which interrupts the thread: a lock held there is never let go."""

    def sleep(clock: SystemClock, line: int) -> None:
        lines = count()

        def trace(_frame: FrameType, event: str, _argument: object) -> Any:
            if event == "line" and next(lines) == line:
                clock.stop()
            return trace

        sys.settrace(trace)
        clock.sleep(0.001)
        sys.settrace(None)

    for line in count():
        clock = SystemClock()
        sleeping = threading.Thread(target=sleep, args=(clock, line), daemon=True)
        sleeping.start()
        sleeping.join(10)
        assert not sleeping.is_alive()
        if not clock.stopped:
            break
    assert line > 1


def test_the_report_counts_what_was_sent_and_acknowledged() -> None:
    report = Run(FIRST, SECOND, events=100).report["second"]
    assert (report.sent, report.acknowledged, report.failed, report.faults) == (50, 50, 0, {})


def test_the_report_counts_what_kafka_did_not_take() -> None:
    report = Run(FIRST, events=100, fail=True).report["first"]
    assert (report.sent, report.acknowledged, report.failed) == (100, 0, 100)


def test_the_report_counts_the_faults() -> None:
    run = Run(FIRST, start=NOW - 3 * HOUR, rate=None, faults="duplicates=0.1,corrupt=0.1,silent=0.2", events=5000)
    faults = run.report["first"].faults
    assert run.report["first"].sent == len(run.producer.sent) == 5000
    whole = Counter(value for _, _, value in run.producer.sent if len(value) > 60)
    assert sum(times - 1 for times in whole.values()) == faults[Fault.DUPLICATES]
    assert 300 < faults[Fault.CORRUPT] < 700
    assert faults[Fault.SILENT] > 500


def test_personal_values_do_not_leave() -> None:
    sent = Run(FIRST, faults="corrupt=0.5", events=500).producer.sent
    assert all(SECRET.encode() not in value for _, _, value in sent)


def test_without_faults_every_record_is_due_at_its_event_time() -> None:
    sendings = planned("late=0", 100)
    assert [sending.due for sending in sendings] == [NOW + timedelta(seconds=n) for n in range(100)]
    assert all(sending.fault is None for sending in sendings)


@pytest.mark.parametrize("fault", [f for f in Fault if f not in OF_DEVICES])
def test_a_fault_has_about_the_share_it_was_given(fault: Fault) -> None:
    sendings = planned(f"{fault}=0.1")
    share = sum(sending.fault is fault for sending in sendings) / len(sendings)
    assert 0.08 < share < 0.12


@pytest.mark.parametrize("fault", list(Fault))
def test_sendings_are_planned_in_the_order_they_are_due(fault: Fault) -> None:
    assert all(earlier.due <= later.due for earlier, later in pairwise(planned(f"{fault}=0.3")))


def delays(fault: Fault) -> list[timedelta]:
    found = []
    for sending in planned(f"{fault}=0.1"):
        assert isinstance(sending.record, Fix)
        if sending.fault is fault:
            found.append(sending.due - sending.record.at)
    return found


def test_duplicates_are_the_same_event_at_once_or_much_later() -> None:
    seen: set[str] = set()
    for sending in planned("duplicates=0.1"):
        assert isinstance(sending.record, Fix)
        assert (sending.record.event_id in seen) == (sending.fault is Fault.DUPLICATES)
        seen.add(sending.record.event_id)
    waits = delays(Fault.DUPLICATES)
    assert min(waits) == timedelta(0)
    assert max(waits) > timedelta(minutes=30)


def test_disorder_stays_within_what_the_feed_allows() -> None:
    assert timedelta(seconds=9) < max(delays(Fault.DISORDER)) <= FIRST.disorder


def test_late_is_beyond_disorder_and_lateness() -> None:
    assert min(delays(Fault.LATE)) > FIRST.disorder + FIRST.lateness


def test_a_wrong_clock_is_beyond_what_the_feed_allows_even_in_old_events() -> None:
    long_after = NOW + timedelta(days=300)
    records = of_fixes(FIRST)(World(NOW, 1))
    for sending in islice(plan(FIRST, records, {Fault.SKEW: 1.0}, Random(2), lambda: long_after), 100):
        assert isinstance(sending.record, Fix)
        found = problems(FIRST, sending.record.model_dump(), sending.record.device.encode(), instant_ms(long_after))
        assert "after arrival" in found[-1]


def test_a_silent_device_is_silent_longer_than_is_normal() -> None:
    silent: dict[str, list[datetime]] = {}
    heard: dict[str, list[datetime]] = {}
    sendings = planned("silent=0.2")
    for sending in sendings:
        assert isinstance(sending.record, Fix)
        of = silent if sending.fault is Fault.SILENT else heard
        of.setdefault(sending.record.device, []).append(sending.record.at)
    assert 0.1 < sum(map(len, silent.values())) / len(sendings) < 0.3
    assert FIRST.silence is not None
    for device, times in heard.items():
        pauses = {later - earlier for earlier, later in pairwise(times)}
        assert min(pauses) == timedelta(seconds=10), device
        assert max(pauses) > FIRST.silence
        assert all(pause == min(pauses) or pause > FIRST.silence for pause in pauses)


def test_a_slow_clock_is_slow_by_the_same_within_what_the_feed_allows() -> None:
    by = defaultdict[str, set[timedelta]](set)
    for sending in planned("behind=0.5", 1000):
        assert isinstance(sending.record, Fix)
        by[sending.record.device].add(sending.due - sending.record.at)
    assert all(len(one) == 1 for one in by.values())
    (slow, *_, slowest) = sorted({next(iter(one)) for one in by.values()})
    assert slow == timedelta(0) < slowest <= FIRST.disorder


def test_all_that_is_delayed_is_sent_in_the_end() -> None:
    records = list(islice(of_fixes(FIRST)(World(NOW, 1)), 100))
    assert len(list(plan(FIRST, records, {Fault.LATE: 0.5}, Random(2), lambda: NOW))) == 100


def test_corrupted_bytes_are_other_bytes() -> None:
    value = Run(FIRST, events=1).producer.sent[0][2]
    broken = [corrupted(value, Random(seed)) for seed in range(300)]
    assert value not in broken
    assert {len(b) < len(value) for b in broken} == {True, False}
    assert any(len(b) == len(value) and b[:5] == value[:5] for b in broken)


def test_corrupted_history_never_says_that_it_happened_long_after_it_did() -> None:
    value = Run(FIRST, events=1).producer.sent[0][2]
    latest = decode(CATALOGUE, value)["at"] + FIRST.disorder

    def are_ahead(broken: Iterator[bytes]) -> set[bool]:
        found = set()
        for one in broken:
            with suppress(NotDecodable):
                found.add(decode(CATALOGUE, one)["at"] > latest)
        return found

    seeds = range(3000)
    assert are_ahead(corrupted(value, Random(seed)) for seed in seeds) == {True, False}
    assert are_ahead(corrupted_history(CATALOGUE, FIRST, value, Random(seed)) for seed in seeds) == {False}


def test_faults_are_named_with_or_without_a_share() -> None:
    assert parse_faults("duplicates=0.02, late") == {Fault.DUPLICATES: 0.02, Fault.LATE: USUAL[Fault.LATE]}


def test_all_faults_have_their_usual_shares() -> None:
    assert parse_faults("all") == USUAL
    assert set(USUAL) == set(Fault)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("duplicate", "duplicates, disorder, late, skew, corrupt, silent, behind, or all"),
        ("", "there are duplicates"),
        ("late=2", "between 0 and 1"),
        ("late=-0.1", "between 0 and 1"),
        ("late=nan", "between 0 and 1"),
        ("late=few", "between 0 and 1"),
        ("late=", "between 0 and 1"),
        ("late=0.6,skew=0.6", "add up to 1.2"),
    ],
)
def test_faults_that_make_no_sense_are_refused_with_what_there_is(text: str, expected: str) -> None:
    with pytest.raises(FaultsError, match=expected):
        parse_faults(text)


def test_incidents_are_named_with_or_without_a_number() -> None:
    assert parse_incidents("jam=10, concert") == {Kind.JAM: 10, Kind.CONCERT: USUAL_INCIDENTS[Kind.CONCERT]}
    assert parse_incidents("all") == USUAL_INCIDENTS
    assert set(USUAL_INCIDENTS) == set(Kind)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("traffic_jam", "there is no incident 'traffic_jam'; there are car_park_fills"),
        ("", "there are car_park_fills"),
        ("jam=0", "above 0 is needed"),
        ("jam=often", "above 0 is needed"),
        ("jam=nan", "above 0 is needed"),
        ("jam=1e9", "at most 1000"),
    ],
)
def test_incidents_that_make_no_sense_are_refused_with_what_there_is(text: str, expected: str) -> None:
    with pytest.raises(IncidentsError, match=expected):
        parse_incidents(text)


def test_the_declared_feeds_run_together() -> None:
    clock = FakeClock()
    producer = FakeProducer(clock)
    declared, catalogue = feeds.load(), Catalogue.load()
    publishers = {n: Publisher(producer, f, catalogue.latest(n), b"key") for n, f in declared.items()}
    simulation = Simulation(
        declared.values(),
        publishers,
        world=World(NOW, 1, dict.fromkeys(Kind, MOST)),
        rate=1,
        faults=parse_faults("all"),
        clock=clock,
    )
    simulation.run(5000)
    reports = simulation.report()
    assert {report.feed for report in reports if report.acknowledged} == set(declared)
    assert sum(report.acknowledged for report in reports) == 5000

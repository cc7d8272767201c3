"""The contract of every feed, and what the simulated district promises."""

from __future__ import annotations

import csv
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from functools import cache
from itertools import islice, pairwise, takewhile
from statistics import mean, median
from typing import Any
from zoneinfo import ZoneInfo

import polars as pl
import pytest

import feeds
from feeds import rows_of
from feeds.parking import parking_capacity, parking_limit, parking_site
from feeds.police import police_incident
from schemas.catalogue import Catalogue, check
from schemas.expressions import to_polars
from schemas.feed import Feed, milliseconds
from schemas.fields import Record
from schemas.pseudonyms import replaced
from schemas.record_codec import decode, encode
from schemas.verdict import AND, ColumnarVerdict, instant_ms, problems, rules
from simulation import parking, police, simulator, traffic
from simulation.incidents import USUAL, Incident, concerts
from simulation.world import Kind, World, metres
from streams.wire.column_reader import ColumnReader
from tests.reference import toy
from tests.reference.partition import LOOK_UP
from tests.reference.rules import Observation, Told, alerts

CITY = ZoneInfo("Asia/Shanghai")
WEDNESDAY = datetime(2026, 3, 18, tzinfo=CITY)
SATURDAY = datetime(2026, 3, 21, tzinfo=CITY)
START = WEDNESDAY.replace(hour=10)
RECORDS = 2000

FEEDS = feeds.load()
CATALOGUE = Catalogue.load()

every_feed = pytest.mark.parametrize("feed", FEEDS.values(), ids=FEEDS)
every_promising_feed = pytest.mark.parametrize(
    "feed", [one for one in FEEDS.values() if one.rate], ids=lambda one: one.name
)


@cache
def simulated(name: str, start: datetime = START, seed: int = 1, count: int = RECORDS) -> list[Any]:
    """Of a world in which nothing is staged."""
    return list(islice(simulator(FEEDS[name])(World(start, seed)), count))


@cache
def eventful(name: str, seed: int = 1) -> list[Any]:
    """Of one in which everything is."""
    return list(islice(simulator(FEEDS[name])(World(START, seed, USUAL)), RECORDS))


def pseudonymous(feed: Feed, record: Record) -> dict[str, Any]:
    return replaced(feed, b"k" * 32, record.model_dump())


def encoded(feed: Feed) -> list[bytes]:
    return [encode(CATALOGUE.latest(feed.name), pseudonymous(feed, record)) for record in eventful(feed.name)]


def decoded_rows(feed: Feed) -> pl.DataFrame:
    rows, bad = ColumnReader(CATALOGUE.latest(feed.name)).read_values(encoded(feed))
    assert bad == []
    return rows


def key_of(feed: Feed, record: Record) -> bytes:
    key: str = getattr(record, feed.key)
    return key.encode()


def event_time(feed: Feed, record: Record) -> datetime:
    at: datetime = getattr(record, feed.event_time)
    return at


def test_the_frozen_schemas_are_those_declared() -> None:
    assert check(CATALOGUE, FEEDS) == []


@every_feed
def test_simulated_records_are_valid_for_pydantic(feed: Feed) -> None:
    for record in eventful(feed.name):
        feed.record.model_validate(record.model_dump())


@every_feed
def test_simulated_records_are_valid_one_by_one_and_in_columns(feed: Feed) -> None:
    records = eventful(feed.name)
    arrived = [instant_ms(event_time(feed, record)) for record in records]
    for record, at in zip(records, arrived, strict=True):
        assert problems(feed, pseudonymous(feed, record), key_of(feed, record), at) == []
    keys = [key_of(feed, record) for record in records]
    rows = decoded_rows(feed).with_columns(_key=pl.Series(keys), _arrived=pl.Series(arrived))
    assert ColumnarVerdict(rules(feed)).problems(rows) is None


@every_feed
def test_both_verdicts_refuse_an_event_from_the_future(feed: Feed) -> None:
    records = eventful(feed.name)[:10]
    early = [instant_ms(event_time(feed, r)) - milliseconds(feed.allowance) - 1 for r in records]
    alone = [
        AND.join(problems(feed, pseudonymous(feed, r), key_of(feed, r), at))
        for r, at in zip(records, early, strict=True)
    ]
    keys = [key_of(feed, record) for record in records]
    rows = decoded_rows(feed).head(10).with_columns(_key=pl.Series(keys), _arrived=pl.Series(early))
    together = ColumnarVerdict(rules(feed)).problems(rows)
    assert together is not None
    assert alone == together.to_list()
    assert "" not in alone


@every_feed
def test_what_is_encoded_is_decoded_again(feed: Feed) -> None:
    for record, value in zip(eventful(feed.name), encoded(feed), strict=True):
        assert decode(CATALOGUE, value) == pseudonymous(feed, record)


@every_feed
def test_columns_hold_the_same_values(feed: Feed) -> None:
    expected = [
        {
            name: instant_ms(value) if isinstance(value, datetime) else value
            for name, value in pseudonymous(feed, record).items()
        }
        | {"event_id": toy.halves(str(record.model_dump()["event_id"]))}
        for record in eventful(feed.name)
    ]
    assert decoded_rows(feed).to_dicts() == expected


@every_feed
def test_everything_an_analyst_sees_is_described_with_its_unit(feed: Feed) -> None:
    assert feed.description
    assert all(field.description for field in feed.fields)
    for aggregate in feed.aggregates:
        assert aggregate.description
        for result in (result for measure in aggregate.measures for result in measure.results):
            assert result.unit, result.name
            assert result.description, result.name


@every_feed
def test_a_seed_gives_the_same_events_and_another_seed_others(feed: Feed) -> None:
    again: list[Any] = list(islice(simulator(feed)(World(START, 1, USUAL)), RECORDS))
    assert again == eventful(feed.name)
    others = {record.event_id for record in eventful(feed.name, seed=2)}
    assert others.isdisjoint(record.event_id for record in again)


@every_feed
def test_events_come_in_order_from_the_start_on_in_whole_milliseconds(feed: Feed) -> None:
    times = [event_time(feed, record) for record in eventful(feed.name)]
    assert times[0] >= START
    assert all(earlier <= later for earlier, later in pairwise(times))
    assert all(at.microsecond % 1000 == 0 for at in times)


@every_promising_feed
def test_the_first_event_comes_soon(feed: Feed) -> None:
    first = event_time(feed, eventful(feed.name)[0])
    assert feed.rate is not None
    assert first - START < timedelta(seconds=20 / feed.rate)


@every_promising_feed
def test_the_event_rate_is_near_the_declared_one(feed: Feed) -> None:
    times = [event_time(feed, record) for record in eventful(feed.name)]
    rate = len(times) / (times[-1] - times[0]).total_seconds()
    assert feed.rate is not None
    assert 0.5 * feed.rate < rate < 2 * feed.rate


def test_gate_counts_explain_what_is_taken() -> None:
    reports = defaultdict(list)
    for report in simulated("parking_site"):
        reports[report.site_id].append(report)
    assert all(len(of_site) >= 3 for of_site in reports.values())
    for of_site in reports.values():
        for earlier, later in pairwise(of_site):
            if later.vehicle_entrance_count is not None:
                change = later.vehicle_entrance_count - later.vehicle_exit_count
                assert later.occupied_spot_number == earlier.occupied_spot_number + change


def test_both_parking_feeds_tell_of_the_same_cars() -> None:
    changes = simulated("parking_spot", count=20_000)
    assert changes[-1].observed_at > START + timedelta(minutes=4)
    known, cars = dict[str, str](), defaultdict[str, list[tuple[datetime, int]]](list)
    for change in changes:
        was = known.get(change.spot_id)
        if change.status == "occupied" or (change.status == "free" and was not in ("closed", "unknown")):
            cars[change.site_id].append((change.observed_at, 1 if change.status == "occupied" else -1))
        known[change.spot_id] = change.status
    reports = defaultdict(list)
    for report in simulated("parking_site", count=4 * parking.SITES):
        reports[report.site_id].append(report)
    for site, (_, _, before, after) in reports.items():
        lately = [car for at, car in cars[site] if before.observed_at < at <= after.observed_at]
        assert after.occupied_spot_number == before.occupied_spot_number + sum(lately)
        if after.vehicle_entrance_count is not None:
            assert (after.vehicle_entrance_count, after.vehicle_exit_count) == (lately.count(1), lately.count(-1))


def test_spots_belong_to_the_car_parks_that_report() -> None:
    sizes = {site.id: site.spots for site in parking.sites()}
    told = {r.site_id: r.total_spot_number for r in simulated("parking_site")}
    assert told == {site.id: site.spots if site.tells_total else None for site in parking.sites()}
    assert 0 < sum(total is None for total in told.values()) < len(sizes) / 10
    for change in simulated("parking_spot"):
        site, _, number = change.spot_id.rpartition("-")
        assert site == change.site_id
        assert int(number) < sizes[site]


def test_a_spot_changes_from_what_it_was() -> None:
    known: dict[str, str] = {}
    for change in simulated("parking_spot", count=50_000):
        assert known.get(change.spot_id) != change.status
        known[change.spot_id] = change.status


def test_in_the_morning_homes_empty_and_offices_fill() -> None:
    uses = {site.id: site.use for site in parking.sites()}
    changes = simulated("parking_spot", WEDNESDAY.replace(hour=9), count=50_000)
    taken = Counter(uses[change.site_id] for change in changes if change.status == "occupied")
    left = Counter(uses[change.site_id] for change in changes if change.status == "free")
    assert taken["offices"] > 1.1 * left["offices"]
    assert left["homes"] > 1.05 * taken["homes"]


def test_the_rush_hour_is_slow_and_the_night_is_not() -> None:
    def speed(start: datetime) -> float:
        return float(mean(r.average_vehicle_speed for r in simulated("traffic_flow", start) if r.intensity))

    assert speed(WEDNESDAY.replace(hour=8)) < 0.85 * speed(WEDNESDAY.replace(hour=3))
    assert speed(SATURDAY.replace(hour=8)) > 0.9 * speed(WEDNESDAY.replace(hour=3))


def test_the_segments_of_a_road_are_alike() -> None:
    roads = defaultdict(list)
    for record in simulated("traffic_flow", WEDNESDAY.replace(hour=7, minute=30))[: traffic.SEGMENTS]:
        roads[record.segment_id.rpartition("-")[0]].append(record.occupancy)
    steps = [abs(b - a) for along in roads.values() for a, b in pairwise(along)]
    everywhere = [load for along in roads.values() for load in along]
    overall = mean(abs(a - b) for a, b in zip(everywhere, reversed(everywhere), strict=True))
    assert mean(steps) < 0.6 * overall


def test_an_incident_goes_through_its_statuses_in_order() -> None:
    reached = defaultdict(list)
    for record in simulated("police_incident", count=10_000):
        reached[record.incident_id].append(record.status)
    steps = list(police.STEPS)
    assert sum(statuses == steps for statuses in reached.values()) > 1000
    for statuses in reached.values():
        first = steps.index(statuses[0])
        assert statuses == steps[first : first + len(statuses)]


BUSIEST = [WEDNESDAY.replace(hour=8), WEDNESDAY.replace(hour=17, minute=30), SATURDAY.replace(hour=13, minute=30)]


@pytest.mark.parametrize("start", BUSIEST, ids=str)
def test_by_itself_no_car_park_comes_near_a_limit(start: datetime) -> None:
    """Of any hour; and simulated, in the busiest ones."""
    file = rows_of(parking_limit.REFERENCE)
    assert file is not None
    limits = [float(row["full"]) for row in csv.DictReader(file.open())]
    hours = [start.replace(hour=hour) for hour in range(24)]
    assert max(parking.fullness(site, hour) for site in parking.sites() for hour in hours) < min(limits)
    shares = [
        r.occupied_spot_number / r.total_spot_number
        for r in simulated("parking_site", start, count=3000)
        if r.total_spot_number
    ]
    assert max(shares) < min(limits)


@pytest.mark.parametrize("start", BUSIEST, ids=str)
def test_by_itself_no_road_is_slow_enough_for_an_alert(start: datetime) -> None:
    times = defaultdict(list)
    for record in simulated("traffic_flow", start, count=traffic.LANES * traffic.SEGMENTS):
        if record.intensity:
            times[record.segment_id].append(record.free_flow_speed / record.average_vehicle_speed)
    assert max(map(mean, times.values())) < 1.5


@pytest.mark.parametrize("start", BUSIEST, ids=str)
def test_by_itself_the_police_are_in_time_and_nobody_calls_again(start: datetime) -> None:
    calls = []
    for record in simulated("police_incident", start, count=10_000):
        if record.status == "dispatched":
            longest = (record.priority or 1) * timedelta(milliseconds=police_incident.MOST_WAIT)
            assert record.changed_at - record.reported_at <= 0.9 * longest
        calls += [record.address] if record.status == "reported" else []
    assert all(len(set(calls[at : at + 900])) == 900 for at in range(len(calls) - 900))


def test_incidents_are_open_at_the_start_as_at_any_other_time() -> None:
    statuses = {record.status for record in simulated("police_incident")[:200]}
    assert statuses == set(police.STEPS)


def test_the_police_take_some_ten_minutes() -> None:
    minutes = [
        (r.changed_at - r.reported_at) / timedelta(minutes=1)
        for r in simulated("police_incident")
        if r.status == "on_scene"
    ]
    assert 5 < median(minutes) < 20


def test_occupancy_of_a_site_without_spots_is_unknown() -> None:
    rows = pl.DataFrame({"occupied_spot_number": [0, 5, 19, 21, 7], "total_spot_number": [0, 0, 20, 20, None]})
    assert rows.select(o=to_polars(parking_site.OCCUPANCY))["o"].to_list() == [None, None, 0.95, 1.05, None]
    full = parking_site.OCCUPANCY >= 0.95
    assert rows.select(f=to_polars(full))["f"].to_list() == [None, None, True, True, None]


def test_only_arrivals_on_scene_have_a_response_time() -> None:
    rows = pl.DataFrame(
        {"status": ["reported", "on_scene", "closed"], "reported_at": [0, 0, 0], "changed_at": [0, 600_000, 900_000]}
    )
    times = rows.select(t=to_polars(police_incident.RESPONSE_TIME))["t"].to_list()
    assert times == [None, 600_000, None]


SITE = FEEDS["parking_site"]


def said(feed: Feed, name: str, *rows: dict[str, Any], looked_up: Mapping[str, Any] | None = None) -> list[Told]:
    """What a rule says of records or windows of a feed, of which each is told what differs from the one before, up to
    two hours later."""
    ((aggregate, rule),) = (one for one in feed.watched if one[1].name == name)
    entity, time, window = tuple(rule.of), feed.event_time, 0
    if aggregate is None:
        entity = entity or (feed.key,)
    else:
        entity, time, window = entity or aggregate.by, "window_start", milliseconds(aggregate.window)
    values: dict[str, Any] = {"place": None, LOOK_UP: lambda table, _key, _name: (looked_up or {}).get(table)}
    observed = list[Observation]()
    for n, row in enumerate(rows):
        values = {**values, **row}
        observed.append(Observation(values[time] + window, (n,), values))
    return alerts(rule, entity, observed, observed[-1].time + 7_200_000)


def test_gates_drift_by_what_is_reported_in_a_row() -> None:
    """A report that is missing, or tells nothing of the gates, adds nothing; a pause begins anew."""
    minute, first = 60_000, {"site_id": "p-1", "occupied_spot_number": 50}

    def report(at: int, taken: int, came: int | None, went: int | None) -> dict[str, Any]:
        gates = {"vehicle_entrance_count": came, "vehicle_exit_count": went}
        return {**first, **gates, "observed_at": at * minute, "occupied_spot_number": taken}

    right = [report(0, 50, 99, 0), report(1, 55, 5, 0), report(3, 20, 30, 0), report(4, 20, None, None)]
    wrong = [report(5, 20, 19, 0), report(6, 21, 2, 0), report(7, 21, 0, 11)]
    assert said(SITE, "gate_drift", *right, *wrong[:1]) == []
    found = said(SITE, "gate_drift", *right, *wrong)
    assert [(one.kind, one.sent, one.numbers[0]) for one in found] == [
        ("Alert", 6 * minute, 20.0), ("Cancel", 7 * minute, 9.0)
    ]  # fmt: skip
    pause = [report(20, 21, 30, 0), report(21, 21, 19, 0)]
    assert [one.kind for one in said(SITE, "gate_drift", *right, *wrong[:2], *pause)] == ["Alert", "Cancel"]


def test_a_car_park_that_does_not_tell_its_spots_is_full_by_those_that_are_known_of_it() -> None:
    report = {"site_id": "p-1", "observed_at": 0, "occupied_spot_number": 95, "total_spot_number": None}
    assert said(SITE, "parking_full", report) == []
    (found,) = said(SITE, "parking_full", report, looked_up={"parking_capacity": 100})
    assert (found.kind, found.numbers[0]) == ("Alert", 5.0)


@pytest.mark.parametrize(
    ("own", "plan", "limit"), [(None, None, 0.95), (0.9, None, 0.9), (None, 0.8, 0.8), (0.7, 0.8, 0.7), (2.0, 0.8, 0.8)]
)
def test_the_stricter_of_its_own_limit_and_that_of_an_event_counts_for_a_car_park(
    own: float | None, plan: float | None, limit: float
) -> None:
    def found(taken: int) -> list[Told]:
        report = {"site_id": "p-1", "observed_at": 0, "occupied_spot_number": taken, "total_spot_number": 100}

        def look_up(table: str, _key: Any, name: str) -> float | None:
            return {"parking_limit": own, "event_plan": plan}.get(table) if name != "release" else None

        return said(SITE, "parking_full", {**report, LOOK_UP: look_up})

    assert found(round(100 * limit) - 1) == []
    assert [one.numbers[-1] for one in found(round(100 * limit))] == [limit]


def test_the_spots_of_car_parks_that_do_not_tell_them_are_known() -> None:
    file = rows_of(parking_capacity.REFERENCE)
    assert file is not None
    known = {row["site_id"]: int(row["spot_number"]) for row in csv.DictReader(file.open())}
    assert known == {site.id: site.spots for site in parking.sites() if not site.tells_total}


MINUTE = 60_000
FLOW, INCIDENT = FEEDS["traffic_flow"], FEEDS["police_incident"]


def spoken(told: list[Told]) -> list[tuple[str, float]]:
    """What was done, and in which minute."""
    return [(one.kind, one.sent / MINUTE) for one in told]


@pytest.mark.parametrize(("plan", "limit"), [(None, 2), (1.5, 1.5), (3, 2)])
def test_the_stricter_of_the_usual_limit_and_that_of_an_event_counts_for_a_road(
    plan: float | None, limit: float
) -> None:
    def found(index: float) -> list[Told]:
        windows = [{"window_start": n * 15 * MINUTE, "delay_index": index} for n in range(2)]
        own = {"segment_id": "s-1", "speed": 20.0, "vehicles": 9}
        return said(FLOW, "congestion", *(own | one for one in windows), looked_up={"event_plan": plan})

    assert found(limit - 0.01) == []
    assert [(one.severity, one.numbers[-1]) for one in found(limit)] == [("Moderate", limit)]


def test_a_segment_whose_detectors_say_nothing_is_silent_and_an_empty_one_is_not() -> None:
    empty: list[dict[str, Any]] = [
        {"segment_id": "s-1", "lane": n % 2, "intensity": 0, "date_observed_to": n * MINUTE} for n in range(9)
    ]
    assert spoken(said(FLOW, "detector_silent", *empty)) == [("Alert", 11)]
    again = [*empty, {"date_observed_to": 20 * MINUTE}]
    assert spoken(said(FLOW, "detector_silent", *again)) == [("Alert", 11), ("Cancel", 20), ("Alert", 23)]


def test_traffic_stands_still_where_nobody_passes_covered_detectors() -> None:
    shares = [0.0, 1.0, 1.0, None, 0.9, 0.6, 0.5, 0.4]
    windows = [
        {"segment_id": "s-1", "standing": one, "vehicles": 0, "window_start": n * MINUTE}
        for n, one in enumerate(shares)
    ]
    assert spoken(said(FLOW, "standstill", *windows)) == [("Alert", 5), ("Cancel", 8)]


def test_an_incident_without_a_priority_is_overdue_as_one_of_the_last() -> None:
    report = {"incident_id": "i-1", "status": "reported", "reported_at": 0, "changed_at": 0}
    assert spoken(said(INCIDENT, "overdue_dispatch", {**report, "priority": 1})) == [("Alert", 3)]
    assert spoken(said(INCIDENT, "overdue_dispatch", {**report, "priority": None})) == [("Alert", 15)]


def test_a_place_calls_again_and_again_with_three_five_minutes_of_an_hour() -> None:
    def windows(*calls: tuple[int, int]) -> list[dict[str, Any]]:
        return [{"address": "a", "calls": many, "window_start": at * MINUTE} for at, many in calls]

    assert said(INCIDENT, "repeated_calls", *windows((0, 9), (5, 1), (60, 0), (65, 1))) == []
    often = windows((0, 1), (30, 0), (35, 2), (60, 1), (65, 0), (90, 1), (95, 0))
    assert spoken(said(INCIDENT, "repeated_calls", *often)) == [("Alert", 65), ("Cancel", 160)]


def test_where_a_segment_is_along_its_road_is_told() -> None:
    segments = {(r.road_id, r.distance_along, r.segment_id) for r in simulated("traffic_flow")}
    assert {segment for _, _, segment in sorted(segments)} == {segment.id for segment in traffic.segments()}
    assert [segment for *_, segment in sorted(segments)] == sorted(segment.id for segment in traffic.segments())


def during(incident: Incident, records: Iterable[Any], feed: Feed) -> list[Any]:
    """The records of its entity while it lasts."""
    found = [record for record in records if getattr(record, feed.key) == incident.entity]
    return [record for record in found if incident.begins <= event_time(feed, record) < incident.ends]


def staged_early(domain: Any, kind: Kind, until: timedelta) -> tuple[World, Incident]:
    """A world with an incident of one kind that begins soon."""
    for seed in range(100):
        world = World(WEDNESDAY.replace(hour=4), seed, {kind: 10})
        first = next(iter(domain.incidents(world)))
        if first.begins < world.start + until:
            return world, first
    raise AssertionError


def until(feed: Feed, world: World, end: datetime) -> list[Any]:
    return list(takewhile(lambda record: event_time(feed, record) < end, simulator(feed)(world)))


def test_a_car_park_that_fills_is_full_longer_than_the_rule_takes_and_empties_again() -> None:
    feed = FEEDS["parking_site"]
    world, incident = staged_early(parking, Kind.CAR_PARK_FILLS, timedelta(minutes=2))
    records = during(incident, until(feed, world, incident.ends + timedelta(minutes=1)), feed)
    shares = [(r.observed_at, r.occupied_spot_number / r.total_spot_number) for r in records]
    full = [at for at, share in shares if share >= 0.95]
    assert full[-1] - full[0] >= timedelta(minutes=len(full) - 1) >= timedelta(minutes=10)
    assert incident.found_by is not None
    assert full[0] + timedelta(minutes=10) <= incident.found_by
    assert shares[-1][1] < 0.9


def test_a_jam_grows_back_along_the_road_and_each_segment_is_due_to_be_found() -> None:
    world = World(WEDNESDAY.replace(hour=4), 1, {Kind.JAM: 10})
    jams = list(islice(traffic.incidents(world), 40))
    follows = [
        (a, b) for a, b in pairwise(jams) if b.entity[:-2] == a.entity[:-2] and b.begins - a.begins == traffic.JAM_STEP
    ]
    assert follows
    assert all(int(b.entity[-2:]) == int(a.entity[-2:]) - 1 for a, b in follows)
    assert all(one.rule == "congestion" and one.found_by is not None for one in jams)
    assert all(one.found_by < one.ends for one in jams if one.found_by)


@pytest.mark.parametrize("kind", [Kind.STANDSTILL, Kind.ROAD_EMPTY, Kind.DETECTOR_SILENT, Kind.JAM])
def test_a_segment_tells_what_is_staged(kind: Kind) -> None:
    feed = FEEDS["traffic_flow"]
    world, incident = staged_early(traffic, kind, timedelta(seconds=30))
    records = during(incident, until(feed, world, incident.begins + timedelta(minutes=3)), feed)
    later = [record for record in records if record.date_observed_from >= incident.begins]
    told = {(record.intensity > 0, record.occupancy > 0.9) for record in later}
    expected = {Kind.STANDSTILL: {(False, True)}, Kind.ROAD_EMPTY: {(False, False)}, Kind.JAM: {(True, True)}}
    assert told == expected.get(kind, set())


def test_who_calls_again_another_day_or_hour_has_other_incidents(monkeypatch: pytest.MonkeyPatch) -> None:
    first = Incident(
        kind=Kind.REPEATED_CALLS, entity="Yugu Road 1", begins=START, ends=START + timedelta(hours=1), place=None
    )
    again = replace(first, begins=START + timedelta(hours=3), ends=START + timedelta(hours=4))
    monkeypatch.setattr(police, "incidents", lambda _: iter([first, again]))
    records = takewhile(
        lambda one: one.changed_at < START + timedelta(hours=5), police.police_incident(World(START, 1))
    )
    assert len({one.incident_id for one in records if one.address == first.entity}) == 2 * police.CALLS


def test_the_police_are_late_or_skip_a_step_where_it_is_staged() -> None:
    feed, world = (
        FEEDS["police_incident"],
        World(START, 1, {Kind.DISPATCH_LATE: 60, Kind.STATUS_SKIPPED: 60, Kind.REPEATED_CALLS: 20}),
    )
    records = defaultdict(list)
    for record in until(feed, world, START + timedelta(hours=2)):
        records[record.incident_id].append(record)
    calls = Counter(found[0].address for found in records.values())
    for one in takewhile(lambda one: one.begins < START + timedelta(hours=1), police.incidents(world)):
        statuses = {record.status.value: record for record in records[one.entity]}
        match one.kind:
            case Kind.DISPATCH_LATE:
                waited = statuses["dispatched"].changed_at - one.begins
                assert waited > statuses["dispatched"].priority * timedelta(milliseconds=police_incident.MOST_WAIT)
                assert one.found_by is not None
                assert one.found_by < statuses["dispatched"].changed_at
            case Kind.STATUS_SKIPPED:
                assert list(statuses)[:2] == ["reported", "on_scene"]
                assert statuses["on_scene"].changed_at == one.found_by
            case _:
                assert calls[one.entity] == police.CALLS


def test_a_concert_fills_car_parks_and_slows_roads() -> None:
    world = World(SATURDAY.replace(hour=19), 1, {Kind.CONCERT: 1})
    first = next(concerts(world))
    full = [one for one in islice(parking.incidents(world), 30) if one.begins == first.begins]
    assert len(full) > 3
    assert full[0].rule is None
    assert {one.rule for one in full[1:]} == {"parking_full"}
    near = {one.id for one in traffic.segments() if metres(one.place, first.place) < traffic.NEAR}
    slow = [one.entity for one in islice(traffic.crowds(world), len(near))]
    assert 0 < len(near) < traffic.SEGMENTS / 4
    assert set(slow) == near

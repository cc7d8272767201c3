"""Real files through the real stack: SQL gives what the files say, wherever in the stream they are published.

Everything expected is computed here from the files' own columns, with the standard library, not through the project.
"""

from __future__ import annotations

import csv
import gzip
import json
import os
import statistics
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from citystream.installation import Installation
from citystream.secrets import Secrets
from citystream.settings import Settings
from citystream.stack.stack import Stack
from schemas.fields import Record
from simulation import simulator
from simulation.world import World
from streams import deadletters, publications
from streams.lag import LagMeter
from streams.publisher import Producer, Publisher

pytestmark = pytest.mark.integration

PROJECT = Path(__file__).parents[2]
EXCERPTS = PROJECT / "tests" / "data"
FULL = PROJECT.parent / "shared" / "data"
MAPPINGS = PROJECT / "examples" / "mappings"

LIVE_FROM = datetime(2021, 3, 8, 8, 14, 55, tzinfo=UTC)
#: The files end in 2018; nothing but these tests publishes events dated before this.
BEFORE = "2022-01-01"
LIVE_EVENTS = 3000

Rows = list[tuple[Any, ...]]


@dataclass(frozen=True)
class DataSet:
    """A file, the feed it goes to, and how to read it without the project.

    ``valid`` says whether a row may be stored, ``content`` what of it is stored: rows that agree in it are repeats.
    """

    name: str
    feed: str
    header_lines: int
    valid: Callable[[list[str]], bool]
    content: Callable[[list[str]], tuple[str, ...]]

    def lines(self, path: Path) -> list[str]:
        """The lines of a file, without its header line."""
        with gzip.open(path, "rt", newline="") if path.suffix == ".gz" else path.open(newline="") as file:
            return file.readlines()[self.header_lines :]

    def rows(self, path: Path) -> list[list[str]]:
        """All rows of a file."""
        return [[value.strip() for value in row] for row in csv.reader(self.lines(path))]

    def distinct(self, path: Path) -> list[tuple[str, ...]]:
        """What has to be stored of a file."""
        return list(dict.fromkeys(self.content(row) for row in self.rows(path) if self.valid(row)))


PARKING = DataSet("parking-birmingham", "parking_site", 0, lambda row: int(row[2]) >= 0, tuple)
TRAFFIC = DataSet("traffic-i94", "traffic_flow", 1, lambda _: True, lambda row: (row[7], row[8]))
INCIDENTS = DataSet("incidents-911", "police_incident", 1, lambda _: True, tuple)
DATA_SETS = (PARKING, TRAFFIC, INCIDENTS)
each_data_set = pytest.mark.parametrize("data", DATA_SETS, ids=lambda data: data.name)


def utc(local: str, pattern: str, zone: str) -> datetime:
    """The instant of a local time."""
    return datetime.strptime(local, pattern).replace(tzinfo=ZoneInfo(zone)).astimezone(UTC)


def parking_time(row: Sequence[str]) -> datetime:
    """When a car park was counted."""
    return utc(row[3], "%Y-%m-%d %H:%M:%S", "Europe/London")


def traffic_end(row: Sequence[str]) -> datetime:
    """End of the hour a row of I-94 counts."""
    return utc(row[0], "%d-%m-%Y %H:%M", "America/Chicago") + timedelta(hours=1)


def incident_time(row: Sequence[str]) -> datetime:
    """When a call came."""
    return utc(row[3], "%Y-%m-%d %H:%M", "America/New_York")


def window(at: datetime, minutes: int = 15) -> datetime:
    """Start of the window an instant falls in."""
    return at - (at - datetime(1970, 1, 1, tzinfo=UTC)) % timedelta(minutes=minutes)


class City:
    """The stack with both workers running, for publishing and asking."""

    def __init__(self, settings: Settings, secrets: Secrets, workers: Mapping[str, subprocess.Popen[bytes]]) -> None:
        self.installation = Installation(settings)
        self.environment = environment(settings)
        self._secrets = secrets
        self._workers = workers
        self.live: dict[str, list[Record]] = {data.feed: [] for data in DATA_SETS}
        self._simulators = {
            name: simulator(self.installation.feeds[name])(World(LIVE_FROM, n))
            for n, name in enumerate(self.live, 1994)
        }

    def ask(self, query: str) -> Rows:
        """A query as the analyst."""
        return self._execute("analyst", query)

    def _execute(self, user: str, query: str) -> Rows:
        client = self.installation.server(user).connect()
        try:
            answer: Rows = client.execute(query)
        finally:
            client.disconnect()
        return answer

    def received(self, feed: str) -> int:
        """Records of a feed that came to ClickHouse, repeats too."""
        ((count,),) = self._execute(
            "operator",
            "SELECT sum(n) FROM (SELECT groupBitmapMerge(offsets) AS n FROM raw.ledger "
            f"WHERE topic = '{feed}' AND kind = 'received' GROUP BY source_partition, block)",
        )
        return int(count)

    def places(self, feed: str) -> Rows:
        """Event id, partition and offset of stored rows."""
        query = f"SELECT toString(event_id), source_partition, source_offset FROM raw.{feed} FINAL"
        return self._execute("operator", query)

    def stored(self, feed: str) -> int:
        """Rows of a feed's view."""
        ((count,),) = self.ask(f"SELECT count() FROM city.{feed}")
        return int(count)

    def publish_live(self) -> None:
        """The next simulated events of each feed."""
        for name, records in self._simulators.items():
            feed = self.installation.feeds[name]
            events = list(islice(records, LIVE_EVENTS))
            frozen = self.installation.catalogue.latest(name)
            key = self._secrets.pseudonym_key.get_secret_value().encode()
            with closing(Producer(self.installation.cluster)) as producer:
                with Publisher(producer, feed, frozen, key) as publisher:
                    for event in events:
                        publisher.publish(event)
                assert publisher.acknowledged == len(events)
            self.live[name] += events

    def start_publishing(self, data: DataSet, path: Path, folder: Path, *, piped: bool) -> subprocess.Popen[bytes]:
        """The command, running."""
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "citystream.cli", "publish", data.feed, "-" if piped else str(path)),
                *("-o", "json"),
                *(
                    "--mapping",
                    str(MAPPINGS / f"{data.name}.toml"),
                    "--rejects",
                    str(folder / f"{data.name}.rejects.csv"),
                ),
            ],
            env=self.environment,
            stdin=path.open("rb") if piped else None,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def drain(self) -> None:
        """Wait until both workers have committed all there is."""
        feeds = list(self.live)
        aggregates = [a.topic for name in feeds for a in self.installation.feeds[name].aggregates]
        until = time.monotonic() + 120
        with LagMeter(self.installation.cluster) as meter:
            for group, topics in (("processor", feeds), ("sink", [*feeds, *aggregates, deadletters.TOPIC])):
                while any(p.records for p in meter.measure(group, topics, waiting=False)):
                    for name, worker in self._workers.items():
                        assert worker.poll() is None, f"the {name} ended with exit code {worker.returncode}"
                    assert time.monotonic() < until, f"the {group} does not catch up"
                    time.sleep(0.1)


def environment(settings: Settings) -> dict[str, str]:
    """What a command needs to find the stack of the tests."""
    names = ("home", "packages", "kafka_port", "clickhouse_port", "clickhouse_http_port", "registry_port")
    return {**os.environ, **{f"CITYSTREAM_{name.upper()}": str(getattr(settings, name)) for name in names}}


@pytest.fixture(scope="module")
def city(stack: Stack, secrets: Secrets, tmp_path_factory: pytest.TempPathFactory) -> Iterator[City]:
    """Topics, tables, and a processor and a sink at work."""
    Installation(stack.settings).prepare(lambda _: None)
    logs = tmp_path_factory.mktemp("workers")
    chosen = [data.feed for data in DATA_SETS]
    workers: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for name in ("process", "sink"):
            with (logs / name).open("wb") as log:
                workers[name] = subprocess.Popen(
                    [sys.executable, "-m", "citystream.cli", name, *chosen],
                    env=environment(stack.settings),
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
        yield City(stack.settings, secrets, workers)
    finally:
        for worker in workers.values():
            worker.terminate()
        for name, worker in workers.items():
            try:
                worker.wait(20)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()
            sys.stdout.write(f"--- {name}\n{(logs / name).read_text()}")


QUESTIONS = {
    "parking_rows": f"SELECT site_id, total_spot_number, occupied_spot_number, observed_at FROM city.parking_site "
    f"WHERE observed_at < '{BEFORE}'",
    "occupancy": "SELECT site_id, toString(toDate(observed_at, 'Europe/London')), "
    "avg(occupied_spot_number / total_spot_number) FROM city.parking_site WHERE observed_at < '2020-01-01' "
    "GROUP BY 1, 2",
    "parking_windows": "SELECT site_id, window_start, events, occupancy_min, occupancy_max, occupancy_mean, full "
    f"FROM city.parking_site_15m WHERE window_start < '{BEFORE}'",
    "traffic_rows": "SELECT segment_id, date_observed_to, intensity FROM city.traffic_flow "
    f"WHERE date_observed_to < '{BEFORE}'",
    "years": "SELECT toYear(date_observed_from, 'America/Chicago'), sum(intensity) FROM city.traffic_flow "
    "WHERE segment_id = 'i-94-west' GROUP BY 1",
    "traffic_windows": "SELECT segment_id, window_start, events, vehicles FROM city.traffic_flow_15m "
    f"WHERE window_start < '{BEFORE}'",
    "district_windows": "SELECT district, window_start, events, vehicles FROM city.traffic_flow_15m_district "
    f"WHERE window_start < '{BEFORE}'",
    "incident_rows": "SELECT category, beat_id, changed_at, address FROM city.police_incident "
    f"WHERE changed_at < '{BEFORE}'",
    "categories": "SELECT category, toHour(reported_at, 'America/New_York'), count() FROM city.police_incident "
    "WHERE changed_at < '2020-01-01' GROUP BY 1, 2",
    "incident_windows": "SELECT beat_id, category, window_start, events, incidents, response_time_p50 "
    f"FROM city.police_incident_15m WHERE window_start < '{BEFORE}'",
}


@dataclass(frozen=True)
class Round:
    """What publishing the three files did, and what SQL answered when all of it had arrived.

    The files ``before`` were published earlier; ``live`` are all simulated events so far; ``received`` and ``stored``
    count what this round added to each feed.
    """

    files: dict[str, Path]
    before: dict[str, Path]
    reports: dict[str, dict[str, Any]]
    live: dict[str, list[Any]]
    received: dict[str, int]
    stored: dict[str, int]
    answers: dict[str, Rows]


def publish_round(
    city: City,
    files: dict[str, Path],
    folder: Path,
    *,
    before: dict[str, Path],
    live: bool = False,
    piped: bool = False,
) -> Round:
    """Publish each file by the command, live events at the same time if wanted, and ask when all of it has arrived."""
    feeds = [data.feed for data in DATA_SETS]
    received, stored = ({feed: count(feed) for feed in feeds} for count in (city.received, city.stored))
    running = {data.feed: city.start_publishing(data, files[data.feed], folder, piped=piped) for data in DATA_SETS}
    if live:
        city.publish_live()
    reports = {}
    for feed, process in running.items():
        out, errors = process.communicate(timeout=100)
        assert process.returncode in (0, 1), errors.decode()
        reports[feed] = json.loads(out)
        assert process.returncode == int(reports[feed]["rejected"] > 0)
    city.drain()
    return Round(
        files,
        before,
        reports,
        {feed: list(events) for feed, events in city.live.items()},
        {feed: city.received(feed) - received[feed] for feed in feeds},
        {feed: city.stored(feed) - stored[feed] for feed in feeds},
        {name: city.ask(query) for name, query in QUESTIONS.items()},
    )


@pytest.fixture(scope="module")
def excerpt(city: City, tmp_path_factory: pytest.TempPathFactory) -> Round:
    """Every other line of the excerpts by a pipe, then live events, then all lines behind those and among more."""
    folder = tmp_path_factory.mktemp("excerpt")
    files = {data.feed: EXCERPTS / f"{data.name}.csv" for data in DATA_SETS}
    halves = {}
    for data in DATA_SETS:
        lines = files[data.feed].read_bytes().splitlines(keepends=True)
        halves[data.feed] = folder / f"half-{data.name}.csv"
        halves[data.feed].write_bytes(b"".join(lines[: data.header_lines] + lines[data.header_lines :: 2]))
    publish_round(city, halves, folder, before={}, piped=True)
    city.publish_live()
    city.drain()
    return publish_round(city, files, folder, before=halves, live=True)


@pytest.fixture(scope="module")
def full(city: City, excerpt: Round, tmp_path_factory: pytest.TempPathFactory) -> Round:
    """The full files, behind live events and among them."""
    files = {data.feed: FULL / f"{data.name}.csv.gz" for data in DATA_SETS}
    missing = [str(path) for path in files.values() if not path.exists()]
    if missing:
        pytest.skip(f"only the excerpts are tested: {', '.join(missing)} not there")
    return publish_round(city, files, tmp_path_factory.mktemp("full"), before=excerpt.files, live=True)


@pytest.fixture(scope="module", params=["excerpt", "full"])
def published(request: pytest.FixtureRequest) -> Round:
    """Each of the two rounds."""
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Round)
    return found


@each_data_set
def test_what_cannot_be_stored_is_rejected_and_written_down_unchanged(published: Round, data: DataSet) -> None:
    path, report = published.files[data.feed], published.reports[data.feed]
    lines, rows = data.lines(path), data.rows(path)
    bad = [line for line, row in zip(lines, rows, strict=True) if not data.valid(row)]
    assert (report["read"], report["rejected"], report["failed"]) == (len(lines), len(bad), 0)
    assert report["acknowledged"] == report["accepted"] == len(lines) - len(bad)
    assert len(bad) == (12 if data is PARKING else 0)
    if bad:
        assert Path(report["rejects_file"]).read_text().splitlines(keepends=True) == bad


@each_data_set
def test_repeats_are_counted_and_not_stored(published: Round, data: DataSet) -> None:
    path, accepted = published.files[data.feed], published.reports[data.feed]["accepted"]
    assert published.received[data.feed] == accepted + LIVE_EVENTS
    new = set(data.distinct(path)) - set(data.distinct(published.before[data.feed]))
    assert published.stored[data.feed] == len(new) + LIVE_EVENTS


def test_parking_rows_and_occupancy_by_site_and_day(published: Round) -> None:
    rows = PARKING.distinct(published.files[PARKING.feed])
    expected = [(row[0], int(row[1]), int(row[2]), parking_time(row)) for row in rows]
    live = [
        (one.site_id, one.total_spot_number, one.occupied_spot_number, one.observed_at)
        for one in published.live[PARKING.feed]
    ]
    assert Counter(published.answers["parking_rows"]) == Counter(expected + live)
    by_day = defaultdict(list)
    for row in rows:
        by_day[row[0], row[3][:10]].append(int(row[2]) / int(row[1]))
    means = {(site, day): mean for site, day, mean in published.answers["occupancy"]}
    assert means == pytest.approx({key: statistics.mean(values) for key, values in by_day.items()})


def test_traffic_rows_and_vehicles_per_year(published: Round) -> None:
    rows = TRAFFIC.distinct(published.files[TRAFFIC.feed])
    expected = [("i-94-west", traffic_end(row), int(row[1])) for row in rows]
    live = [(one.segment_id, one.date_observed_to, one.intensity) for one in published.live[TRAFFIC.feed]]
    assert Counter(published.answers["traffic_rows"]) == Counter(expected + live)
    years: Counter[int] = Counter()
    for hour, vehicles in rows:
        years[int(hour[6:10])] += int(vehicles)
    assert dict(published.answers["years"]) == years


def test_incidents_by_category_and_hour_and_no_address_is_readable(published: Round) -> None:
    rows = INCIDENTS.distinct(published.files[INCIDENTS.feed])
    expected = [(row[2].split(":")[0], row[4], incident_time(row)) for row in rows]
    live = [(one.category, one.beat_id, one.changed_at) for one in published.live[INCIDENTS.feed]]
    answer = published.answers["incident_rows"]
    assert Counter(row[:3] for row in answer) == Counter(expected + live)
    assert all(len(address) == 32 and int(address, 16) >= 0 for *_, address in answer)
    hours = Counter((row[2].split(":")[0], int(row[3][11:13])) for row in rows)
    assert {(category, hour): n for category, hour, n in published.answers["categories"]} == hours


def test_parking_windows_are_those_of_file_and_live_events(published: Round) -> None:
    windows = defaultdict(list)
    for row in PARKING.distinct(published.files[PARKING.feed]):
        windows[row[0], window(parking_time(row))].append(int(row[2]) / int(row[1]))
    for one in published.live[PARKING.feed]:
        total = one.total_spot_number
        windows[one.site_id, window(one.observed_at)].append(total and one.occupied_spot_number / total)
    expected = {}
    for key, reports in windows.items():
        known = [share for share in reports if share is not None]
        full = [share >= 0.95 for share in known]
        results = (min(known), max(known), statistics.mean(known), statistics.mean(full)) if known else (None,) * 4
        expected[key] = (len(reports), *results)
    assert any(None in measures for measures in expected.values())
    answer = {(site, start): tuple(measures) for site, start, *measures in published.answers["parking_windows"]}
    assert answer.keys() == expected.keys()
    wrong = {key for key in expected if answer[key] != pytest.approx(expected[key], abs=1e-6)}
    assert not wrong


@pytest.mark.parametrize(("question", "group"), [("traffic_windows", "segment"), ("district_windows", "district")])
def test_traffic_windows_are_those_of_file_and_live_events(published: Round, question: str, group: str) -> None:
    expected: dict[tuple[str, datetime], list[int]] = defaultdict(list)
    for row in TRAFFIC.distinct(published.files[TRAFFIC.feed]):
        key = "i-94-west" if group == "segment" else "minneapolis"
        expected[key, window(traffic_end(row))].append(int(row[1]))
    for one in published.live[TRAFFIC.feed]:
        key = one.segment_id if group == "segment" else one.district
        expected[key, window(one.date_observed_to)].append(one.intensity)
    answer = {(key, start): (events, vehicles) for key, start, events, vehicles in published.answers[question]}
    assert answer == {key: (len(counts), sum(counts)) for key, counts in expected.items()}


def test_incident_windows_are_those_of_file_and_live_events(published: Round) -> None:
    events: Counter[Any] = Counter()
    reported: Counter[Any] = Counter()
    responses = defaultdict(list)
    for row in INCIDENTS.distinct(published.files[INCIDENTS.feed]):
        key = row[4], row[2].split(":")[0], window(incident_time(row))
        events[key] += 1
        reported[key] += 1
    for one in published.live[INCIDENTS.feed]:
        key = one.beat_id, one.category, window(one.changed_at)
        events[key] += 1
        reported[key] += one.status == "reported"
        if one.status == "on_scene":
            responses[key].append((one.changed_at - one.reported_at).total_seconds())
    answer = {(beat, kind, start): counted for beat, kind, start, *counted in published.answers["incident_windows"]}
    assert {key: counted[0] for key, counted in answer.items()} == events
    assert {key: counted[1] for key, counted in answer.items()} == {key: reported[key] for key in events}
    medians = {key: sorted(found)[(len(found) - 1) // 2] for key, found in responses.items()}
    assert {key: counted[2] for key, counted in answer.items() if counted[2] is not None} == pytest.approx(
        medians, rel=0.011
    )


def test_a_stored_row_says_which_file_brought_it_and_a_live_one_that_none_did(city: City, published: Round) -> None:
    notes = publications.read(city.installation.cluster)
    for data in DATA_SETS:
        live = {event.model_dump()["event_id"] for event in published.live[data.feed]}
        for event_id, *place in city.places(data.feed):
            files = {one.file for one in notes if one.brought(data.feed, *place)}
            assert not files if event_id in live else len(files) == 1, (event_id, place, files)
            assert files <= {"-", *(str(path[data.feed]) for path in (published.files, published.before))}


def test_publishing_again_adds_nothing(city: City, published: Round, tmp_path: Path) -> None:
    again = publish_round(city, published.files, tmp_path, before=published.files)
    assert again.received == {feed: report["accepted"] for feed, report in again.reports.items()}
    assert set(again.stored.values()) == {0}
    sums_of_floats = {"occupancy"}
    for name in published.answers.keys() - sums_of_floats:
        assert Counter(again.answers[name]) == Counter(published.answers[name]), name

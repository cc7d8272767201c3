"""Questions on a real ClickHouse: each of a small made-up input, of which the answer is known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from itertools import count
from typing import Annotated, Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from clickhouse_driver.errors import ServerException
from hypothesis import given, settings
from pydantic import Field as Described

import feeds
from citystream.installation import Installation
from schemas.feed import Feed
from schemas.fields import Record, Text
from schemas.model import Field
from schemas.question import Question
from schemas.verdict import instant_ms
from sinks.questions import ask_all, question_view
from tests.reference.cases import STANDS, cases, steps
from tests.reference.toy import NOON, instant

pytestmark = pytest.mark.integration

QUESTIONS = feeds.questions()
ZONE = ZoneInfo("Asia/Shanghai")
#: Midnight of the city's day that everything happens on.
DAY = datetime(2026, 3, 2, tzinfo=ZONE)
#: Of fields of which a row says nothing.
PLAIN: Mapping[str, Any] = {"string": "it", "int": 0, "float": 0.0, "bool": False, "instant": DAY}


class Site(Record):
    """An answer."""

    site_id: Annotated[Text, Described(description="Site")]


Row = dict[str, Any]
Connect = Callable[[str], Any]


def at(clock: str) -> datetime:
    """A time of the day, as 08:15 or 08:15:30."""
    hours, minutes, seconds = (*map(int, clock.split(":")), 0)[:3]
    return DAY + timedelta(hours=hours, minutes=minutes, seconds=seconds)


@dataclass(frozen=True)
class Case:
    """What is stored of each feed, and what is answered, from the beginning of the day to its end."""

    stored: Mapping[str, Sequence[Row]]
    answer: Sequence[tuple[Any, ...]]
    parameters: Mapping[str, str] | None = None


def full(clock: str, occupied: int, **more: Any) -> Row:
    return {
        "site_id": "p-1",
        "total_spot_number": 100,
        "occupied_spot_number": occupied,
        "observed_at": at(clock),
    } | more


def spot(clock: str, number: int, status: str, **more: Any) -> Row:
    return {"site_id": "p-1", "spot_id": f"p-1-{number}", "status": status, "observed_at": at(clock)} | more


def gate(clock: str, occupied: int, came: int | None, went: int | None, **more: Any) -> Row:
    return full(clock, occupied, vehicle_entrance_count=came, vehicle_exit_count=went, **more)


def alert(clock: str, does: str, severity: str, onset: str, entity: str, **more: Any) -> Row:
    own = {"alert_id": f"{entity} {onset}", "sent": at(clock), "msg_type": does, "severity": severity}
    return own | {"onset": at(onset), "rule": "congestion", "entity": entity} | more


def flow(clock: str, segment: str, vehicles: int, occupancy: float | None = None, **more: Any) -> Row:
    own = {"segment_id": segment, "date_observed_to": at(clock), "intensity": vehicles, "occupancy": occupancy}
    return own | {"district": "west", "road_id": segment[:3], "distance_along": 100.0 * int(segment[-1])} | more


def step(clock: str, incident: str, status: str, reported: str, **more: Any) -> Row:
    own = {"incident_id": incident, "status": status, "changed_at": at(clock), "reported_at": at(reported)}
    return own | {"beat_id": "beat-1", "priority": 1} | more


def call(clock: str, address: str, **more: Any) -> Row:
    own = {"incident_id": f"{address} {clock}", "status": "reported", "changed_at": at(clock), "reported_at": at(clock)}
    return own | {"address": address, "beat_id": "beat-1"} | more


def case(clock: str, case_id: str, step: str, **more: Any) -> Row:
    return {"case_id": case_id, "at": at(clock), "step": step, "role": "desk", "status": "Exercise"} | more


def report(clock: str, case_id: str, alert_id: str, due: str) -> Row:
    own = {"agency": "Police", "deadline": at(due), "source_id": alert_id, "why": "It is full"}
    return case(clock, case_id, "reported", role="citystream", **own)


CASES: dict[str, Case] = {
    "case_now": Case(
        {
            "case": [
                # Not in the order in which they happened.
                case("08:30", "c-1", "assigned", assignee="team 2", why=None), report("08:00", "c-1", "a-1", "12:00"),
                report("09:00", "c-1", "a-2", "13:00"), case("08:40", "c-1", "updated", severity="Severe"),
                case("09:30", "c-1", "reopened", why="it is open already"),
                report("08:00", "c-2", "a-3", "12:00"), case("08:10", "c-2", "handled", who="b" * 32, why="towed"),
                case("08:20", "c-2", "closed", why=None), case("08:30", "c-2", "assigned", assignee="team 3"),
                report("08:00", "c-3", "a-4", "12:00"), case("08:20", "c-3", "closed", why="seen"),
                report("10:00", "c-3", "a-5", "14:00"), case("11:00", "c-3", "ended", why=None),
                case("08:00", "c-4", "assigned", why="nobody reported it"),
                report("08:00", "c-5", "a-6", "12:00"), case("09:00", "c-5", "handled"),
                case("10:00", "c-5", "reopened", deadline=at("14:00"), why="it is full again"),
            ]
        },
        [
            ("c-1", "assigned", 5, "updated", at("08:40"), "desk", None, None, "Exercise", "Police", "team 2", None,
             at("08:00"), at("08:00"), at("12:00"), None, "a-1", None, None, "Severe"),
            ("c-2", "closed", 4, "closed", at("08:20"), "desk", None, None, "Exercise", "Police", None, None,
             at("08:00"), at("08:00"), at("12:00"), None, "a-3", None, None, None),
            ("c-3", "open", 4, "ended", at("11:00"), "desk", None, None, "Exercise", "Police", None, None,
             at("08:00"), at("10:00"), at("14:00"), None, "a-5", None, None, None),
            ("c-5", "open", 3, "reopened", at("10:00"), "desk", None, "it is full again", "Exercise", "Police", None,
             None, at("08:00"), at("10:00"), at("14:00"), None, "a-6", None, None, None),
        ],
    ),
    "case_handling": Case(
        {
            "case": [
                report("-1:00", "c-1", "a-1", "02:00"), case("01:00", "c-1", "assigned"),
                case("03:00", "c-1", "handled"), case("03:10", "c-1", "handled"), case("04:00", "c-1", "closed"),
                report("08:00", "c-2", "a-2", "12:00"), report("08:30", "c-2", "a-3", "12:30"),
                case("09:00", "c-2", "assigned", agency="Parks"), case("10:00", "c-2", "handled"),
                case("11:00", "c-2", "reopened", deadline=at("15:00")), case("11:30", "c-2", "handled"),
                case("11:40", "c-2", "assigned"),
            ]
        },
        [
            ("Parks", 0, 1, 2, 0, 1, 0, 7200.0, 7200.0), ("Police", 1, 1, 1, 1, 0, 1, 14400.0, 14400.0),
        ],
    ),
    "parking_minutes_full": Case(
        {
            "parking_site": [
                full("08:00", 95), full("08:05", 96), full("08:10", 94), full("08:15", 100), full("08:20", 100),
                full("08:30", 10), full("23:59", 100), full("24:00", 100),
                full("08:00", 95, site_id="p-2", total_spot_number=None),
            ]
        },
        [(date(2026, 3, 2), "p-1", 10 + 15 + 15, 60)],
    ),
    "parking_turnover": Case(
        {
            "parking_spot": [
                spot("-1:00", 1, "occupied"), spot("01:00", 1, "free"), spot("02:00", 1, "occupied"),
                spot("02:10", 1, "occupied"), spot("02:30", 1, "free"), spot("23:00", 1, "occupied"),
                spot("24:30", 1, "free"), spot("05:00", 2, "occupied"), spot("05:10", 2, "closed"),
                spot("06:00", 3, "free", site_id="p-2"),
            ]
        },
        [("p-1", 2, 3, 1.5, 1800.0, 7200.0), ("p-2", 1, 0, 0.0, None, None)],
    ),
    "parking_balance": Case(
        {
            "parking_site": [
                gate("00:30", 50, 9, 0), gate("08:00", 55, 8, 3), gate("23:00", 52, 2, 28), gate("24:00", 1, 0, 9),
                gate("00:30", 50, None, None, site_id="p-2"), gate("23:00", 52, None, None, site_id="p-2"),
                gate("12:00", 1, 5, 0, site_id="p-3"),
            ],
            "parking_spot": [
                spot("-1:00", 1, "occupied"), spot("00:10", 5, "occupied"), spot("01:00", 1, "free"),
                spot("02:00", 1, "occupied"), spot("03:00", 2, "free"), spot("04:00", 2, "occupied"),
                spot("04:10", 2, "occupied"), spot("05:00", 3, "occupied"), spot("06:00", 4, "occupied"),
                spot("06:10", 4, "closed"), spot("23:30", 3, "free"),
            ],
        },
        [
            ("p-1", 3, -21, 2, 1, -23, -1, True), ("p-2", 2, None, 2, None, None, None, False),
            ("p-3", 1, None, 0, None, None, None, False),
        ],
    ),
    "traffic_congestion": Case(
        {
            "alert": [
                alert("08:40", "Alert", "Moderate", "08:15", "s-1"), alert("09:10", "Update", "Severe", "08:15", "s-1"),
                alert("10:00", "Cancel", "Severe", "08:15", "s-1"), alert("11:00", "Alert", "Moderate", "10:45", "s-1"),
                alert("08:40", "Alert", "Moderate", "08:20", "s-2", rule="another"),
                alert("24:10", "Alert", "Moderate", "23:50", "s-3"),
            ]
        },
        [("s-1", at("08:15"), at("10:00"), "Severe"), ("s-1", at("10:45"), None, "Moderate")],
    ),
    "traffic_spread": Case(
        {
            "traffic_flow": [
                *(flow("07:59", f"r-1-{n}", 1) for n in (4, 2, 3, 1, 5, 6)), flow("07:59", "r-2-1", 1),
                flow("06:00", "r-2-2", 1), flow("07:59", "r-3-1", 1, road_id=None),
            ],
            "alert": [
                alert("07:45", "Alert", "Moderate", "07:30", "r-1-3"),
                alert("07:50", "Alert", "Severe", "07:15", "r-1-2"),
                alert("08:01", "Cancel", "Severe", "07:15", "r-1-2"),
                alert("08:10", "Alert", "Severe", "08:00", "r-1-5"),
                alert("08:30", "Alert", "Severe", "08:15", "r-1-4"),
                alert("07:00", "Alert", "Severe", "06:45", "r-1-6"),
                alert("07:59", "Cancel", "Severe", "06:45", "r-1-6"),
                *(alert("07:45", "Alert", "Moderate", "07:30", segment) for segment in ("r-2-1", "r-2-2", "r-3-1")),
            ],
        },
        [
            ("r-1", 2, 200.0, 300.0, at("07:15"), "r-1-2"), ("r-1", 1, 500.0, 500.0, at("08:00"), "r-1-5"),
            ("r-2", 1, 100.0, 100.0, at("07:30"), "r-2-1"),
        ],
        {"at": f"{at('08:00'):%F %T}"},
    ),
    "traffic_state": Case(
        {
            "traffic_flow": [
                flow("07:57", "r-1-1", 9, 0.2), flow("07:57:01", "r-1-2", 0, 0.0), flow("07:59", "r-1-2", 0, 0.1),
                flow("07:59", "r-1-3", 0, 0.9), flow("08:00", "r-1-3", 0, 0.9), flow("08:00", "r-1-4", 3, 0.9),
                flow("08:00", "r-1-5", 0), flow("08:01", "r-1-1", 9, 0.2),
            ]
        },
        [
            (segment, "r-1", "west", state, vehicles, covered, at(last))
            for segment, state, vehicles, covered, last in (
                ("r-1-1", "silent", 0, None, "07:57"), ("r-1-2", "empty", 0, 0.05, "07:59"),
                ("r-1-3", "standing", 0, 0.9, "08:00"), ("r-1-4", "flowing", 3, 0.9, "08:00"),
                ("r-1-5", "unknown", 0, None, "08:00"),
            )
        ],
        {"at": f"{at('08:00'):%F %T}"},
    ),
    "police_overdue_dispatch": Case(
        {
            "police_incident": [
                step("08:00", "i-1", "reported", "08:00"), step("08:03", "i-1", "dispatched", "08:00"),
                step("08:00", "i-2", "reported", "08:00"), step("08:03:01", "i-2", "on_scene", "08:00"),
                step("08:00", "i-3", "reported", "08:00", priority=None),
                step("08:15:01", "i-3", "dispatched", "08:00", priority=None),
                step("23:50", "i-4", "reported", "23:50", priority=5), step("-1:00", "i-5", "reported", "-1:00"),
            ]
        },
        [(1, 2, 1, 0, 181.0, 181.0), (5, 2, 1, 1, 901.0, 901.0)],
    ),
    "police_time_in_status": Case(
        {
            "police_incident": [
                step("-1:59", "i-1", "reported", "-1:59"), step("00:00:30", "i-1", "dispatched", "-1:59"),
                step("00:01", "i-1", "dispatched", "-1:59"), step("00:10:30", "i-1", "on_scene", "-1:59"),
                step("08:00", "i-2", "reported", "08:00"), step("08:00:30", "i-2", "dispatched", "08:00"),
            ]
        },
        [("dispatched", 1, 600.0, 600.0), ("reported", 2, 90.0, 90.0)],
    ),
    "police_illegal_steps": Case(
        {
            "police_incident": [
                step("08:00", "i-1", "reported", "08:00"), step("08:01", "i-1", "on_scene", "08:00"),
                step("08:02", "i-1", "closed", "08:00"), step("08:03", "i-1", "dispatched", "08:00"),
                step("08:00", "i-2", "reported", "08:00"), step("08:01", "i-2", "dispatched", "08:00"),
                step("08:02", "i-2", "closed", "08:00"), step("08:00", "i-3", "closed", "08:00"),
            ]
        },
        [
            ("i-1", "beat-1", "reported", "on_scene", at("08:01")),
            ("i-1", "beat-1", "closed", "dispatched", at("08:03")),
        ],
    ),
    "police_repeated_calls": Case(
        {
            "police_incident": [
                call("08:00", "a" * 32), call("08:30", "a" * 32), call("08:59:59", "a" * 32, beat_id="beat-2"),
                call("12:00", "a" * 32, status="closed"),
                call("08:00", "b" * 32), call("08:30", "b" * 32), call("09:00", "b" * 32),
            ]
        },
        [("a" * 32, "beat-2", 3, 3, at("08:00"), at("08:59:59"))],
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def city(stack: object, settings: Any) -> Iterator[Installation]:
    """An installation with every view, whose tables are left empty."""
    made = Installation(settings)
    made.prepare(lambda _: None)
    yield made
    empty(made)


def empty(city: Installation) -> None:
    with city.server("owner").connect() as owner:
        for name, feed in city.feeds.items():
            for table in (name, *(aggregate.topic for aggregate in feed.aggregates)):
                owner.execute(f"TRUNCATE TABLE raw.{table}")
        owner.execute("ALTER TABLE raw.progress DELETE WHERE 1 SETTINGS mutations_sync = 2")


def store(client: Any, feed: Feed, rows: Sequence[Row]) -> None:
    """Rows that all came late, so that windows are made of them when somebody asks; event time has come far."""
    numbers, now = count(), datetime.now(UTC)
    made = []
    for row in rows:
        unknown = row.keys() - {field.name for field in feed.fields}
        assert not unknown, unknown
        number = next(numbers)
        values = [value for field in feed.fields for value in cells(field, row, number)]
        made.append((*values, 0, number, now, 2**61))
    names = [name for field in feed.fields for name in columns(field)]
    stored = ", ".join([*names, "source_partition", "source_offset", "arrived_at", "seen_before"])
    client.execute(f"INSERT INTO raw.{feed.name} ({stored}) VALUES", made)
    progress = [(one.topic, partition, 2**61) for one in feed.aggregates for partition in range(feed.partitions)]
    client.execute("INSERT INTO raw.progress (aggregate, source_partition, watermark) VALUES", progress)


def columns(field: Field) -> list[str]:
    return [f"{field.name}_{part}" for part in ("longitude", "latitude")] if field.kind == "place" else [field.name]


def cells(field: Field, row: Row, number: int) -> Sequence[Any]:
    if field.kind == "place":
        return row.get(field.name) or (None, None)
    if field.kind == "uuid":
        return [row.get(field.name, UUID(int=number + 1))]
    default = field.symbols[0] if field.symbols else None if field.nullable else PLAIN[field.kind]
    return [row.get(field.name, default)]


def test_every_question_has_a_case() -> None:
    assert CASES.keys() == QUESTIONS.keys()


@pytest.mark.parametrize("question", QUESTIONS.values(), ids=QUESTIONS)
def test_a_question_is_answered(city: Installation, connect: Connect, question: Question) -> None:
    """By the analyst."""
    case = CASES[question.name]
    empty(city)
    for feed, rows in case.stored.items():
        store(connect("owner"), city.feeds[feed], rows)
    span = {"since": f"{DAY:%F %T}", "until": f"{DAY + timedelta(days=1):%F %T}"}
    values = {name: (case.parameters or span)[name] for name in question.parameters}
    asked = ", ".join(f"{name}='{value}'" for name, value in values.items())
    found = connect("analyst").execute(f"SELECT * FROM city.{question.name}{f'({asked})' if asked else ''}")
    assert found == list(case.answer)


#: Steps of cases, as their view has them.
STEPS = [
    ("case_id", "String"), ("step", "String"), ("at", "DateTime64(3, 'UTC')"), ("role", "String"),
    ("who", "Nullable(String)"), ("why", "Nullable(String)"), ("status", "String"),
    *((name, "Nullable(String)") for name in STANDS if name != "deadline"),
    ("deadline", "Nullable(DateTime64(3, 'UTC'))"), ("source_partition", "UInt16"), ("source_offset", "UInt64"),
]  # fmt: skip


def test_cases_are_those_that_their_steps_make_one_after_the_other(connect: Connect) -> None:
    """Whatever steps come, also such that cannot, and several at once."""
    client = connect("operator")

    def asked(name: str, rows: list[Row], span: str = "") -> list[Row]:
        steps = [{**row, **{one: row[one] and instant(row[one]) for one in ("at", "deadline")}} for row in rows]
        query = QUESTIONS[name].sql.replace("city.case", "steps")
        for one, ms in zip(("since", "until"), span.split(), strict=False):
            query = query.replace(f"{{{one}:DateTime64(3)}}", f"fromUnixTimestamp64Milli({ms})")
        tables = [{"name": "steps", "structure": STEPS, "data": [{**step, "status": "Test"} for step in steps]}]
        found, columns = client.execute(query, external_tables=tables, with_column_types=True)
        return [dict(zip((column for column, _ in columns), map(in_ms, row), strict=True)) for row in found]

    @settings(max_examples=150, deadline=None)
    @given(steps(NOON))
    def check(rows: list[Row]) -> None:
        wanted = cases(rows)
        there = {row.pop("case_id"): row for row in asked("case_now", rows)}
        assert there == {
            case_id: {
                **{name: one.counted[-1][name] for name in ("step", "at", "role", "who", "why")},
                **one.stands,
                "status": "Test",
                "state": one.state,
                "steps": one.steps,
                "first_opened_at": one.counted[0]["at"],
            }
            for case_id, one in wanted.items()
        }
        since, until = NOON + 1, NOON + 4
        counted = [step for one in wanted.values() for step in one.counted if since <= step["at"] < until]
        told = {row.pop("agency"): row for row in asked("case_handling", rows, f"{since} {until}")}
        assert told.keys() == {step["agency"] for step in counted}
        for agency, row in told.items():
            own = [step for step in counted if step["agency"] == agency]
            handled = [step for step in own if step["step"] == "handled"]
            took = sorted((step["at"] - step["opened_at"]) / 1000 for step in handled)
            times = Counter(step["step"] for step in own)
            assert row == {
                "opened": times["reported"],
                **{name: times[name] for name in ("assigned", "handled", "closed", "reopened")},
                "overdue": sum(step["deadline"] is not None and step["at"] > step["deadline"] for step in handled),
                **{f"handling_p{p}": took[len(took) * p // 100] if took else None for p in (50, 90)},
            }

    check()


def test_a_case_of_many_steps_takes_no_more_memory_than_an_analyst_has(city: Installation, connect: Connect) -> None:
    """A report that comes again and again for a week."""
    empty(city)
    begin, minute = at("-240:00"), timedelta(minutes=1)
    rows = [report("08:00", "c-1", "a-1", "12:00") | {"at": begin + n * minute} for n in range(10_000)]
    store(connect("owner"), city.feeds["case"], rows)
    client, span = connect("analyst"), f"since='{begin:%F %T}', until='{DAY:%F %T}'"
    assert client.execute("SELECT state, steps, opened_at FROM city.case_now") == [("open", 10_000, begin)]
    assert client.execute(f"SELECT opened FROM city.case_handling({span})") == [(1,)]


def in_ms(value: Any) -> Any:
    return instant_ms(value) if isinstance(value, datetime) else value


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT site_id FROM raw.parking_site",
        "SELECT parking_site.site_id FROM city.parking_site, raw.parking_site AS b",
        "SELECT a.site_id FROM city.parking_site AS a INNER JOIN raw.parking_site AS b USING site_id",
        "SELECT site_id FROM city.parking_site WHERE site_id IN raw.parking_site",
        "SELECT name AS site_id FROM merge('raw', 'park')",
    ],
)
def test_no_question_reads_anything_but_views_of_city(city: Installation, connect: Connect, sql: str) -> None:
    """Whatever its SQL is: ClickHouse says what an analyst may read."""
    owner, bad = connect("owner"), Question(name="too_much", asks="What is it?", answer=Site, sql=f"{sql} /* city.x */")
    owner.execute(question_view(bad, city.dialect))
    try:
        with pytest.raises(ServerException, match=r"Not enough privileges|There are no tables"):
            connect("analyst").execute(bad.query)
    finally:
        owner.execute("DROP VIEW city.too_much")


def test_a_question_may_say_from_where_nothing_is_read(city: Installation, connect: Connect) -> None:
    sql = "SELECT toString(extract(DAY FROM at)) AS site_id FROM (SELECT observed_at AS at FROM city.parking_site)"
    asked = Question(name="days", asks="Which days?", answer=Site, sql=sql)
    connect("owner").execute(question_view(asked, city.dialect))
    try:
        assert connect("analyst").execute(asked.query) == []
    finally:
        connect("owner").execute("DROP VIEW city.days")


def test_a_question_shows_nobody_more_than_they_may_see_and_goes_when_it_is_asked_no_more(
    city: Installation, connect: Connect
) -> None:
    owner = connect("owner")
    there = "SELECT name FROM system.tables WHERE database = 'city' AND position(create_table_query, 'INVOKER') > 0"
    assert {name for (name,) in owner.execute(there)} == set(QUESTIONS)
    first, *_ = QUESTIONS.values()
    ask_all(owner.execute, [first], city.dialect)
    assert owner.execute(there) == [(first.name,)]
    ask_all(owner.execute, QUESTIONS.values(), city.dialect)

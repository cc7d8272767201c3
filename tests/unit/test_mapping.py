"""From the columns of a file to the fields of a feed: what a mapping can say, and what is refused with which words."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

import feeds
from operations.publishing.checking import Checker, Rejected
from operations.publishing.mapping import FileMapping, MappingProblem, bind, make_mapping, read_mapping
from operations.publishing.rows import Row
from operations.publishing.values import NotConvertible, converter, time_converter
from schemas.feed import Feed

INCIDENT = feeds.load()["police_incident"]
TRAFFIC = feeds.load()["traffic_flow"]
MAPPINGS = sorted((Path(__file__).parents[2] / "examples" / "mappings").glob("*.toml"))
NOW_MS = 1_800_000_000_000
KEY = b"k" * 32

CALL = {
    "incident_id": "17",
    "category": "theft",
    "status": "reported",
    "changed_at": "2026-03-01T08:00:00Z",
    "reported_at": "2026-03-01T08:00:00Z",
    "beat_id": "3",
    "address": "Wensan Road 1",
}


def checker(feed: Feed, mapping: FileMapping, columns: Any = None, key: bytes = KEY) -> Checker:
    """A checker at a fixed time."""
    return Checker(feed, mapping, columns, id_key=key, now_ms=NOW_MS)


def check(columns: dict[str, Any], key: bytes = KEY, **said: Any) -> Any:
    """The incident of a row."""
    return checker(INCIDENT, make_mapping(said), key=key).check(Row(1, b"", columns))


def why(columns: dict[str, Any], **said: Any) -> str:
    """Why a row is no incident."""
    with pytest.raises(Rejected) as rejected:
        check(columns, **said)
    return str(rejected.value)


def test_a_field_takes_its_column_a_constant_or_the_column_of_its_name() -> None:
    row = {"nr": " 17 ", "title": "EMS: FALL VICTIM", "time": "2016-01-15 12:01", "beat_id": "3", "street": "A & B"}
    row |= {"lon": "-75.4", "lat": "40.1", "priority": ""}
    record = check(
        row,
        time_zone="America/New_York",
        fields={
            "incident_id": "nr",
            "category": {"column": "title", "before": ":"},
            "reported_at": "time",
            "changed_at": {"column": "time", "plus_minutes": 60},
            "address": "street",
            "place": {"longitude": "lon", "latitude": "lat"},
        },
        constants={"status": "reported"},
    )
    assert (record.incident_id, record.category, record.status) == ("17", "EMS", "reported")
    assert record.reported_at == datetime(2016, 1, 15, 17, 1, tzinfo=UTC)
    assert record.changed_at == datetime(2016, 1, 15, 18, 1, tzinfo=UTC)
    assert (record.place.longitude, record.place.latitude, record.priority, record.beat_id) == (-75.4, 40.1, None, "3")


def test_the_command_line_wins_over_the_mapping_file() -> None:
    mapping = make_mapping(
        {"time_zone": "Asia/Shanghai", "fields": {"site_id": "a"}, "constants": {"lane": 1}},
        ["b=site_id", "x=y=z"],
        ["lane=2", "district=a=b"],
        time_zone="Europe/London",
        time_format=None,
    )
    assert {path: take.column for path, take in mapping.fields.items()} == {"site_id": "b", "z": "x=y"}
    assert mapping.constants == {"lane": "2", "district": "a=b"}
    assert (mapping.time_zone, mapping.time_format) == (ZoneInfo("Europe/London"), "iso")


@pytest.mark.parametrize(
    ("said", "columns", "reason"),
    [
        ({"fields": {"adress": "a"}}, None, "no field adress; address is meant"),
        ({"fields": {"address": "stret"}}, [*CALL, "street"], "no column 'stret' for address; street is meant"),
        ({"fields": {"address": "a"}}, [*CALL, "a", "a"], "two columns 'a' for address"),
        ({}, ["incident_id"], "nothing gives category a value"),
        ({}, [*CALL, "place.longitude"], "nothing gives place.latitude a value"),
        ({"fields": {"address": "a"}, "constants": {"address": "b"}}, None, "address can have only one of"),
        ({"derived": ["priority"]}, None, "priority cannot be derived"),
        ({"fields": {"address": {"column": "a", "plus_minutes": 1}}}, None, "address is no time"),
    ],
)
def test_a_mapping_that_does_not_fit_is_refused_before_anything_is_read(
    said: dict[str, Any], columns: list[str] | None, reason: str
) -> None:
    with pytest.raises(MappingProblem, match=reason):
        bind(INCIDENT, make_mapping(said), columns)


@pytest.mark.parametrize(
    ("content", "maps", "reason"),
    [
        ({"time_zone": "Mars/Olympus"}, [], "mapping, time_zone: 'Mars/Olympus' is no IANA time zone"),
        ({"field": {}}, [], "mapping, field: "),
        ({"fields": 3}, [], "mapping, fields: "),
        ({"fields": {"address": {"column": "a", "after": ":"}}}, [], "mapping, fields.address.after: "),
        ({}, ["address"], "--map address: column=field is needed"),
        ({"time_format": "%H:%M-%H:%M"}, [], "mapping, time_format: '%H:%M-%H:%M' cannot be read"),
        ({"time_format": "%Y-%m %H:%M"}, [], "mapping, time_format: '%Y-%m %H:%M' does not say which day it is"),
        ({"time_format": "%Y %U %H:%M"}, [], "mapping, time_format: '%Y %U %H:%M' does not say which day it is"),
        ({"time_format": "%Q"}, [], "mapping, time_format: '%Q' cannot be read"),
        (
            {"time_format": "%Y-%m-%d %H:%M:%S %Z"},
            [],
            "mapping, time_format: %Z reads the name of a zone and forgets it",
        ),
        ({"time_format": "%Y-%m-%d %I:%M"}, [], "mapping, time_format: %I, hours to 12, and %p"),
        ({"time_format": "%Y-%m-%d %H:%M %p"}, [], "mapping, time_format: %I, hours to 12, and %p"),
    ],
)
def test_a_mapping_of_the_wrong_form_is_refused(content: dict[str, Any], maps: list[str], reason: str) -> None:
    with pytest.raises(MappingProblem, match=reason):
        make_mapping(content, maps)


def test_a_constant_that_is_no_value_of_its_field_is_refused() -> None:
    with pytest.raises(MappingProblem, match="the constant priority = 'high' is no whole number"):
        checker(INCIDENT, make_mapping({"constants": {"priority": "high"}}))


def test_a_mapping_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text("fields = [")
    with pytest.raises(MappingProblem, match=r"a\.toml cannot be read"):
        read_mapping(path)
    with pytest.raises(MappingProblem, match=r"b\.toml cannot be read"):
        read_mapping(tmp_path / "b.toml")


@pytest.mark.parametrize("path", MAPPINGS, ids=lambda path: path.stem)
def test_the_examples_are_mappings(path: Path) -> None:
    assert make_mapping(read_mapping(path)).fields


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"priority": "0"}, "priority: 0 is below 1"),
        ({"priority": "2,5"}, "priority: 2,5 is no whole number"),
        ({"priority": "1.000"}, "priority: 1.000 may have a decimal point or one for thousands"),
        ({"changed_at": "2026-03-01"}, "changed_at: 2026-03-01 has no time of day"),
        ({"changed_at": "2026-W10"}, "changed_at: 2026-W10 has no time of day"),
        ({"priority": "1_0"}, "priority: 1_0 is no whole number"),
        ({"priority": True}, "priority: True is no whole number"),
        ({"status": "done"}, "status: done is none of reported, dispatched, on_scene, closed, unknown"),
        ({"beat_id": " "}, "beat_id: a value is needed"),
        ({"beat_id": "b" * 200}, f"beat_id: {'b' * 40}... is longer than 128 characters"),
        ({"address": "Secret Lane " * 20}, "address: the value is longer than 128 characters"),
        ({"event_id": "17"}, "event_id: 17 is not of the form "),
        ({"place.longitude": "120.1"}, "place.latitude: a value is needed"),
        ({"place.longitude": "1e3", "place.latitude": "0"}, "place.longitude: 1000.0 is above 180"),
        ({"place.longitude": 10**400, "place.latitude": 0}, "place.longitude: 1"),
        ({"place.longitude": "nan", "place.latitude": "0"}, "place.longitude: nan is no number"),
        ({"reported_at": "2026-03-01T09:00:00Z"}, "reported_at: after changed_at"),
        ({"reported_at": "1999-12-31T09:00Z", "changed_at": "1999-12-31T09:00Z"}, "changed_at: before 2000-01-01"),
        ({"changed_at": "2027-03-01T09:00Z"}, "changed_at: more than 0:02:30 in the future"),
        ({"changed_at": "2026-03-01 09:00"}, "changed_at: 2026-03-01 09:00 has no UTC offset"),
        ({"changed_at": "yesterday"}, "changed_at: yesterday is no time such as"),
    ],
)
def test_reasons_name_the_field_the_value_and_what_is_allowed(change: dict[str, Any], reason: str) -> None:
    assert why(CALL | change).startswith(reason)


def test_everything_wrong_with_a_row_is_said_at_once_and_with_its_column() -> None:
    reasons = why({**CALL, "prio": "high", "status": "done"}, fields={"priority": "prio"}).split("; ")
    assert {reason.split(":")[0] for reason in reasons} == {"priority (column prio)", "status"}
    assert why(CALL | {"priority": "9", "beat_id": "b" * 200}).count(";") == 1


def test_a_bad_optional_field_hides_no_other_reason() -> None:
    """So that a count by reason has the record under each of them."""
    reasons = why(CALL | {"priority": "high", "beat_id": "", "changed_at": "2027-03-01T09:00Z"}).split("; ")
    assert {reason.split(":")[0] for reason in reasons} == {"priority", "beat_id", "changed_at"}


@pytest.mark.parametrize(
    ("kind", "given", "value"),
    [
        ("int", "-3", -3),
        ("int", "5.0", 5),
        ("int", 5.0, 5),
        ("float", "1e-3", 0.001),
        ("float", 3, 3.0),
        ("bool", "Yes", True),
        ("bool", "0", False),
        ("bool", False, False),
        ("string", 17, "17"),
    ],
)
def test_texts_and_json_values_become_values_of_the_kind(kind: Any, given: Any, value: Any) -> None:
    converted = converter(kind, None, lambda time: time)(given)
    assert converted == value
    assert type(converted) is type(value)


@pytest.mark.parametrize(
    ("pattern", "given", "expected"),
    [
        ("iso", "2016-10-04 07:59:42", "2016-10-03T23:59:42+00:00"),
        ("iso", "2016-10-04T07:59:42.1239+01:00", "2016-10-04T06:59:42.123000+00:00"),
        ("%d-%m-%Y %H:%M", "02-10-2012 09:00", "2012-10-02T01:00:00+00:00"),
        ("unix", 1475567982, "2016-10-04T07:59:42+00:00"),
        ("unix_ms", "1475567982123", "2016-10-04T07:59:42.123000+00:00"),
    ],
)
def test_times_in_each_format(pattern: str, given: Any, expected: str) -> None:
    assert time_converter(pattern, ZoneInfo("Asia/Shanghai"))(given).isoformat() == expected


def test_of_a_local_time_that_exists_twice_the_first_is_taken_and_one_that_does_not_exist_is_refused() -> None:
    twice: list[None] = []
    convert = time_converter("iso", ZoneInfo("America/Chicago"), on_twice=lambda: twice.append(None))
    assert convert("2017-11-05 01:00") == datetime(2017, 11, 5, 6, tzinfo=UTC)
    assert len(twice) == 1
    assert convert("2017-11-05 02:00") == datetime(2017, 11, 5, 8, tzinfo=UTC)
    assert convert("2017-03-12 01:59") == datetime(2017, 3, 12, 7, 59, tzinfo=UTC)
    with pytest.raises(NotConvertible, match="did not exist in America/Chicago"):
        convert("2017-03-12 02:00")
    assert len(twice) == 1


def test_a_time_no_calendar_has_is_refused() -> None:
    with pytest.raises(NotConvertible):
        time_converter("iso", ZoneInfo("Asia/Shanghai"))("0001-01-01 00:00")
    for stamp in ("9" * 18, 1764201600123, 1764201600123456, 1764201600123456789, 1e300, float("nan")):
        with pytest.raises(NotConvertible, match=r"as unix, see --time-format|is no number"):
            time_converter("unix", None)(stamp)


def test_the_same_content_has_the_same_id_and_any_other_content_another() -> None:
    first = check(CALL).event_id
    assert first == check({name: f" {value} " for name, value in CALL.items()} | {"weather": "rain"}).event_id
    assert first == check(CALL | {"changed_at": "2026-03-01T09:00:00+01:00"}).event_id
    others = [{"priority": "1"}, {"address": "Wensan Road 2"}, {"place.longitude": "1", "place.latitude": "1"}]
    assert len({first, *(check(CALL | other).event_id for other in others)}) == 4


def test_a_feeds_id_is_kept() -> None:
    given = "0b9f62ae-df7d-4b83-8e78-a40de42cb56d"
    assert check(CALL | {"event_id": given}).event_id == given
    assert check(CALL | {"event_id": ""}).event_id == check(CALL).event_id


def test_ids_of_records_with_personal_values_depend_on_the_key_and_others_do_not() -> None:
    assert check(CALL).event_id != check(CALL, key=b"l" * 32).event_id
    row = Row(1, b"", {"site_id": "a", "total_spot_number": 1, "occupied_spot_number": 1, "observed_at": "2026-01-01Z"})
    row.columns["observed_at"] = "2026-01-01T00:00Z"
    parking = feeds.load()["parking_site"]
    ids = [checker(parking, FileMapping(), key=key).check(row).model_dump()["event_id"] for key in (b"k", b"l")]
    assert ids[0] == ids[1]


def test_a_derived_key_is_the_events_id() -> None:
    row = {name: value for name, value in CALL.items() if name != "incident_id"}
    record = check(row, derived=["incident_id"])
    assert record.incident_id == record.event_id == check(row, derived=["incident_id"]).event_id


def test_fields_left_empty_are_known() -> None:
    found = checker(INCIDENT, FileMapping(), list(CALL)).empty_fields
    assert found == ["priority", "place"]
    assert checker(TRAFFIC, FileMapping()).empty_fields == []

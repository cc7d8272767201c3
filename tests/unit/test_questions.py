"""Questions of departments: what makes no sense is refused, with the reason."""

from __future__ import annotations

from typing import Annotated, Any

import pytest
from pydantic import Field

import feeds
from schemas.fields import Record, Text
from schemas.model import DeclarationError
from schemas.question import Question


class Site(Record):
    """A site."""

    site_id: Annotated[Text, Field(description="Site")]


PLAIN: dict[str, Any] = {
    "name": "sites_there",
    "asks": "Which sites are there?",
    "answer": Site,
    "sql": "SELECT DISTINCT site_id FROM city.parking_site WHERE observed_at < {until:DateTime64(3)}",
    "parameters": {"until": "2026-03-02 00:00:00"},
}


def test_a_question_knows_what_it_reads_and_how_it_is_asked() -> None:
    question = Question(**PLAIN)
    assert question.views == ["parking_site"]
    assert question.query == "SELECT * FROM city.sites_there(until='2026-03-02 00:00:00')"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"name": "Sites"}, "a name is lower-case words joined by underscores, without a version"),
        ({"name": "sites_v2"}, "a name is lower-case words joined by underscores, without a version"),
        ({"asks": "Sites"}, "'Sites' is no question: it ends in a question mark"),
        ({"sql": "SELECT site_id FROM raw.parking_site", "parameters": {}}, "it reads no view of city"),
        ({"sql": "SELECT 1 AS site_id", "parameters": {}}, "it reads no view of city"),
        ({"parameters": {}}, "until is a parameter without an example"),
        ({"parameters": {"until": "1", "since": "0"}}, "since is no parameter of its SQL"),
    ],
)  # fmt: skip
def test_a_question_that_makes_no_sense_is_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(DeclarationError) as refused:
        Question(**PLAIN | changes)
    assert str(refused.value) == f"question {(PLAIN | changes)['name']}: {reason}"


def test_a_part_of_a_question_may_have_a_name() -> None:
    Question(**PLAIN | {"sql": f"WITH there AS ({PLAIN['sql']}) SELECT site_id FROM there"})


def test_a_question_has_no_name_of_another_view(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = Question(**PLAIN | {"name": "parking_site_now"})
    found, wrong = feeds.declarations()
    monkeypatch.setattr(feeds, "declarations", lambda: ({**found, taken.name: taken}, wrong))
    with pytest.raises(DeclarationError, match="question parking_site_now: it has the name of another view of city"):
        feeds.questions()

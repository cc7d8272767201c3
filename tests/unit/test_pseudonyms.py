"""Pseudonyms: made of normalised text, with a key that can be told and changed, and that is the department's own."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

import feeds
from citystream.secrets import pseudonym_key
from citystream.settings import Settings, SettingsError
from schemas.fields import PSEUDONYM
from schemas.pseudonyms import (
    KEY_DIGITS,
    OtherDepartment,
    department_key,
    handed_out,
    key_id,
    normalised,
    pseudonym,
    replaced,
)
from schemas.verdict import instant_ms, problems
from simulation import simulator
from simulation.world import World

CITY = "the key of the whole city, which is long"
KEY, NEXT = (department_key(CITY + words, "Police") for words in ("", ", and the next one"))
POLICE = feeds.load()["police_incident"]
ADDRESS = "Wensan Road 17"


@pytest.mark.parametrize(
    "written",
    [
        "wensan road 17",
        "WENSAN ROAD 17",
        "  Wensan\t Road\u00a017\n",
        "Wensan\u3000Road 17",
        "\uff37ensan Road \uff11\uff17",
    ],
)
def test_what_differs_in_case_spaces_or_width_has_one_pseudonym(written: str) -> None:
    assert pseudonym(KEY, written) == pseudonym(KEY, ADDRESS)


def test_accents_and_ligatures_written_otherwise_have_one_pseudonym() -> None:
    assert pseudonym(KEY, "Cafe\u0301 STRASSE") == pseudonym(KEY, "caf\u00e9 stra\u00dfe")
    assert pseudonym(KEY, "\ufb01eld") == pseudonym(KEY, "field")
    assert pseudonym(KEY, "文三路") != pseudonym(KEY, "文二路")


@given(st.text())
def test_a_normalised_text_is_normalised(text: str) -> None:
    assert normalised(normalised(text)) == normalised(text)


@given(st.text())
def test_a_pseudonym_says_which_key_it_was_made_with(text: str) -> None:
    for key in (KEY, NEXT):
        assert re.fullmatch(PSEUDONYM, pseudonym(key, text))
        assert pseudonym(key, text)[:KEY_DIGITS] == key_id(key)


def test_a_changed_key_can_be_seen_and_links_nothing_and_both_are_valid() -> None:
    assert key_id(KEY) != key_id(NEXT)
    assert pseudonym(KEY, ADDRESS)[KEY_DIGITS:] != pseudonym(NEXT, ADDRESS)[KEY_DIGITS:]
    record = next(iter(simulator(POLICE)(World(datetime(2026, 1, 5, tzinfo=UTC), 1)))).model_dump()
    for key in (KEY, NEXT):
        values = replaced(POLICE, key, record)
        assert problems(POLICE, values, record["incident_id"].encode(), instant_ms(record["changed_at"])) == []


def test_a_department_makes_its_own_pseudonyms_with_no_more_than_its_key() -> None:
    own = handed_out(KEY, "Police")
    assert CITY not in own
    assert department_key(own, "Police") == KEY
    assert department_key(CITY, "Traffic police") != KEY
    with pytest.raises(OtherDepartment, match="is that of Police, and this needs Traffic police's"):
        department_key(own, "Traffic police")


def test_the_key_of_a_feed_is_the_same_from_the_citys_and_from_what_was_handed_out(tmp_path: Path) -> None:
    def of(key: str) -> Settings:
        return Settings(home=tmp_path, pseudonym_key=SecretStr(key))

    assert pseudonym_key(of(CITY), POLICE) == KEY == pseudonym_key(of(handed_out(KEY, "Police")), POLICE)
    with pytest.raises(SettingsError, match=r"^CITYSTREAM_PSEUDONYM_KEY: the pseudonym key is that of Police"):
        pseudonym_key(
            of(handed_out(KEY, "Police")), replace(POLICE, department=replace(POLICE.department, name="Courts"))
        )
    assert pseudonym_key(Settings(home=tmp_path), feeds.load()["traffic_flow"]) is None

"""Records that become records of another feed: once each, however their log is cut, killed and restarted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Annotated, Any
from uuid import UUID

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field

import feeds
from processors.making import Making
from schemas.avro import feed_schema
from schemas.catalogue import Catalogue, FrozenSchema
from schemas.expressions import Absolute, Column, Present, Scaled, When
from schemas.feed import DeclarationError, Feed, MadeOf
from schemas.fields import Coarse, Day, EventId, Instant, Location, Personal, Record, Text, Unit
from schemas.record_codec import decode
from schemas.rules import lookup
from streams.history import GRACE_MS
from streams.positions import first
from tests.columns import Staged, process
from tests.reference.made import made, plain
from tests.reference.partition import truth
from tests.reference.rules import Version, known_of
from tests.reference.streams import Log, logs
from tests.reference.toy import FEED, NOON, Mood, halves
from tests.unit.test_partition import Decoding, next_run
from tests.unit.test_rules import LIMITS, history, steps, versions_of_limits


class Note(Record):
    """What is noted of a toy."""

    event_id: EventId
    note_id: Annotated[Text, Field(description="Note")]
    noted_at: Annotated[Instant, Field(description="Event time")]
    mood: Annotated[Mood, Field(description="Mood")]
    high: Annotated[int | None, Field(description="Limit"), Unit("1")]
    over: Annotated[float, Field(description="How much more it is"), Unit("1")]
    text: Annotated[str | None, Field(description="Text")]
    busy: Annotated[bool | None, Field(description="Whether it is busy")]
    day: Annotated[Day | None, Field(description="Day")]
    who: Annotated[Text | None, Field(description="Who"), Personal()] = None
    steps: Annotated[int, Field(description="Steps"), Unit("1")] = 7
    place: Annotated[Location, Coarse(decimals=2)]


LEVEL, AT, MOOD, LOAD = Column("level"), Column("observed_at"), Column("mood"), Column("load")
LIMIT = lookup(LIMITS, Column("device_id"))
SAID = {"noted_at": AT, "mood": MOOD, "over": LOAD * LEVEL}
WAYS = (
    MadeOf(
        of=FEED,
        key=("device_id", "mood"),
        where=LIMIT.column("high") < LEVEL,
        fields={
            "noted_at": AT + LIMIT.column("high") * 1000,
            "mood": LIMIT.column("mood"),
            "high": LIMIT.column("high"),
            "over": LEVEL - LIMIT.column("high"),
            "text": "too high",
            "place": Column("place"),
            "day": Column("built"),
        },
    ),
    MadeOf(
        of=FEED,
        key=("device_id",),
        fields=SAID
        | {"busy": MOOD.equals("busy"), "text": When(LEVEL > 0, Column("note")), "high": Absolute(LEVEL), "steps": 3},
    ),
)
TARGET = Feed(
    name="note",
    description="Notes",
    record=Note,
    key="note_id",
    event_time="noted_at",
    department=FEED.department,
    batch=1,
    rate=None,
    silence=None,
    disorder=timedelta(seconds=2),
    lateness=timedelta(seconds=3),
    made_of=WAYS,
)
FROZEN = FrozenSchema(5, "note", 1, feed_schema(TARGET))
CATALOGUE = Catalogue({5: FROZEN})


def expected(log: Log, versions: Sequence[Version]) -> dict[str, dict[str, Any]]:
    found = truth(FEED, log.records)
    counted = set(found.valid) - set(found.repeats)
    return made(
        TARGET, FEED, [one for one in log.records if one.offset in counted],
        lambda _, key, arrived, event: known_of(versions, GRACE_MS, key, arrived, event),
    )  # fmt: skip


@settings(max_examples=150)
@given(logs(NOON), versions_of_limits(), st.lists(st.lists(steps, max_size=8), max_size=4))
def test_any_cut_kill_and_restart_makes_what_the_reference_makes(log: Log, versions: list[Version], lives: Any) -> None:
    decoder: Any = Decoding(FEED, log)
    found: dict[str, dict[str, Any]] = {}
    wanted, position = expected(log, versions), first("topic-id", FEED.definition, 0)
    for life in [*lives, [(len(log.cuts), True, True)]]:
        partition, now = (
            Staged(
                FEED, 0, decoder, position,
                histories=lambda *_: history(versions), makings=[Making(FEED, TARGET, FROZEN)],
            ),
            0.0,
        )  # fmt: skip
        at = partition.start.rewind
        for batches, flushes, commits in life:
            if at < log.end:
                run = next_run(log, at, batches)
                process(partition, run)
                at = run.next
            now += flushes
            if flushes and (output := partition.flush(None if flushes is True else now)) is not None:
                offsets = [one.offset for one in output.made]
                assert offsets == sorted(offsets), "as they lie in the log, whichever way they were made"
                for one in output.made:
                    record = plain(decode(CATALOGUE, one.value))
                    assert (one.topic, one.key) == ("note", record["note_id"].encode())
                    assert one.offset >= position.processed, "what was committed is not made again"
                    assert found.setdefault(record["event_id"], record) == record
                position = output.position if commits else position
        assert found.items() <= wanted.items()
    assert found == wanted


def test_of_a_number_that_is_beyond_all_nothing_is_made() -> None:
    target = replace(TARGET, made_of=(replace(WAYS[1], fields=SAID),))
    rows = pl.DataFrame(
        {
            "_partition": [0, 0], "_offset": [0, 1], "device_id": ["d", "d"], "observed_at": [NOON, NOON],
            "event_id": [halves(str(UUID(int=n))) for n in (1, 2)], "mood": ["calm", "calm"], "level": [10, 10],
            "load": [1e308, 0.5],
        }
    )  # fmt: skip
    made = Making(FEED, target, FROZEN).of(rows)
    assert [(one.offset, decode(CATALOGUE, one.value)["over"]) for one in made] == [(1, 5.0)]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"key": ()}, "it needs a key of texts that are never null and not personal, and has none"),
        ({"key": ("note",)}, "it needs a key of texts that are never null and not personal, and has note"),
        ({"where": LEVEL}, "level, which is a number and no condition"),
        ({"fields": {"mood": MOOD, "over": LOAD}}, "it says nothing of noted_at, which is never null"),
        ({"fields": SAID | {"note_id": "n"}}, "note_id is made by itself"),
        ({"fields": SAID | {"nobody": "n"}}, "nobody is no field of the record"),
        ({"fields": SAID | {"text": LEVEL}}, "text is made of level, which is a number and no text"),
        ({"fields": SAID | {"text": Column("gone")}}, "text is made of gone: gone is no field of the record"),
        ({"fields": SAID | {"high": LOAD}}, "high is made of load, which may be a fraction"),
        ({"fields": SAID | {"who": Column("note")}}, "who is made of note; no worker has the key of a personal field"),
        ({"fields": SAID | {"day": AT}}, "day is made of observed_at; a date is made of no expression, only copied"),
        ({"fields": SAID | {"mood": "cross"}}, "mood is made of 'cross', which may be cross and not one of calm"),
        ({"fields": SAID | {"mood": Column("note")}}, "mood is made of note, which may be any text and not one of"),
    ],
)
def test_what_makes_no_sense_is_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(DeclarationError, match="feed note: as it is made of toy, ") as refused:
        replace(TARGET, made_of=(replace(WAYS[1], **changes),))
    assert reason in str(refused.value)


def test_a_place_is_shown_no_more_exactly_than_where_it_comes_from() -> None:
    police = feeds.load()["police_incident"]
    fields: dict[str, Any] = {"noted_at": Column("changed_at"), "mood": "calm", "over": 0, "place": Column("place")}
    way = MadeOf(of=police, key=("incident_id",), fields=fields)
    assert replace(TARGET, made_of=(way,))
    exact = Annotated[Location, Coarse(decimals=3)]
    finer = type("Finer", (Note,), {"__annotations__": {"place": exact}, "__doc__": "Finer."})
    with pytest.raises(DeclarationError, match="which is shown to 2 decimals: declare place as Coarse, too"):
        replace(TARGET, record=finer, made_of=(way,))


def test_a_fraction_that_is_rounded_is_whole() -> None:
    assert replace(TARGET, made_of=(replace(WAYS[1], fields=SAID | {"high": Scaled(LOAD, 10), "text": "n"}),))
    assert replace(TARGET, made_of=(replace(WAYS[1], where=Present(LOAD)),))

"""Which quarantined records are published again, with which bytes, and what a person may correct."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, ClassVar, cast
from unittest.mock import create_autospec

import numpy as np
import pytest
from kafka.errors import KafkaError
from kafka.producer.future import FutureRecordMetadata, RecordMetadata
from pydantic import Field

from citystream import cli, mistakes
from citystream.commands import dead_letters
from citystream.installation import Installation
from citystream.settings import Settings
from operations.progress import OnProgress
from operations.redriving import redrive as procedure
from operations.redriving.corrections import Correction, CorrectionProblem, corrected, exported, read_corrections
from operations.redriving.outcome import Outcome, Result
from operations.redriving.redrive import Redrive
from schemas.catalogue import Catalogue, FrozenSchema
from schemas.feed import Feed
from schemas.fields import Coarse, Location, Personal
from schemas.record_codec import NotDecodable, decode, encode
from schemas.verdict import instant_ms
from sinks.quarantine import MOST_BYTES, MOST_LETTERS, Identity, Letter, Place, Redriven, Selection, cuts
from streams.cluster import Cluster
from streams.decode import Decoder
from streams.wire.fetched_batches import Run
from streams.wire.record_batch import of_one
from tests.reference.toy import CATALOGUE, FEED, NOON, SECOND, Toy, event_id, frozen_catalogue, instant, record, value

#: When the records arrived.
ARRIVED = NOON + 10 * SECOND


class Named(Toy):
    """A toy of somebody."""

    owner: Annotated[str | None, Field(max_length=64, description="Whose it is"), Personal()]
    place: Annotated[Location, Coarse(decimals=2)]


NAMED = replace(FEED, record=Named)
NAMES = frozen_catalogue(NAMED)


def letter(offset: int, content: bytes | None, key: bytes | None = b"d-1") -> Letter:
    return Letter("toy", 0, offset, "the first cause", key, content, ARRIVED)


class Kept:
    """A quarantine with these letters, and a topic with these events."""

    def __init__(self, letters: Sequence[Letter], there: dict[Identity, tuple[int, int]] | None = None) -> None:
        self._letters = {one.offset: one for one in letters}
        self._there = there or {}
        self.noted: list[Redriven] = []

    def letters(self, topic: str, partition: int, offsets: Sequence[int]) -> list[Letter]:
        return [self._letters[offset] for offset in offsets]

    def stored(self, feed: Feed, identities: Any) -> dict[Identity, tuple[int, int]]:
        return {identity: self._there[identity] for identity in identities if identity in self._there}

    def note(self, redriven: Sequence[Redriven]) -> None:
        self.noted += redriven


class Topic:
    """A producer whose records get offsets from 100 on; those of some keys are not taken."""

    def __init__(self, refused: bytes | None = None) -> None:
        self.sent: list[tuple[str, bytes, bytes]] = []
        self._refused = refused

    def send(self, topic: str, key: bytes, value: bytes) -> Any:
        self.sent.append((topic, key, value))
        there, fails = RecordMetadata(topic, 2, None, 99 + len(self.sent), 0, 0, 0, 0, 0), key == self._refused
        result = create_autospec(FutureRecordMetadata, instance=True, value=there)
        result.succeeded.return_value = not fails
        result.get.side_effect = KafkaError if fails else None
        return result

    def flush(self) -> None:
        """All is decided at once."""

    def close(self) -> None:
        """Nothing is open."""


def redriven(
    kept: Kept,
    offsets: list[int],
    topic: Any,
    corrections: dict[Place, Correction] | None = None,
    catalogue: Catalogue = CATALOGUE,
) -> dict[tuple[Outcome, str | None], int]:
    work = Redrive(kept, {"toy": FEED}, catalogue, corrections)  # type: ignore[arg-type]
    found = work.take(("toy", 0, offsets), topic)
    return {(outcome, problem): n for (_, _, outcome, problem), n in found.items()}


def test_what_is_good_now_is_published_with_its_bytes_and_noted() -> None:
    """A record of a schema that was frozen later, and one that nothing helps."""
    later = {**CATALOGUE.by_id, 9: FrozenSchema(9, "toy", 2, CATALOGUE.latest("toy").schema)}
    good = encode(later[9], record())
    kept, topic = Kept([letter(4, good), letter(7, b"noise"), letter(8, value(level=10**6))]), Topic()
    assert redriven(kept, [4], None) == {(Outcome.BAD, "schema id 9 is not in the catalogue"): 1}
    found = redriven(kept, [4, 7, 8], topic, catalogue=Catalogue(later))
    assert found == {
        (Outcome.REDRIVEN, None): 1,
        (Outcome.BAD, "the value does not start with 0x00 and a schema id"): 1,
        (Outcome.BAD, "level: above 100000"): 1,
    }
    assert topic.sent == [("toy", b"d-1", good)]
    assert kept.noted == [Redriven(("toy", 0, 4), 2, 100, False)]


def test_a_dry_run_publishes_and_notes_nothing() -> None:
    letters = [letter(4, value()), letter(5, value(event_id=event_id(2)))]
    kept = Kept(letters, {("d-1", NOON, event_id(2)): (0, 1)})
    assert redriven(kept, [4, 5], None) == {(Outcome.REDRIVEN, None): 1, (Outcome.STORED, None): 1}
    assert not kept.noted


def test_an_event_that_is_stored_is_noted_and_not_published() -> None:
    """What an interrupted redrive published and could not note, or a department published itself."""
    kept, topic = (
        Kept([letter(4, value()), letter(5, value(event_id=event_id(2)))], {("d-1", NOON, event_id(1)): (3, 50)}),
        Topic(),
    )
    assert redriven(kept, [4, 5], topic) == {(Outcome.STORED, None): 1, (Outcome.REDRIVEN, None): 1}
    assert [decode(CATALOGUE, content)["event_id"] for *_, content in topic.sent] == [event_id(2)]
    assert kept.noted == [Redriven(("toy", 0, 4), 3, 50, False), Redriven(("toy", 0, 5), 2, 100, False)]


def test_a_repeat_is_noted_where_the_first_letter_went_and_not_published() -> None:
    """Of letters looked at together, and of ones looked at later, while the sink has stored nothing yet."""
    other = letter(6, value(event_id=event_id(2)))
    kept, topic = Kept([letter(4, value()), letter(5, value(level=8)), other, letter(7, value())]), Topic()
    work = Redrive(kept, {"toy": FEED}, CATALOGUE)  # type: ignore[arg-type]
    for producer in (None, topic):
        found = Counter[Any]()
        for offsets in ([4, 5], [6, 7]):
            found += work.take(("toy", 0, offsets), producer)
        assert {outcome: n for (_, _, outcome, _), n in found.items()} == {Outcome.REDRIVEN: 2, Outcome.REPEATED: 2}
    assert [content for *_, content in topic.sent] == [value(), other.value]
    assert sorted((one.place[2], one.to_partition, one.to_offset) for one in kept.noted) == [
        (4, 2, 100), (5, 2, 100), (6, 2, 101), (7, 2, 100)
    ]  # fmt: skip


def test_the_same_identity_in_another_feed_is_another_event() -> None:
    feeds = {"toy": FEED, "twin": replace(FEED, name="twin", aggregates=())}
    catalogue = frozen_catalogue(*feeds.values())
    letters = [replace(letter(n, encode(catalogue.latest(name), record())), topic=name) for n, name in enumerate(feeds)]
    topic = Topic()
    work = Redrive(Kept(letters), feeds, catalogue)  # type: ignore[arg-type]
    for one in letters:
        work.take((one.topic, 0, [one.offset]), topic)
    assert [to for to, *_ in topic.sent] == ["toy", "twin"]


def test_a_repeat_of_a_record_that_was_not_acknowledged_is_not_noted() -> None:
    good, refused = value(device_id="d-2"), value()
    letters = [letter(0, refused), letter(1, good, b"d-2"), letter(2, refused), letter(3, good, b"d-2")]
    kept = Kept(letters)
    with pytest.raises(KafkaError):
        redriven(kept, [0, 1, 2, 3], Topic(refused=b"d-1"))
    assert [one.place[2] for one in kept.noted] == [1, 3]


def test_a_wrong_clock_does_not_become_right_by_waiting() -> None:
    """The verdict is that of the record's own arrival, however much later it is asked for."""
    ahead = value(observed_at=instant(ARRIVED) + FEED.allowance + timedelta(milliseconds=1))
    just = value(observed_at=instant(ARRIVED) + FEED.allowance)
    found = redriven(Kept([letter(1, ahead), letter(2, just)]), [1, 2], None)
    assert found == {
        (Outcome.BAD, f"observed_at: more than {FEED.allowance} after arrival"): 1,
        (Outcome.REDRIVEN, None): 1,
    }


def test_a_letter_without_bytes_says_why_it_cannot_be_redriven() -> None:
    batch = replace(letter(1, None, None), cause="the batch decompresses to more than 64 MiB")
    keyless = replace(letter(2, value(), None), cause="the record has no key")
    topic = Topic()
    found = redriven(Kept([batch, keyless]), [1, 2], topic)
    assert found == {(Outcome.BAD, batch.cause): 1, (Outcome.BAD, keyless.cause): 1}
    assert not topic.sent


def test_what_was_acknowledged_is_noted_although_another_was_not() -> None:
    others = [letter(n, value(device_id=f"d-{n}"), f"d-{n}".encode()) for n in range(3)]
    kept = Kept(others)
    with pytest.raises(KafkaError):
        redriven(kept, [0, 1, 2], Topic(refused=b"d-1"))
    assert [one.place[2] for one in kept.noted] == [0, 2]


def test_the_verdict_is_the_workers_on_every_value() -> None:
    """Also of what fastavro alone would take."""
    odd = [value(level=200_000), value() + b"\x00", value()[:-1], b"", value(device_id="d-2"), value(mood="busy")]
    batches = tuple(of_one(0, n, ARRIVED, b"d-1", content) for n, content in enumerate(odd))
    decoded = Decoder(CATALOGUE, "toy", FEED).read(Run("toy", 0, 0, len(odd), batches), 0)
    expected = {dead.offset: dead.cause for dead in decoded.dead}
    for n, content in enumerate(odd):
        (found,) = redriven(Kept([letter(n, content)]), [n], None)
        assert found == (Outcome.BAD if n in expected else Outcome.REDRIVEN, expected.get(n))
    assert sorted(expected) == [0, 1, 2, 3, 4]


def corrections(**fields: Any) -> dict[Place, Correction]:
    return {("toy", 0, 3): Correction(17, fields)}


def test_a_corrected_record_keeps_what_is_not_corrected() -> None:
    kept, topic = Kept([letter(3, value(level=10**6, load=0.1, note="as is"))]), Topic()
    said = corrections(level=7, observed_at="2024-05-01T14:00:01.5+02:00", place={"longitude": 120.1, "latitude": 30})
    assert redriven(kept, [3], topic, said) == {(Outcome.REDRIVEN, None): 1}
    ((_, key, content),) = topic.sent
    assert key == b"d-1"
    assert decode(CATALOGUE, content) == {
        **decode(CATALOGUE, value(load=0.1, note="as is")),
        "level": 7, "observed_at": instant(NOON + 1500), "place": {"longitude": 120.1, "latitude": 30.0},
    }  # fmt: skip
    assert kept.noted == [Redriven(("toy", 0, 3), 2, 100, True)]


def test_a_record_under_a_wrong_key_goes_under_its_own_once_somebody_says_so() -> None:
    kept, topic = Kept([letter(3, value(), b"another")]), Topic()
    assert redriven(kept, [3], topic) == {(Outcome.BAD, "device_id: is not the record's key"): 1}
    assert redriven(kept, [3], topic, corrections()) == {(Outcome.REDRIVEN, None): 1}
    assert topic.sent == [("toy", b"d-1", value())]


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"level": 100_001}, "line 17: level: Input should be less than or equal to 100000"),
        ({"level": "7"}, "line 17: level: Input should be a valid integer"),
        ({"level": None}, "line 17: level: Input should be a valid integer"),
        ({"event_id": event_id(2)}, "line 17: event_id: says which event it is and cannot be changed"),
        ({"device_id": "d-2"}, "line 17: device_id: says which event it is and cannot be changed"),
        ({"place": {"longitude": 181, "latitude": 0}}, "line 17: place.longitude: Input should be less than"),
        ({"observed_at": "2024-05-01T13:00:00Z"}, "line 17: observed_at: more than 0:00:05 after arrival"),
        ({"began_at": "2024-05-01T12:00:01Z"}, "line 17: began_at: after observed_at"),
    ],
)
def test_a_correction_that_cannot_be_taken_names_line_and_field(fields: dict[str, Any], problem: str) -> None:
    topic = Topic()
    ((outcome, found),) = redriven(Kept([letter(3, value())]), [3], topic, corrections(**fields))
    assert outcome is Outcome.BAD
    assert found is not None
    assert found.startswith(problem)
    assert not topic.sent


def named(**changes: Any) -> Letter:
    return letter(3, encode(NAMES.latest("toy"), {**record(), "owner": "0123456789abcdef" * 2, **changes}))


def test_a_personal_value_is_not_exported_and_cannot_be_changed() -> None:
    """Who edits a file cannot put a name onto a topic, not even by accident."""
    original = named()
    line = exported(NAMES, NAMED, original)
    assert line == json.loads(json.dumps(line))
    assert "owner" not in line["record"]
    assert set(line["record"]) == {field.name for field in FEED.fields}
    with pytest.raises(CorrectionProblem, match="line 17: owner: is personal: it may be emptied"):
        corrected(NAMES, NAMED, original, Correction(17, {"owner": "Zhang Wei"}))
    _, stays = corrected(NAMES, NAMED, original, Correction(17, line["record"]))
    assert stays == original.value
    _, emptied = corrected(NAMES, NAMED, original, Correction(17, {"owner": None}))
    assert decode(NAMES, emptied)["owner"] is None


def test_what_is_exported_and_not_changed_has_the_same_bytes() -> None:
    place = {"longitude": 120.123456789, "latitude": -0.1}
    full = letter(3, value(began_at=instant(NOON - 1), place=place, built=None, load=1e-7, wait=5, open=True, note=""))
    line = exported(CATALOGUE, FEED, full)
    (found,) = read_corrections([json.dumps(line)], {"toy": FEED}).values()
    assert corrected(CATALOGUE, FEED, full, found) == (full.key, full.value)


def test_a_field_of_a_newer_version_survives_a_correction() -> None:
    """The platform does not declare it yet, and nobody can correct it."""
    schema = CATALOGUE.latest("toy").schema
    newer = schema | {"fields": [*schema["fields"], {"name": "colour", "type": ["null", "string"], "default": None}]}
    later = Catalogue({**CATALOGUE.by_id, 9: FrozenSchema(9, "toy", 2, newer)})
    red = letter(3, encode(later.by_id[9], record(level=200_000) | {"colour": "red"}))
    assert "colour" not in exported(later, FEED, red)["record"]
    _, content = corrected(later, FEED, red, Correction(17, {"level": 7}))
    assert decode(later, content) == decode(CATALOGUE, value(level=7)) | {"colour": "red"}


def test_what_cannot_be_read_cannot_be_exported_or_corrected() -> None:
    for broken in (letter(3, b"noise"), letter(3, None)):
        with pytest.raises(NotDecodable):
            exported(CATALOGUE, FEED, broken)
        with pytest.raises(CorrectionProblem, match=r"line 17: the record cannot be read .*: publish it anew"):
            corrected(CATALOGUE, FEED, broken, Correction(17, {"level": 5}))


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "line 2: no JSON"),
        ("[]", "line 2: no JSON object with topic, partition, offset and record"),
        ('{"topic": "toy", "partition": 0, "offset": 3}', "line 2: no JSON object"),
        ('{"topic": "tox", "partition": 0, "offset": 3, "record": {}}', "line 2: topic: tox is none of the feeds toy"),
        ('{"topic": "toy", "partition": 0, "offset": "3", "record": {}}', "line 2: offset: has to say which record"),
        ('{"topic": "toy", "partition": 0, "record": {}}', "line 2: offset: has to say which record"),
        ('{"topic": "toy", "partition": true, "offset": 3, "record": {}}', "line 2: partition: has to say"),
        ('{"topic": "toy", "partition": 0, "offset": 3, "record": {"lvel": 5}}', "line 2: lvel: is no field of toy"),
        ('{"topic": "toy", "partition": 0, "offset": 3, "level": 5, "record": {}}', "line 2: level: fields to correct"),
        ('{"topic": "toy", "partition": 0, "offset": 1, "record": {}}', "line 2: the record was corrected in line 1"),
    ],
)
def test_a_line_that_is_no_correction_is_refused(line: str, problem: str) -> None:
    first = '{"topic": "toy", "partition": 0, "offset": 1, "cause": "x", "record": {"level": 1}}'
    assert read_corrections([first, " \n"], {"toy": FEED}) == {("toy", 0, 1): Correction(1, {"level": 1})}
    with pytest.raises(CorrectionProblem, match=problem):
        read_corrections([first, line], {"toy": FEED})


def test_pieces_are_bounded_in_number_and_bytes() -> None:
    sizes = np.array([1] * (MOST_LETTERS + 1) + [MOST_BYTES + 5, 3, MOST_BYTES - 3, 1], np.uint64)
    pieces = list(cuts(sizes))
    assert [start for start, _ in pieces] == [0, *(end for _, end in pieces[:-1])]
    assert pieces[-1][1] == len(sizes)
    last = MOST_LETTERS + 1
    assert pieces == [(0, last - 1), (last - 1, last), (last, last + 1), (last + 1, last + 3), (last + 3, last + 4)]
    assert list(cuts(np.array([], np.uint64))) == []


class Asked(Kept):
    """A quarantine as it is asked for chunks, which are of two letters."""

    selection: Selection | None = None

    def chunks(self, selection: Selection) -> list[tuple[str, int, list[int]]]:
        self.selection, offsets = selection, list(self._letters)
        return [("toy", 0, offsets[at : at + 2]) for at in range(0, len(offsets), 2)]

    def known(self, places: Iterable[Place]) -> set[Place]:
        return {place for place in places if place[2] in self._letters}

    def close(self) -> None:
        """Nothing is open."""


class ToyCity(Installation):
    """An installation with one feed."""

    feeds: ClassVar = {"toy": FEED}
    catalogue: ClassVar = CATALOGUE


def command(monkeypatch: pytest.MonkeyPatch, kept: Asked, topic: Topic, *words: str) -> int:
    """Exit code of a command of dead-letters in a city of UTC+8 whose sink has stored 3 of the last 12 records."""
    city = ToyCity(
        Settings(timezone="Asia/Shanghai", operator_password="secret of the test", owner_password="secret of the test")
    )

    def redrive(_: Cluster, *asked: Any, dry_run: bool, on_progress: OnProgress) -> Counter[Result]:
        quarantine, feeds, catalogue, selection, corrections = asked
        on_progress("waiting for the sink", 3, 12)
        work = Redrive(quarantine, feeds, catalogue, corrections)
        return work.run(selection, None if dry_run else cast("Any", lambda: topic), on_progress)

    monkeypatch.setattr(Installation, "load", lambda: city)
    monkeypatch.setattr(dead_letters, "Quarantine", lambda server: kept)
    monkeypatch.setattr(procedure, "redrive", redrive)
    monkeypatch.setattr("sys.argv", ["citystream", "dead-letters", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


@pytest.mark.parametrize("name", ["export", "redrive"])
@pytest.mark.parametrize(
    ("words", "chosen"),
    [
        ([], {}),
        (["--since", "2026-03-29T08:00"], {"since_ms": instant_ms(datetime(2026, 3, 29, tzinfo=UTC))}),
        (["--until", "2026-03-29T08:00:00.001"], {"until_ms": instant_ms(datetime(2026, 3, 29, tzinfo=UTC)) + 1}),
        (["--until", "2026-03-29"], {"until_ms": instant_ms(datetime(2026, 3, 28, 16, tzinfo=UTC))}),
        (["--since", "2026-03-29T08:00Z"], {"since_ms": instant_ms(datetime(2026, 3, 29, 8, tzinfo=UTC))}),
        (["--since", "2026-03-29T08:00-02:00"], {"since_ms": instant_ms(datetime(2026, 3, 29, 10, tzinfo=UTC))}),
        (["--partition", "0", "--offset", "3"], {"partition": 0, "offset": 3}),
        (["--partition", "2", "--offset", "0"], {"partition": 2, "offset": 0}),
        (["--cause", "level"], {"cause": "level"}),
    ],
)
def test_what_a_person_gives_narrows_the_selection(
    name: str, words: list[str], chosen: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Times are of the city's time zone unless they say another; 0 is a place as any other."""
    kept = Asked([])
    assert command(monkeypatch, kept, Topic(), name, *words) == 0
    assert kept.selection == Selection(["toy"], **chosen)
    assert set(re.findall(r"%\((\w+)\)s", kept.selection.condition)) == {"topics", *chosen}


@pytest.mark.parametrize("option", ["--since", "--until"])
def test_a_time_that_is_none_is_refused(
    option: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = Asked([])
    assert command(monkeypatch, kept, Topic(), "redrive", option, "yesterday") == mistakes.WRONG_USE
    assert f"citystream: {option}: yesterday is no time such as 2026-03-29T08:00:00" in capsys.readouterr().err
    assert kept.selection is None


@pytest.mark.parametrize("is_corrected", [False, True])
@pytest.mark.parametrize("dry", [False, True])
def test_a_redrive_says_how_far_it_is(*, is_corrected: bool, dry: bool) -> None:
    """Chunk by chunk, of the records it was told to take; a file of corrections is checked first."""
    letters = [letter(n, value(event_id=event_id(n))) for n in range(6)]
    said, sizes = None, [2, 2, 2]
    if is_corrected:
        lines = [json.dumps(exported(CATALOGUE, FEED, one)) for one in letters[:3]]
        said, sizes = read_corrections(lines, {"toy": FEED}), [2, 1]
    heard: list[tuple[str, int, int | None]] = []
    topic = Topic()
    work = Redrive(Asked(letters), {"toy": FEED}, CATALOGUE, said)  # type: ignore[arg-type]
    work.run(Selection(["toy"]), None if dry else cast("Any", lambda: topic), lambda *said: heard.append(said))
    steps = ["checking"] * (dry or is_corrected) + ["redriving"] * (not dry)
    assert heard == [(step, sum(sizes[:n]), sum(sizes)) for step in steps for n in range(len(sizes) + 1)]
    assert len(topic.sent) == (not dry) * sum(sizes)


def test_nothing_is_published_of_corrections_of_which_one_cannot_be_taken() -> None:
    topic, said = Topic(), {("toy", 0, n): Correction(n, {}) for n in (3, 9)}
    work = Redrive(Asked([letter(3, value())]), {"toy": FEED}, CATALOGUE, said)  # type: ignore[arg-type]
    with pytest.raises(CorrectionProblem, match=r"^nothing was published:\nline 9: toy/0 has no quarantined record at"):
        work.run(Selection(["toy"]), cast("Any", lambda: topic))
    assert topic.sent == []


def test_a_terminal_shows_each_step_of_a_redrive(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, setting in {"TTY_COMPATIBLE": "1", "COLUMNS": "100"}.items():
        monkeypatch.setenv(name, setting)
    assert command(monkeypatch, Asked([letter(4, value())]), Topic(), "redrive") == 0
    lines = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", capsys.readouterr().err).splitlines()
    for name, share in (("waiting for the sink", " 25%"), ("redriving", " 100%")):
        assert any(line.startswith(name) and share in line for line in lines), lines


def test_a_redrive_says_nothing_of_its_progress_where_no_terminal_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "0")
    assert command(monkeypatch, Asked([letter(4, value())]), Topic(), "redrive", "--output", "json") == 0
    said = capsys.readouterr()
    assert [row["outcome"] for row in json.loads(said.out)] == ["redriven"]
    assert said.err == ""

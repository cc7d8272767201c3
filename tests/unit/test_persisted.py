"""What outlives a release is written as pinned, what the release before wrote is read, and nothing newer is guessed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka import KafkaProducer

from citystream.secrets import load_secrets
from citystream.settings import Settings, SettingsError
from citystream.stack.process import Process, StackError
from feeds import load
from operations.positions import rebuilt_from, restore
from operations.redriving.corrections import CorrectionProblem, exported, read_corrections
from schemas import before
from schemas.catalogue import Catalogue, SchemaProblem, freeze
from schemas.expressions import Constant, written
from schemas.feed import Aggregate, Feed, NotAfter, Outgrown
from schemas.persisted import Newer
from sinks.definitions import definitions
from sinks.quarantine import Letter
from streams import checkpoints, deadletters, publications
from streams.assignment import TopicPartition
from streams.cluster import Cluster
from streams.deadletters import DeadLetter, NotADeadLetter
from streams.feed_topics import feed_definitions, feed_topics
from streams.group_partition import GroupPartition
from streams.group_positions import GroupPositions, PartitionOffsets
from streams.positions import NO_EVENT_TIME, Position, PositionProblem, Snapshot, parse
from streams.publications import Publication
from streams.topics import TopicState
from tests.campaign import before as written_before
from tests.reference.toy import FEED, NOON, SECOND, instant
from tests.reference.toy import value as encoded

GOLDEN = Path(__file__).parents[1] / "golden"
BEFORE, NOW = (json.loads((GOLDEN / f"{version}.json").read_text()) for version in (1, 2))
ENDS = (NOON + 10 * SECOND, NOON + 25 * SECOND)
FEEDS = {
    "toy": FEED,
    "grown": replace(FEED, partitions=1, outgrown=tuple(Outgrown(partitions=1, until=instant(end)) for end in ENDS)),
}
TOPIC_ID = "5fqCyS3dRWmAh7m9pCXVYQ"
PLACE = ("processor", "toy", 0)

#: The positions that are pinned, as they are now.
FIRST = Position(0, 0, NO_EVENT_TIME, TOPIC_ID, FEED.definition)
USUAL = Position(500, 420, 1_714_564_800_000, TOPIC_ID, FEED.definition, 3, 1_714_564_900_000)
FROZEN = Position(
    900, 700, 1_714_564_800_000, TOPIC_ID, FEED.definition, 0, 1_714_564_900_000, 650, {7: 431, 9: 12}, 6,
    "ClickHouse has no table raw.toy",
)  # fmt: skip
WATCHED = replace(USUAL, snapshot=Snapshot(31, 480))
POSITIONS = [FIRST, USUAL, FROZEN, WATCHED]
#: Feeds that the release before did not have, whatever is said of them.
NEW = dict.fromkeys(("alert", "case", "truth"), "")
FILE = Publication("3f2a9c1e", "toy", "toys.csv", "ab" * 32, "me@here", 5, 1, {0: ((0, 2), (5, 5)), 3: ((7, 7),)})
LETTER = DeadLetter("toy", 0, 17, 19, "DECODE", "the batch has no borders", b"k", b"v", 1_714_564_900_000)

TOY = {"toy": FEED}
QUARANTINED = Letter("toy", 0, 17, "level: above 100000", b"d-1", encoded(level=200_000), NOON)


def partition(
    commit: tuple[int, str] | None, kept: Position | PositionProblem | None = None, feed: Feed = FEED
) -> GroupPartition:
    """A processor's group in the partition of the small feed."""
    committed, metadata = commit or (None, "")
    place, offsets = TopicPartition("toy", 0), PartitionOffsets(committed, metadata, 0, 1000)
    group = GroupPositions(Cluster(()), "processor", feed_definitions(feed))
    there = {"toy": TopicState(cast("Any", TOPIC_ID), 1)}
    return group.partitions({place: offsets}, there, {PLACE: kept} if kept else {})[place]


def kept_of(content: Any) -> dict[checkpoints.Place, Position | PositionProblem]:
    """Checkpoints that are pinned."""
    found: dict[checkpoints.Place, Position | PositionProblem] = {}
    for key, value in content["checkpoints"]:
        checkpoints.take(found, key.encode(), value.encode())
    return found


class Notes:
    """In the place of a producer."""

    def __init__(self) -> None:
        self.written: list[list[str]] = []

    def send(self, _: str, key: bytes, value: bytes) -> None:
        self.written.append([key.decode(), value.decode()])


def test_what_is_written_is_what_is_pinned(tmp_path: Path) -> None:
    notes = Notes()
    freeze(TOY, tmp_path)
    publications.note(cast("KafkaProducer", notes), FILE)
    assert {
        "records": {name: feed.record_definition for name, feed in load().items()},
        "processor": {name: feed_definitions(feed) for name, feed in FEEDS.items()},
        "sink": {name: definitions([feed]) for name, feed in FEEDS.items()},
        "positions": [[one.processed, one.metadata()] for one in POSITIONS],
        "checkpoints": [
            [text.decode() for text in checkpoints.record(("processor", "toy", n), one)]
            for n, one in enumerate(POSITIONS)
        ],
        "publications": notes.written,
        "dead_letters": [[[name, value.decode()] for name, value in LETTER.headers()]],
        "ids": json.loads((tmp_path / "ids.json").read_text()),
        "corrections": [json.dumps(exported(Catalogue.load(tmp_path), FEED, QUARANTINED))],
    } == NOW


@pytest.mark.parametrize("content", [BEFORE, NOW], ids=["before", "now"])
def test_what_was_written_is_read(content: Any, tmp_path: Path) -> None:
    """By the release before and by this one."""
    for (processed, metadata), position in zip(content["positions"], POSITIONS, strict=False):
        assert partition((processed, metadata)).start() == position
    assert [restore(partition(None, kept)) for kept in kept_of(content).values()] == POSITIONS[
        : len(content["positions"])
    ]
    found: dict[str, Publication] = {}
    for _, value in content["publications"]:
        publications.take(found, value.encode(), 1)
    assert found == {FILE.id: replace(FILE, at_ms=1)}
    (headers,) = content["dead_letters"]
    assert deadletters.parse([(name, value.encode()) for name, value in headers], b"k", b"v") == LETTER
    freeze(TOY, tmp_path)
    (tmp_path / "ids.json").write_text(json.dumps(content["ids"]))
    assert [(one.id, one.version) for one in Catalogue.load(tmp_path).versions("toy_4s")] == [(2, 1)]
    assert read_corrections(content["corrections"], TOY)[QUARANTINED.place].fields["level"] == 200_000


def test_fingerprints_of_the_release_before_are_known_of_every_feed() -> None:
    assert {name: before.record_definition(feed) for name, feed in load().items()} | NEW == BEFORE["records"] | NEW
    for name, feed in FEEDS.items():
        for one in feed_topics(feed).values():
            for worker, now in (("processor", one.definition), ("sink", one.record_definition)):
                then = BEFORE[worker][name][one.name]
                assert then != now
                assert before.renewed(then, now) == now == NOW[worker][name][one.name]


def test_what_a_campaign_makes_of_positions_is_what_the_release_before_wrote() -> None:
    """Its upgrade starts from that."""
    assert {name: written_before.record_definition(feed) for name, feed in load().items()} | NEW == BEFORE[
        "records"
    ] | NEW
    for (_, now), (_, then) in zip(NOW["positions"], BEFORE["positions"], strict=False):
        assert written_before.metadata(now, FEED) == then
    for (_, now), (_, then) in zip(NOW["checkpoints"], BEFORE["checkpoints"], strict=False):
        assert written_before.checkpoint(now.encode(), FEED) == then.encode()


def test_a_definition_that_is_another_one_is_not_taken_for_the_same() -> None:
    """Neither of records nor of windows, and not of a topic that ended since."""
    metadata = BEFORE["positions"][1][1]
    other = replace(FEED, rules=())
    with pytest.raises(PositionProblem, match="records are judged otherwise"):
        rebuilt_from(partition((500, metadata), feed=other))
    fewer = replace(FEED, aggregates=FEED.aggregates[:1])
    with pytest.raises(PositionProblem, match=r"the feed's definition changed .* rebuild toy"):
        partition((500, metadata), feed=fewer).start()
    last = rebuilt_from(partition((500, metadata), feed=fewer))
    assert last == USUAL, "so windows that changed with the release are built from there"
    with pytest.raises(PositionProblem, match="the feed's definition changed"):
        partition((500, metadata), feed=FEEDS["grown"]).start()


def test_a_sink_agrees_with_a_processor_of_the_release_before() -> None:
    here, committed = partition((500, BEFORE["positions"][1][1])), parse("", *BEFORE["positions"][1])
    here.check_agreement("processor", feed_definitions(FEED)["toy"], committed)
    with pytest.raises(PositionProblem, match="works by another definition"):
        here.check_agreement("processor", feed_definitions(replace(FEED, aggregates=()))["toy"], committed)


def newer(text: str) -> str:
    """The same of a release that is not here yet, with something in it that nobody knows."""
    return json.dumps({**json.loads(text), "version": 99, "more": 1})


def newer_within(checkpoint: str) -> str:
    """The same with a newer position in it."""
    fields = json.loads(checkpoint)
    return json.dumps(fields | {"metadata": newer(fields["metadata"])})


def start_with(change: Callable[[str], str]) -> Position:
    """Start from a changed checkpoint."""
    found: dict[checkpoints.Place, Position | PositionProblem] = {}
    key, value = checkpoints.record(PLACE, USUAL)
    checkpoints.take(found, key, change(value.decode()).encode())
    return partition(None, found[PLACE]).start()


def take_newer_publication() -> None:
    publications.take({}, newer(NOW["publications"][0][1]).encode(), 1)


def load_newer_ids() -> None:
    with TemporaryDirectory() as folder:
        (Path(folder) / "ids.json").write_text(newer(json.dumps(NOW["ids"])))
        Catalogue.load(Path(folder))


NEWER = 500, newer(USUAL.metadata())
#: Where a release meets what a newer one wrote.
MEETINGS: list[tuple[Callable[[], object], type[Exception], str]] = [
    (lambda: partition(NEWER).start(), PositionProblem, "^processor in toy/0: the position was"),
    (lambda: restore(partition(NEWER)), PositionProblem, "^processor in toy/0: the position was"),
    (lambda: start_with(newer), PositionProblem, "^the checkpoint of processor in toy/0 was"),
    (lambda: start_with(newer_within), PositionProblem, "^the checkpoint of processor in toy/0: the position was"),
    (take_newer_publication, Newer, "^a note on the topic publications was"),
    (load_newer_ids, SchemaProblem, r"/ids\.json was"),
    (lambda: read_corrections([newer(NOW["corrections"][0])], TOY), CorrectionProblem, "^line 1: was"),
]


@pytest.mark.parametrize(("meet", "kind", "begin"), MEETINGS)
def test_what_a_newer_release_wrote_is_refused_with_what_to_do(
    meet: Callable[[], object], kind: type[Exception], begin: str
) -> None:
    """Never taken for nothing, for which an operator could choose to restore, reset or freeze."""
    rest = r"written by a newer release: it is of version 99, .* go on with that release or a later one, see Upgrades"
    with pytest.raises(kind, match=f"{begin} {rest}") as refused:
        meet()
    assert "citystream positions" not in str(refused.value)


def test_a_dead_letter_of_a_newer_release_is_kept_as_it_is_and_stops_nobody() -> None:
    """Anybody can write one."""
    headers = [*LETTER.headers()[:-1], (deadletters.VERSION_HEADER, b"99")]
    with pytest.raises(NotADeadLetter, match="of version 1: a newer release wrote it, see Upgrades"):
        deadletters.parse(headers, b"k", b"v")


def test_secrets_and_notes_of_processes_of_a_newer_release_are_refused(tmp_path: Path) -> None:
    (tmp_path / "secrets.json").write_text('{"version": 99, "vault": "https://example.org"}')
    with pytest.raises(SettingsError, match=r"secrets\.json was written by a newer release"):
        load_secrets(Settings(home=tmp_path))
    process = Process("kafka", tmp_path)
    process.note.parent.mkdir()
    process.note.write_text('{"version": 99, "container": "kafka-1"}')
    with pytest.raises(StackError, match=r"kafka\.json was written by a newer release"):
        process.running()


def test_fingerprints_are_of_plain_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another release of Python may write its values in another way."""
    feeds = [*load().values(), FEED]
    found = [feed.definition for feed in feeds]
    for kind in (NotAfter, Aggregate, Constant):
        monkeypatch.setattr(kind, "__repr__", lambda _: "something else")
    assert [feed.definition for feed in feeds] == found
    for feed in feeds:
        plain = [feed.definition_of_records(), *map(feed.definition_of, feed.aggregates)]
        assert json.loads(json.dumps(plain)) == plain


@given(st.one_of(st.text().filter(str.isprintable), st.integers(), st.floats(allow_nan=False)))
def test_a_value_is_written_as_in_the_frozen_definitions(value: Any) -> None:
    """They were made with Python's notation, and a frozen schema never changes."""
    assert written(Constant(value)) == repr(value)

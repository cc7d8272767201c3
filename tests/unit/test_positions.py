"""A position is gone on from only if it can be trusted."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from operations.positions import freeze, rebuilt, rebuilt_from, reset, restore, store_again
from streams import checkpoints
from streams.group_partition import REPAIRS, GroupPartition
from streams.missing_schemas import MOST, newest
from streams.positions import NO_EVENT_TIME, Position, PositionProblem, parse

GOOD = Position(500, 420, 1_714_564_800_000, "id-1", "def-1", max_processed_ms=1_714_564_900_000)
KEPT = Position(480, 410, 1_714_564_700_000, "id-1", "def-1", 2, 1_714_564_800_000)


def partition(**changes: Any) -> GroupPartition:
    """A group in a partition where all is well, with these things changed."""
    well: dict[str, Any] = {
        "group": "processor", "topic": "toy", "partition": 3, "committed": 500, "metadata": GOOD.metadata(),
        "kept": KEPT, "topic_id": "id-1", "definition": "def-1", "log_start": 0, "log_end": 600,
    }  # fmt: skip
    return GroupPartition(**(well | changes))


def resumed(committed: int | None = 500, metadata: str = GOOD.metadata(), **changes: Any) -> Position:
    return partition(committed=committed, metadata=metadata, **changes).start()


@pytest.mark.parametrize(
    "position",
    [
        GOOD, KEPT, Position(0, 0, NO_EVENT_TIME, "id-1", "def-1"), Position(7, 7, -5, "id-1", "def-1", 1, -5, 7),
        replace(GOOD, given_up={7: 431, 9: 12}, newest_schema=6), replace(GOOD, paused="ClickHouse has no table"),
    ],
)  # fmt: skip
def test_a_position_survives_its_metadata_and_its_checkpoint(position: Position) -> None:
    assert resumed(position.processed, position.metadata()) == position
    place = ("processor", "toy", 3)
    key, value = checkpoints.record(place, position)
    found: dict[checkpoints.Place, Position | PositionProblem] = {}
    checkpoints.take(found, key, value)
    assert found == {place: position}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (b"processor/toy", b"{}"), (b"processor/toy/x", b"{}"), (None, None), (b"processor/toy/3", b"\xff"),
        (b"processor/toy/3", b'{"processed": 3}'), (b"processor/toy/3", b'{"processed": 3, "metadata": 5}'), (b"", b""),
    ],
)  # fmt: skip
def test_what_is_no_checkpoint_counts_as_none(key: bytes | None, value: bytes | None) -> None:
    found: dict[checkpoints.Place, Position | PositionProblem] = {}
    checkpoints.take(found, key, value)
    assert found == {}


@pytest.mark.parametrize("odd", ["\x00", "\ud800", "\U0001f600", "\u6e56", '"', "\\"])
def test_metadata_fits_what_kafka_takes(odd: str) -> None:
    """Whatever the characters of a reason."""
    unknown = newest({2**32 - n: 2**63 - 1 - n for n in range(2 * MOST)})
    largest = Position(
        2**63 - 1, 2**63 - 1, -(2**63), "x" * 36, "x" * 16, 2**63 - 1, -(2**63), 2**63 - 1, unknown, 2**32 - 1,
        odd * 5_000,
    )  # fmt: skip
    assert len(unknown) == MOST
    assert len(largest.metadata().encode()) < 4096


def _metadata(**changes: Any) -> str:
    return json.dumps(json.loads(GOOD.metadata()) | changes)


@pytest.mark.parametrize(
    "metadata",
    [
        "", " ", "x", "null", "[]", "{}", "5", '"rewind"', '{"rewind": 1}', GOOD.metadata()[:-1],
        _metadata(rewind=None), _metadata(rewind="x"), _metadata(rewind=[]), _metadata(max_event_ms={}),
        _metadata(rewind=float("nan")), _metadata(rewind=float("inf")), _metadata(since=None),
        _metadata(max_processed_ms="x"),
    ],
)  # fmt: skip
def test_a_commit_of_another_client_carries_no_position(metadata: str) -> None:
    with pytest.raises(PositionProblem, match=r"^processor in toy/3: the commit at 500 carries no position; stop the"):
        resumed(metadata=metadata)


@pytest.mark.parametrize(
    ("changes", "reason", "choices"),
    [
        ({"topic_id": "id-2"}, "the topic was deleted and created again", ["reset"]),
        ({"log_start": 421}, "the log starts at 421, after the rewind offset 420", ["freeze"]),
        ({"metadata": _metadata(rewind=501)}, "the commit at 500 is before its rewind offset 501", [*REPAIRS]),
        ({"metadata": _metadata(topic=1)}, "the topic was deleted and created again", ["reset"]),
        ({"metadata": _metadata(rewind=-1)}, "the log starts at 0, after the rewind offset -1", ["freeze"]),
        ({"metadata": ""}, "the commit at 500 carries no position", [*REPAIRS]),
        ({"committed": None}, "there is no commit, but a checkpoint at 480", [*REPAIRS]),
        # The brokers drop the commits of a topic that is deleted.
        ({"committed": None, "kept": replace(KEPT, topic_id="id-0"), "log_start": 17},
         "the topic was deleted and created again", ["reset"]),
        ({"committed": None, "kept": None, "log_start": 17},
         "there is no position, and the log begins at offset 17: what came before is deleted", ["freeze"]),
    ],
)  # fmt: skip
def test_a_position_of_something_else_is_refused(changes: dict[str, Any], reason: str, choices: list[str]) -> None:
    with pytest.raises(PositionProblem) as refused:
        resumed(**changes)
    said, _, named = str(refused.value).partition("; stop the workers, then run: ")
    assert said == f"processor in toy/3: {reason}"
    assert named.split(", or: ") == [f"citystream positions {c} processor toy ({REPAIRS[c]})" for c in choices]


FIRST = Position(0, 0, NO_EVENT_TIME, "id-1", "def-1")
GAVE_UP = replace(GOOD, given_up={7: 431}, newest_schema=6)
AGGREGATES = replace(GOOD, definition="def-1.a.b")
#: A partition whose feed has other aggregates than its position was made with.
CHANGED = {"definition": "def-1.a.c", "metadata": AGGREGATES.metadata(), "kept": None}
NO_COMMIT: dict[str, Any] = {"committed": None, "metadata": ""}
Choice = Callable[[GroupPartition], Position | None]


def resetting(since: int = 0, stored: bool = False) -> Choice:
    return lambda one: reset(one, since, stored=stored)


def storing_again(one: GroupPartition) -> Position:
    return store_again(one, 1_714, stored=True)


def freezing(counted: int = 0) -> Choice:
    return lambda one: freeze(one, counted, lambda offset: -offset)


@pytest.mark.parametrize(
    ("choice", "changes", "leads_to"),
    [
        (GroupPartition.start, NO_COMMIT | {"kept": None}, FIRST),
        (GroupPartition.start, {"log_start": 420}, GOOD),
        (GroupPartition.start, {"log_end": 500}, GOOD),
        (restore, NO_COMMIT, KEPT),
        (restore, {"metadata": ""}, KEPT),
        (resetting(), {"metadata": ""}, FIRST),
        # Dead letters of what was given up may have been published again.
        (resetting(), {"metadata": GAVE_UP.metadata()}, replace(FIRST, given_up={7: 431}, newest_schema=6)),
        # Nothing is stored of the topic of before.
        (resetting(), NO_COMMIT | {"kept": replace(GAVE_UP, since=300), "topic_id": "id-2"},
         replace(FIRST, topic_id="id-2")),
        # Rows replace themselves, from the first record that is left on, whatever was frozen.
        (storing_again, {"log_start": 450, "metadata": replace(GOOD, since=300).metadata()},
         Position(450, 450, 1_714, "id-1", "def-1", max_processed_ms=1_714)),
        (rebuilt_from, CHANGED, AGGREGATES),
        (rebuilt_from, CHANGED | {"kept": replace(AGGREGATES, processed=480)}, AGGREGATES),
        (rebuilt_from, CHANGED | NO_COMMIT | {"kept": replace(AGGREGATES, processed=480)},
         replace(AGGREGATES, processed=480)),
        (rebuilt_from, CHANGED | NO_COMMIT, None),
    ],
)  # fmt: skip
def test_a_choice_leads_where_nothing_is_counted_twice_or_left_out(
    choice: Choice, changes: dict[str, Any], leads_to: Position | None
) -> None:
    assert choice(partition(**changes)) == leads_to


@pytest.mark.parametrize(
    ("choice", "changes", "reason"),
    [
        # Reading again would mix parts of the old definition with those of the new one.
        (GroupPartition.start, {"definition": "def-2"}, "the feed's definition changed .* a new name"),
        (GroupPartition.start, CHANGED, "the feed's definition changed since the last commit; .*rebuild toy$"),
        (restore, {"metadata": "", "kept": None}, "there is no checkpoint"),
        (restore, {"metadata": "", "topic_id": "id-2"}, "the topic was deleted and created again"),
        (restore, {"metadata": "", "definition": "def-2"}, "the feed's definition changed"),
        (restore, {"metadata": "", "log_start": 411}, "the log starts at 411, after the rewind offset 410"),
        (resetting(), {"metadata": "", "log_start": 1}, "the log begins at offset 1"),
        (resetting(300), {"metadata": ""}, "it was frozen at offset 300"),
        (storing_again, NO_COMMIT | {"topic_id": "id-2"}, ".* results of the earlier one"),
        (storing_again, {"log_end": 499}, "the log ended before offset 500"),
        (freezing(), {"definition": "def-2"}, "the feed's definition changed"),
        (freezing(530), {"log_end": 520}, "the log ended before offset 530, .* lost 10 offsets"),
        (freezing(530), {"log_end": 520, "metadata": "", "kept": None}, "the log ended before offset 530"),
        (rebuilt_from, CHANGED | {"metadata": ""}, "the commit at 500 carries no position; go back to the feed as it"),
        (rebuilt_from, CHANGED | {"topic_id": "id-2"}, "the topic was deleted and created again"),
        (rebuilt_from, CHANGED | {"definition": "def-2.a.b"}, "the .*; records are judged otherwise: .* a new name"),
    ],
)
def test_a_choice_that_would_spoil_results_is_refused(choice: Choice, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(PositionProblem, match=f"^processor in toy/3: {reason}"):
        choice(partition(**changes))


@pytest.mark.parametrize(("stored", "log_start"), [(True, 0), (True, 5), (False, 5)])
def test_a_topic_created_again_is_not_read_into_the_results_of_the_earlier_one(stored: bool, log_start: int) -> None:
    """Whatever its life was: restore and freeze send here. What is to be cleared is the feed, not its later topic."""
    for last in (GOOD, replace(GOOD, since=300)):
        here = partition(**NO_COMMIT, topic="toy.from4", kept=last, topic_id="id-2", log_start=log_start)
        for choice in (GroupPartition.start, restore, freezing()):
            with pytest.raises(PositionProblem, match=r"deleted and created again; .* reset processor toy.from4"):
                choice(here)
        with pytest.raises(PositionProblem, match=r"results of the earlier one .* citystream positions clear toy$"):
            reset(here, last.since, stored=stored)


#: A worker was further than the log is now.
BEYOND = "processor in toy/3: the log ended before offset {}, up to which it was read: the brokers have lost {}. "
#: The way on in a feed's topic, and in another one.
CLEAR = "give the feed another name. To drop them stop the workers, then run: citystream positions clear toy"
RESET = f"stop the workers, then run: citystream positions reset processor toy ({REPAIRS['reset']})"


@pytest.mark.parametrize(("is_feed", "way"), [(True, CLEAR), (False, RESET)])
@pytest.mark.parametrize(
    ("changes", "offset", "lost"),
    [
        ({"log_end": 499}, 500, "1 offsets"),
        ({"log_end": 400}, 500, "100 offsets"),
        ({"log_end": 0}, 500, "500 offsets"),
        ({"log_start": 450, "log_end": 450}, 500, "50 offsets"),
        ({"log_end": 490, "definition": "def-1.a"}, 500, "10 offsets"),
        ({"log_end": 540, "metadata": replace(GOOD, since=550).metadata()}, 550, "10 offsets"),
        ({"log_end": 470, "committed": None, "metadata": ""}, 480, "10 offsets"),
    ],
    ids=str,
)
def test_where_the_brokers_lost_the_end_of_a_log_only_what_works_is_named(
    changes: dict[str, Any], offset: int, lost: str, is_feed: bool, way: str
) -> None:
    """New records get the offsets of the lost ones: they would count as processed, or be mixed with their results."""
    for choice in (GroupPartition.start, restore, rebuilt_from, resetting(), freezing()):
        with pytest.raises(PositionProblem) as refused:
            choice(partition(is_feed=is_feed, **changes))
        said = str(refused.value)
        assert said.startswith(BEYOND.format(offset, lost))
        assert said.endswith(way)
        assert said.count("citystream") == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"log_start": 501}, "the log starts at 501, after offset 500, which was to be read next: retention deleted"),
        ({"log_end": 400}, "the log ended before offset 500, up to which it was read: the brokers have lost 100 off"),
        ({"log_end": 520}, "the log ended before offset 500, up to which it was read: the brokers have lost some off"),
        ({"log_end": 400, "metadata": ""}, "the commit at 500 carries no position; "),
    ],
)
def test_an_offset_the_log_does_not_have_names_the_reason(changes: dict[str, Any], said: str) -> None:
    """It may have grown again, and what was to be read may have been what another program committed."""
    assert str(partition(**changes).out_of_range(500)).startswith(f"processor in toy/3: {said}")


def frozen(counted: int = 0, **changes: Any) -> Position:
    position = freeze(partition(**changes), counted, lambda offset: -offset)
    assert resumed(position.processed, position.metadata(), log_start=changes.get("log_start", 0)) == position
    return position


def cut(position: Position, log_start: int) -> Position:
    """A position whose log begins behind its rewind."""
    return replace(position, rewind=log_start, max_event_ms=position.max_processed_ms, bad=0)


def unknown(at: int) -> Position:
    """A position of which nothing is left but what was counted."""
    return Position(at, at, -at, "id-1", "def-1", 0, -at, at)


@pytest.mark.parametrize(
    ("counted", "changes", "expected", "since"),
    [
        (0, {}, GOOD, 500),
        (530, {}, GOOD, 530),
        (0, {"log_start": 421}, cut(GOOD, 421), 500),
        (500, {"log_start": 500}, cut(GOOD, 500), 500),
        (530, {"log_start": 421}, cut(GOOD, 421), 530),
        (0, {"log_start": 501}, unknown(501), 501),
        (530, {"log_start": 501}, unknown(530), 530),
        (0, {"metadata": ""}, KEPT, 480),
        (530, {"metadata": ""}, KEPT, 530),
        (0, {"metadata": "", "log_start": 411}, cut(KEPT, 411), 480),
        (0, {"committed": None}, KEPT, 480),
        (490, {"committed": None}, KEPT, 490),
        (0, {"metadata": "", "kept": None}, unknown(0), 0),
        (530, {"metadata": "", "kept": None}, unknown(530), 530),
        (0, {"committed": None, "kept": None, "log_start": 17}, unknown(17), 17),
        (0, {"log_start": 421, "metadata": _metadata(since=510)}, cut(GOOD, 421), 510),
        (0, {"log_start": 421, "kept": replace(KEPT, processed=510, since=510)},
         cut(replace(KEPT, processed=510), 421), 510),
        (0, {"metadata": _metadata(rewind=501)}, replace(GOOD, rewind=500), 500),
    ],
    ids=str,
)  # fmt: skip
def test_a_new_life_counts_from_behind_all_that_was_written_and_reads_what_is_left_before(
    counted: int, changes: dict[str, Any], expected: Position, since: int
) -> None:
    assert frozen(counted, **changes) == replace(expected, since=since)


OTHERS = replace(GOOD, definition="def-0")


@pytest.mark.parametrize("metadata", ["", "x", GOOD.metadata(), replace(OTHERS, topic_id="id-0").metadata()])
def test_a_sink_agrees_with_a_processor_that_has_said_nothing_else(metadata: str) -> None:
    partition(group="sink").check_agreement("processor", "def-1", parse("", 0, metadata))


def test_a_sink_stops_where_the_processor_goes_by_another_definition() -> None:
    with pytest.raises(PositionProblem, match=r"^sink in toy/3: the processor works by another definition of the feed"):
        partition(group="sink").check_agreement("processor", "def-1", OTHERS)


def test_windows_that_are_built_go_on_from_there() -> None:
    after = replace(AGGREGATES, definition="def-1.a.c", rewind=300, max_event_ms=7)
    assert rebuilt(partition(**CHANGED), AGGREGATES, (300, 7)) == after
    assert resumed(500, after.metadata(), definition="def-1.a.c") == after
    at, seen = AGGREGATES.processed, AGGREGATES.max_processed_ms
    assert rebuilt(partition(**CHANGED), AGGREGATES, None) == replace(after, rewind=at, max_event_ms=seen)

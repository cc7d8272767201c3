"""What did not arrive, and whether that is a fault."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from unittest.mock import create_autospec, patch

import pytest
from clickhouse_driver import Client
from clickhouse_driver.errors import ErrorCodes, ServerException
from hypothesis import given
from hypothesis import strategies as st
from kafka.errors import KafkaConnectionError

from citystream.commands.operate import watch
from sinks import ledger
from sinks.ledger import EVERYWHERE, Absent, Arrived, Place, Stretch, absent, arrived
from sinks.reconciler import WHOLE_EVERY, Check, Expected, Reconciler
from streams import deadletters
from streams.lag import PartitionLag

HERE = ("toy", 0)
SMALL = st.integers(0, 12)


def seen(offsets: set[int], looked: Mapping[Place, Sequence[range]] | None = None) -> Arrived:
    """What the views say of these offsets, as far as they are in blocks of 4 that are looked at."""
    parts = looked[HERE] if looked else [EVERYWHERE]
    read = {o for o in offsets if any(part.start // 4 <= o // 4 <= (part.stop - 1) // 4 for part in parts)}
    gone = sorted(set(range(max(read, default=0))) - read)
    starts = [o for o in gone if o - 1 not in gone]
    ends = [o for o in gone if o + 1 not in gone]
    return Arrived({HERE: max(read)} if read else {}, {HERE: list(zip(starts, ends, strict=True))}, looked or {})


def members(stretches: list[Stretch]) -> list[int]:
    return [offset for one in stretches for offset in range(one.first, one.last + 1)]


def check(**found: object) -> Check:
    return Check(**({"published": 9, "on_its_way": 0, "lost": (), "missing": (), "beyond": {}} | found))  # type: ignore[arg-type]


@given(arrived=st.sets(SMALL), start=SMALL, more=SMALL, committed=SMALL)
def test_every_offset_is_there_lost_missing_or_on_its_way(
    arrived: set[int], start: int, more: int, committed: int
) -> None:
    end = start + more
    found = absent(seen(arrived), PartitionLag(*HERE, start, committed, end, None))
    gone = set(range(end)) - arrived
    assert members([*found.lost]) == sorted(o for o in gone if o < start)
    assert members([*found.missing]) == sorted(o for o in gone if start <= o < committed)
    assert members([*found.on_its_way]) == sorted(o for o in gone if o >= max(start, committed))
    assert found.beyond == max(0, max(arrived, default=-1) + 1 - end)


class Looks:
    """Checks of a partition, one after the other, while its log goes on and no dead letter is on its way."""

    def __init__(self) -> None:
        self.arrived: set[int] = set()
        self.looked: list[range] = []
        self._log = PartitionLag(*HERE, 0, 0, 0, None)
        self._reconciler = Reconciler(None, self, {}, "judge")  # type: ignore[arg-type]

    def measure(self, group: str, topics: Sequence[str], *, waiting: bool) -> list[PartitionLag]:
        return [] if deadletters.TOPIC in topics else [self._log]

    def check(self, start: int, committed: int, end: int) -> Check:
        """What is found now, by a look at the offsets in ``looked``."""
        self._log = PartitionLag(*HERE, start, committed, end, None)

        def arrived(_: object, looked: Mapping[Place, Sequence[range]]) -> Arrived:
            self.looked = list(looked[HERE])
            return seen(self.arrived, looked)

        with patch("sinks.reconciler.arrived", arrived):
            return self._reconciler.check()


@given(st.lists(st.tuples(st.sets(st.integers(0, 40)), SMALL, SMALL, SMALL), max_size=6), st.integers(0, 9))
def test_a_later_look_finds_what_a_look_at_everything_would(
    steps: list[tuple[set[int], int, int, int]], near: int
) -> None:
    """Start, commits and end go on; records come from anywhere, even from beyond the end."""
    with patch.object(ledger, "NEAR", near):
        looks, start, committed, end = Looks(), 0, 0, 0
        for came, further, more, grown in steps:
            looks.arrived |= came
            end += grown
            start, committed = min(end, start + further), min(end, committed + more)
            everything = absent(seen(looks.arrived), PartitionLag(*HERE, start, committed, end, None))
            found = looks.check(start, committed, end)
            assert (found.lost, found.missing) == (everything.lost, everything.missing)
            assert found.on_its_way == sum(map(len, everything.on_its_way))
            assert found.beyond.get(HERE, 0) == everything.beyond


def test_a_later_look_is_only_at_what_was_not_there_and_what_is_new() -> None:
    with patch.object(ledger, "NEAR", 6):
        looks = Looks()
        tail = range(100, EVERYWHERE.stop)
        looks.arrived = set(range(100)) - {9, 10, 17, 60}
        for expected in ([EVERYWHERE], [range(9, 18), range(60, 61), tail]):
            found = looks.check(50, 100, 100)
            assert (members([*found.lost]), members([*found.missing])) == ([9, 10, 17], [60])
            assert looks.looked == expected
        looks.arrived.add(60)
        for expected in ([range(9, 18), range(60, 61), tail], [range(9, 18), tail]):
            assert members([*looks.check(50, 100, 100).lost]) == [9, 10, 17]
            assert looks.looked == expected


def test_what_was_there_once_is_looked_at_again() -> None:
    """After a look that failed, and now and then."""
    looks = Looks()
    looks.arrived = set(range(100))
    with patch.object(ledger, "NEAR", 6):
        looks.check(0, 100, 100)
        looks.arrived.discard(3)
        with patch.object(looks, "measure", side_effect=OSError("away")), pytest.raises(OSError, match="away"):
            looks.check(0, 100, 100)
        assert members([*looks.check(0, 100, 100).missing]) == [3]

        looks.arrived.add(3)
        looks.check(0, 100, 100)
        looks.arrived.discard(4)
        missing = [members([*looks.check(0, 100, 100).missing]) for _ in range(WHOLE_EVERY)]
        assert missing[0] == []
        assert [4] in missing


def test_a_log_that_lost_its_end_is_seen_though_its_last_block_was_full() -> None:
    looks = Looks()
    looks.arrived = set(range(8))
    assert not looks.check(0, 8, 8).wrong
    assert looks.check(0, 8, 6).beyond == {HERE: 2}


def test_what_comes_between_two_questions_is_not_counted_twice() -> None:
    """The second one sees a record at 110 that was not there at the first."""
    client = create_autospec(Client, instance=True)
    client.execute.side_effect = [[(*HERE, 99)], [(*HERE, 100, 109)]]
    found = arrived(client)
    assert members(absent(found, PartitionLag(*HERE, 0, 0, 112, None)).stretches) == [*range(100, 110), 111]


def test_a_partition_of_which_nothing_arrived_is_on_its_way() -> None:
    log = PartitionLag(*HERE, 0, 0, 5, None)
    assert absent(Arrived({}, {}), log) == Absent([], [], [Stretch(*HERE, 0, 4)], 0)


def test_what_is_committed_is_expected_once_the_dead_letters_of_then_are_stored() -> None:
    expected = Expected()
    expected.look({HERE: 10}, letters_end=5, letters_stored=3)
    assert not expected.certain, "a dead letter may be on its way"
    expected.look({HERE: 20}, letters_end=9, letters_stored=4)
    assert not expected.certain
    expected.look({HERE: 30}, letters_end=9, letters_stored=7)
    assert expected.certain == {HERE: 10}, "those of the first look are stored"
    expected.look({HERE: 40}, letters_end=9, letters_stored=9)
    assert expected.certain == {HERE: 40}, "all are stored"
    expected.look({HERE: 50}, letters_end=11, letters_stored=9)
    assert expected.certain == {HERE: 40}


def test_it_is_watched_until_something_is_wrong() -> None:
    late, fault = check(on_its_way=3), check(missing=[Stretch(*HERE, 4, 5)])
    answers: Iterator[Check | Exception] = iter(
        [
            check(),
            KafkaConnectionError(),
            late,
            ConnectionRefusedError("no"),
            fault,
            check(),
        ]
    )
    said: list[Check | Exception] = []
    pauses: list[int] = []

    def look() -> Check:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    watch(look, lambda: pauses.append(len(said)), said.append)
    assert [str(one) for one in said if isinstance(one, Check)] == [
        "9 published, all accounted for",
        "9 published, 3 on their way",
        "9 published, 2 MISSING",
    ]
    assert [type(one) for one in said if isinstance(one, Exception)] == [KafkaConnectionError, ConnectionRefusedError]
    assert pauses == [1, 2, 3, 4], "a pause after each look but the last"


LOST = [Stretch("toy", 0, 2, 4), Stretch("toy", 1, 0, 0)]


@pytest.mark.parametrize(
    ("new", "named"),
    [
        ({"lost": [Stretch("toy", 0, 2, 6), LOST[1]]}, "lost to retention: toy/0: offsets 5 to 6"),
        ({"lost": [*LOST, Stretch("car", 0, 0, 8)]}, "lost to retention: car/0: offsets 0 to 8"),
        ({"lost": LOST, "missing": [Stretch("toy", 0, 9, 9)]}, "missing: toy/0: offsets 9 to 9"),
        ({"lost": LOST, "beyond": {HERE: 2}}, "beyond the end: toy/0 by 2"),
    ],
)
def test_what_was_lost_before_the_first_look_is_said_at_each_and_ends_none(new: dict[str, Any], named: str) -> None:
    """A stretch of it that is stored after all changes nothing."""
    answers = iter([check(lost=LOST), check(lost=LOST), check(lost=[Stretch("toy", 0, 3, 4)]), check(**new), check()])
    said: list[Any] = []
    watch(lambda: next(answers), lambda: None, said.append)
    assert [str(one) for one in said[:3]] == [
        "9 published, 4 LOST to retention",
        "9 published, 4 LOST to retention (4 of them known)",
        "9 published, 2 LOST to retention (2 of them known)",
    ]
    assert said[0].places() == ["lost to retention: toy/0: offsets 2 to 4", "lost to retention: toy/1: offsets 0 to 0"]
    assert [one.places() for one in said[1:]] == [[], [], [named]]


@pytest.mark.parametrize(
    "fault",
    [{"missing": [Stretch("toy", 0, 9, 9)]}, {"beyond": {HERE: 2}}],
    ids=["missing", "beyond"],
)
def test_what_is_missing_or_beyond_ends_the_first_look(fault: dict[str, Any]) -> None:
    said: list[Any] = []
    watch(lambda: check(lost=LOST, **fault), lambda: None, said.append)
    assert len(said) == 1


def test_an_error_that_does_not_pass_ends_the_watch() -> None:
    def look() -> Check:
        raise ServerException("no such view", ErrorCodes.UNKNOWN_IDENTIFIER)

    with pytest.raises(ServerException):
        watch(look, lambda: None, lambda _: None)


@pytest.mark.parametrize(
    "found",
    [check(lost=[Stretch(*HERE, 0, 1)]), check(missing=[Stretch(*HERE, 7, 7)]), check(beyond={HERE: 2})],
    ids=["lost", "missing", "beyond"],
)
def test_what_is_wrong_is_named(found: Check) -> None:
    assert found.wrong
    (place,) = found.places()
    assert "toy/0" in place


def test_what_is_on_its_way_is_not_wrong() -> None:
    assert not check(on_its_way=9).wrong
    assert check(on_its_way=9).places() == []

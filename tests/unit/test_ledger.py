"""What did not arrive, and whether that is a fault."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from clickhouse_driver.errors import ErrorCodes, ServerException
from hypothesis import given
from hypothesis import strategies as st
from kafka.errors import KafkaConnectionError

from citystream.commands.operate import watch
from sinks.ledger import Absent, Arrived, Stretch, absent
from sinks.reconciler import Check, Expected
from streams.lag import PartitionLag

HERE = ("toy", 0)
SMALL = st.integers(0, 12)


def seen(offsets: set[int]) -> Arrived:
    """What the views say of these offsets."""
    if not offsets:
        return Arrived({}, {})
    gone = sorted(set(range(max(offsets))) - offsets)
    starts = [o for o in gone if o - 1 not in gone]
    ends = [o for o in gone if o + 1 not in gone]
    return Arrived({HERE: max(offsets)}, {HERE: list(zip(starts, ends, strict=True))})


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
    assert found.first == min(gone, default=None)


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

    assert watch(look, lambda: pauses.append(len(said)), said.append) is fault
    assert [str(one) for one in said if isinstance(one, Check)] == [
        "9 published, all accounted for",
        "9 published, 3 on their way",
        "9 published, 2 MISSING",
    ]
    assert [type(one) for one in said if isinstance(one, Exception)] == [KafkaConnectionError, ConnectionRefusedError]
    assert pauses == [1, 2, 3, 4], "a pause after each look but the last"


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

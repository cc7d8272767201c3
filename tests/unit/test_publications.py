"""Which file brought a record."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from streams import publications
from streams.publications import MOST_STRETCHES, Publication, note, stretches, take


def publication(found: dict[int, tuple[publications.Stretch, ...]]) -> Publication:
    """A publication of some offsets."""
    return Publication("1", "parking_site", "a.csv", "abc", "li@office", 3, 1, found)


class Log:
    """A producer that remembers the values it sends."""

    def __init__(self) -> None:
        self.values: list[bytes] = []
        self.keys: set[bytes] = set()

    def send(self, topic: str, key: bytes, value: bytes) -> None:
        assert topic == publications.TOPIC
        self.keys.add(key)
        self.values.append(value)


@given(st.lists(st.integers(0, 60)))
def test_stretches_hold_the_offsets_and_no_others(offsets: list[int]) -> None:
    found = stretches(offsets)
    assert sorted({*offsets}) == [n for first, last in found for n in range(first, last + 1)]
    assert all(last + 1 < following for (_, last), (following, _) in pairwise(found))


@given(st.dictionaries(st.integers(0, 3), st.lists(st.integers(0, 60), min_size=1).map(stretches)))
def test_a_record_is_found_in_the_file_that_brought_it(found: dict[int, tuple[publications.Stretch, ...]]) -> None:
    log, read = Log(), dict[str, Publication]()
    note(log, publication(found))
    for value in log.values:
        take(read, value, 17)
    assert [one.stretches for one in read.values()] == ([found] if found else [])
    for one in read.values():
        assert (one.file, one.publisher, one.at_ms) == ("a.csv", "li@office", 17)
        for partition in range(4):
            there = {n for first, last in found.get(partition, ()) for n in range(first, last + 1)}
            assert there == {n for n in range(62) if one.brought("parking_site", partition, n)}
        assert not any(one.brought("parking_spot", 0, n) for n in range(62))


def test_a_file_among_many_others_takes_several_records() -> None:
    log, read = Log(), dict[str, Publication]()
    every_other = stretches(range(0, 4 * MOST_STRETCHES, 2))
    note(log, publication({0: every_other}))
    for value in log.values:
        take(read, value, 17)
    assert len(log.keys) == len(log.values) == 2
    assert (read["1"].stretches[0], read["1"].records) == (every_other, 2 * MOST_STRETCHES)


def test_what_is_no_publication_counts_as_none() -> None:
    read: dict[str, Publication] = {}
    values: list[Any] = [None, b"", b"{}", b"[]", b"7", b'{"id": "1", "partition": 0, "stretches": [[1]]}']
    for value in values:
        take(read, value, 17)
    assert read == {}

"""Tables number what comes as a dictionary would, however it is cut into calls."""

from __future__ import annotations

from random import Random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from processors.tables import ROOM, Integers, Letters, Table, Texts

ends = st.sampled_from([-(2**63), -1, 0, 1, 2**63 - 1])
rows = st.lists(st.tuples(ends, st.integers(0, 3) | st.integers(-(2**63), 2**63 - 1)), max_size=40)


def matrix(found: list[tuple[int, int]]) -> Integers:
    return np.array(found, np.int64).reshape(-1, 2)


@given(st.lists(rows, max_size=6), st.integers(0, 200))
def test_rows_are_numbered_in_the_order_in_which_they_came(calls: list[list[tuple[int, int]]], reserved: int) -> None:
    table, expected = Table(2), dict[tuple[int, int], int]()
    for call in calls:
        table.reserve(reserved)
        known = [row in expected for row in call]
        first = [row not in call[:n] for n, row in enumerate(call)]
        numbers, fresh = table.number(matrix(call))
        assert numbers.tolist() == [expected.setdefault(row, len(expected)) for row in call]
        assert fresh.tolist() == [not was and is_first for was, is_first in zip(known, first, strict=True)]
        assert [tuple(row) for row in table.rows.tolist()] == [*expected]


@given(rows, rows, st.randoms())
def test_what_a_table_is_replaced_by_is_all_it_holds(
    before: list[tuple[int, int]], after: list[tuple[int, int]], random: Random
) -> None:
    table = Table(2)
    table.number(matrix(before))
    kept = [*dict.fromkeys(after)]
    table.replace(matrix(kept))
    assert [tuple(row) for row in table.rows.tolist()] == kept
    again = random.sample(kept, len(kept))
    numbers, fresh = table.number(matrix(again))
    assert [kept[n] for n in numbers.tolist()] == again
    assert not fresh.any()


def test_a_table_grows() -> None:
    table, many = Table(1), np.arange(100 * ROOM).reshape(-1, 1)
    for _ in range(2):
        assert table.number(many)[0].tolist() == many[:, 0].tolist()
    assert len(table) == len(many)


def spans(texts: list[str]) -> tuple[Letters, Integers]:
    """Texts one after the other, and where each lies."""
    encoded = [text.encode() for text in texts]
    sizes = np.array([len(text) for text in encoded], np.int64)
    starts = np.cumsum(sizes) - sizes
    return np.frombuffer(bytearray(b"".join(encoded)), np.uint8), (starts << 32 | sizes).reshape(-1, 1)


def held(texts: Texts) -> list[str]:
    """The texts, by number."""
    places = [(span >> 32, span & 0xFFFF_FFFF) for span in texts.spans.tolist()]
    return [texts.letters[start : start + size].tobytes().decode() for start, size in places]


words = st.lists(st.text(max_size=3) | st.sampled_from(["", "a" * 8, "a" * 9, "a" * 3000]), max_size=90)


@given(st.lists(words, max_size=4))
def test_texts_are_numbered_in_the_order_in_which_they_came(calls: list[list[str]]) -> None:
    texts, expected = Texts(), dict[str, int]()
    for call in calls:
        numbers = texts.number(*spans(call), 0)
        assert numbers.tolist() == [expected.setdefault(text, len(expected)) for text in call]
        assert held(texts) == [*expected]


@given(words, st.data())
def test_only_some_texts_are_held_under_new_numbers(all_of_them: list[str], data: st.DataObject) -> None:
    texts = Texts()
    texts.number(*spans(all_of_them), 0)
    before = held(texts)
    kept = sorted(data.draw(st.sets(st.sampled_from(range(len(before)))))) if before else []
    only, renumbered = texts.only(np.array(kept, np.int64))
    assert held(only) == [before[n] for n in kept]
    assert [renumbered[n] for n in kept] == [*range(len(kept))]

"""Rows of integers and texts, each held once and numbered: hash tables of compiled code.

What a call costs hardly depends on how few rows it has, and a row costs some nanoseconds however many are held.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from numba import njit

from streams.wire.column_writer import spans

Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
Letters = npt.NDArray[np.uint8]

#: Rows and bytes a table has room for at first, and slots for each row: the more are free, the shorter the search.
ROOM, LETTERS, SLOTS = 64, 1024, 2
#: Texts that are held before it is looked which of them are in use.
FEW_TEXTS = 4096
#: The number, and the span, of a text that is null.
NO_TEXT = -1
#: Nobody outside knows it, so nobody can publish keys that fall into one slot. No result depends on it.
_SEED = secrets.randbits(63)


class Table:
    """Different rows of integers, numbered from 0 in the order in which they came."""

    _count: int

    def __init__(self, width: int) -> None:
        self.replace(np.empty((0, width), np.int64))

    def __len__(self) -> int:
        return self._count

    @property
    def rows(self) -> Integers:
        """The rows held, by number; not to be changed."""
        return self._rows[: self._count]

    def number(self, rows: Integers) -> tuple[Integers, Flags]:
        """The number of each of these rows, and whether it came for the first time."""
        rows = np.ascontiguousarray(rows)  # chosen columns are not, and the kernel would be compiled once more
        numbers, fresh = np.empty(len(rows), np.int64), np.empty(len(rows), np.bool_)
        done = 0
        while True:
            done, self._count = number_rows(self._slots, self._rows, self._count, rows, done, _SEED, numbers, fresh)
            if done == len(rows):
                return numbers, fresh
            self._hold(self.rows, 2 * len(self._rows))

    def reserve(self, more: int) -> None:
        """Make room for more rows at once, where most of those to come are not held yet."""
        if self._count + more > len(self._rows):
            self._hold(self.rows, _room(self._count + more))

    def replace(self, rows: Integers) -> None:
        """Hold other rows, all different, in the place of these."""
        self._hold(rows, _room(len(rows)))

    def _hold(self, rows: Integers, room: int) -> None:
        self._rows, self._slots, self._count = np.empty((room, rows.shape[1]), np.int64), _free(room), 0
        self.number(rows)


class Texts:
    """Different texts in UTF-8, numbered from 0 in the order in which they came.

    ``letters`` holds them one after the other; ``spans`` says where, ``start << 32 | size`` by number.
    """

    def __init__(self) -> None:
        self.letters: Letters = np.empty(LETTERS, np.uint8)
        #: Texts and letters held.
        self._held = np.zeros(2, np.int64)
        self._spans, self._slots = np.empty(ROOM, np.int64), _free(ROOM)

    def __len__(self) -> int:
        return int(self._held[0])

    @property
    def spans(self) -> Integers:
        """Where each text lies, by number."""
        return self._spans[: self._held[0]]

    def number(self, letters: Letters, rows: Integers, column: int) -> Integers:
        """The number of each text whose span in ``letters`` stands in a column of these rows."""
        numbers = np.empty(len(rows), np.int64)
        done = 0
        while True:
            table = self._slots, self.letters, self._spans
            done = number_texts(table, self._held, letters, rows, column, done, _SEED, numbers)
            if done == len(rows):
                return numbers
            self._grow(int(rows[done, column]) & 0xFFFF_FFFF)

    def number_all(self, texts: Sequence[str]) -> Integers:
        """The number of each of these texts."""
        encoded = [text.encode() for text in texts]
        sizes = np.array([len(one) for one in encoded], np.int64)
        letters = np.frombuffer(bytearray(b"".join(encoded)), np.uint8)
        return self.number(letters, spans(sizes, 0).reshape(-1, 1), 0)

    def of(self, numbers: Iterable[int]) -> list[str]:
        """The texts of these numbers."""
        places = ((span >> 32, span & 0xFFFF_FFFF) for span in self._spans[[*numbers]].tolist())
        return [self.letters[start : start + size].tobytes().decode() for start, size in places]

    def only(self, numbers: Integers) -> tuple[Self, Integers]:
        """Texts that are no others than these, and the new number of each old one."""
        found, renumbered = type(self)(), np.full(len(self) + 1, NO_TEXT, np.int64)  # the last one is NO_TEXT's
        renumbered[numbers] = found.number(self.letters, self.spans[numbers].reshape(-1, 1), 0)
        return found, renumbered

    def _grow(self, size: int) -> None:
        """Make room for a text of a size."""
        count, used = self._held.tolist()
        if used + size > len(self.letters):
            letters = np.empty(2 * (len(self.letters) + size), np.uint8)
            letters[:used] = self.letters[:used]
            self.letters = letters
        if count == len(self._spans):
            before, letters = self.spans.reshape(-1, 1), self.letters
            self._spans, self._slots, self._held = (
                np.empty(2 * count, np.int64),
                _free(2 * count),
                np.zeros(2, np.int64),
            )
            self.letters = np.empty_like(letters)
            self.number(letters, before, 0)


def longer(state: Any, size: int) -> Any:
    """The same rows with zeros behind them, ``size`` in all."""
    found = np.zeros((size, *state.shape[1:]), state.dtype)
    found[: len(state)] = state
    return found


def _room(rows: int) -> int:
    return max(ROOM, 1 << rows.bit_length())


def _free(room: int) -> npt.NDArray[np.int32]:
    return np.full(SLOTS * room, -1, np.int32)


@njit(nogil=True, cache=True, inline="always")
def _mixed(number: Any, state: Any) -> Any:
    """Every bit of both in every bit, by the finish of MurmurHash3 (Appleby), https://github.com/aappleby/smhasher.

    All of it for each number: after less, two numbers could be chosen whose differences cancel whatever the seed is.
    """
    word = np.uint64(number) ^ np.uint64(state)
    word = (word ^ (word >> np.uint64(33))) * np.uint64(0xFF51_AFD7_ED55_8CCD)
    word = (word ^ (word >> np.uint64(33))) * np.uint64(0xC4CE_B9FE_1A85_EC53)
    return word ^ (word >> np.uint64(33))


@njit(nogil=True, cache=True)
def number_rows(
    slots: Any, held: Any, count: int, rows: Any, begin: int, seed: int, numbers: Any, fresh: Any
) -> tuple[int, int]:
    """Number rows from one on, until all are numbered or there is no room; gives where it came and how many are held.

    A slot has the number of a row, or -1; the first one to look at is that of the row's hash.
    """
    last = np.uint64(len(slots) - 1)
    width = rows.shape[1]
    for row in range(begin, len(rows)):
        state = np.uint64(seed)
        for column in range(width):
            state = _mixed(rows[row, column], state)
        slot = state & last
        while True:
            number = slots[slot]
            if number < 0:
                break
            same = True
            for column in range(width):
                if held[number, column] != rows[row, column]:
                    same = False
                    break
            if same:
                break
            slot = (slot + np.uint64(1)) & last
        fresh[row] = number < 0
        if number < 0:
            if count == len(held):
                return row, count
            for column in range(width):
                held[count, column] = rows[row, column]
            number = count
            slots[slot] = number
            count += 1
        numbers[row] = number
    return len(rows), count


@njit(nogil=True, cache=True)
def number_texts(table: Any, held: Any, of: Any, rows: Any, column: int, begin: int, seed: int, numbers: Any) -> int:
    """The same for texts that lie in ``of``; ``held`` counts texts and letters. One that is null stays so."""
    slots, letters, spans = table
    last = np.uint64(len(slots) - 1)
    for row in range(begin, len(rows)):
        if rows[row, column] < 0:
            numbers[row] = rows[row, column]
            continue
        start, size = rows[row, column] >> 32, rows[row, column] & 0xFFFF_FFFF
        state = _mixed(size, seed)
        for at in range(0, size, 8):
            word = np.uint64(0)
            for n in range(min(8, size - at)):
                word |= np.uint64(of[start + at + n]) << np.uint64(8 * n)
            state = _mixed(word, state)
        slot = state & last
        while True:
            number = slots[slot]
            if number < 0:
                break
            same = spans[number] & 0xFFFF_FFFF == size
            if same:
                there = spans[number] >> 32
                for n in range(size):
                    if letters[there + n] != of[start + n]:
                        same = False
                        break
            if same:
                break
            slot = (slot + np.uint64(1)) & last
        if number < 0:
            number, used = held[0], held[1]
            if number == len(spans) or used + size > len(letters):
                return row
            for n in range(size):
                letters[used + n] = of[start + n]
            spans[number] = used << 32 | size
            slots[slot] = number
            held[0], held[1] = number + 1, used + size
        numbers[row] = number
    return len(rows)

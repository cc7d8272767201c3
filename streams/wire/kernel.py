"""Record batches and Avro objects walked by compiled code: it proves every border, and says where each value lies.

Nothing is read beyond the end a record states, and only the canonical encoding is taken: the shortest varints, union
indexes and booleans of one byte, an array in one block, text in UTF-8. A schema is a program of numbers, so one
compilation serves all. It takes seconds once a machine and is kept beside this file, or where ``NUMBA_CACHE_DIR`` says.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

LONG, DOUBLES, BOOLEAN, ENUM, STRING, LONGS, UUID = range(7)

#: Bytes that have to follow the last body, whatever they are: texts are taken eight bytes at a time.
PADDING = 16

#: How long a UUID's text is, and what stands between its groups of digits.
UUID_SIZE, DASH = 36, ord("-")
#: What no byte of ASCII has, eight times.
ASCII = -0x7F7F_7F7F_7F7F_7F80


@njit(nogil=True, cache=True, inline="always")
def _byte(body: Any, at: int) -> int:
    """A byte; an index without a sign spares the compiler asking for one from the end."""
    return int(body[np.uint64(at)])


@njit(nogil=True, cache=True, inline="always")
def _varint(body: Any, at: int, end: int) -> Any:
    """A zigzag varint in canonical form and the position after it, which is -1 for anything else."""
    raw = 0
    shift = 0
    while at < end and shift < 70:
        byte = _byte(body, at)
        at += 1
        raw |= (byte & 0x7F) << shift
        if byte < 0x80:
            if (byte == 0 and shift > 0) or (shift == 63 and byte > 1):
                return 0, -1
            return ((raw >> 1) & 0x7FFF_FFFF_FFFF_FFFF) ^ -(raw & 1), at
        shift += 7
    return 0, -1


@njit(nogil=True, cache=True)
def _beyond_ascii(body: Any, at: int, end: int) -> bool:
    """Whether the bytes are UTF-8: no overlong form, no surrogate, nothing above U+10FFFF."""
    while at < end:
        lead = _byte(body, at)
        at += 1
        if lead < 0x80:
            continue
        if 0xC2 <= lead <= 0xDF:
            more, low, high = 1, 0x80, 0xBF
        elif 0xE0 <= lead <= 0xEF:
            more, low, high = 2, 0xA0 if lead == 0xE0 else 0x80, 0x9F if lead == 0xED else 0xBF
        elif 0xF0 <= lead <= 0xF4:
            more, low, high = 3, 0x90 if lead == 0xF0 else 0x80, 0x8F if lead == 0xF4 else 0xBF
        else:
            return False
        if end - at < more:
            return False
        for _ in range(more):
            byte = _byte(body, at)
            if byte < low or byte > high:
                return False
            low, high = 0x80, 0xBF
            at += 1
    return True


@njit(nogil=True, cache=True, inline="always")
def _eight(body: Any, at: int) -> int:
    """Eight bytes as a little-endian number; the compiler makes one load of it."""
    first = np.uint64(at)
    word = 0
    for n in range(8):
        word |= int(body[first + np.uint64(n)]) << (8 * n)
    return word


@njit(nogil=True, cache=True, inline="always")
def _first(word: int, size: int) -> int:
    """The first ``size`` bytes of eight."""
    if size >= 8:
        return word
    return word & ((1 << (8 * max(size, 0))) - 1)


@njit(nogil=True, cache=True, inline="always")
def _after_text(body: Any, at: int, end: int) -> int:
    seen = 0
    for start in range(at, end, 8):
        seen |= _first(_eight(body, start), end - start)
    return end if seen & ASCII == 0 or _beyond_ascii(body, at, end) else -1


@njit(nogil=True, cache=True, inline="always")
def _hexadecimal(text: int) -> int:
    """What eight hexadecimal digits in lower case say, or -1; all eight at once, a digit a byte.

    A digit's value is its low four bits, and 9 more for a letter. It is one if writing it again gives the same text.
    """
    digits = (text & 0x0F0F_0F0F_0F0F_0F0F) + ((text >> 6) & 0x0101_0101_0101_0101) * 9
    letters = ((digits + 0x0606_0606_0606_0606) >> 4) & 0x0101_0101_0101_0101
    again = digits + 0x3030_3030_3030_3030 + letters * 0x27
    if again != text or digits & 0x7070_7070_7070_7070:
        return -1
    pairs = (digits << 4 | digits >> 8) & 0x00FF_00FF_00FF_00FF
    number = 0
    for n in range(4):
        number = number << 8 | (pairs >> (16 * n)) & 0xFF
    return number


@njit(nogil=True, cache=True)
def _uuid(body: Any, at: int, size: int, cells: Any, cell: Any, row: Any) -> bool:
    """Read the text of a UUID into two cells, its first and its last 64 bits; whether it is one."""
    if size != UUID_SIZE:
        return False
    for place in (8, 13, 18, 23):
        if _byte(body, at + place) != DASH:
            return False
    first = _hexadecimal(_eight(body, at))
    second = _hexadecimal(_first(_eight(body, at + 9), 4) | _first(_eight(body, at + 14), 4) << 32)
    third = _hexadecimal(_first(_eight(body, at + 19), 4) | _first(_eight(body, at + 24), 4) << 32)
    fourth = _hexadecimal(_eight(body, at + 28))
    cells[cell, row] = first << 32 | second
    cells[cell + np.uint64(1), row] = third << 32 | fourth
    return bool(min(first, second, third, fourth) >= 0)


@njit(nogil=True, cache=True)
def _after_longs(body: Any, at: int, end: int, count: int) -> int:
    if count == 0:
        return at
    for _ in range(count):
        _, at = _varint(body, at, end)
        if at < 0:
            return -1
    return at + 1 if at < end and _byte(body, at) == 0 else -1


@njit(nogil=True, cache=True)
def _fields(  # noqa: C901 - a step's kind is asked for where it costs least: measured
    body: Any, at: int, end: int, program: Any, cells: Any, present: Any, row: int
) -> int:
    """Read one record's fields into its row of ``cells``; the position after them, or -1.

    A step of the program is (kind, nullable, first cell, how many doubles or symbols). A cell holds a number, the bits
    of a double, or ``start << 32 | size`` of a text (bytes) or an array (items). A UUID has two cells, and is absent if
    its text is not the canonical one.
    """
    for position in range(program.shape[0]):
        step = np.uint64(position)
        kind, cell, many = program[step, 0], np.uint64(program[step, 2]), program[step, 3]
        if program[step, 1]:
            if at >= end or _byte(body, at) not in (0, 2):
                return -1
            known = _byte(body, at) == 2
            present[cell, row] = known
            at += 1
            if not known:
                for number in range(many if kind == DOUBLES else 1):
                    cells[cell + np.uint64(number), row] = 0
                continue
        if kind == DOUBLES:
            if end - at < 8 * many:
                return -1
            for number in range(many):
                cells[cell + np.uint64(number), row] = _eight(body, at)
                at += 8
            continue
        if kind == BOOLEAN:
            if at >= end or _byte(body, at) > 1:
                return -1
            cells[cell, row] = _byte(body, at)
            at += 1
            continue
        value, at = _varint(body, at, end)
        if at < 0:
            return -1
        if kind == LONG:
            cells[cell, row] = value
            continue
        if not 0 <= value <= (many - 1 if kind == ENUM else end - at):
            return -1
        if kind == ENUM:
            cells[cell, row] = value
            continue
        if kind == UUID:
            present[cell, row] = _uuid(body, at, value, cells, cell, row)
            at = at + value if present[cell, row] else _after_text(body, at, at + value)
            if at < 0:
                return -1
            continue
        cells[cell, row] = at << 32 | value
        at = _after_text(body, at, at + value) if kind == STRING else _after_longs(body, at, end, value)
        if at < 0:
            return -1
    return at


@njit(nogil=True, cache=True, inline="always")
def _is_batch(body: Any, place: Any, prefix: Any, program: Any, cells: Any, present: Any) -> bool:
    at, end, count, first = place
    for delta in range(count):
        row = first + delta
        length, at = _varint(body, at, end)
        if at < 0 or length < 1 or length > end - at:
            return False
        stop = at + length
        if _byte(body, at) != 0:
            return False
        _, at = _varint(body, at + 1, stop)
        if at < 0:
            return False
        stated, at = _varint(body, at, stop)
        if at < 0 or stated != delta:
            return False
        size, at = _varint(body, at, stop)
        if at < 0 or size < 0 or size > stop - at:
            return False
        cells[-1, row] = at << 32 | size
        size, at = _varint(body, at + size, stop)
        if at < 0 or size < len(prefix) or size > stop - at:
            return False
        value_end = at + size
        for n in range(len(prefix)):
            if _byte(body, at + n) != prefix[n]:
                return False
        at = _fields(body, at + len(prefix), value_end, program, cells, present, np.uint64(row))
        if at != value_end or stop - at != 1 or _byte(body, at) != 0:
            return False
        at = stop
    return bool(count > 0 and at == end)


@njit(nogil=True, cache=True)
def walk_batches(
    body: Any, ends: Any, counts: Any, prefix: Any, program: Any, cells: Any, present: Any, good: Any
) -> None:
    """Tell of each batch, one after the other and ending at ``ends``, whether it is the records its header states.

    Each has room for its ``counts`` of rows; the last row of ``cells`` tells where the keys lie.
    """
    at = 0
    row = 0
    for batch in range(len(ends)):
        good[batch] = _is_batch(body, (at, ends[batch], counts[batch], row), prefix, program, cells, present)
        at = ends[batch]
        row += counts[batch]


@njit(nogil=True, cache=True)
def walk_values(body: Any, ends: Any, program: Any, cells: Any, present: Any, good: Any) -> None:
    """Tell of each Avro object, one after the other and ending at ``ends``, whether it is exactly the fields."""
    at = 0
    for row in range(len(ends)):
        good[row] = _fields(body, at, ends[row], program, cells, present, np.uint64(row)) == ends[row]
        at = ends[row]


@njit(nogil=True, cache=True)
def fill_texts(body: Any, spans: Any, offsets: Any, heap: Any) -> None:
    """The bytes at ``spans`` one after the other, and where each one's begin; the heap ends with padding."""
    used = 0
    offsets[0] = 0
    for row in range(len(spans)):
        start, size = spans[row] >> 32, spans[row] & 0xFFFF_FFFF
        for n in range(0, size, 8):
            word = _eight(body, start + n)
            for byte in range(8):
                heap[np.uint64(used + n) + np.uint64(byte)] = (word >> (8 * byte)) & 0xFF
        used += size
        offsets[row + 1] = used


@njit(nogil=True, cache=True)
def fill_longs(body: Any, spans: Any, offsets: Any, items: Any) -> None:
    """The items of arrays, and where each array's begin."""
    used = 0
    offsets[0] = 0
    for row in range(len(spans)):
        at = spans[row] >> 32
        for _ in range(spans[row] & 0xFFFF_FFFF):
            items[used], at = _varint(body, at, len(body))
            used += 1
        offsets[row + 1] = used

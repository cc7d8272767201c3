"""Text, bytes and lists of integers handed to Polars by Arrow's C data interface, without a copy.

https://arrow.apache.org/docs/format/CDataInterface.html. Each column is one allocation of C's ``malloc`` that Polars
frees through ``_release``, compiled code that needs no lock of Python's: columns die in any thread.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from numba import carray, cfunc, types

from schemas.kernel import INLINE, PADDING, fill_longs, fill_views

Words = npt.NDArray[np.int64]

#: Positions in an ``ArrowArray``, all of whose members are 64 bits wide, and its size.
_LENGTH, _BUFFER_COUNT, _CHILD_COUNT, _BUFFERS, _CHILDREN, _RELEASE, _PRIVATE, _ARRAY = 0, 3, 4, 5, 6, 8, 9, 10
#: Words of an allocation before its data: the array, a child, their pointers.
_HEAD = 32

_C = ctypes.CDLL(None)
_C.malloc.restype, _C.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
_C.free.restype, _C.free.argtypes = None, [ctypes.c_void_p]
_memory: Any = ctypes.pythonapi.PyMemoryView_FromMemory
_memory.restype, _memory.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int]
_WRITABLE = 0x200
_capsule: Any = ctypes.pythonapi.PyCapsule_New
_capsule.restype, _capsule.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
#: Formats and names that schemas point to, and schemas that others do.
_KEPT: list[Any] = []


def _schema(layout: bytes, child: Words | None = None) -> Words:
    """An ``ArrowSchema``. It lives as long as the process, so there is nothing to release."""
    words = np.zeros(10, np.int64)
    name, children = ctypes.create_string_buffer(layout), np.zeros(1, np.int64)
    words[0] = ctypes.addressof(name)
    words[1] = ctypes.addressof(name) + len(layout)
    if child is not None:
        children[0] = child.ctypes.data
        words[4], words[5] = 1, children.ctypes.data
    _KEPT.append((words, name, children, child))
    return words


_TEXT, _BYTES, _LISTS = _schema(b"vu"), _schema(b"vz"), _schema(b"+L", _schema(b"l"))
_free = types.ExternalFunction("free", types.void(types.intp))


@cache
def _release() -> int:
    """Address of the compiled function that frees a column."""

    @cfunc(types.void(types.CPointer(types.int64)), cache=True)
    def release(array: Any) -> None:
        words = carray(array, 10)
        words[8] = 0
        _free(words[9])

    address: int = release.address
    return address


@dataclass(frozen=True)
class _Exported:
    """What Polars asks an Arrow column for: its schema and its array."""

    schema: Words
    array: Words

    def __arrow_c_array__(self, requested_schema: object = None) -> tuple[object, object]:
        return _capsule(self.schema.ctypes.data, b"arrow_schema", None), _capsule(
            self.array.ctypes.data, b"arrow_array", None
        )


def texts(body: npt.NDArray[np.uint8], spans: Words, utf8: bool) -> pl.Series:
    """A String (or Binary) column of what lies at the spans, ``start << 32 | size``; UTF-8 is the caller's promise."""
    sizes = spans & 0xFFFF_FFFF
    heap_size = int(sizes.sum(where=sizes > INLINE))
    heap = _HEAD + 2 * len(spans)
    words, address = _allocate(heap + (heap_size + PADDING) // 8)
    fill_views(body, spans, words[_HEAD:heap], words[heap:].view(np.uint8))
    sizes_at = _ARRAY + 4
    words[sizes_at] = heap_size
    _describe(words, address, 0, len(spans), [0, address + 8 * _HEAD, address + 8 * heap, address + 8 * sizes_at])
    return _imported(_TEXT if utf8 else _BYTES, words)


def long_lists(body: npt.NDArray[np.uint8], spans: Words) -> pl.Series:
    """A column of lists of integers, their varints at the spans, ``start << 32 | items``."""
    count = int((spans & 0xFFFF_FFFF).sum())
    items = _HEAD + len(spans) + 1
    words, address = _allocate(items + count)
    fill_longs(body, spans, words[_HEAD:items], words[items:])
    child, children = 16, 15
    _describe(words, address, 0, len(spans), [0, address + 8 * _HEAD])
    _describe(words, address, child, count, [0, address + 8 * items])
    words[_CHILD_COUNT], words[_CHILDREN], words[children] = 1, address + 8 * children, address + 8 * child
    words[child + _PRIVATE] = 0
    return _imported(_LISTS, words)


def _allocate(size: int) -> tuple[Words, int]:
    address = _C.malloc(8 * size)
    if not address:
        raise MemoryError(f"{8 * size} bytes for a column")
    words: Words = np.frombuffer(_memory(address, 8 * size, _WRITABLE), np.int64)
    words[:_HEAD] = 0
    return words, address


def _describe(words: Words, address: int, at: int, length: int, buffers: list[int]) -> None:
    """Write the ``ArrowArray`` at a word, and the pointers to its buffers behind it."""
    pointers = at + _ARRAY
    words[pointers : pointers + len(buffers)] = buffers
    words[at + _LENGTH], words[at + _BUFFER_COUNT], words[at + _BUFFERS] = length, len(buffers), address + 8 * pointers
    words[at + _RELEASE], words[at + _PRIVATE] = _release(), address


def _imported(schema: Words, words: Words) -> pl.Series:
    return pl.Series(_Exported(schema, words[:_ARRAY].copy()))

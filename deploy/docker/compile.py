"""Compile the kernels, beside their modules or into the folder NUMBA_CACHE_DIR: python compile.py."""

from __future__ import annotations

import numpy as np
import polars as pl

from processors.automata import LEVEL_COLUMNS, MESSAGE_COLUMNS, begin_all, cells, due, idle, observe
from processors.tables import Table, Texts
from processors.windows import merge_events
from schemas.catalogue import FrozenSchema
from schemas.record_codec import encode
from streams.wire.column_reader import ColumnReader, OpenedBatch
from streams.wire.column_writer import Columns, encode_bodies

FIELDS = [{"name": "name", "type": "string"}, {"name": "counts", "type": {"type": "array", "items": "long"}}]
NAME = b"a name of some length"


def compile_kernels() -> pl.DataFrame:
    """Count an event into a window, write a record and read it back in all ways there are; returns what was read."""
    texts, sizes = Texts(), np.array([[len(NAME)]])
    texts.number(np.frombuffer(bytearray(NAME), np.uint8), sizes, 0)
    groups, _ = Table(1).number(sizes)
    merge_events(groups, np.zeros((1, 6), np.int64), sizes, groups, np.empty((0, 3), np.int64))
    watch_an_observation()
    frozen = FrozenSchema(1, "compiled", 1, {"type": "record", "name": "Compiled", "fields": FIELDS})
    rows = {"name": texts.spans, "counts": np.array([3])}
    (body,) = encode_bodies(frozen, ["name"], Columns(1, rows, {}, texts.letters, np.arange(3)), 2**20)
    reader = ColumnReader(frozen)
    reader.read_values([encode(frozen, {"name": NAME.decode(), "counts": [0, 1, 2]})])
    found, _ = reader.read_batches([OpenedBatch(body.data, body.count, 0, 0, body.count - 1, 0)])
    return found


def watch_an_observation() -> None:
    """Let a rule see one, and look for who is idle."""
    levels, memories = np.zeros((1, LEVEL_COLUMNS), np.int64), np.zeros((0, 6), np.int64)
    integers, numbers, at = np.zeros((1, cells(levels)), np.int64), np.zeros((1, 0)), np.zeros(1, np.int64)
    begin_all(integers, numbers, levels, memories)
    due(integers, 1, levels)
    rule = (np.zeros((0, 2), np.int64), np.zeros(0)), levels, memories, np.zeros((0, 2), np.int64), 0
    out = np.zeros((2, MESSAGE_COLUMNS), np.int64), np.zeros((2, 0))
    rows = at, np.zeros((1, 0)), np.zeros((1, 1), np.int64)
    observe((integers, numbers), (at, at, at), rows, 0, rule, out)
    idle(integers, 1, 0, 0, levels)


if __name__ == "__main__":
    compile_kernels()

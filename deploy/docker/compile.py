"""Compile the kernels into the folder NUMBA_CACHE_DIR, so that a new container does not: python compile.py."""

from __future__ import annotations

import polars as pl

from schemas.catalogue import FrozenSchema
from schemas.columnar import Block, Layout
from schemas.writing import encode_bodies

FIELDS = [{"name": "name", "type": "string"}, {"name": "counts", "type": {"type": "array", "items": "long"}}]


def compile_kernels() -> pl.DataFrame:
    """Write a record and read it back in both ways there are; returns what was read."""
    frozen = FrozenSchema(1, "compiled", 1, {"type": "record", "name": "Compiled", "fields": FIELDS})
    rows = pl.DataFrame({"name": ["a name of some length"], "counts": [[1, 2, 3]]})
    (body,) = encode_bodies(frozen, pl.Series(["key"]), rows, 2**20)
    layout = Layout(frozen)
    layout.read_values([layout.frame])
    return layout.read_blocks([Block(body.data, body.count, 0, body.count - 1, 0)])


if __name__ == "__main__":
    compile_kernels()

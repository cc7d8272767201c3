"""Records of one feed that become records of another, as bytes for its topic: a function of each record alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from operator import and_
from uuid import UUID

import polars as pl

from schemas.catalogue import FrozenSchema
from schemas.expressions import Expression, LookedUp, may_be_beyond, to_polars
from schemas.feed import Feed, MadeOf
from schemas.made import made_id, made_key
from schemas.model import COMPONENTS, Field, Kind
from schemas.record_codec import encode
from streams.feed_topics import feed_topics

_WHOLE: tuple[Kind, ...] = ("int", "instant")


@dataclass(frozen=True)
class Made:
    """A record that the one at an offset of a partition became, and its topic."""

    partition: int
    offset: int
    topic: str
    key: bytes
    value: bytes


class Making:
    """What records of one feed become in another."""

    def __init__(self, source: Feed, target: Feed, frozen: FrozenSchema) -> None:
        self._source, self._target, self._frozen = source, target, frozen
        self._topic = [*feed_topics(target)][-1]
        self._ways = [way for way in target.made_of if way.of.name == source.name]
        self._columns = [self._columns_of(way) for way in self._ways]
        self._never_null = [f.name for f in target.fields if not f.nullable and f.name not in ("event_id", target.key)]

    @property
    def looked_up(self) -> Iterator[LookedUp]:
        """What has to be looked up for every row."""
        for way in self._ways:
            yield from way.looked_up

    def of(self, rows: pl.DataFrame) -> list[Made]:
        """What these rows become, in their order."""
        found: list[Made] = []
        for way, columns in zip(self._ways, self._columns, strict=True):
            taken = pl.lit(True) if way.where is None else to_polars(way.where).fill_null(False)
            found += self._made(way, rows.filter(taken).select(columns))
            rows = rows.filter(~taken)
        return sorted(found, key=lambda one: (one.partition, one.offset))

    def _columns_of(self, way: MadeOf) -> list[pl.Expr]:
        places = [pl.col("_partition"), pl.col("_offset")]
        given = [_value(value, self._target.field(name)).alias(name) for name, value in way.given.items()]
        halves = [pl.col("event_id").struct.field(half).alias(f"_{half}") for half in COMPONENTS["uuid"]]
        event_ms = pl.col(self._source.event_time).cast(pl.Int64).alias("_event_ms")
        source_key = pl.col(self._source.key).alias("_source_key")
        key = pl.concat_list(*way.key).alias("_alike")
        return [*places, event_ms, source_key, key, *halves, *given]

    def _made(self, way: MadeOf, rows: pl.DataFrame) -> Iterator[Made]:
        needed = [pl.col(name).is_not_null() for name in self._never_null if name in way.fields]
        if needed:
            rows = rows.filter(reduce(and_, needed))
        names = self._target.name, self._source.name
        for row in rows.iter_rows(named=True):
            key = made_key(*names, row["_alike"])
            event_id = made_id(*names, row["_source_key"], row["_event_ms"], _uuid(row["_high"], row["_low"]))
            values = {name: row[name] for name in way.fields} | {"event_id": event_id, self._target.key: key}
            yield Made(row["_partition"], row["_offset"], self._topic, key.encode(), encode(self._frozen, values))


def _value(value: Expression, to: Field) -> pl.Expr:
    compiled = to_polars(value)
    if may_be_beyond(value):
        compiled = pl.when(compiled.is_finite()).then(compiled)
    if to.kind in _WHOLE:
        return compiled.cast(pl.Int64)
    return compiled.cast(pl.Float64) if to.kind == "float" else compiled


def _uuid(high: int, low: int) -> str:
    return str(UUID(int=high % 2**64 << 64 | low % 2**64))

"""What was known of a table of reference data at any time: a function of its log, for many records at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import shapely

from schemas.feed import milliseconds
from schemas.model import COMPONENTS, Kind
from schemas.reference import GRACE, Reference
from schemas.reference_rows import Row, plain

Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

#: Index of no row.
UNKNOWN = -1
#: Ends of a validity that is open.
_ALWAYS, _FOREVER = -(2**63), 2**63 - 1
GRACE_MS = milliseconds(GRACE)

_TYPES: Mapping[Kind, pl.DataType] = {
    "string": pl.String(),
    "uuid": pl.String(),
    "enum": pl.String(),
    "int": pl.Int64(),
    "float": pl.Float64(),
    "bool": pl.Boolean(),
    "instant": pl.Int64(),
    "date": pl.Date(),
    "place": pl.Struct({"longitude": pl.Float64(), "latitude": pl.Float64()}),
}


def as_of(arrived_ms: Integers) -> Integers:
    """The broker's time up to which reference data count for records that arrived at these times."""
    return arrived_ms - GRACE_MS


class History:
    """All versions of the rows of one table, as far as its log is read; never changed.

    What is found for a record depends on its key, its arrival and its event time alone, however much more is read. A
    row counts from the highest broker's time up to it in the log.
    """

    def __init__(self, reference: Reference, versions: Sequence[tuple[int, Row]]) -> None:
        """``versions`` are in the order of the log, each with the broker's time (ms)."""
        self._types = {field.name: _TYPES[field.kind] for field in reference.fields}
        self._key = reference.key
        numbers: dict[tuple[str | int, ...], int] = {}
        keys = np.array([numbers.setdefault(row.key, len(numbers)) for _, row in versions], np.int64)
        stamps = np.maximum.accumulate(np.array([at for at, _ in versions], np.int64))
        begins = np.array([_ALWAYS if row.begins_ms is None else row.begins_ms for _, row in versions], np.int64)
        ends = np.array([_ends(reference, row) for _, row in versions], np.int64)
        until = _superseded(keys, begins, stamps)
        # Of one key: the row that begins last first, and of one row the newest version.
        order = np.lexsort((-np.arange(len(versions)), -1 - begins, keys))
        self._stamps, self._until, self._begins, self._ends = (a[order] for a in (stamps, until, begins, ends))
        self._areas: dict[str, tuple[shapely.STRtree, Integers]] = {}
        self._first = np.searchsorted(keys[order], np.arange(len(numbers) + 1))
        self._values = self._frame([versions[n][1].values for n in order])
        self._names = pl.DataFrame(
            [*numbers], {name: self._types[name] for name in self._key}, orient="row"
        ) if numbers else pl.DataFrame(schema={name: self._types[name] for name in self._key})  # fmt: skip
        self._hash()

    def _frame(self, values: Sequence[Mapping[str, Any] | None]) -> pl.DataFrame:
        columns = {name: [None if one is None else plain(one.get(name)) for one in values] for name in self._types}
        return pl.DataFrame(columns, self._types)

    def _hash(self) -> None:
        for seed in count():
            self._seed = seed
            hashes = self._names.hash_rows(seed).to_numpy()
            self._order = np.argsort(hashes)
            self._hashes = hashes[self._order]
            if not (self._hashes[1:] == self._hashes[:-1]).any():
                return

    def rows(self, keys: Sequence[pl.Series], arrived_ms: Integers, event_ms: Integers) -> Integers:
        """The row that counts for each record, as an index for ``column``; ``UNKNOWN`` where there is none.

        ``keys`` are the values of the key's fields; all are alike in length. A null is no key. Times are in ms.
        """
        found = np.full(len(arrived_ms), UNKNOWN, np.int64)
        numbers = self._numbers(keys)
        known = np.flatnonzero(numbers >= 0)
        if not len(known):
            return found
        first = self._first[numbers[known]]
        sizes = self._first[numbers[known] + 1] - first
        # Every version of the record's key beside the record, in their order.
        record = np.repeat(known, sizes)
        ends = np.cumsum(sizes)
        version = np.arange(ends[-1]) + np.repeat(first - (ends - sizes), sizes)
        chosen = np.flatnonzero(self._counts(version, record, arrived_ms, event_ms))[::-1]
        found[record[chosen]] = version[chosen]  # the first one of a record is written last
        return found

    def covering(self, area: str, places: pl.Series, arrived_ms: Integers, event_ms: Integers) -> Integers:
        """The row whose area, a field of the table, covers the place of each record; as ``rows``."""
        found = np.full(len(arrived_ms), UNKNOWN, np.int64)
        known = np.flatnonzero(places.is_not_null().to_numpy())
        tree, versions = self._areas_of(area)
        if not len(known) or not len(versions):
            return found
        points = shapely.points(*(places.struct.field(half).to_numpy()[known] for half in COMPONENTS["place"]))
        point, geometry = tree.query(points, predicate="intersects")
        record, version = known[point], versions[geometry]
        counts = self._counts(version, record, arrived_ms, event_ms)
        record, version = record[counts], version[counts]
        order = np.argsort(self._rank[version])
        found[record[order]] = version[order]  # the one that counts most is written last
        return found

    def _areas_of(self, area: str) -> tuple[shapely.STRtree, Integers]:
        """All areas of a field, and the version of each."""
        if area not in self._areas:
            versions = np.flatnonzero(self._values[area].is_not_null().to_numpy())
            texts = self._values[area].gather(versions).to_numpy()
            self._areas[area] = shapely.STRtree(shapely.from_geojson(texts)), versions
        return self._areas[area]

    @cached_property
    def _rank(self) -> Integers:
        """How much each version counts where several areas cover a place: the more, the later it begins."""
        keys = self._names.rows()
        first = np.empty(len(keys), np.int64)
        first[sorted(range(len(keys)), key=keys.__getitem__)] = np.arange(len(keys))
        ranked = np.lexsort((-np.repeat(first, np.diff(self._first)), self._begins))
        rank = np.empty_like(ranked)
        rank[ranked] = np.arange(len(ranked))
        return rank

    def _counts(self, version: Integers, record: Integers, arrived_ms: Integers, event_ms: Integers) -> Flags:
        """Which versions were known and hold for the records beside them."""
        at, event = as_of(arrived_ms)[record], event_ms[record]
        known: Flags = (self._stamps[version] <= at) & (at < self._until[version])
        return known & (self._begins[version] <= event) & (event < self._ends[version])

    def column(self, name: str, rows: Integers) -> pl.Series:
        """A field's values of these rows, null where there is no row: instants in ms, enums as texts."""
        at = pl.Series(rows)
        return self._values[name].gather(at.set(at < 0, None)) if len(rows) else self._values[name].head(0)

    def _numbers(self, keys: Sequence[pl.Series]) -> Integers:
        wanted = pl.DataFrame(
            [one.cast(self._types[name]).alias(name) for one, name in zip(keys, self._key, strict=True)]
        )
        if not len(self._hashes):
            return np.full(wanted.height, UNKNOWN, np.int64)
        places = np.searchsorted(self._hashes, wanted.hash_rows(self._seed).to_numpy())
        numbers: Integers = self._order[np.minimum(places, len(self._hashes) - 1)]
        same = np.ones(wanted.height, np.bool_)
        for name in self._key:
            same &= (wanted[name] == self._names[name].gather(numbers)).fill_null(False).to_numpy()
        return np.where(same, numbers, UNKNOWN)


def _ends(reference: Reference, row: Row) -> int:
    """The end of a version's validity; one that takes the row away holds never."""
    if row.values is None:
        return _ALWAYS
    end = row.values[reference.valid_to] if reference.valid_to else None
    return _FOREVER if end is None else int(plain(end))


def _superseded(keys: Integers, begins: Integers, stamps: Integers) -> Integers:
    """The broker's time from which on each version is not the newest one of its row."""
    until = np.full(len(keys), _FOREVER, np.int64)
    order = np.lexsort((np.arange(len(keys)), begins, keys))
    same = (keys[order[1:]] == keys[order[:-1]]) & (begins[order[1:]] == begins[order[:-1]])
    until[order[:-1][same]] = stamps[order[1:][same]]
    return until

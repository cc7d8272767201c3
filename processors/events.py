"""What windows need of decoded rows, as a matrix of integers: one query makes it of a frame, whatever its size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from processors.observations import Numbers
from processors.tables import NO_TEXT, Flags, Integers, Letters, Texts
from schemas.expressions import Component, Expression, LookedUp, to_polars, written
from schemas.feed import Feed
from schemas.measures import Partial
from schemas.model import COMPONENTS, TEXTS, UUID_HALVES
from schemas.rules import read_by
from streams.wire.column_writer import spans

#: Columns of every matrix: the event id is its two halves, and COUNTS is 1 where the row counts in its topic.
OFFSET, EVENT_MS, HIGH, LOW, COUNTS = range(5)
_FIRST_TEXT = 5
#: In the place of a number that is null: no field holds it, they have 32 bits.
NO_NUMBER = -(2**63)


@dataclass(frozen=True)
class Events:
    """Rows of events in the order of their offsets, with the columns that an ``EventColumns`` gives them.

    A text's cell is its span in ``letters``, ``start << 32 | size``. ``keys`` has a column for each field that is a
    key or grouped by, once they are ``numbered``: the number of a text, or a number as it is. A text that is null is
    ``NO_TEXT`` in both, a number ``NO_NUMBER``. ``values`` are those
    that rules read, NaN for null.
    """

    cells: Integers
    letters: Letters
    keys: Integers
    values: Numbers

    def __len__(self) -> int:
        return len(self.cells)

    @property
    def event_ms(self) -> Integers:
        """Event times in ms."""
        return self.cells[:, EVENT_MS]

    def where(self, wanted: Flags | slice) -> Events:
        """Some of the rows."""
        return replace(self, cells=self.cells[wanted], keys=self.keys[wanted], values=self.values[wanted])


class EventColumns:
    """The columns of one feed's events."""

    def __init__(self, feed: Feed, counts: pl.Expr | None = None) -> None:
        """``counts`` says of a row whether it counts in its topic; all do if it is None."""
        partials = [p for a in feed.aggregates for measure in a.measures for p in measure.partials]
        reads = [leaf for rule in feed.alerts for leaf in read_by(rule)]
        #: What rules look up, by the column of a frame that it is put into.
        self.looked_up = {column_of(leaf): leaf for _, rule in feed.watched for leaf in rule.looked_up}
        read = [leaf for leaf in reads if not isinstance(leaf, LookedUp) and feed.has(leaf.name)]
        if feed.alerts and feed.place is not None:
            read += [Component(feed.place, part) for part in COMPONENTS["place"]]
        entities = [name for rule in feed.alerts for name in rule.of]
        read_texts = [leaf.name for leaf in read if feed.field(leaf.name).kind in TEXTS]
        grouped_by = [name for aggregate in feed.aggregates for name in aggregate.by]
        found_texts = [name for name, leaf in self.looked_up.items() if leaf.field.kind in TEXTS]
        keys = dict.fromkeys([feed.key, *grouped_by, *entities, *read_texts, *found_texts])
        texts = [name for name in keys if name in found_texts or feed.field(name).kind in TEXTS]
        numbers_grouped_by = [name for name in keys if name not in texts]
        values = dict.fromkeys(partial.value for partial in partials)
        #: Columns of keys, by the name of their field, and how many of them, the first ones, are of texts.
        self.keys = {name: n for n, name in enumerate([*texts, *numbers_grouped_by])}
        self.texts = len(texts)
        fields = dict.fromkeys(leaf for leaf in read if leaf.name not in texts)
        #: Columns of the values that rules read.
        self.fields: dict[Expression, int] = {leaf: n for n, leaf in enumerate(fields)}
        found = [name for name in self.looked_up if name not in found_texts]
        self.fields |= {self.looked_up[name]: n for n, name in enumerate(found, len(fields))}
        numbers = [*map(to_polars, fields), *map(pl.col, found)]
        self._fields = [number.cast(pl.Float64).alias(str(n)) for n, number in enumerate(numbers)]
        self._values = {value: _FIRST_TEXT + len(keys) + 2 * n for n, value in enumerate(values)}
        halves = [pl.col("event_id").struct.field(half).reinterpret(signed=True) for half in UUID_HALVES]
        cells = [
            *(pl.col("_offset"), pl.col(feed.event_time), *halves, pl.lit(1) if counts is None else counts),
            *(pl.col(name).str.len_bytes().cast(pl.Int64).fill_null(NO_TEXT) for name in texts),
            *(pl.col(name).cast(pl.Int64).fill_null(NO_NUMBER) for name in numbers_grouped_by),
            *(part for value in values for part in _known(value)),
        ]
        self._numbers = [cell.cast(pl.Int64).alias(str(n)) for n, cell in enumerate(cells)]
        self._joined = [pl.col(name).str.join("") for name in texts]

    def value(self, partial: Partial) -> int:
        """The column of a partial's value; the next one is 1 where it is known, else 0."""
        return self._values[partial.value]

    def of(self, rows: pl.DataFrame) -> Events:
        """The events of valid rows."""
        cells = rows.select(self._numbers).to_numpy(order="c", writable=True)
        joined = [text.encode() for text in rows.select(self._joined).row(0)]
        begin = 0
        for column, letters in enumerate(joined, _FIRST_TEXT):
            sizes = cells[:, column]
            cells[:, column] = np.where(sizes < 0, NO_TEXT, spans(np.maximum(sizes, 0), begin))
            begin += len(letters)
        values = np.zeros((len(cells), 0))
        if self._fields:
            values = rows.select(self._fields).to_numpy(order="c", writable=True)
        return Events(cells, np.frombuffer(bytearray(b"".join(joined)), np.uint8), cells[:, :0], values)

    def numbered(self, events: Events, texts: Texts) -> Events:
        """Events whose texts are numbers."""
        columns = [texts.number(events.letters, events.cells, _FIRST_TEXT + column) for column in range(self.texts)]
        numbers = events.cells[:, _FIRST_TEXT + self.texts : _FIRST_TEXT + len(self.keys)]
        return replace(events, keys=np.column_stack((*columns, numbers)))


def column_of(looked_up: LookedUp) -> str:
    """The column of a frame that has what was looked up."""
    return written(looked_up)


def _known(value: Expression) -> Sequence[pl.Expr]:
    compiled = to_polars(value).cast(pl.Int64)
    return compiled.fill_null(0), compiled.is_not_null()

"""From a run of record batches to columns: the fast path, the ordinary path, and what cannot be read.

Every part that reads a topic reads it through here, so a record has one verdict.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

import polars as pl
from aiokafka.errors import CorruptRecordException

from schemas.avro import Schema
from schemas.catalogue import Catalogue, FrozenSchema
from schemas.columnar import Block, Layout
from schemas.feed import Feed
from schemas.rowcodec import FRAME, NotDecodable, decode
from schemas.verdict import ColumnarVerdict
from streams.deadletters import DeadLetter, Stage
from streams.recordbatch import MAX_BODY, BodyTooLarge, RecordBatch
from streams.transport import Run

#: Key and value of a dead letter, in bytes; a producer takes a million, and several must fit into memory.
LARGEST_LETTER = 512 * 1024


def gaps(run: Run, from_offset: int) -> list[tuple[int, int]]:
    """First and last offsets of the stretches of a run, from an offset on, that hold no record that counts.

    They are the log's own: markers of transactions, aborted records, records that compaction removed.
    """
    found, at = [], from_offset
    for batch in run.batches:
        for first, last in _held(batch):
            if first > at:
                found.append((at, first - 1))
            at = max(at, last + 1)
    return [*found, (at, run.next - 1)] if at < run.next else found


def _held(batch: RecordBatch) -> list[tuple[int, int]]:
    """The stretches a batch has records for; all of it if it is a dead letter as a whole."""
    whole = [(batch.base_offset, batch.last_offset)]
    if batch.count == batch.last_offset - batch.base_offset + 1:
        return whole
    try:
        offsets = [offset for offset, *_ in batch.records()]
    except (BodyTooLarge, CorruptRecordException):
        return whole
    return [(offset, offset) for offset in offsets] if _in_order(batch, offsets) else whole


def _in_order(batch: RecordBatch, offsets: list[int]) -> bool:
    return offsets == sorted({o for o in offsets if batch.base_offset <= o <= batch.last_offset})


@dataclass
class Decoded:
    """Valid rows in offset order, with ``_key``, ``_offset`` and ``_arrived`` (ms), and what is not valid."""

    rows: pl.DataFrame
    dead: list[DeadLetter] = field(default_factory=list)


class Decoder:
    """Reads one topic. With ``feed``, rows are held against the feed's rules."""

    def __init__(self, catalogue: Catalogue, topic: str, feed: Feed | None = None) -> None:
        self._catalogue = catalogue
        self._topic = topic
        self._latest = catalogue.latest(topic)
        self._layouts = {s.id: Layout(s) for s in catalogue.versions(topic)}
        self._frames = {layout.frame: layout for layout in self._layouts.values()}
        self._verdict = ColumnarVerdict(feed) if feed else None
        self._empty = self._finish(self._layouts[self._latest.id].read_blocks([]), self._latest)

    def read(self, run: Run, from_offset: int) -> Decoded:
        """Decode and judge the records of a run from an offset on."""
        dead: list[DeadLetter] = []
        frames = list(self._fast(run.batches, dead))
        rows = pl.concat([self._empty, *frames], how="vertical_relaxed", rechunk=True) if frames else self._empty
        rows = rows.sort("_offset") if len(frames) > 1 else rows
        if rows.height and rows.item(0, "_offset") < from_offset:
            rows = rows.filter(pl.col("_offset") >= from_offset)
        dead = [letter for letter in dead if letter.last_offset >= from_offset]
        if self._verdict and (problems := self._verdict.problems(rows)) is not None:
            broken = rows.select("_offset", _cause=problems).filter(pl.col("_cause").is_not_null())
            dead += self._broken(run.batches, dict(broken.iter_rows()))
            rows = rows.filter(problems.is_null())
        return Decoded(rows, sorted(dead, key=lambda letter: letter.offset))

    def _fast(self, batches: Iterable[RecordBatch], dead: list[DeadLetter]) -> Iterable[pl.DataFrame]:
        """Frames of the batches, several at once where they prove to be blocks of one schema."""
        held: list[tuple[Block, RecordBatch]] = []
        size = 0
        for batch in batches:
            try:
                block = batch.block()
            except BodyTooLarge as error:
                dead.append(self._batch_letter(batch, str(error)))
                continue
            if size + len(block.body) > MAX_BODY:
                yield from self._alike(held, dead)
                held, size = [], 0
            held.append((block, batch))
            size += len(block.body)
        yield from self._alike(held, dead)

    def _alike(self, members: list[tuple[Block, RecordBatch]], dead: list[DeadLetter]) -> Iterable[pl.DataFrame]:
        """Usually all are of the first one's schema; sorted out only if not."""
        layout = self._frames.get(members[0][0].first_frame()) if members else None
        if layout is not None:
            try:
                yield self._finish(layout.read_blocks([block for block, _ in members]), layout.frozen)
            except NotDecodable:
                pass
            else:
                return
        same: dict[bytes, list[tuple[Block, RecordBatch]]] = defaultdict(list)
        for block, batch in members:
            same[block.first_frame()].append((block, batch))
        for frame, alike in same.items():
            layout = self._frames.get(frame)
            if layout is not None:
                yield from self._together(layout, alike, dead)
            else:
                for _, batch in alike:
                    yield from self._one_by_one(batch, dead)

    def _together(
        self, layout: Layout, members: list[tuple[Block, RecordBatch]], dead: list[DeadLetter]
    ) -> Iterable[pl.DataFrame]:
        try:
            yield self._finish(layout.read_blocks([block for block, _ in members]), layout.frozen)
        except NotDecodable:
            if len(members) == 1:
                yield from self._one_by_one(members[0][1], dead)
            else:
                half = len(members) // 2
                yield from self._together(layout, members[:half], dead)
                yield from self._together(layout, members[half:], dead)

    def _one_by_one(self, batch: RecordBatch, dead: list[DeadLetter]) -> Iterable[pl.DataFrame]:
        """The ordinary path: records by their own borders."""
        try:
            records = batch.records()
        except CorruptRecordException as error:
            dead.append(self._batch_letter(batch, f"the records of the batch have no borders: {error}"))
            return
        if not _in_order(batch, [offset for offset, *_ in records]):
            dead.append(self._batch_letter(batch, "the offsets of the batch's records are out of order"))
            return
        by_frame: dict[bytes, list[tuple[int, bytes, bytes]]] = defaultdict(list)
        for offset, key, value, _ in records:
            if key is None:
                dead.append(self._letter(batch, offset, "the record has no key", key, value))
            elif value is None:
                dead.append(self._letter(batch, offset, "the record has no value", key, value))
            else:
                by_frame[value[: FRAME.size]].append((offset, key, value))
        for frame, members in by_frame.items():
            layout = self._frames.get(frame)
            if layout is None:
                dead += [self._letter(batch, o, self._why(value), key, value) for o, key, value in members]
                continue
            rows, bad = layout.read_values([value for _, _, value in members])
            dead += [self._letter(batch, o, self._why(v), k, v) for o, k, v in (members[n] for n in bad)]
            lost = set(bad)
            good = [member for n, member in enumerate(members) if n not in lost]
            yield self._finish(rows, layout.frozen).with_columns(
                _key=pl.Series([key for _, key, _ in good], dtype=pl.Binary),
                _offset=pl.Series([offset for offset, _, _ in good], dtype=pl.Int64),
                _arrived=pl.lit(batch.arrived_ms, pl.Int64),
            )

    def _finish(self, rows: pl.DataFrame, written: FrozenSchema) -> pl.DataFrame:
        """Columns of the latest version, in its order, with its defaults for what the writer did not have."""
        if written is self._latest:
            names = [f["name"] for f in self._latest.schema["fields"]]
            envelope = [name for name in rows.columns if name.startswith("_")]
            return rows.select(*names, *envelope)
        present = set(rows.columns)
        columns = [
            _promoted(f) if f["name"] in present else pl.lit(f["default"]).alias(f["name"])
            for f in self._latest.schema["fields"]
        ]
        return rows.select(*columns, *(name for name in rows.columns if name.startswith("_")))

    def _broken(self, batches: Iterable[RecordBatch], causes: dict[int, str]) -> Iterable[DeadLetter]:
        for batch in batches:
            if any(batch.base_offset <= offset <= batch.last_offset for offset in causes):
                for offset, key, value, _ in batch.records():
                    if offset in causes:
                        yield self._letter(batch, offset, causes[offset], key, value, "VALIDATE")

    def _why(self, value: bytes) -> str:
        try:
            decode(self._catalogue, value)
        except NotDecodable as error:
            return str(error)
        schema_id = FRAME.unpack_from(value)[1]
        subject = self._catalogue.by_id[schema_id].subject
        return f"schema {schema_id} is of {subject}" if subject != self._topic else "not in canonical Avro encoding"

    def _letter(
        self,
        batch: RecordBatch,
        offset: int,
        cause: str,
        key: bytes | None,
        value: bytes | None,
        stage: Stage = "DECODE",
    ) -> DeadLetter:
        size = len(key or b"") + len(value or b"")
        if size > LARGEST_LETTER:
            cause, key, value = f"{cause}; its {size} bytes stay in the log", None, None
        return DeadLetter(self._topic, batch.partition, offset, offset, stage, cause, key, value)

    def _batch_letter(self, batch: RecordBatch, cause: str) -> DeadLetter:
        return DeadLetter(
            self._topic, batch.partition, batch.base_offset, batch.last_offset, "DECODE", cause, None, None
        )


def _promoted(newest: Schema) -> pl.Expr:
    """A column of an older version as the newest has it: symbols it lacks are its default."""
    value = pl.col(newest["name"])
    match newest["type"]:
        case {"type": "enum", "symbols": symbols, "default": default}:
            return pl.when(value.is_in(symbols)).then(value).otherwise(pl.lit(default)).alias(newest["name"])
    return value

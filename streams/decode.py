"""From a run of record batches to columns: the fast path, the ordinary path, and what cannot be read.

Every part that reads a topic reads it through here, so a record has one verdict.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import polars as pl
from aiokafka.errors import CorruptRecordException

from schemas.catalogue import Catalogue
from schemas.columnar import Block
from schemas.feed import Feed
from schemas.rowcodec import FRAME, NotDecodable, schema_id
from schemas.verdict import Rules
from streams.awaited import Awaited, NotYet
from streams.deadletters import DeadLetter, Stage, of_batch
from streams.recordbatch import MAX_BODY, NotOpened, RecordBatch
from streams.runs import Run
from streams.unknown import GivenUp, Unknown
from streams.versions import Version, Versions

#: Key and value of a dead letter, in bytes; a producer takes a million, and several must fit into memory.
LARGEST_LETTER = 512 * 1024
#: Why what names a schema is dead although its files are there now.
NOT_KNOWN = "the schema id {} was not known when this was processed"


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
    except (NotOpened, CorruptRecordException):
        return whole
    return [(offset, offset) for offset in offsets] if _in_order(batch, offsets) else whole


def _in_order(batch: RecordBatch, offsets: list[int]) -> bool:
    return offsets == sorted({o for o in offsets if batch.base_offset <= o <= batch.last_offset})


#: Offset of a tick and the event time (ms) it says.
Tick = tuple[int, int]


@dataclass
class Decoded:
    """Valid rows in offset order, with ``_key``, ``_offset`` and ``_arrived`` (ms), and what is not valid.

    ``_undeclared`` (JSON text) is there if a row has fields that the reader does not declare. ``ticks`` are offsets,
    ascending, and the event times (ms) they say.
    """

    rows: pl.DataFrame
    dead: list[DeadLetter] = field(default_factory=list)
    ticks: list[Tick] = field(default_factory=list)


class Decoder:
    """Reads one topic, whose name is its subject's unless given.

    A record is read and judged by the version it names, which may be older than the declaration or newer; what it has
    and the feed does not declare is in ``_undeclared``, as JSON.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        subject: str,
        feed: Feed | None = None,
        awaited: Awaited | None = None,
        topic: str = "",
        rules: Rules = (),
    ) -> None:
        self._catalogue = catalogue
        self._topic = topic or subject
        self._awaited = awaited or Awaited(catalogue, 0)
        self._versions = Versions(catalogue, subject, feed, rules)

    @property
    def newest_schema(self) -> int:
        """The newest schema id there is."""
        return self._catalogue.newest_id

    def knows(self, schema_id: int) -> bool:
        """Whether the files reach as far as an id; looks at them again if they did not."""
        if schema_id > self.newest_schema:
            self._catalogue.refresh()
        return schema_id <= self.newest_schema

    def read(self, run: Run, from_offset: int, unknown: Unknown | None = None) -> Decoded:
        """Decode and judge the records of a run from an offset on.

        ``unknown`` says what is dead whatever the files say, and is told what did not come.

        Raises
        ------
        NotYet
            A schema id is not known and is waited for, as ``awaited`` says; read the same run again later.
        """
        reading = _Reading(
            self._versions, self._catalogue, self._awaited, self._topic, unknown or GivenUp({}, run.next - 1)
        )
        frames, empty = list(reading.frames(run.batches)), self._versions.empty
        rows = pl.concat([empty, *frames], how="diagonal_relaxed", rechunk=True) if frames else empty
        rows = rows.sort("_offset") if len(frames) > 1 else rows
        if rows.height and rows.item(0, "_offset") < from_offset:
            rows = rows.filter(pl.col("_offset") >= from_offset)
        dead = [letter for letter in reading.dead if letter.last_offset >= from_offset]
        ticks = sorted(tick for tick in reading.ticks if tick[0] >= from_offset)
        return Decoded(rows, sorted(dead, key=lambda letter: letter.offset), ticks)

    def read_together(self, wanted: Sequence[tuple[Run, int, Unknown | None]]) -> tuple[pl.DataFrame, list[int]] | None:
        """Valid rows of runs of several partitions, each from an offset on, and how many each of them has.

        None if anything but values is not as it usually is: then they have to be read one by one.
        """
        batches = [batch for run, _, _ in wanted for batch in run.batches]
        if not batches or any(run.batches and run.batches[0].base_offset < start for run, start, _ in wanted):
            return None
        try:
            blocks, size = [], 0
            for batch in batches:
                blocks.append(batch.block())
                size += len(blocks[-1].body)
                if size > MAX_BODY:
                    return None
            version = self._versions.named(blocks[0].first_frame())
            if version is None:
                return None
            if any(b[0].base_offset <= u.dead_to(version.number) for r, _, u in wanted if u and (b := r.batches)):
                return None
            rows = version.layout.read_blocks(blocks)
        except (NotOpened, NotDecodable, NotYet):
            return None
        lengths = [sum(batch.count for batch in run.batches) for run, _, _ in wanted]
        if version.verdict and (problems := version.verdict.problems(rows)) is not None:
            valid = problems.is_null()
            rows = rows.filter(valid)
            lengths = [int(part.sum()) for part in np.split(valid.to_numpy(), np.cumsum(lengths)[:-1])]
        typed = pl.concat([self._versions.empty, rows.select(version.columns)], how="diagonal_relaxed")
        return typed, lengths


class _Reading:
    """One reading of a run: frames of what is valid, ``dead`` and ``ticks``, in any order."""

    def __init__(
        self, versions: Versions, catalogue: Catalogue, awaited: Awaited, topic: str, unknown: Unknown
    ) -> None:
        self._versions = versions
        self._catalogue = catalogue
        self._awaited = awaited
        self._topic = topic
        self._unknown = unknown
        self.dead: list[DeadLetter] = []
        self.ticks: list[Tick] = []

    def frames(self, batches: Iterable[RecordBatch]) -> Iterable[pl.DataFrame]:
        """Frames of the batches, several at once where they prove to be blocks of one schema."""
        held: list[tuple[Block, RecordBatch]] = []
        size = 0
        for batch in batches:
            try:
                block = batch.block()
            except NotOpened as error:
                self.dead += self._batch_letters(batch, str(error))
                continue
            if size + len(block.body) > MAX_BODY:
                yield from self._alike(held)
                held, size = [], 0
            held.append((block, batch))
            size += len(block.body)
        yield from self._alike(held)

    def _alike(self, members: list[tuple[Block, RecordBatch]]) -> Iterable[pl.DataFrame]:
        """Usually all are of the first one's schema; sorted out only if not."""
        version = self._versions.named(members[0][0].first_frame()) if members else None
        if version is not None and self._unknown.dead_to(version.number) < members[0][1].base_offset:
            try:
                rows = version.layout.read_blocks([block for block, _ in members])
            except NotDecodable:
                pass
            else:
                yield self._judged(version, rows, (batch for _, batch in members))
                return
        same: dict[bytes, list[tuple[Block, RecordBatch]]] = defaultdict(list)
        for block, batch in members:
            same[block.first_frame()].append((block, batch))
        for frame, alike in same.items():
            version = self._versions.named(frame)
            if version is not None and self._unknown.dead_to(version.number) < alike[0][1].base_offset:
                yield from self._together(version, alike)
            else:
                for _, batch in alike:
                    yield from self._one_by_one(batch)

    def _together(self, version: Version, members: list[tuple[Block, RecordBatch]]) -> Iterable[pl.DataFrame]:
        try:
            rows = version.layout.read_blocks([block for block, _ in members])
        except NotDecodable:
            if len(members) == 1:
                yield from self._one_by_one(members[0][1])
            else:
                half = len(members) // 2
                yield from self._together(version, members[:half])
                yield from self._together(version, members[half:])
        else:
            yield self._judged(version, rows, (batch for _, batch in members))

    def _one_by_one(self, batch: RecordBatch) -> Iterable[pl.DataFrame]:
        """The ordinary path: records by their own borders."""
        try:
            records = batch.records()
        except CorruptRecordException as error:
            self.dead += self._batch_letters(batch, f"the records of the batch have no borders: {error}")
            return
        if not _in_order(batch, [offset for offset, *_ in records]):
            self.dead += self._batch_letters(batch, "the offsets of the batch's records are out of order")
            return
        by_frame: dict[bytes, list[tuple[int, bytes, bytes]]] = defaultdict(list)
        for offset, key, value, _ in records:
            if key is None and (said := self._versions.tick(value, batch.arrived_ms)) is not None:
                self.ticks.append((offset, said))
            elif key is None:
                self.dead.append(self._letter(batch, offset, "the record has no key", key, value))
            elif value is None:
                self.dead.append(self._letter(batch, offset, "the record has no value", key, value))
            else:
                by_frame[value[: FRAME.size]].append((offset, key, value))
        for frame, found in by_frame.items():
            stated = schema_id(frame)
            dead_to = -1 if stated is None else self._unknown.dead_to(stated)
            version = self._versions.named(frame)
            if version is None and stated is not None and found[-1][0] > dead_to:
                may_come = self._catalogue.may_come(stated)
                where = f"{self._topic}/{batch.partition} at offset {found[0][0]}"
                if self._awaited.came(stated, where, self._unknown.in_vain):
                    version = self._versions.named(frame)
                elif may_come:
                    self._unknown.give_up(stated)
            if version is None:
                self.dead += self._unreadable(batch, found)
                continue
            self.dead += [self._letter(batch, o, NOT_KNOWN.format(stated), k, v) for o, k, v in found if o <= dead_to]
            members = [member for member in found if member[0] > dead_to]
            rows, bad = version.layout.read_values([value for _, _, value in members])
            self.dead += self._unreadable(batch, (members[n] for n in bad))
            lost = set(bad)
            good = [member for n, member in enumerate(members) if n not in lost]
            rows = rows.with_columns(
                _key=pl.Series([key for _, key, _ in good], dtype=pl.Binary),
                _offset=pl.Series([offset for offset, _, _ in good], dtype=pl.Int64),
                _arrived=pl.lit(batch.arrived_ms, pl.Int64),
            )
            yield self._judged(version, rows, [batch])

    def _judged(self, version: Version, rows: pl.DataFrame, batches: Iterable[RecordBatch]) -> pl.DataFrame:
        """The valid ones of these rows, as the reader wants them."""
        if version.verdict and (problems := version.verdict.problems(rows)) is not None:
            broken = rows.select("_offset", _cause=problems).filter(pl.col("_cause").is_not_null())
            self.dead += self._broken(batches, dict(broken.iter_rows()))
            rows = rows.filter(problems.is_null())
        return rows.select(version.columns)

    def _unreadable(self, batch: RecordBatch, records: Iterable[tuple[int, bytes, bytes]]) -> Iterable[DeadLetter]:
        for offset, key, value in records:
            yield self._letter(batch, offset, self._versions.why_not(value), key, value)

    def _broken(self, batches: Iterable[RecordBatch], causes: dict[int, str]) -> Iterable[DeadLetter]:
        for batch in batches:
            if any(batch.base_offset <= offset <= batch.last_offset for offset in causes):
                for offset, key, value, _ in batch.records():
                    if offset in causes:
                        yield self._letter(batch, offset, causes[offset], key, value, "VALIDATE")

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
        return DeadLetter(self._topic, batch.partition, offset, offset, stage, cause, key, value, batch.arrived_ms)

    def _batch_letters(self, batch: RecordBatch, cause: str) -> Iterable[DeadLetter]:
        return of_batch(self._topic, batch.partition, batch.base_offset, batch.last_offset, cause, batch.arrived_ms)

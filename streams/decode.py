"""From a run of record batches to columns: the fast path, the ordinary path, and what cannot be read.

Everything that reads a topic reads it through here, so a record has one verdict.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress
from typing import NamedTuple

import numpy as np
import polars as pl

from schemas.catalogue import Catalogue
from schemas.feed import Feed
from schemas.record_codec import PREFIX, schema_id
from schemas.verdict import Rules
from streams.deadletters import DeadLetter, Stage, of_batch
from streams.missing_schemas import Awaited, GivenUp, SchemaVerdicts
from streams.versions import Version, Versions
from streams.wire.column_reader import OpenedBatch
from streams.wire.fetched_batches import Run
from streams.wire.record_batch import MAX_BODY, MalformedBatch, NotOpened, RecordBatch

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
    except (NotOpened, MalformedBatch):
        return whole
    return [(offset, offset) for offset in offsets] if _in_order(batch, offsets) else whole


def _in_order(batch: RecordBatch, offsets: list[int]) -> bool:
    return offsets == sorted({o for o in offsets if batch.base_offset <= o <= batch.last_offset})


#: Offset of a tick and the event time (ms) it says.
Tick = tuple[int, int]


@dataclass
class Decoded:
    """Valid rows in offset order, with ``_key``, ``_partition``, ``_offset`` and ``_arrived`` (ms), and what is not
    valid.

    ``_undeclared`` (JSON text) is there if a row has fields that the reader does not declare. ``ticks`` are offsets,
    ascending, and the event times (ms) they say.
    """

    rows: pl.DataFrame
    dead: list[DeadLetter] = field(default_factory=list)
    ticks: list[Tick] = field(default_factory=list)


class Wanted(NamedTuple):
    """A run to be read from an offset on; ``verdicts`` say what is dead whatever the files say, and are told what did
    not come."""

    run: Run
    from_offset: int
    verdicts: SchemaVerdicts | None = None


def places(found: Iterable[Decoded]) -> Iterator[slice]:
    """Where the rows of each lie among the rows of all that were read together."""
    begin = 0
    for decoded in found:
        yield slice(begin, begin := begin + decoded.rows.height)


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

    def read(self, run: Run, from_offset: int, verdicts: SchemaVerdicts | None = None) -> Decoded:
        """Decode and judge the records of a run from an offset on; see ``Wanted`` and ``read_together``."""
        _, (decoded,) = self.read_together([Wanted(run, from_offset, verdicts)])
        return decoded

    def read_together(self, wanted: Sequence[Wanted]) -> tuple[pl.DataFrame, list[Decoded]]:
        """The same of runs of several partitions, in their order, which costs little more than one; gives also the rows
        of all.

        Raises
        ------
        NotYet
            A schema id is not known and is waited for, as ``awaited`` says; read the same runs again later.
        """
        numbers = [run.partition for run, *_ in wanted]
        assert numbers == sorted(set(numbers)), "rows are cut by their partitions"
        reading = _Reading(self._versions, self._catalogue, self._awaited, self._topic)
        frames, rows = list(reading.frames(wanted)), self._versions.empty
        if len(frames) == 1 and frames[0].schema == rows.schema:
            rows = frames[0]
        elif frames:
            rows = pl.concat([rows, *frames], how="diagonal_relaxed", rechunk=True).sort("_partition", "_offset")
        for run, from_offset, _ in wanted:
            if run.batches and run.batches[0].base_offset < from_offset:
                rows = rows.filter((pl.col("_partition") != run.partition) | (pl.col("_offset") >= from_offset))
        partitions = rows["_partition"].to_numpy()
        return rows, [
            Decoded(
                rows.slice(begin, end - begin),
                sorted(
                    (d for d in reading.dead if d.partition == run.partition and d.last_offset >= from_offset),
                    key=lambda letter: letter.offset,
                ),
                sorted((at, ms) for number, at, ms in reading.ticks if number == run.partition and at >= from_offset),
            )
            for run, from_offset, _ in wanted
            for begin, end in [np.searchsorted(partitions, [run.partition, run.partition + 1]).tolist()]
        ]


class _Member(NamedTuple):
    """A batch of a run with its body, and the verdicts on schemas in it."""

    opened: OpenedBatch
    batch: RecordBatch
    verdicts: SchemaVerdicts


class _Reading:
    """One reading of runs: frames of what is valid, ``dead`` and ``ticks`` (partition, offset, ms), in any order."""

    def __init__(self, versions: Versions, catalogue: Catalogue, awaited: Awaited, topic: str) -> None:
        self._versions = versions
        self._catalogue = catalogue
        self._awaited = awaited
        self._topic = topic
        self.dead: list[DeadLetter] = []
        self.ticks: list[tuple[int, int, int]] = []

    def frames(self, wanted: Sequence[Wanted]) -> Iterable[pl.DataFrame]:
        """Frames of the batches, several at once where they prove to be of one schema."""
        held: list[_Member] = []
        size = 0
        judged = [(run, verdicts or GivenUp({}, run.next - 1)) for run, _, verdicts in wanted]
        for batch, verdicts in [(batch, verdicts) for run, verdicts in judged for batch in run.batches]:
            try:
                opened = batch.opened()
            except NotOpened as error:
                self.dead += self._batch_letters(batch, str(error))
                continue
            if size + len(opened.body) > MAX_BODY:
                yield from self._together(held)
                held, size = [], 0
            held.append(_Member(opened, batch, verdicts))
            size += len(opened.body)
        yield from self._together(held)

    def _together(self, members: Sequence[_Member]) -> Iterable[pl.DataFrame]:
        """Batches of one version as one frame; the records of those that are not as it says, one by one."""
        same: dict[bytes, list[_Member]] = defaultdict(list)
        for member in members:
            same[member.opened.first_prefix()].append(member)
        for prefix, alike in same.items():
            version = self._versions.named(prefix)
            dead = [version is None or m.verdicts.dead_to(version.number) >= m.batch.base_offset for m in alike]
            rest = list(compress(alike, dead))
            if version is not None and not all(dead):
                whole = [member for member, is_dead in zip(alike, dead, strict=True) if not is_dead]
                rows, bad = version.reader.read_batches([member.opened for member in whole])
                yield self._judged(version, rows, [member.batch for member in whole])
                rest += [whole[n] for n in bad]
            for member in rest:
                yield from self._one_by_one(member)

    def _one_by_one(self, member: _Member) -> Iterable[pl.DataFrame]:
        """The ordinary path: records by their own borders."""
        batch, verdicts = member.batch, member.verdicts
        try:
            records = batch.records()
        except MalformedBatch as error:
            self.dead += self._batch_letters(batch, f"the records of the batch have no borders: {error}")
            return
        if not _in_order(batch, [offset for offset, *_ in records]):
            self.dead += self._batch_letters(batch, "the offsets of the batch's records are out of order")
            return
        by_prefix: dict[bytes, list[tuple[int, bytes, bytes]]] = defaultdict(list)
        for offset, key, value, _ in records:
            if key is None and (said := self._versions.tick(value, batch.arrived_ms)) is not None:
                self.ticks.append((batch.partition, offset, said))
            elif key is None:
                self.dead.append(self._letter(batch, offset, "the record has no key", key, value))
            elif value is None:
                self.dead.append(self._letter(batch, offset, "the record has no value", key, value))
            else:
                by_prefix[value[: PREFIX.size]].append((offset, key, value))
        for prefix, found in by_prefix.items():
            stated = schema_id(prefix)
            dead_to = -1 if stated is None else verdicts.dead_to(stated)
            version = self._versions.named(prefix)
            if version is None and stated is not None and found[-1][0] > dead_to:
                may_come = self._catalogue.may_come(stated)
                where = f"{self._topic}/{batch.partition} at offset {found[0][0]}"
                if self._awaited.came(stated, where, verdicts.in_vain):
                    version = self._versions.named(prefix)
                elif may_come:
                    verdicts.give_up(stated)
            if version is None:
                self.dead += self._unreadable(batch, found)
                continue
            self.dead += [self._letter(batch, o, NOT_KNOWN.format(stated), k, v) for o, k, v in found if o <= dead_to]
            members = [member for member in found if member[0] > dead_to]
            rows, bad = version.reader.read_values([value for _, _, value in members])
            self.dead += self._unreadable(batch, (members[n] for n in bad))
            lost = set(bad)
            good = [member for n, member in enumerate(members) if n not in lost]
            rows = rows.with_columns(
                _key=pl.Series([key for _, key, _ in good], dtype=pl.Binary),
                _partition=pl.lit(batch.partition, pl.Int64),
                _offset=pl.Series([offset for offset, _, _ in good], dtype=pl.Int64),
                _arrived=pl.lit(batch.arrived_ms, pl.Int64),
            )
            yield self._judged(version, rows, [batch])

    def _judged(self, version: Version, rows: pl.DataFrame, batches: Sequence[RecordBatch]) -> pl.DataFrame:
        """The valid ones of these rows, as the reader wants them."""
        if version.verdict and (problems := version.verdict.problems(rows)) is not None:
            broken = rows.select("_partition", "_offset", problems).filter(problems.is_not_null())
            self.dead += self._broken(batches, {(number, at): cause for number, at, cause in broken.iter_rows()})
            rows = rows.filter(problems.is_null())
        return rows.select(version.columns) if version.columns else rows

    def _unreadable(self, batch: RecordBatch, records: Iterable[tuple[int, bytes, bytes]]) -> Iterable[DeadLetter]:
        for offset, key, value in records:
            yield self._letter(batch, offset, self._versions.why_not(value), key, value)

    def _broken(self, batches: Iterable[RecordBatch], causes: Mapping[tuple[int, int], str]) -> Iterable[DeadLetter]:
        broken = sorted(causes)
        for batch in batches:
            place = bisect_left(broken, (batch.partition, batch.base_offset))
            if place < len(broken) and broken[place] <= (batch.partition, batch.last_offset):
                for offset, key, value, _ in batch.records():
                    if cause := causes.get((batch.partition, offset)):
                        yield self._letter(batch, offset, cause, key, value, "VALIDATE")

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

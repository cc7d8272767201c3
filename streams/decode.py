"""From a run of record batches to columns: the fast path, the ordinary path, and what cannot be read.

Every part that reads a topic reads it through here, so a record has one verdict.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

import polars as pl
from aiokafka.errors import CorruptRecordException

from schemas.avro import feed_schema, field_of
from schemas.catalogue import Catalogue, FrozenSchema
from schemas.columnar import Block, Layout
from schemas.feed import Feed
from schemas.model import PARTS, Field
from schemas.rowcodec import FRAME, NotDecodable, decode, schema_id
from schemas.verdict import ColumnarVerdict
from streams.awaited import Awaited
from streams.deadletters import DeadLetter, Stage
from streams.recordbatch import MAX_BODY, BodyTooLarge, RecordBatch
from streams.runs import Run
from streams.unknown import GivenUp, Unknown

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
    except (BodyTooLarge, CorruptRecordException):
        return whole
    return [(offset, offset) for offset in offsets] if _in_order(batch, offsets) else whole


def _in_order(batch: RecordBatch, offsets: list[int]) -> bool:
    return offsets == sorted({o for o in offsets if batch.base_offset <= o <= batch.last_offset})


@dataclass
class Decoded:
    """Valid rows in offset order, with ``_key``, ``_offset`` and ``_arrived`` (ms), and what is not valid.

    ``_undeclared`` (JSON text) is there if a row has fields that the reader does not declare.
    """

    rows: pl.DataFrame
    dead: list[DeadLetter] = field(default_factory=list)


@dataclass(frozen=True)
class _Version:
    """How the records of one frozen version are read, judged and brought to the columns of the reader."""

    number: int
    layout: Layout
    verdict: ColumnarVerdict | None
    columns: list[pl.Expr]


class Decoder:
    """Reads one topic, whose name is its subject's unless given.

    With ``feed``, rows are held against the feed's rules and have the columns it declares.

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
    ) -> None:
        self._catalogue = catalogue
        self._subject = subject
        self._topic = topic or subject
        self._feed = feed
        self._awaited = awaited or Awaited(catalogue)
        self._reader = catalogue.of(subject, feed_schema(feed)) if feed else catalogue.latest(subject)
        own = self._version_of(self._reader)
        self._versions = {own.layout.frame: own}
        self._empty = own.layout.read_blocks([]).select(own.columns)

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

        A schema id that is not known is waited for. ``unknown`` says what is dead whatever the files say, and is told
        what did not come.
        """
        dead: list[DeadLetter] = []
        frames = list(self._fast(run.batches, dead, unknown or GivenUp({}, run.next - 1)))
        rows = pl.concat([self._empty, *frames], how="diagonal_relaxed", rechunk=True) if frames else self._empty
        rows = rows.sort("_offset") if len(frames) > 1 else rows
        if rows.height and rows.item(0, "_offset") < from_offset:
            rows = rows.filter(pl.col("_offset") >= from_offset)
        dead = [letter for letter in dead if letter.last_offset >= from_offset]
        return Decoded(rows, sorted(dead, key=lambda letter: letter.offset))

    def _fast(self, batches: Iterable[RecordBatch], dead: list[DeadLetter], unknown: Unknown) -> Iterable[pl.DataFrame]:
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
                yield from self._alike(held, dead, unknown)
                held, size = [], 0
            held.append((block, batch))
            size += len(block.body)
        yield from self._alike(held, dead, unknown)

    def _alike(
        self, members: list[tuple[Block, RecordBatch]], dead: list[DeadLetter], unknown: Unknown
    ) -> Iterable[pl.DataFrame]:
        """Usually all are of the first one's schema; sorted out only if not."""
        version = self._version(members[0][0].first_frame()) if members else None
        if version is not None and unknown.dead_to(version.number) < members[0][1].base_offset:
            try:
                rows = version.layout.read_blocks([block for block, _ in members])
            except NotDecodable:
                pass
            else:
                yield self._judged(version, rows, (batch for _, batch in members), dead)
                return
        same: dict[bytes, list[tuple[Block, RecordBatch]]] = defaultdict(list)
        for block, batch in members:
            same[block.first_frame()].append((block, batch))
        for frame, alike in same.items():
            version = self._version(frame)
            if version is not None and unknown.dead_to(version.number) < alike[0][1].base_offset:
                yield from self._together(version, alike, dead, unknown)
            else:
                for _, batch in alike:
                    yield from self._one_by_one(batch, dead, unknown)

    def _together(
        self, version: _Version, members: list[tuple[Block, RecordBatch]], dead: list[DeadLetter], unknown: Unknown
    ) -> Iterable[pl.DataFrame]:
        try:
            rows = version.layout.read_blocks([block for block, _ in members])
        except NotDecodable:
            if len(members) == 1:
                yield from self._one_by_one(members[0][1], dead, unknown)
            else:
                half = len(members) // 2
                yield from self._together(version, members[:half], dead, unknown)
                yield from self._together(version, members[half:], dead, unknown)
        else:
            yield self._judged(version, rows, (batch for _, batch in members), dead)

    def _one_by_one(self, batch: RecordBatch, dead: list[DeadLetter], unknown: Unknown) -> Iterable[pl.DataFrame]:
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
        for frame, found in by_frame.items():
            stated = schema_id(frame)
            dead_to = -1 if stated is None else unknown.dead_to(stated)
            version = self._version(frame)
            if version is None and stated is not None and found[-1][0] > dead_to:
                may_come = self._catalogue.may_come(stated)
                if self._awaited.came(stated, f"{self._topic}/{batch.partition} at offset {found[0][0]}"):
                    version = self._version(frame)
                elif may_come:
                    unknown.give_up(stated)
            if version is None:
                dead += [self._letter(batch, o, self._why(value), key, value) for o, key, value in found]
                continue
            dead += [self._letter(batch, o, NOT_KNOWN.format(stated), k, v) for o, k, v in found if o <= dead_to]
            members = [member for member in found if member[0] > dead_to]
            rows, bad = version.layout.read_values([value for _, _, value in members])
            dead += [self._letter(batch, o, self._why(v), k, v) for o, k, v in (members[n] for n in bad)]
            lost = set(bad)
            good = [member for n, member in enumerate(members) if n not in lost]
            rows = rows.with_columns(
                _key=pl.Series([key for _, key, _ in good], dtype=pl.Binary),
                _offset=pl.Series([offset for offset, _, _ in good], dtype=pl.Int64),
                _arrived=pl.lit(batch.arrived_ms, pl.Int64),
            )
            yield self._judged(version, rows, [batch], dead)

    def _version(self, frame: bytes) -> _Version | None:
        """The version of this topic that a frame names, if it is known."""
        found = self._versions.get(frame)
        if found is None:
            frozen = self._catalogue.by_id.get(schema_id(frame) or 0)
            if frozen is not None and frozen.subject == self._subject:
                found = self._versions[frame] = self._version_of(frozen)
        return found

    def _version_of(self, written: FrozenSchema) -> _Version:
        has = {f["name"]: f for f in written.schema["fields"]}
        wanted = {f["name"]: f for f in self._reader.schema["fields"]}
        columns = [
            pl.col(name) if name in has else pl.lit(field["default"]).alias(name) for name, field in wanted.items()
        ]
        columns += [pl.col("_key", "_offset", "_arrived")]
        if self._feed is None:
            return _Version(written.id, Layout(written), None, columns)
        fields = [field_of(schema) for schema in has.values()]
        if undeclared := [f for f in fields if f.name not in wanted]:
            columns.append(_as_json(undeclared).alias("_undeclared"))
        return _Version(written.id, Layout(written), ColumnarVerdict(self._feed, fields), columns)

    def _judged(
        self, version: _Version, rows: pl.DataFrame, batches: Iterable[RecordBatch], dead: list[DeadLetter]
    ) -> pl.DataFrame:
        """The valid ones of these rows, as the reader wants them."""
        if version.verdict and (problems := version.verdict.problems(rows)) is not None:
            broken = rows.select("_offset", _cause=problems).filter(pl.col("_cause").is_not_null())
            dead += self._broken(batches, dict(broken.iter_rows()))
            rows = rows.filter(problems.is_null())
        return rows.select(version.columns)

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
        stated = schema_id(value)
        subject = self._catalogue.by_id[stated or 0].subject
        return f"schema {stated} is of {subject}" if subject != self._subject else "not in canonical Avro encoding"

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

    def _batch_letter(self, batch: RecordBatch, cause: str) -> DeadLetter:
        place = (self._topic, batch.partition, batch.base_offset, batch.last_offset)
        return DeadLetter(*place, "DECODE", cause, None, None, batch.arrived_ms)


def _as_json(fields: Iterable[Field]) -> pl.Expr:
    """Columns as one JSON object, those of several numbers flattened: ``place_longitude``."""
    members = []
    for name, parts in ((f.name, PARTS.get(f.kind)) for f in fields):
        value = pl.col(name)
        members += [value.struct.field(part).alias(f"{name}_{part}") for part in parts] if parts else [value]
    return pl.struct(members).struct.json_encode()

"""How the records of a topic are read by the version of the schema they name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import polars as pl

from schemas.avro import feed_schema, field_of
from schemas.catalogue import Catalogue, FrozenSchema
from schemas.feed import Feed, milliseconds
from schemas.model import COMPONENTS, Field
from schemas.record_codec import NotDecodable, decode, schema_id
from schemas.ticks import read_tick
from schemas.verdict import ColumnarVerdict, Rules, rules
from streams.ending import Stop
from streams.wire.column_reader import ColumnReader


@dataclass(frozen=True)
class Version:
    """How the records of one frozen version are read, judged and brought to the columns of the reader.

    Those of the reader's own version are as it wants them, and have no ``columns``.
    """

    number: int
    reader: ColumnReader
    verdict: ColumnarVerdict | None
    columns: list[pl.Expr]


class Versions:
    """The versions of a subject, brought to the columns of its reader: what the feed declares, or the latest.

    One by which a field may be null that the feed never lets be null stops its reader (``Stop``).

    Records of a subject that is no feed's are held against ``own_rules``. ``empty`` is a frame of these columns without
    rows.
    """

    def __init__(self, catalogue: Catalogue, subject: str, feed: Feed | None = None, own_rules: Rules = ()) -> None:
        self._catalogue = catalogue
        self._subject = subject
        self._feed = feed
        self._own_rules = own_rules
        self._reader = catalogue.of(subject, feed_schema(feed)) if feed else catalogue.latest(subject)
        own = self._of(self._reader)
        self._known = {own.reader.prefix: own}
        empty, _ = own.reader.read_batches([])
        self.empty = empty

    def named(self, prefix: bytes) -> Version | None:
        """The version that a prefix names, if it is known and of this subject."""
        found = self._known.get(prefix)
        if found is None:
            frozen = self._catalogue.by_id.get(schema_id(prefix) or 0)
            if frozen is not None and frozen.subject == self._subject:
                found = self._known[prefix] = self._of(frozen)
        return found

    def tick(self, value: bytes | None, arrived_ms: int) -> int | None:
        """The time (ms) that a tick says which arrived then; None if a value is no tick, as on a topic that is no
        feed's.

        It moves event time no further than an event that arrives with it.
        """
        if value is None or self._feed is None:
            return None
        said = read_tick(self._catalogue, value, arrived_ms)
        return None if said is None else min(said, arrived_ms + milliseconds(self._feed.allowance))

    def why_not(self, value: bytes) -> str:
        """Why a value cannot be read by the version it names."""
        try:
            decode(self._catalogue, value)
        except NotDecodable as error:
            return str(error)
        stated = schema_id(value)
        subject = self._catalogue.by_id[stated or 0].subject
        return f"schema {stated} is of {subject}" if subject != self._subject else "not in canonical Avro encoding"

    def _of(self, written: FrozenSchema) -> Version:
        has = {f["name"]: f for f in written.schema["fields"]}
        wanted = {f["name"]: f for f in self._reader.schema["fields"]}
        columns = []
        if written != self._reader:
            columns = [
                pl.col(name) if name in has else pl.lit(field["default"]).alias(name) for name, field in wanted.items()
            ]
            columns += [pl.col("_key", "_partition", "_offset", "_arrived")]
        if self._feed is None:
            own = [rule for rule in self._own_rules if {*rule[1].meta.root_names()} <= {*has, "_arrived"}]
            return Version(written.id, ColumnReader(written), ColumnarVerdict(own) if own else None, columns)
        fields = [field_of(schema) for schema in has.values()]
        self._refuse_null(written, fields)
        if undeclared := [f for f in fields if f.name not in wanted]:
            columns.append(_as_json(undeclared).alias("_undeclared"))
        return Version(written.id, ColumnReader(written), ColumnarVerdict(rules(self._feed, fields)), columns)

    def _refuse_null(self, written: FrozenSchema, fields: Iterable[Field]) -> None:
        """Where null would be stored as something else."""
        never = {field.name for field in map(field_of, self._reader.schema["fields"]) if not field.nullable}
        if lacking := [field.name for field in fields if field.nullable and field.name in never]:
            raise Stop(
                f"by schema {written.id} of {self._subject} {', '.join(lacking)} may be null, and never as this worker "
                "declares it: install the newest version of the feed on the workers, run citystream init, and start "
                "them again"
            )


def _as_json(fields: Iterable[Field]) -> pl.Expr:
    """Columns as one JSON object, those of several numbers flattened: ``place_longitude``."""
    members = []
    for name, components in ((f.name, COMPONENTS.get(f.kind)) for f in fields):
        value = pl.col(name)
        members += [value.struct.field(one).alias(f"{name}_{one}") for one in components] if components else [value]
    return pl.struct(members).struct.json_encode()

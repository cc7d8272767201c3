"""Publishing a table of reference data: the file is the whole table, so all of it is right or nothing is sent."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any
from uuid import uuid4

from kafka.errors import KafkaError

from operations.publishing.checking import Rejected, RowChecker
from operations.publishing.mapping import FileMapping
from operations.publishing.rows import FileProblem, Row, Rows
from schemas.catalogue import Catalogue, FrozenSchema
from schemas.model import COMPONENTS
from schemas.record_codec import NotDecodable, decode
from schemas.reference import MOST_ROWS, Reference
from schemas.reference_rows import MARK, encoded
from streams import publications
from streams.clients import records_of
from streams.cluster import Cluster
from streams.publications import Publication, stretches
from streams.publisher import Producer
from streams.topics import states

#: Problems that are said of a file at most.
MOST_PROBLEMS = 20


@dataclass
class TableReport:
    """What became of a file; ``problems`` say where it is wrong, and then nothing was sent."""

    table: str
    file: str
    digest: str
    rows: int = 0
    new: int = 0
    changed: int = 0
    unchanged: int = 0
    removed: int = 0
    problems: list[str] = field(default_factory=list)
    failure: str | None = None

    @property
    def text(self) -> str:
        """For people."""
        if self.problems:
            return "\n".join(
                [*self.problems, f"{self.file}: nothing of it was published; correct it, and publish it again"]
            )
        return (
            f"{self.table}: {self.rows:,} rows in {self.file}: {self.new:,} new, {self.changed:,} changed, "
            f"{self.removed:,} removed, {self.unchanged:,} as they were"
        )


def current(cluster: Cluster, reference: Reference) -> dict[bytes, bytes]:
    """The rows of a table as they were published last: their values by their keys.

    Raises
    ------
    TopicProblem
        Its topic does not exist.
    """
    states(cluster, [reference.name])
    found: dict[bytes, bytes] = {}
    for record in records_of(cluster, reference.name):
        if record.key is None or record.key == MARK:
            continue
        if record.value is None:
            found.pop(record.key, None)
        else:
            found[record.key] = record.value
    return found


def shown(reference: Reference, catalogue: Catalogue, rows: Mapping[bytes, bytes]) -> list[dict[str, Any]]:
    """The values of rows, in the order of their keys; what cannot be read is left out."""
    found = []
    for key in sorted(rows):
        try:
            values = decode(catalogue, rows[key])
        except NotDecodable:
            continue
        found.append({one.name: values.get(one.name, one.default) for one in reference.fields})
    return found


def check_table(
    reference: Reference, content: bytes, name: str, mapping: FileMapping, frozen: FrozenSchema
) -> tuple[TableReport, dict[bytes, bytes]]:
    """Check a file; gives also the rows as they are sent: their values by their keys.

    Raises
    ------
    MappingProblem, FileProblem
        The file as a whole cannot be the table.
    """
    report = TableReport(reference.name, name, hashlib.sha256(content).hexdigest())
    rows: dict[bytes, bytes] = {}
    places: dict[bytes, str] = {}
    columns, found = _rows(reference, content, name)
    checker = RowChecker(reference, mapping, columns)
    for where, row in found:
        report.rows += 1
        if report.rows > MOST_ROWS:
            raise FileProblem(f"{name} has more than {MOST_ROWS:,} rows, which is the most a table may have")
        try:
            key, value = encoded(reference, frozen, checker.check(row))
        except Rejected as reason:
            report.problems += [f"{name}, {where}: {problem}" for problem in reason.problems]
            continue
        if key in rows:
            same = ", ".join([*reference.key, *([reference.valid_from] if reference.valid_from else [])])
            report.problems.append(f"{name}, {where}: {same} are those of {places[key]}")
        rows[key], places[key] = value, where
    if len(report.problems) > MOST_PROBLEMS:
        more = len(report.problems) - MOST_PROBLEMS
        report.problems[MOST_PROBLEMS:] = [f"{name}: and {more:,} more"]
    return report, rows


def was_published(cluster: Cluster, reference: Reference, content: bytes, name: str) -> bool:
    """Whether this content is what was published last under the file's name."""
    digests = [one.digest for one in publications.read(cluster) if (one.feed, one.file) == (reference.name, name)]
    return digests[-1:] == [hashlib.sha256(content).hexdigest()]


def publish_table(
    cluster: Cluster,
    reference: Reference,
    content: bytes,
    name: str,
    mapping: FileMapping,
    catalogue: Catalogue,
    *,
    dry_run: bool = False,
) -> TableReport:
    """Make a table what a file says: send rows that are new or changed, and take away those that are not in it.

    Raises
    ------
    MappingProblem, FileProblem, SchemaProblem, TopicProblem
        Nothing was sent.
    """
    report, rows = check_table(reference, content, name, mapping, catalogue.latest(reference.name))
    if report.problems:
        return report
    before = current(cluster, reference)
    report.new = len(rows.keys() - before.keys())
    report.unchanged = sum(before.get(key) == value for key, value in rows.items())
    report.changed = len(rows) - report.new - report.unchanged
    report.removed = len(before.keys() - rows.keys())
    sent = [(key, value) for key, value in rows.items() if before.get(key) != value]
    if not dry_run:
        _send(cluster, report, [*sent, *((key, None) for key in before if key not in rows)])
    return report


def _send(cluster: Cluster, report: TableReport, records: Sequence[tuple[bytes, bytes | None]]) -> None:
    if not records:
        return
    with closing(Producer(cluster)) as producer:
        try:
            sending = [producer.send(report.table, key=key, value=value) for key, value in records]
            offsets = [one.get().offset for one in sending]
            publications.note(
                producer,
                Publication(
                    str(uuid4()), report.table, report.file, report.digest, publications.own_name(), report.rows, 0,
                    {0: stretches(offsets)},
                ),
            )  # fmt: skip
            producer.flush()
        except KafkaError as error:
            report.failure = str(error) or type(error).__name__


def _rows(reference: Reference, content: bytes, name: str) -> tuple[list[str] | None, Iterator[tuple[str, Row]]]:
    """The columns and rows of a file, and where each row stands in it."""
    if PurePath(name).suffix == ".geojson":
        return None, _features(reference, content, name)
    rows = Rows(io.BufferedReader(io.BytesIO(content)), name)
    return rows.columns, ((f"line {row.line}", row) for row in rows)


def _features(reference: Reference, content: bytes, name: str) -> Iterator[tuple[str, Row]]:
    """The features of a FeatureCollection: their properties, and their geometry as the table's one shape or place."""
    takes = [one for one in reference.fields if one.shape or one.kind == "place"]
    if len(takes) != 1:
        raise FileProblem(
            f"{reference.name} has {len(takes)} fields that a geometry of {name} could be; publish a CSV file"
        )
    try:
        features = json.loads(content)["features"]
        pairs = [(one["properties"] or {}, one["geometry"]) for one in features]
    except (ValueError, KeyError, TypeError):
        raise FileProblem(f"{name} is no FeatureCollection of GeoJSON, whose features have properties") from None
    for number, (properties, geometry) in enumerate(pairs, 1):
        columns = {takes[0].name: geometry, **properties}
        if takes[0].kind == "place" and isinstance(geometry, dict) and geometry.get("type") == "Point":
            halves = (f"{takes[0].name}.{half}" for half in COMPONENTS["place"])
            columns |= dict(zip(halves, geometry["coordinates"], strict=False))
        yield f"feature {number}", Row(number, b"", columns)

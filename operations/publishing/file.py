"""Publishing one file: check all of it, write down what is rejected, send the rest."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from io import BufferedReader
from pathlib import Path
from uuid import uuid4

from operations.progress import OnProgress, unheard
from operations.publishing.checking import Checker, Rejected
from operations.publishing.mapping import FileMapping
from operations.publishing.report import Rejects, Report, rejects_path
from operations.publishing.rows import Rows
from operations.publishing.sending import Sent, Spool, send
from schemas.feed import Feed
from schemas.verdict import instant_ms
from streams import publications
from streams.feed_topics import FeedPartition
from streams.publications import Publication, stretches
from streams.publisher import Publisher
from streams.watermark import final_at

Finished = Callable[[int], bytes]

SAY_EVERY_ROWS = 1000


def publish_file(  # noqa: PLR0913
    feed: Feed,
    opened: BufferedReader,
    name: str,
    mapping: FileMapping,
    publisher: Publisher | None,
    key: bytes,
    rejects: Path | None,
    *,
    now_ms: int,
    finished: Finished | None = None,
    on_progress: OnProgress = unheard,
) -> Report:
    """Check a file, write down what is rejected, send the rest; without a publisher nothing is sent.

    Which offsets the records got is noted on the topic of publications, also when it is interrupted. ``finished`` makes
    the tick of a history that ends with the file, from the event time (ms) it ends with. ``on_progress`` hears how many
    bytes are checked and how many records published.

    Raises
    ------
    MappingProblem, FileProblem
        Nothing was sent.
    """
    rows = Rows(opened, "standard input" if name == "-" else name, mapping.columns)
    checker = Checker(feed, mapping, rows.columns, id_key=key, now_ms=now_ms)
    report = Report(feed.name, name, empty_fields=checker.empty_fields)
    path = rejects or rejects_path(name, feed.name, ".jsonl" if rows.is_json else ".csv")
    with closing(Spool()) as spool, closing(Rejects(path, rows.header)) as refused:
        size = _size(opened)
        for n, row in enumerate(rows):
            report.inside += row.lines - 1
            try:
                record = checker.check(row)
            except Rejected as reason:
                refused.add(row, str(reason))
                report.add_rejected(row, reason.problems)
            else:
                report.accepted += 1
                if publisher is not None:
                    spool.add(row.line, instant_ms(getattr(record, feed.event_time)), *publisher.encode(record))
            if n % SAY_EVERY_ROWS == 0:
                on_progress("checking", _position(opened), size)
        on_progress("checking", _position(opened), size)
        report.lines, report.header, report.blank = rows.lines, len(rows.header.splitlines()), rows.blank
        report.times_twice, report.digest = checker.twice, rows.digest
        written = refused.finish()
        if written:
            report.rejects_file, report.reasons_file = map(str, written)
        if publisher is not None:
            sent = Sent()
            try:
                send(publisher, spool, sent, lambda n: on_progress("publishing", n, len(spool)))
            finally:
                report.acknowledged, report.failed = sent.acknowledged, len(spool) - sent.acknowledged
                report.failure = sent.failure
                publications.note(publisher.producer, _publication(report, publisher.topic, sent))
            if finished and spool.newest_ms is not None and not report.failed:
                at = final_at(feed, spool.newest_ms)
                publisher.send_tick(finished(at))
                report.finished_at_ms, report.ends_later = at, at > now_ms
    return report


def _publication(report: Report, topic: str, sent: Sent) -> Publication:
    return Publication(
        id=str(uuid4()),
        feed=report.feed,
        file=report.file,
        digest=report.digest,
        publisher=publications.own_name(),
        accepted=report.accepted,
        rejected=report.rejected,
        stretches={
            FeedPartition.of(topic, partition).number: stretches(found) for partition, found in sent.offsets.items()
        },
    )


def _size(opened: BufferedReader) -> int | None:
    """Bytes of a file, None for a pipe."""
    if not opened.seekable():
        return None
    here = opened.tell()
    size = opened.seek(0, 2)
    opened.seek(here)
    return size


def _position(opened: BufferedReader) -> int:
    """How far a file is read, in bytes, compressed ones if it is."""
    return int(opened.tell()) if opened.seekable() else 0

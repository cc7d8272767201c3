"""citystream publish: a department's file into its feed."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from datetime import timedelta
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import Annotated
from uuid import uuid4

import typer
from kafka.errors import AuthorizationError, KafkaError

from citystream.commands.output import Output, OutputOption
from citystream.commands.workers import log_patiently
from citystream.installation import Installation
from citystream.progress import heard
from citystream.secrets import pseudonym_key
from citystream.settings import SettingsError
from citystream.stack.process import StackError
from operations.printable import printable
from operations.publishing.file import publish_file
from operations.publishing.mapping import MappingProblem, make_mapping, read_mapping
from operations.publishing.report import Report
from operations.publishing.sources import FileProblem
from schemas.feed import Feed
from schemas.ticks import encode_tick
from streams import publications
from streams.generations import generations, source
from streams.publications import Publication, Stretch
from streams.publisher import Publisher, new_producer
from streams.topics import states, wait_for_kafka

PATIENCE = timedelta(seconds=10)


def add_to(app: typer.Typer) -> None:
    """Add this command to the command line."""
    app.command()(publish)


def publish(  # noqa: PLR0913, PLR0917
    feed: Annotated[str, typer.Argument(help="The feed, see: citystream feeds list")],
    file: Annotated[str, typer.Argument(help="CSV or JSON lines, gzip or not; - is standard input.")],
    mapping: Annotated[
        Path | None, typer.Option(help="A mapping file (TOML), such as those in examples/mappings.")
    ] = None,
    maps: Annotated[list[str] | None, typer.Option("--map", help="column=field; may be given several times.")] = None,
    constants: Annotated[
        list[str] | None, typer.Option("--constant", help="field=value; may be given several times.")
    ] = None,
    columns: Annotated[
        str | None, typer.Option(help="Column names, separated by commas, of a CSV file without a header line.")
    ] = None,
    time_format: Annotated[
        str | None, typer.Option(help="iso (the default), unix, unix_ms, or a pattern such as '%d-%m-%Y %H:%M'.")
    ] = None,
    time_zone: Annotated[
        str | None, typer.Option(help="IANA time zone of times without a UTC offset, such as Asia/Shanghai.")
    ] = None,
    rejects: Annotated[
        Path | None, typer.Option(help="Where rejected lines go; without it FILE.rejects.csv in the working folder.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only check the file and write down what is rejected.")
    ] = False,
    finished: Annotated[
        bool, typer.Option("--finished", help="The feed ends with this file: its last windows become final.")
    ] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Publish a file: check every line, send the valid ones in the order of their event time, report on the rest.

    Nothing is sent before the whole file is checked. A field takes the column mapped to it or the column of its own
    name. Records without an event_id get one from their content, so publishing a file twice adds nothing. Of a local
    time that exists twice (clocks go back) the first is taken, which the report says; one that does not exist is
    rejected.

    Time passes only with events, so the last windows of a file that no newer events follow stay open. --finished says
    that none from before the end of its last window are to come; those that come all the same are late, and count.

    While Kafka is away it waits. Ctrl-C or SIGTERM ends it, and it says how many records Kafka has.

    Exit codes: 0 everything was published, 1 lines were rejected, 2 wrong use, 3 Kafka did not take everything.

    Example: citystream publish parking_site parking.csv.gz --mapping examples/mappings/parking-birmingham.toml

    Example: citystream publish traffic_flow - --map road=segment_id --constant lane=0 --time-zone Asia/Shanghai
    """
    log_patiently()
    city = Installation.load()
    chosen = next(iter(city.choose([feed]).values()))
    key = pseudonym_key(city.settings, chosen) or b""
    try:
        said = make_mapping(
            read_mapping(mapping) if mapping is not None else {},
            maps or (),
            constants or (),
            columns=tuple(name.strip() for name in columns.split(",")) if columns is not None else None,
            time_format=time_format,
            time_zone=time_zone,
        )
        with _opened(file) as opened, nullcontext() if dry_run else _publisher(city, chosen, key) as publisher:
            earlier = [] if publisher is None else publications.read(city.cluster)

            def write_down(report: Report, stretches: Mapping[int, tuple[Stretch, ...]]) -> None:
                assert publisher is not None
                publications.note(publisher.producer, _publication(report, publisher.topic, stretches))

            now_ms = time.time_ns() // 1_000_000
            with heard() as on_progress:
                report = publish_file(
                    chosen, opened, file, said, publisher, key, rejects, now_ms=now_ms, on_sent=write_down,
                    finished=partial(encode_tick, city.catalogue) if finished else None, on_progress=on_progress,
                )  # fmt: skip
    except (MappingProblem, FileProblem) as problem:
        raise SettingsError(str(problem)) from None
    except OSError as error:
        raise SettingsError(f"{error.filename or file}: {error.strerror}") from None
    if output is Output.JSON:
        typer.echo(json.dumps({"read": report.read, **dataclasses.asdict(report)}, indent=2))
    else:
        typer.echo(report.text())
        for last in [one for one in earlier if one.digest == report.digest and one.feed == feed][-1:]:
            typer.echo(
                f"The same content was published before, by {printable(last.publisher)} from {printable(last.file)} "
                f"({last.records:,} records): what was there already is not counted twice."
            )
        if dry_run:
            typer.echo("Nothing was sent: the file was only checked.")
    if report.failed or report.rejected or report.unaccounted:
        raise typer.Exit(3 if report.failed else 1)


def _publication(report: Report, topic: str, stretches: Mapping[int, tuple[Stretch, ...]]) -> Publication:
    return Publication(
        id=str(uuid4()),
        feed=report.feed,
        file=report.file,
        digest=report.digest,
        publisher=publications.own_name(),
        accepted=report.accepted,
        rejected=report.rejected,
        stretches={source(topic, partition)[1]: found for partition, found in stretches.items()},
    )


@contextmanager
def _opened(file: str) -> Iterator[BufferedReader]:
    if file == "-":
        with os.fdopen(sys.stdin.fileno(), "rb", closefd=False) as opened:
            yield opened
    else:
        with Path(file).open("rb") as opened:
            yield opened


@contextmanager
def _publisher(city: Installation, feed: Feed, key: bytes) -> Iterator[Publisher]:
    frozen = city.catalogue.latest(feed.name)
    try:
        wait_for_kafka(city.cluster, lambda text: typer.echo(f"citystream: {text}", err=True), PATIENCE)
        states(city.cluster, [generations(feed)[-1].topic, publications.TOPIC])
        producer = new_producer(city.cluster)
    except AuthorizationError:
        raise
    except KafkaError:
        raise StackError(f"Kafka at {city.cluster} does not answer; run: citystream up") from None
    publisher = Publisher(producer, feed, frozen, key)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with closing(producer):
            yield publisher
    except KeyboardInterrupt:
        raise StackError(
            f"ended before everything was sent: Kafka has {publisher.acknowledged:,} records of it; publish the file "
            "again, what Kafka has counts once"
        ) from None

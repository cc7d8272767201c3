"""citystream publish: a department's file into its feed."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import Annotated

import typer

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
from operations.publishing.rows import FileProblem
from schemas.feed import Feed
from schemas.ticks import encode_tick
from streams import publications
from streams.publisher import Publisher, publishers


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
            now_ms = time.time_ns() // 1_000_000
            with heard() as on_progress:
                report = publish_file(
                    chosen, opened, file, said, publisher, key, rejects, now_ms=now_ms,
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
    say, keys = partial(typer.echo, err=True), {feed.name: key}
    with publishers(city.cluster, [feed], city.catalogue, keys, say, publications.TOPIC) as found:
        (publisher,) = found.values()
        with _told_to_end(publisher):
            yield publisher


@contextmanager
def _told_to_end(publisher: Publisher) -> Iterator[None]:
    """Say how many records Kafka has when Ctrl-C or SIGTERM ends it."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        raise StackError(
            f"ended before everything was sent: Kafka has {publisher.acknowledged:,} records of it; publish the file "
            "again, what Kafka has counts once"
        ) from None

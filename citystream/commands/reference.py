"""citystream reference: tables of reference data, published as whole files."""

from __future__ import annotations

import dataclasses
import difflib
import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from citystream.commands.output import Output, OutputOption, show
from citystream.commands.workers import log_patiently
from citystream.installation import Installation
from citystream.settings import SettingsError
from operations.publishing.mapping import MappingProblem, make_mapping
from operations.publishing.rows import FileProblem
from operations.publishing.table import current, publish_table, shown
from schemas.reference import Reference

Name = Annotated[str, typer.Argument(help="The table.")]


def add_to(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    group = typer.Typer(no_args_is_help=True, help="Tables of reference data: what they say, and publishing one.")
    group.command("publish")(publish)
    group.command("show")(show_rows)
    app.add_typer(group, name="reference")


def publish(
    name: Name,
    file: Annotated[str, typer.Argument(help="CSV, JSON lines or GeoJSON (.geojson); - is standard input.")],
    time_zone: Annotated[
        str | None, typer.Option(help="IANA time zone of times without a UTC offset, such as Asia/Shanghai.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only check the file and say what would change.")] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Make a table what a file says: rows that are not in it are taken away, those that are as they were are left.

    All of the file is right, or nothing is sent: each problem is named with its line and field. Of a GeoJSON file, each
    feature is a row; its properties are the fields, and its geometry the table's one area, line or place.

    A change counts for records that arrive ten seconds after it, and for no earlier ones, also when they are replayed.

    Exit codes: 0 the table is as the file, 1 the file is wrong, 2 wrong use, 3 Kafka did not take everything.

    Example: citystream reference publish parking_limit limits.csv --dry-run
    """
    log_patiently()
    city = Installation.load()
    reference = _chosen(city, name)
    try:
        content = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        mapping = make_mapping({}, time_zone=time_zone)
        report = publish_table(city.cluster, reference, content, file, mapping, city.catalogue, dry_run=dry_run)
    except (MappingProblem, FileProblem) as problem:
        raise SettingsError(str(problem)) from None
    except OSError as error:
        raise SettingsError(f"{error.filename or file}: {error.strerror}") from None
    if output is Output.JSON:
        typer.echo(json.dumps(dataclasses.asdict(report), indent=2))
    else:
        typer.echo(report.text)
        if dry_run:
            typer.echo("Nothing was sent: the file was only checked.")
    if report.problems or report.failure:
        raise typer.Exit(3 if report.failure else 1)


def show_rows(name: Name, output: OutputOption = Output.TABLE) -> None:
    """Show the rows of a table as they were published last, whenever they hold.

    Example: citystream reference show parking_limit
    """
    city = Installation.load()
    reference = _chosen(city, name)
    rows = shown(reference, city.catalogue, current(city.cluster, reference))
    if output is Output.TABLE:  # which rounds what was measured; what was decided is shown as it is
        rows = [{name: str(v) if isinstance(v, float) else v for name, v in row.items()} for row in rows]
    show(rows, output)


def _chosen(city: Installation, name: str) -> Reference:
    if name not in city.references:
        near = difflib.get_close_matches(name, city.references, 1)
        hint = f"; {near[0]} is meant, perhaps" if near else ""
        there = ", ".join(city.references) or "none"
        raise SettingsError(f"there is no table {name} of reference data{hint} (there are: {there})")
    return city.references[name]

"""citystream schemas: the frozen schemas against the declarations."""

from __future__ import annotations

from typing import NoReturn

import typer

import feeds
from citystream.installation import Installation
from schemas.catalogue import SchemaProblem, check, declared, freeze
from schemas.samples import write_samples
from simulation import first

app = typer.Typer(help="The frozen Avro schemas: every version ever published, with its id.", no_args_is_help=True)


def add_to(parent: typer.Typer) -> None:
    """Add these commands to the command line."""
    parent.add_typer(app, name="schemas")


@app.command("freeze")
def freeze_declared() -> None:
    """Write what is declared and not yet frozen, each with a sample record; exit code 1 when it must not be.

    Example: citystream schemas freeze
    """
    city, declarations = Installation.load(), feeds.load()
    try:
        frozen = freeze(declarations, references=city.references)
        samples = write_samples(declarations, first)
    except SchemaProblem as problem:
        _fail(str(problem).splitlines())
    for schema in frozen:
        typer.echo(f"{schema.subject}: version {schema.version} is frozen as id {schema.id}")
    for sample in samples:
        typer.echo(f"{sample.parent.name}: a sample of version {sample.stem} is kept")
    if not frozen and not samples:
        typer.echo("All schemas are frozen already")


@app.command("check")
def check_declared() -> None:
    """Hold the declarations against the frozen schemas; exit code 1 and the fields in question when they differ.

    Example: citystream schemas check
    """
    city, declarations = Installation.load(), feeds.load()
    try:
        problems = check(city.catalogue, declarations, city.references)
    except SchemaProblem as problem:
        problems = str(problem).splitlines()
    if problems:
        _fail(problems)
    frozen, wanted = {s.subject for s in city.catalogue.by_id.values()}, declared(declarations, city.references)
    typer.echo(f"All {len(wanted)} declared schemas are frozen as they are")
    if gone := sorted(frozen - wanted.keys()):
        typer.echo(f"frozen and declared no longer: {', '.join(gone)}")


def _fail(problems: list[str]) -> NoReturn:
    for problem in problems:
        typer.echo(problem, err=True)
    raise typer.Exit(1)

"""citystream rights: who may do what in Kafka."""

from __future__ import annotations

from typing import Annotated

import typer

from citystream.installation import Installation
from citystream.rights import give, rights

Apply = Annotated[bool, typer.Option("--apply", help="Let Kafka know: these users get these rights and no others.")]


def add_to(app: typer.Typer) -> None:
    """Add this command to the command line."""
    app.command("rights")(show)


def show(*, apply: Apply = False) -> None:
    """List which user may do what in Kafka, as the declared feeds need it: one a line, in Kafka's words.

    Needed where brokers ask who somebody is. Repeat it with --apply when feeds have come, gone or grown.

    Example: citystream rights --apply
    """
    city = Installation.load()
    wanted = rights(city.choose(None).values(), city.references.values())
    for right in wanted:
        typer.echo(f"{right.user:<28} {right.operation.name.lower():<9} {right.kind.name.lower():<6} {right.names}")
    if apply:
        new, old = give(city.cluster, wanted)
        typer.echo(f"{len(wanted)} rights: {new} are new, {old} others of these users were taken away", err=True)

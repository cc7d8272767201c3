"""citystream rebuild: windows by another definition, built beside the old ones and shown once they are complete."""

from __future__ import annotations

from typing import Annotated

import typer

from citystream.installation import Installation
from citystream.progress import heard
from operations.rebuild import rebuild as procedure


def add_to(app: typer.Typer) -> None:
    """Add this command to the command line."""
    app.command()(rebuild)


def rebuild(feed: Annotated[str, typer.Argument(help="The feed whose aggregates changed.")]) -> None:
    """Build the windows of a feed as they are declared now from its raw rows, and show them once they are complete.

    Until then the views show the old ones in full. The processor has to be stopped, and the sink to have stored what
    it processed. Ended in the middle, it can simply be run again.

    Example: citystream rebuild traffic_flow
    """
    city = Installation.load()
    chosen = city.choose([feed])[feed]
    with city.server("owner").connect() as client, heard() as on_progress:
        done = procedure(city.cluster, client, city.catalogue, chosen, city.dialect, on_progress)
    for aggregate in done.built:
        typer.echo(f"{aggregate.name}: version {aggregate.version} is built of {done.rows:,} raw rows")
    for aggregate in done.shows:
        typer.echo(f"city.{aggregate.name} shows version {aggregate.version}")
    for topic in done.kept:
        typer.echo(f"the topic {topic} and the table raw.{topic} are kept and no longer written")
    if not (done.shows or done.kept or done.problems):
        typer.echo(f"the views of {feed} show what is declared")
    for problem in done.problems:
        typer.echo(problem, err=True)
    if done.problems:
        raise typer.Exit(1)

"""citystream demo: everything at once."""

from __future__ import annotations

from typing import Annotated

import typer

from citystream.demo import run
from citystream.installation import Installation


def add_to(app: typer.Typer) -> None:
    """Add this command to the command line."""
    app.command()(demo)


def demo(
    seconds: Annotated[float | None, typer.Option(min=1, help="End by itself after so many seconds.")] = None,
) -> None:
    """Start the stack, simulators and workers, and show a live view until Ctrl-C; the data are kept.

    Exit code 0 only if events arrived in ClickHouse, lag drained and the ledger balances.

    Example: citystream demo --seconds 60
    """
    if not run(Installation.load(), seconds, typer.echo):
        raise typer.Exit(1)

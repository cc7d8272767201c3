"""Printing a result: a table for people or JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from threading import Timer
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.table import Table

from operations.printable import printable

#: Seconds after which a command says what it waits for.
SILENCE = 1.5
#: Characters of a line at most.
WIDEST = 10_000


class Output(StrEnum):
    """How a result is printed."""

    TABLE = "table"
    JSON = "json"


OutputOption = Annotated[Output, typer.Option("--output", "-o", help="A table for people or JSON for programs.")]


def show(rows: Sequence[Mapping[str, Any]], output: Output) -> None:
    """Print rows that have the same keys."""
    if output is Output.JSON:
        typer.echo(json.dumps(rows, indent=2, default=str))
        return
    table = Table(box=box.SIMPLE_HEAD)
    for name in rows[0] if rows else ():
        table.add_column(name, justify="right" if isinstance(rows[0][name], int | float) else "left")
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    print_whole(table if rows else "nothing")


@contextmanager
def waiting_for(what: str) -> Iterator[None]:
    """Say so, once, if this takes longer."""
    timer = Timer(SILENCE, typer.echo, [f"citystream: waiting for {what}"], {"err": True})
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def print_whole(what: RenderableType) -> None:
    """Print something as wide as it is: a terminal wraps the lines, and a file has no edge."""
    console = Console()
    needed = console.measure(what, options=console.options.update(width=WIDEST)).maximum
    Console(width=max(console.width, needed)).print(what)


def as_text(value: object) -> str:
    """Anybody's text as the cell of a table: brackets are no markup, and nothing in it moves the cursor."""
    return escape(printable(str(value)))


def _cell(value: Any) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:,.1f}"
        case None:
            return "-"
        case _:
            return as_text(value)

"""Printing a result: a table for people or JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.table import Table


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


def print_whole(what: RenderableType) -> None:
    """Print something as wide as it is: a terminal wraps the lines, and a file has no edge."""
    console = Console()
    Console(width=max(console.width, console.measure(what).maximum)).print(what)


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
            return escape(str(value))

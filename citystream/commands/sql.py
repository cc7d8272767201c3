"""citystream sql: ask ClickHouse as the analyst."""

from __future__ import annotations

import csv
import json
import sys
from enum import StrEnum
from typing import Annotated

import typer
from clickhouse_driver.errors import ServerException
from rich import box
from rich.table import Table

from citystream.commands.output import as_text, print_whole
from citystream.installation import Installation
from citystream.settings import SettingsError
from sinks.clickhouse import first_line


class Reader(StrEnum):
    """Who asks: an analyst sees the views of the database city, an operator the tables below them, too."""

    ANALYST = "analyst"
    OPERATOR = "operator"


class Format(StrEnum):
    """How the answer is printed."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"


def add_to(app: typer.Typer) -> None:
    """Add this command to the command line."""
    app.command()(sql)


def sql(
    query: Annotated[str, typer.Argument(help="A SELECT over the views in the database city.")],
    user: Annotated[Reader, typer.Option(help="As which user; the operator reads the database raw as well.")] = (
        Reader.ANALYST
    ),
    output: Annotated[Format, typer.Option("--output", "-o", help="Table, JSON or CSV.")] = Format.TABLE,
) -> None:
    """Ask ClickHouse, as the analyst unless told, who reads the views of the database city.

    Example: citystream sql "SELECT segment_id, delay_index FROM city.traffic_flow_15m ORDER BY 2 DESC LIMIT 5"
    """
    client = Installation.load().server(user.value).connect()
    try:
        rows, columns = client.execute(query, with_column_types=True)
    except ServerException as error:
        raise SettingsError(first_line(error)) from None
    names = [name for name, _ in columns]
    flags = [kind in ("Bool", "Nullable(Bool)") for _, kind in columns]
    rows = [[bool(v) if flag and v is not None else v for v, flag in zip(row, flags, strict=True)] for row in rows]
    if output is Format.JSON:
        typer.echo(json.dumps([dict(zip(names, row, strict=True)) for row in rows], indent=2, default=str))
    elif output is Format.CSV:
        writer = csv.writer(sys.stdout)
        writer.writerows([names, *rows])
    else:
        table = Table(*map(as_text, names), box=box.SIMPLE_HEAD)
        for row in rows:
            table.add_row(*("-" if value is None else as_text(value) for value in row))
        print_whole(table)

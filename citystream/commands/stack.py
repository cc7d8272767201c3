"""citystream up, init, down, status."""

from __future__ import annotations

import dataclasses
import json

import typer
from rich.console import Console
from rich.table import Table

from citystream.commands.output import Output, OutputOption
from citystream.installation import Installation
from citystream.settings import load_settings
from citystream.stack.stack import Stack, State, Status


def add_to(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.command()(up)
    app.command()(init)
    app.command()(down)
    app.command()(status)


def up() -> None:
    """Start Kafka, ClickHouse and the schema registry here; create the topics, tables and views that are missing.

    Example: citystream up

    With another port: CITYSTREAM_KAFKA_PORT=29092 citystream up
    """
    city = Installation.load()
    Stack(city.settings).up(typer.echo)
    city.prepare(typer.echo)


def init() -> None:
    """Create the topics, tables and views that are missing, on servers that are there already.

    Example: CITYSTREAM_KAFKA_BOOTSTRAP=kafka:9092 CITYSTREAM_CLICKHOUSE_HOST=clickhouse citystream init
    """
    Installation.load().prepare(typer.echo)


def down() -> None:
    """End what `citystream up` started; the data stay.

    Example: citystream down
    """
    Stack(load_settings()).down(typer.echo)


def status(output: OutputOption = Output.TABLE) -> None:
    """Show what runs, where and since when; exit code 1 when something does not answer.

    Example: citystream status -o json
    """
    found = Stack(load_settings()).status()
    if output is Output.JSON:
        typer.echo(json.dumps([dataclasses.asdict(one) for one in found], indent=2))
    else:
        Console().print(_table(found))
    if any(one.state is not State.UP for one in found):
        typer.echo("what is down is started by: citystream up", err=True)
        raise typer.Exit(1)


def _table(found: list[Status]) -> Table:
    table = Table("Service", "State", "Address", "Process", "Up for")
    for one in found:
        state = f"[green]{one.state}[/]" if one.state is State.UP else f"[red]{one.state}[/]"
        table.add_row(one.name, state, one.address, str(one.pid or "-"), _duration(one.uptime))
    return table


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"

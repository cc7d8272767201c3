"""citystream catalogue: what is declared, whether it is connected, and both in the words of the standards."""

from __future__ import annotations

import json
import re
from enum import StrEnum
from typing import Annotated

import typer

from citystream.commands.output import Output, OutputOption, show
from citystream.installation import Installation
from operations.describing import Described, asyncapi

app = typer.Typer(
    help="The catalogue: feeds and tables by batch, and whether they are connected.", no_args_is_help=True
)

#: Columns of the view that people read beside each other.
SHOWN = ("name", "department", "batch", "state", "reason", "rate", "records_1h", "records_1d", "last_arrival")


#: What names may begin with: an address, or another name of a scheme, with nothing that names may not hold.
BASE = re.compile(r"(?:https?://[^\s/?#<>\"{}|\\^`]+/|(?!https?:)[A-Za-z][A-Za-z0-9+.-]*:)(?:[^\s<>\"{}|\\^`]*[/:#])?")


def _base(value: str) -> str:
    if not BASE.fullmatch(value):
        raise typer.BadParameter(f"{value!r} is no address that ends in / : or #, such as https://data.city.example/")
    return value


class Form(StrEnum):
    """How a graph is written."""

    TURTLE = "turtle"
    JSON_LD = "json-ld"


def add_to(parent: typer.Typer) -> None:
    """Add these commands to the command line."""
    parent.add_typer(app, name="catalogue")


@app.command("show")
def show_catalogue(output: OutputOption = Output.TABLE) -> None:
    """Show all feeds and tables, whether each is connected, and how far each batch is.

    Never seen, connected, silent and degraded are seen by what arrived: nobody declares them. In SQL: city.catalogue,
    city.catalogue_batches, and city.catalogue_at(t=...) as of any minute.

    Example: citystream catalogue show
    """
    from sinks.queries import batches, catalogue  # noqa: PLC0415  documents need no ClickHouse

    with Installation.load().server("operator").connect() as client:
        entries, progress = catalogue(client), batches(client)
    if output is Output.JSON:
        typer.echo(json.dumps({"catalogue": entries, "batches": progress}, indent=2, default=str))
        return
    show([{name: row[name] for name in SHOWN} for row in entries], output)
    show(progress, output)


@app.command("dcat")
def describe_datasets(
    base: Annotated[
        str,
        typer.Option(
            callback=_base, help="What names of data sets begin with: an address that will stay, ending in / : or #."
        ),
    ] = "urn:citystream:",
    form: Annotated[Form, typer.Option("--format", "-f", help="How it is written.")] = Form.TURTLE,
) -> None:
    """Print the catalogue as DCAT-AP 3, for data portals; it needs no running stack.

    It says who may have each data set. Only what has a licence is offered to everybody, and nothing personal ever is.

    Example: citystream catalogue dcat --base https://data.city.example/ -f json-ld
    """
    from operations.describing import dcat  # noqa: PLC0415  its library is for nothing else

    typer.echo(dcat.graph(_described(), base).serialize(format=form.value).rstrip())


@app.command("asyncapi")
def describe_topics() -> None:
    """Print the topics as AsyncAPI 3, as JSON; it needs no running stack.

    Each message has the newest frozen schema and its id. What is received is published by a department, what is sent by
    the workers; some topics have both.

    Example: citystream catalogue asyncapi
    """
    typer.echo(json.dumps(asyncapi.document(_described()), indent=2, ensure_ascii=False))


def _described() -> Described:
    city = Installation.load()
    settings = city.settings
    scheme = "https" if settings.clickhouse_ca_file else "http"
    sql = f"{scheme}://{settings.clickhouse_hosts[0]}:{settings.clickhouse_http_port}"
    return Described(city.feeds, city.references, city.catalogue, city.cluster, sql)

"""citystream dead-letters: the records that could not be processed, and why."""

from __future__ import annotations

from typing import Annotated

import typer

from citystream.commands.output import Output, OutputOption, show
from citystream.installation import Installation
from citystream.settings import SettingsError
from schemas.rowcodec import NotDecodable, decode
from sinks.queries import quarantine, quarantined_record


def add_to(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    group = typer.Typer(no_args_is_help=True, help="The records that could not be processed, and why.")
    group.command("list")(list_letters)
    group.command("show")(show_letter)
    app.add_typer(group, name="dead-letters")


def list_letters(
    topic: Annotated[str | None, typer.Option(help="Only of this topic.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many, the newest first.")] = 50,
    output: OutputOption = Output.TABLE,
) -> None:
    """List quarantined records, the newest first, with the cause of each.

    Example: citystream dead-letters list --topic traffic_flow
    """
    show(quarantine(Installation.load().server("operator").connect(), topic, limit), output)


def show_letter(
    topic: Annotated[str, typer.Argument(help="Topic of the record.")],
    partition: Annotated[int, typer.Argument(help="Partition of the record.")],
    offset: Annotated[int, typer.Argument(help="Offset of the record.")],
    output: OutputOption = Output.TABLE,
) -> None:
    """Show one quarantined record: where it came from, why it is here, its bytes, and its fields if they can be read.

    Example: citystream dead-letters show traffic_flow 0 4711
    """
    city = Installation.load()
    record = quarantined_record(city.server("operator").connect(), topic, partition, offset)
    if record is None:
        raise SettingsError(f"{topic}/{partition} has no quarantined record at offset {offset}")
    rows = [{"what": name, "value": value} for name, value in record.items()]
    try:
        fields = decode(city.catalogue, bytes.fromhex(record["value"] or ""))
        rows += [{"what": f"field {name}", "value": value} for name, value in fields.items()]
    except NotDecodable as reason:
        rows.append({"what": "fields", "value": f"cannot be read: {reason}"})
    show(rows, output)

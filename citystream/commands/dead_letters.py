"""citystream dead-letters: the records that could not be processed, why, and publishing them again.

Only where they are published again is loaded what it takes: the compiled decoder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Annotated
from zoneinfo import ZoneInfo

import typer

from citystream.commands.output import Output, OutputOption, show
from citystream.commands.times import given
from citystream.installation import Installation
from citystream.progress import heard
from citystream.settings import SettingsError
from operations.redriving.corrections import Correction, exported, read_corrections
from operations.redriving.outcome import Outcome, Result
from schemas.record_codec import NotDecodable, decode
from sinks.quarantine import Place, Quarantine, Selection, reader_of
from sinks.queries import quarantine, quarantined_record
from streams import deadletters

FeedsArgument = Annotated[list[str] | None, typer.Argument(help="Of which feeds; all unless given.")]
CauseOption = Annotated[str | None, typer.Option(help="Only those with this in their cause.")]
SinceOption = Annotated[
    str | None,
    typer.Option(help="Only records published from then on: ISO 8601, of the city's time zone unless given."),
]
UntilOption = Annotated[str | None, typer.Option(help="Only records published before then.")]
PartitionOption = Annotated[int | None, typer.Option(min=0, help="Only of this partition.")]
OffsetOption = Annotated[int | None, typer.Option(min=0, help="Only the one at this offset.")]


def add_to(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    group = typer.Typer(
        no_args_is_help=True, help="The records that could not be processed, why, and publishing them again."
    )
    group.command("list")(list_letters)
    group.command("show")(show_letter)
    group.command("export")(export)
    group.command("redrive")(redrive)
    app.add_typer(group, name="dead-letters")


def list_letters(
    topics: Annotated[
        list[str] | None, typer.Argument(help="Of which topics, by the names of the feeds; all unless given.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many, the newest first.")] = 50,
    output: OutputOption = Output.TABLE,
) -> None:
    """List quarantined records, the newest first, with the cause of each.

    Example: citystream dead-letters list traffic_flow
    """
    city = Installation.load()
    found = quarantine(city.server("operator").connect(), topics or (), limit)
    if not found:
        city.choose([topic for topic in topics or () if topic != deadletters.TOPIC])
    show(found, output)


def show_letter(
    topic: Annotated[str, typer.Argument(help="Topic of the record.")],
    partition: Annotated[int, typer.Argument(help="Partition of the record.")],
    offset: Annotated[int, typer.Argument(help="Offset of the record.")],
    output: OutputOption = Output.TABLE,
) -> None:
    """Show one quarantined record: where it came from, why it is here, its bytes, and its fields if they can be read.

    Bytes and fields of a feed with personal fields are masked, because they may name a person.

    Example: citystream dead-letters show traffic_flow 0 4711
    """
    city = Installation.load()
    record = quarantined_record(city.server("operator").connect(), topic, partition, offset)
    if record is None:
        raise SettingsError(f"{topic}/{partition} has no quarantined record at offset {offset}")
    rows = [{"what": name, "value": value} for name, value in record.items()]
    if topic not in city.feeds or reader_of([city.feeds[topic]]) == "owner":
        rows.append({"what": "bytes", "value": "masked: they may name a person, and only the owner reads them"})
        show(rows, output)
        return
    try:
        fields = decode(city.catalogue, bytes.fromhex(record["value"] or ""))
        rows += [{"what": f"field {name}", "value": value} for name, value in fields.items()]
    except NotDecodable as reason:
        rows.append({"what": "fields", "value": f"cannot be read: {reason}"})
    show(rows, output)


def export(
    feeds: FeedsArgument = None,
    cause: CauseOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    partition: PartitionOption = None,
    offset: OffsetOption = None,
) -> None:
    """Print quarantined records that can be read and were not redriven, one JSON line each, to be corrected.

    Personal fields are left out. Correct what stands in "record", then: citystream dead-letters redrive --corrected

    Example: citystream dead-letters export traffic_flow --cause intensity > bad.jsonl
    """
    city = Installation.load()
    selection = _selection(city, feeds, cause, since, until, partition, offset)
    unreadable = 0
    with closing(_quarantine(city, selection)) as letters:
        for chunk in letters.chunks(selection):
            for letter in letters.letters(*chunk):
                try:
                    typer.echo(json.dumps(exported(city.catalogue, city.feeds[letter.topic], letter)))
                except NotDecodable:
                    unreadable += 1
    if unreadable:
        typer.echo(f"citystream: {unreadable:,} more cannot be read and were left out", err=True)


def redrive(  # noqa: PLR0913, PLR0917
    feeds: FeedsArgument = None,
    cause: CauseOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    partition: PartitionOption = None,
    offset: OffsetOption = None,
    corrected: Annotated[
        Path | None, typer.Option(help="Only the records in this file, corrected as it says; see: dead-letters export")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would become of them.")] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Publish quarantined records again that are good now, each once: a schema was frozen or values were corrected.

    They go to their own topic with the same bytes, or the corrected ones, and keep their key and event id. What was
    redriven is noted and left out the next time; an event that is stored already is only noted. Of a file of
    corrections nothing is published unless all of it can be. Those of feeds with personal
    fields are read as the owner.

    Exit code 1 if records are still bad.

    Example: citystream dead-letters redrive police_incident --cause "not in the catalogue" --dry-run
    """
    from operations.redriving import redrive as procedure  # noqa: PLC0415

    city = Installation.load()
    selection = _selection(city, feeds, cause, since, until, partition, offset)
    corrections = None if corrected is None else _corrections(city, corrected)
    with closing(_quarantine(city, selection)) as letters, heard() as on_progress:
        results = procedure.redrive(
            city.cluster, letters, city.feeds, city.catalogue, selection, corrections,
            dry_run=dry_run, on_progress=on_progress,
        )  # fmt: skip
    _report(results, output, dry_run=dry_run)


def _selection(
    city: Installation,
    feeds: list[str] | None,
    cause: str | None,
    since: str | None,
    until: str | None,
    partition: int | None,
    offset: int | None,
) -> Selection:
    zone = ZoneInfo(city.settings.timezone)
    since_ms, until_ms = given("since", since, zone), given("until", until, zone)
    return Selection(list(city.choose(feeds)), cause, since_ms, until_ms, partition, offset)


def _quarantine(city: Installation, selection: Selection) -> Quarantine:
    return Quarantine(city.server(reader_of(city.feeds[name] for name in selection.topics)))


def _corrections(city: Installation, file: Path) -> dict[Place, Correction]:
    try:
        with file.open(encoding="utf-8") as lines:
            return read_corrections(lines, city.feeds)
    except OSError as error:
        raise SettingsError(f"{file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{file}: is no UTF-8") from None


def _report(results: Mapping[Result, int], output: Output, *, dry_run: bool) -> None:
    shown = {Outcome.REDRIVEN: "can be redriven"} if dry_run else {}
    show(
        [
            {"feed": topic, "records": n, "outcome": shown.get(outcome, outcome.value), "cause": cause, "now": problem}
            for (topic, cause, outcome, problem), n in sorted(results.items(), key=lambda item: (item[0][0], -item[1]))
        ],
        output,
    )
    if any(outcome is Outcome.BAD for _, _, outcome, _ in results):
        raise typer.Exit(1)

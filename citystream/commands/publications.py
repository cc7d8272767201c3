"""citystream publications: which files were published, and which of them brought a record."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any
from zoneinfo import ZoneInfo

import typer

from citystream.commands.output import Output, OutputOption, show
from citystream.installation import Installation
from streams.publications import TOPIC, Publication, read
from streams.topics import states


def add_to(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    group = typer.Typer(no_args_is_help=True, help="Which files were published, and which of them brought a record.")
    group.command("list")(list_publications)
    group.command("find")(find)
    app.add_typer(group, name="publications")


def list_publications(
    feeds: Annotated[list[str] | None, typer.Argument(help="Of which feeds; all unless given.")] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """List the files that were published, the newest first.

    Example: citystream publications list parking_site
    """
    city = Installation.load()
    chosen = city.choose(feeds)
    show([_row(city, one) for one in reversed(_all(city)) if one.feed in chosen], output)


def find(
    feed: Annotated[str, typer.Argument(help="The feed.")],
    partition: Annotated[int, typer.Argument(help="source_partition of the row in the database raw.")],
    offset: Annotated[int, typer.Argument(help="source_offset of the row.")],
    output: OutputOption = Output.TABLE,
) -> None:
    """Show from which file a record came, and who published it.

    Records of other programs, and of a publisher that was killed, are of no file that is known: exit code 1.

    Example: citystream publications find parking_site 0 4711
    """
    city = Installation.load()
    city.choose([feed])
    found = [one for one in _all(city) if one.brought(feed, partition, offset)]
    show([_row(city, one) for one in found], output)
    if not found:
        raise typer.Exit(1)


def _all(city: Installation) -> list[Publication]:
    states(city.bootstrap, [TOPIC])
    return read(city.bootstrap)


def _row(city: Installation, one: Publication) -> dict[str, Any]:
    at = datetime.fromtimestamp((one.at_ms or 0) / 1000, UTC).astimezone(ZoneInfo(city.settings.timezone))
    return {
        "published_at": f"{at:%Y-%m-%d %H:%M:%S}",
        "feed": one.feed,
        "file": one.file,
        "publisher": one.publisher,
        "acknowledged": one.records,
        "rejected": one.rejected,
        "digest": one.digest[:16],
    }

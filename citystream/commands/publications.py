"""citystream publications: which files were published, and which of them brought a record, and taking one back."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any
from zoneinfo import ZoneInfo

import typer

from citystream.commands.output import Output, OutputOption, show
from citystream.installation import Installation
from citystream.progress import heard
from citystream.settings import SettingsError
from operations.withdrawal import past, take_back
from sinks.queries import withdrawn
from sinks.withdrawal import LONGEST_STATEMENT_BYTES, Withdrawal
from streams.publications import TOPIC, Publication, read
from streams.topics import states


def add_to(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    group = typer.Typer(
        no_args_is_help=True, help="Which files were published, which of them brought a record, and taking one back."
    )
    group.command("list")(list_publications)
    group.command("find")(find)
    group.command("withdraw")(withdraw)
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
    gone = _withdrawn(city)
    show([_row(city, one, gone) for one in reversed(_all(city)) if one.feed in chosen], output)


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
    gone = _withdrawn(city)
    show([_row(city, one, gone) for one in found], output)
    if not found:
        raise typer.Exit(1)


def withdraw(
    publication: Annotated[str, typer.Argument(help="Its id, or the beginning of it; see: publications list")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be taken back.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Take a wrong file back: its rows go, and the windows it counted in are built anew of the rows that stay.

    The windows have to be final and the records stored. The workers may go on meanwhile. Repeats of its events go with
    them, whoever published those, so a corrected file is published afterwards. Ended in the middle, it can simply be
    run again.

    Example: citystream publications withdraw 3f2a9c1e --dry-run
    """
    city = Installation.load()
    one = _named(city, publication)
    feed = city.choose([one.feed])[one.feed]
    positions = past(city.cluster, feed, one, time.time_ns() // 1_000_000)
    with city.server("owner").connect(max_query_size=LONGEST_STATEMENT_BYTES) as client:
        work = Withdrawal(client, feed, one, positions, city.dialect)
        taken = work.look()
        typer.echo(f"{one.file} of {feed.name}: {taken.rows:,} rows, and {taken.repeats:,} repeats of their events")
        for name, windows in taken.windows.items():
            typer.echo(f"{name}: {windows:,} windows")
        if dry_run or not taken.rows:
            typer.echo("nothing was changed")
            return
        if not yes:
            typer.confirm("Take them back?", abort=True)
        with heard() as on_progress:
            take_back(work, on_progress)
        typer.echo("they are taken back; a corrected file can be published now")


def _named(city: Installation, publication: str) -> Publication:
    found = [one for one in _all(city) if one.id.startswith(publication)]
    if len(found) != 1:
        wrong = f"{len(found)} publications have an id that begins with" if found else "there is no publication"
        raise SettingsError(f"{wrong} {publication}; see: citystream publications list")
    return found[0]


def _withdrawn(city: Installation) -> dict[str, str]:
    with city.server("operator").connect() as client:
        return withdrawn(client)


def _all(city: Installation) -> list[Publication]:
    states(city.cluster, [TOPIC])
    return read(city.cluster)


def _row(city: Installation, one: Publication, gone: Mapping[str, str]) -> dict[str, Any]:
    at = datetime.fromtimestamp((one.at_ms or 0) / 1000, UTC).astimezone(ZoneInfo(city.settings.timezone))
    return {
        "id": one.id[:8],
        "published_at": f"{at:%Y-%m-%d %H:%M:%S}",
        "feed": one.feed,
        "file": one.file,
        "publisher": one.publisher,
        "acknowledged": one.records,
        "rejected": one.rejected,
        "digest": one.digest[:16],
        "withdrawn_by": gone.get(one.id),
    }

"""citystream lag and ledger: is everything there, and in time?"""

from __future__ import annotations

import dataclasses
import time
from typing import Annotated

import typer

from citystream.commands.output import Output, OutputOption, show
from citystream.installation import Installation
from processors.worker import GROUP as PROCESSOR
from sinks.ledger import accounts
from sinks.worker import GROUP as SINK
from streams import topics
from streams.lag import by_topic, measure


def add_to(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.command()(lag)
    app.command()(ledger)


def lag(
    at_most: Annotated[int | None, typer.Option(help="Exit code 1 if a topic is more records behind.")] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show how far the workers are behind, in records and seconds.

    Example: citystream lag --at-most 10000
    """
    city = Installation.load()
    feeds = list(city.feeds)
    stored = [topic.name for topic in topics.stored(city.feeds.values())]
    now_ms = time.time_ns() // 1_000_000
    rows = [
        {"worker": group, **dataclasses.asdict(topic)}
        for group, names in ((PROCESSOR, feeds), (SINK, stored))
        for topic in by_topic(measure(city.bootstrap, group, names), now_ms)
    ]
    show(rows, output)
    if at_most is not None and any(row["records"] > at_most for row in rows):
        raise typer.Exit(1)


def ledger(output: OutputOption = Output.TABLE) -> None:
    """Account for every record: published = stored + duplicate + quarantined + control + lost.

    Late is a part of stored; control are markers of transactions, aborted and compacted records.
    Exit code 1 if it does not balance: records are still on their way (see citystream lag), or something is wrong.

    Example: citystream ledger
    """
    city = Installation.load()
    log = measure(city.bootstrap, SINK, city.feeds)
    found = accounts(city.server("operator").connect(), city.feeds, log)
    show([dataclasses.asdict(a) | {"missing": a.missing, "balances": a.balances} for a in found], output)
    if not all(account.balances for account in found):
        raise typer.Exit(1)

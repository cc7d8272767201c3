"""citystream lag and ledger: is everything there, and in time?"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial
from typing import Annotated, Any

import typer
from clickhouse_driver.errors import Error as ClickHouseError
from clickhouse_driver.errors import ErrorCodes, ServerException
from kafka.errors import KafkaError

from citystream.commands.output import Output, OutputOption, show, waiting_for
from citystream.installation import Installation
from citystream.stack.process import StackError
from processors import GROUP as PROCESSOR
from sinks import GROUP as SINK
from sinks.clickhouse import first_line, is_transient
from sinks.ledger import Account
from sinks.reconciler import Check, Reconciler
from streams import topics
from streams.lag import LagMeter, by_topic

#: How long a look waits for Kafka before it gives up.
PATIENCE = timedelta(seconds=10)
#: Feeds that a table of the ledger has beside each other.
BESIDE = 4
#: Stretches of offsets that are named at most.
MOST_PLACES = 20


def add_to(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.command()(lag)
    app.command()(ledger)


def lag(
    at_most: Annotated[int | None, typer.Option(help="Exit code 1 if a topic is more records behind.")] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show how far the workers are behind, in records and seconds.

    Exit code 1 if something is wrong or not known: a topic that is gone or in which a worker waits or is stopped, a
    partition without a leader, a position beyond the end of its log.

    Example: citystream lag --at-most 10000
    """
    city = Installation.load()
    stored = [topic.name for topic in topics.stored(city.feeds.values())]
    with _meter(city) as meter:
        now_ms = time.time_ns() // 1_000_000
        rows: list[dict[str, Any]] = [
            {
                "worker": group,
                "topic": topic.topic,
                "lag": topic.records,
                "lag_seconds": topic.seconds,
                "problem": topic.problem or held_up.get(topic.topic),
            }
            for group, names in ((PROCESSOR, city.processed_topics), (SINK, stored))
            for held_up in [city.positions(group).held_up()]
            for topic in by_topic(meter.look(group, names), now_ms)
        ]
    show(rows, output)
    if any(row["problem"] or (at_most is not None and row["lag"] > at_most) for row in rows):
        raise typer.Exit(1)


def ledger(
    every: Annotated[
        float | None,
        typer.Option(min=1, help="Check again every so many seconds, until something goes wrong or Ctrl-C ends it."),
    ] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Account for every record: all published ones are in one of the lines of the sum.

    published = stored + duplicate + withdrawn + quarantined + control + on its way + lost + missing.
    Late is a part of stored, redriven (published again) one of quarantined; control are ticks, markers of transactions,
    aborted and compacted records. What no worker has committed yet is on its way (see citystream lag). Exit code 1 if
    records are lost or missing, or ClickHouse has more than a log. With --every only what did not arrive is looked for,
    not how many rows are repeats, a server that is away is waited for, and records that had been lost before the first
    check are said in each line, but do not end it.

    Example: citystream ledger --every 10
    """
    city = Installation.load()
    with _meter(city) as meter:
        client = city.server("operator").connect()
        reconciler = Reconciler(client, meter, city.feeds, PROCESSOR)
        if every is not None:
            with suppress(KeyboardInterrupt):
                watch(reconciler.check, partial(time.sleep, every), partial(_line, output))
                raise typer.Exit(1)
            return
        with waiting_for("ClickHouse to count all rows"):
            found = _accounts(reconciler)
        if output is Output.JSON:
            show([dataclasses.asdict(a) | {"balances": a.balances} for a in found], output)
        else:
            for start in range(0, len(found), BESIDE):
                show(sums(found[start : start + BESIDE]), output)
        if any(account.wrong for account in found):
            _name(reconciler.check())
            raise typer.Exit(1)


def _accounts(reconciler: Reconciler) -> list[Account]:
    """The accounts of all feeds; a table that is missing keeps any from being counted, and is said with what helps."""
    try:
        return reconciler.accounts()
    except ServerException as error:
        if error.code != ErrorCodes.UNKNOWN_TABLE:
            raise
        missing = first_line(error).partition(" in scope ")[0]
        raise StackError(f"{missing}; run: citystream init; meanwhile: citystream ledger --every 10") from error


def sums(found: Sequence[Account]) -> list[dict[str, Any]]:
    """The accounts of some feeds as lines of a table with a column a feed."""
    names = [one.name for one in dataclasses.fields(Account) if one.name != "feed"]
    lines: list[dict[str, Any]] = [
        {"records": name.replace("_", " ")} | {a.feed: getattr(a, name) for a in found} for name in names
    ]
    return [*lines, {"records": "balances"} | {a.feed: balance(a) for a in found}]


def balance(account: Account) -> str:
    """Whether the sum is right, in a word: what is only on its way is no fault."""
    return "yes" if account.balances else "no" if account.wrong else "on its way"


def watch(look: Callable[[], Check], pause: Callable[[], None], say: Callable[[Check | Exception], None]) -> None:
    """Look until something is wrong; says each time what it saw, or which server is away.

    Records that are lost at the first look already are known from then on and do not end it.
    """
    first: Check | None = None
    while True:
        try:
            found = look()
        except (KafkaError, ClickHouseError, EOFError, OSError) as error:
            if not (isinstance(error, KafkaError) or is_transient(error)):
                raise
            say(error)
        else:
            say(found.after(first) if first else found)
            first = first or found
            if found.after(first).wrong:
                return
        pause()


def _line(output: Output, found: Check | Exception) -> None:
    """Say what a look saw in a line, and name the places where something is wrong."""
    at = datetime.now().astimezone().isoformat(timespec="seconds")
    if isinstance(found, Exception):
        server = "Kafka" if isinstance(found, KafkaError) else "ClickHouse"
        typer.echo(f"{at} {server} does not answer ({first_line(found)})", err=True)
        return
    if output is Output.JSON:
        lost, known, missing = (sum(map(len, stretches)) for stretches in (found.lost, found.known, found.missing))
        row = {"at": at, "published": found.published, "on_its_way": found.on_its_way, "lost": known + lost}
        row |= {"known": known, "missing": missing, "beyond": sum(found.beyond.values())}
        typer.echo(json.dumps(row))
    else:
        typer.echo(f"{at} {found}")
    _name(found)


def _name(found: Check) -> None:
    """Name the first places where something is wrong."""
    places = found.places()
    for place in places[:MOST_PLACES]:
        typer.echo(place, err=True)
    if len(places) > MOST_PLACES:
        typer.echo(f"and {len(places) - MOST_PLACES:,} more stretches", err=True)


def _meter(city: Installation) -> LagMeter:
    """A connection to Kafka, or its error after a while."""
    with waiting_for(f"Kafka at {city.cluster}"):
        topics.wait_for_kafka(city.cluster, lambda text: typer.echo(f"citystream: {text}", err=True), PATIENCE)
        return LagMeter(city.cluster)

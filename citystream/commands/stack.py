"""citystream up, init, down, status."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress

import typer
from clickhouse_driver.errors import Error as ClickHouseError
from clickhouse_driver.errors import ServerException
from kafka.errors import KafkaError
from rich.markup import escape
from rich.table import Table

from citystream.commands.output import Output, OutputOption, print_whole
from citystream.installation import Installation
from citystream.settings import load_settings
from citystream.stack.stack import ProcessStatus, Stack, State
from operations.printable import printable
from processors import GROUP as PROCESSOR
from schemas.feed import Feed
from sinks import GROUP as SINK
from sinks.queries import newest_arrival_ms, newly_quarantined
from streams import topics
from streams.clock import standing_still
from streams.members import Member, is_member_name, members, unread

#: Dead letters of so many minutes are said.
RECENT_MINUTES = 10
#: How each worker is started.
STARTED_BY = {PROCESSOR: "citystream process --instance processor-1", SINK: "citystream sink --instance sink-1"}


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
    """End what `citystream up` and `citystream demo` started; the data stay.

    Example: citystream down
    """
    Stack(load_settings()).down(typer.echo)


def status(output: OutputOption = Output.TABLE) -> None:
    """Show what runs, where and since when: the services, and each worker with what it reads.

    Exit code 1 when something does not answer, or nobody reads a topic for a worker, or it waits or is stopped there,
    or its group has a member that is no worker. Feeds from which nothing has come for longer than is normal are named,
    and those of which records became dead letters a moment ago, or for which no clock runs.

    Example: citystream status -o json
    """
    city = Installation.load()
    services = Stack(city.settings).status()
    down = [one.name for one in services if one.state is not State.UP]
    todo = [f"{', '.join(down)}: what is down is started by: citystream up"] if down else []
    stored = [topic.name for topic in topics.stored(city.feeds.values())]
    wanted = {PROCESSOR: city.processed_topics, SINK: [*stored, *city.references]}
    workers: list[ProcessStatus] = []
    now_ms = time.time_ns() // 1_000_000
    try:
        there = members(city.cluster, wanted) if services[0].state is State.UP else None
    except KafkaError:
        there = None
    if there is None:
        workers = [
            ProcessStatus(group, State.UNREACHABLE, "-", reads="nothing is known: Kafka does not say")
            for group in wanted
        ]
    else:
        for group, names in wanted.items():
            workers += _workers(group, there)
            todo += _unknown(group, there)
            todo += _missing(group, names, there)
            todo += _held_up(city, group, there)
    still = [] if there is None else _standing_still(city, now_ms)
    found = [*services, *workers]
    silent, dead = ({}, {}) if down else _of_feeds(city, now_ms)
    if output is Output.JSON:
        rows = [dataclasses.asdict(one) for one in found]
        quarantined = {topic: {"records": records, "cause": cause} for topic, (records, cause) in dead.items()}
        said = {"services": rows, "silent": silent, "still": still, "quarantined": quarantined, "problems": todo}
        typer.echo(json.dumps(said, indent=2))
    else:
        print_whole(_table(found))
    silences = [_silence(city.feeds[name], seconds) for name, seconds in silent.items()]
    if still:
        silences.append(
            f"{', '.join(still)}: no clock runs, so windows end with events alone; start one: citystream clock"
        )
    for line in [*todo, *silences, *(_dead(topic, *found) for topic, found in dead.items())]:
        typer.echo(line, err=True)
    if todo or any(one.state is not State.UP for one in found):
        raise typer.Exit(1)


def _workers(group: str, there: Sequence[Member]) -> list[ProcessStatus]:
    """A line for each member of a group, or one that says it has none."""
    return [
        ProcessStatus(group, State.UP, one.host, reads=f"{one.name}: {_reads(one.topics)}")
        for one in there
        if one.group == group
    ] or [ProcessStatus(group, State.DOWN, "-", reads="nothing: the group has no member")]


def _reads(has: Mapping[str, int]) -> str:
    return f"{sum(has.values())} partitions of {len(has)} topics" if has else "nothing yet"


def _unknown(group: str, there: Sequence[Member]) -> list[str]:
    """The members of a group that have no worker's name."""
    return [
        f"{group}: an unknown member, {printable(one.name)} on {one.host}, has {_reads(one.topics)}. If it is none of "
        f"your workers, end it; a worker has an --instance name: {STARTED_BY[group]}"
        for one in there
        if one.group == group and not is_member_name(one.name)
    ]


def _held_up(city: Installation, group: str, there: Sequence[Member]) -> list[str]:
    """What a worker that runs says of topics in which it does not go on."""
    if not any(one.group == group for one in there):
        return []
    return [f"{group}: {topic} does not go on: {reason}" for topic, reason in city.positions(group).held_up().items()]


def _missing(group: str, names: Sequence[str], there: Sequence[Member]) -> list[str]:
    """What to do for topics that nobody reads."""
    if not any(one.group == group for one in there):
        return [f"{group}: no worker runs; start one: {STARTED_BY[group]}"]
    if left := unread(there, group, names):
        return [
            f"{group}: nobody reads {', '.join(left)}; look again in a moment, or start one more: {STARTED_BY[group]}"
        ]
    return []


def _standing_still(city: Installation, now_ms: int) -> list[str]:
    """Topics that a clock should write to, and none does; none if the brokers do not say."""
    try:
        return standing_still(city.cluster, city.feeds.values(), now_ms)
    except KafkaError:
        return []


def _of_feeds(city: Installation, now_ms: int) -> tuple[dict[str, float], dict[str, tuple[int, str]]]:
    """Feeds from which nothing has come for longer than is normal, and for how many seconds; new dead letters by topic.

    A feed whose table is missing is no silent one: that is a problem of its own.
    """
    newest, dead = {}, {}
    try:
        with city.server("operator").connect() as client:
            for name, feed in city.feeds.items():
                with suppress(ServerException):
                    newest[name] = newest_arrival_ms(client, feed)
            with suppress(ServerException):
                dead = newly_quarantined(client, RECENT_MINUTES)
    except (ClickHouseError, OSError, EOFError):
        return {}, {}
    silent = {
        name: (now_ms - at) / 1000
        for name, at in newest.items()
        if at is not None and city.feeds[name].is_silent(at, now_ms)
    }
    return silent, dead


def _dead(topic: str, records: int, cause: str) -> str:
    return (
        f"{printable(topic)}: {records:,} records became dead letters in the last {RECENT_MINUTES} minutes, the newest "
        f"for {printable(cause)}; see: citystream dead-letters list {printable(topic)}"
    )


def _silence(feed: Feed, seconds: float) -> str:
    assert feed.silence is not None, "one that promises nothing is never silent"
    return (
        f"{feed.name} is silent: its newest record came {_duration(seconds)} ago, "
        f"{_duration(feed.silence.total_seconds())} are normal; is its publisher running?"
    )


def _table(found: list[ProcessStatus]) -> Table:
    table = Table(*(field.name for field in dataclasses.fields(ProcessStatus)))
    for one in found:
        state = f"[green]{one.state}[/]" if one.state is State.UP else f"[red]{one.state}[/]"
        table.add_row(
            one.name, state, one.address, str(one.pid or "-"), _duration(one.uptime), escape(one.reads or "-")
        )
    return table


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"

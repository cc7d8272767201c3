"""citystream positions: where the workers stand, and how to go on when a position cannot be trusted."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Annotated

import typer

from citystream.commands.output import Output, OutputOption, show
from citystream.installation import Installation
from citystream.settings import SettingsError
from operations import positions
from operations.positions import Repairs
from processors import GROUP as PROCESSOR
from sinks import GROUP as SINK
from streams.group_partition import GroupPartition
from streams.positions import Position, PositionProblem


class Worker(StrEnum):
    """A worker's consumer group."""

    PROCESSOR = PROCESSOR
    SINK = SINK


WorkerArgument = Annotated[Worker, typer.Argument(help="Whose positions.")]
TopicsArgument = Annotated[list[str] | None, typer.Argument(help="In which topics; all unless given.")]


def add_to(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    group = typer.Typer(no_args_is_help=True, help="Where the workers stand in the topics, and how to go on.")
    group.command("show")(show_positions)
    group.command("restore")(restore)
    group.command("reset")(reset)
    group.command("freeze")(freeze)
    group.command("clear")(clear)
    app.add_typer(group, name="positions")


def show_positions(worker: WorkerArgument, topics: TopicsArgument = None, output: OutputOption = Output.TABLE) -> None:
    """Show the positions of a worker, their checkpoints, and whether it can go on from them.

    Exit code 1 if it cannot go on somewhere.

    Example: citystream positions show processor traffic_flow
    """
    city = Installation.load()
    found = city.positions(worker).read(_checked(city, worker, topics))
    show([_row(one) for one in found], output)
    problems = [problem for one in found if (problem := one.why_not())]
    for problem in problems:
        typer.echo(problem, err=True)
    if problems:
        raise typer.Exit(1)


def restore(worker: WorkerArgument, topics: TopicsArgument = None) -> None:
    """Let a stopped worker go on from the checkpoints of its lost positions, as if they had not been lost.

    Positions that can be trusted stay. Refused where the topic or the definition is another one, the log no longer
    reaches back far enough, or the brokers have lost its end.

    Example: citystream positions restore processor traffic_flow
    """
    city = Installation.load()
    found = _repairs(city, worker).restore(_checked(city, worker, topics))
    _say(worker, found, lambda p: f"goes on from the checkpoint at offset {p.processed}")


def reset(worker: WorkerArgument, topics: Annotated[list[str], typer.Argument(help="In which topics.")]) -> None:
    """Let a stopped worker read topics again from their first record. Nothing is counted twice: rows and windows
    replace what they were.

    Refused to the processor where retention has already deleted the beginning of a feed's topic, because windows would
    be rebuilt from their middle, and where it was frozen, because what was counted since would be there twice. Refused
    to both where ClickHouse has results of other records: of an earlier topic of its name, or of those at its end that
    the brokers have lost.

    Example: citystream positions reset processor traffic_flow
    """
    city = Installation.load()
    found = _repairs(city, worker).reset(_checked(city, worker, topics) or [])
    _say(worker, found, lambda p: f"will be read again from offset {p.processed}, its first")


def freeze(worker: WorkerArgument, topics: TopicsArgument = None) -> None:
    """Let a stopped worker go on where its position is lost and neither restore nor reset is possible.

    Windows that were open stay as they were written; what comes after is counted beside them and added. Positions
    that can be trusted stay. For the processor the sink has to have stored what the processor wrote.

    Example: citystream positions freeze processor traffic_flow
    """
    city = Installation.load()
    found = _repairs(city, worker).freeze(_checked(city, worker, topics))
    _say(worker, found, lambda p: f"is read from offset {p.rewind} and counted from {p.since} on")


def clear(
    feed: Annotated[str, typer.Argument(help="A feed.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Drop everything ClickHouse holds of a feed, and let both stopped workers read its topic again from its beginning.

    For a topic that was deleted and created again, or whose end the brokers have lost. What the topic no longer has is
    gone for good.

    Example: citystream positions clear traffic_flow
    """
    city = Installation.load()
    chosen = city.choose([feed])[feed]
    if not yes:
        typer.confirm(f"Drop all rows, windows and the ledger of {feed}?", abort=True)
    groups = [city.positions(worker) for worker in Worker]
    for group, found in positions.clear(groups, chosen, city.server("owner"), typer.echo):
        _say(Worker(group), found, lambda p: f"is read from offset {p.processed}")
    typer.echo(f"ClickHouse holds nothing of {feed} any more")


def _checked(city: Installation, worker: Worker, topics: list[str] | None) -> list[str] | None:
    """These topics, where the worker reads them."""
    read = city.positions(worker).definitions
    for topic in topics or ():
        if topic not in read:
            raise SettingsError(f"the {worker} reads no topic {topic} (it reads: {', '.join(read)})")
    return topics


def _repairs(city: Installation, worker: Worker) -> Repairs:
    groups = {one.value: city.positions(one) for one in Worker}
    return Repairs(groups, worker.value, city.feeds, city.server("operator").connect)


def _row(one: GroupPartition) -> dict[str, object]:
    try:
        position, kept = one.commit, one.checkpoint
    except PositionProblem:  # of a newer release; it is said below the table
        position = kept = None
    return {
        "topic": one.topic,
        "partition": one.partition,
        "log_start": one.log_start,
        "rewind": position.rewind if position else None,
        "committed": one.committed,
        "log_end": one.log_end,
        "counted_from": position.since if position else None,
        "checkpoint": kept.processed if kept else None,
        "goes_on": not one.why_not(),
    }


def _say(worker: Worker, found: positions.NewPositions, words: Callable[[Position], str]) -> None:
    if not found:
        typer.echo(f"the {worker} can go on from its own positions; nothing was changed")
    for place, position in found.items():
        typer.echo(f"{place} {words(position)}")

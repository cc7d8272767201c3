"""citystream positions: where the workers stand, and how to go on when a position cannot be trusted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Annotated, TypeVar

import typer
from clickhouse_driver import Client

from citystream.commands.output import Output, OutputOption, show
from citystream.installation import Installation
from citystream.settings import SettingsError
from processors import GROUP as PROCESSOR
from sinks import GROUP as SINK
from sinks import queries
from sinks.migrate import empty
from streams import position_repair, positions
from streams.generations import source, sources
from streams.group_positions import check_stopped, commit, standing
from streams.lag import PartitionLag, measure
from streams.positions import NO_EVENT_TIME, Known, Position, PositionProblem

A = TypeVar("A")


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
    found = [(_row(known, log), _problem(known)) for known, log in _standing(city, worker, topics)]
    show([row for row, _ in found], output)
    problems = [problem for _, problem in found if problem]
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
    found = {_place(known): position_repair.restore(known) for known in _lost(city, worker, topics)}
    _commit(city, worker, found, lambda p: f"goes on from the checkpoint at offset {p.processed}")


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
    found = {_place(known): _reset(city, worker, known) for known, _ in _standing(city, worker, topics)}
    _commit(city, worker, found, lambda p: f"will be read again from offset {p.processed}, its first")


def freeze(worker: WorkerArgument, topics: TopicsArgument = None) -> None:
    """Let a stopped worker go on where its position is lost and neither restore nor reset is possible.

    Windows that were open stay as they were written; what comes after is counted beside them and added. Positions
    that can be trusted stay. For the processor the sink has to have stored what the processor wrote.

    Example: citystream positions freeze processor traffic_flow
    """
    city = Installation.load()
    lost = [known for known, _ in _standing(city, worker, topics) if _problem(known) or _forgotten(city, worker, known)]
    for known in lost:
        if known.last is not None:  # the sink, which is waited for below, may stand still for the same reason
            positions.check_log(known, known.last)
    if lost and worker is Worker.PROCESSOR:
        feeds = {_number(known)[0] for known in lost}
        _check_stored(city, [a.topic for name in feeds for a in city.feeds[name].aggregates])
    found = {
        _place(known): position_repair.freeze(
            known, _parts(city, known)[1] if worker is Worker.PROCESSOR else 0, _seen_before(city, worker, known)
        )
        for known in lost
    }
    _commit(city, worker, found, lambda p: f"is read from offset {p.rewind} and counted from {p.since} on")


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
    check_stopped(city.cluster, Worker)
    own = [*sources([chosen]), *(aggregate.topic for aggregate in chosen.aggregates)]
    for worker in Worker:
        places = _standing(city, worker, [topic for topic in own if topic in city.definitions(worker)])
        _commit(city, worker, {_place(known): _anew(city, known, log) for known, log in places}, _read_from)
    empty(city.server("owner"), chosen, typer.echo)
    typer.echo(f"ClickHouse holds nothing of {feed} any more")


def _anew(city: Installation, known: Known, log: PartitionLag) -> Position:
    """Where a topic begins for those who know nothing of it; parts that were written before are passed over."""
    begin = known.log_start if _number(known)[0] in city.feeds else log.end
    return positions.first(known.topic_id, known.definition, begin)


def _read_from(position: Position) -> str:
    return f"is read from offset {position.processed}"


def _forgotten(city: Installation, worker: Worker, known: Known) -> bool:
    """Whether every trace of a position is gone, though it was counted from."""
    return known.last is None and worker is Worker.PROCESSOR and _parts(city, known) != (0, 0)


def _standing(city: Installation, worker: Worker, topics: list[str] | None) -> list[tuple[Known, PartitionLag]]:
    read = city.definitions(worker)
    for topic in topics or ():
        if topic not in read:
            raise SettingsError(f"the {worker} reads no topic {topic} (it reads: {', '.join(read)})")
    chosen = {topic: read[topic] for topic in topics or read}
    return standing(city.cluster, worker.value, chosen, sources(city.feeds.values()))


def _lost(city: Installation, worker: Worker, topics: list[str] | None) -> list[Known]:
    return [known for known, _ in _standing(city, worker, topics) if _problem(known)]


def _place(known: Known) -> tuple[str, int]:
    return known.topic, known.partition


def _number(known: Known) -> tuple[str, int]:
    """Feed and number in ClickHouse."""
    return source(known.topic, known.partition)


def _problem(known: Known) -> str | None:
    try:
        positions.resume(known)
    except PositionProblem as problem:
        return str(problem)
    return None


def _row(known: Known, log: PartitionLag) -> dict[str, object]:
    position, kept = known.commit, known.checkpoint
    return {
        "topic": known.topic,
        "partition": known.partition,
        "log_start": known.log_start,
        "rewind": position.rewind if position else None,
        "committed": known.committed,
        "log_end": log.end,
        "counted_from": position.since if position else None,
        "checkpoint": kept.processed if kept else None,
        "goes_on": _problem(known) is None,
    }


def _commit(
    city: Installation, worker: Worker, found: Mapping[tuple[str, int], Position], say: Callable[[Position], str]
) -> None:
    if not found:
        typer.echo(f"the {worker} can go on from its own positions; nothing was changed")
        return
    commit(city.cluster, worker.value, found)
    for (topic, number), position in found.items():
        typer.echo(f"{topic}/{number} {say(position)}")


def _reset(city: Installation, worker: Worker, known: Known) -> Position:
    feed, number = _number(known)
    if feed not in city.feeds:  # parts and dead letters replace what they were, wherever they stand in the log
        return positions.first(known.topic_id, known.definition, known.log_start)
    last = known.last
    same = last is not None and last.topic_id == known.topic_id
    stored = not same and _ask(city, lambda client: queries.holds(client, city.feeds[feed], number))
    if worker is Worker.SINK:
        newest = _ask(city, lambda client: queries.newest_before(client, city.feeds[feed], number, known.log_start))
        return position_repair.store_again(known, newest, stored=stored)
    life = last.since if last is not None and same else _parts(city, known)[0]
    return position_repair.reset(known, life, stored=stored)


def _parts(city: Installation, known: Known) -> tuple[int, int]:
    feed, number = _number(known)
    return _ask(city, lambda client: queries.lives(client, city.feeds[feed], number))


def _ask(city: Installation, question: Callable[[Client], A]) -> A:
    client = city.server("operator").connect()
    try:
        return question(client)
    finally:
        client.disconnect()


def _check_stored(city: Installation, aggregates: list[str]) -> None:
    waiting = {p.topic for p in measure(city.cluster, SINK, aggregates) if p.records}
    if waiting:
        raise PositionProblem(
            f"the sink has not yet stored all parts of {', '.join(sorted(waiting))}, which say what was counted; "
            "let it catch up, then try again"
        )


def _seen_before(city: Installation, worker: Worker, known: Known) -> Callable[[int], int]:
    """The maximum of event time before an offset, as the stored rows have it: they are what late is decided by."""

    def ask(offset: int) -> int:
        feed, number = _number(known)
        if feed not in city.feeds:
            return NO_EVENT_TIME
        if worker is Worker.PROCESSOR:
            stored = {_place(sink): sink.committed or 0 for sink, _ in _standing(city, Worker.SINK, [known.topic])}
            if stored[_place(known)] < offset:
                raise PositionProblem(
                    f"{known.where}: no position is left that says how far event time had come before offset {offset}, "
                    "and the sink has not yet stored the rows before it; let it catch up, then try again"
                )
        return _ask(city, lambda client: queries.seen_before(client, city.feeds[feed], number, offset))

    return ask

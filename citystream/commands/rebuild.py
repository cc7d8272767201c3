"""citystream rebuild: windows by another definition, built beside the old ones and shown once they are complete."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated

import typer
from clickhouse_driver import Client

from citystream.installation import Installation
from citystream.progress import progress
from processors import GROUP as PROCESSOR
from schemas.catalogue import SchemaProblem, check
from schemas.feed import Aggregate, Feed
from sinks import GROUP as SINK
from sinks.migrate import shown, statements
from sinks.rebuild import Rebuild, is_behind, show
from streams import position_repair, positions, topics
from streams.generations import generations, source, source_definitions
from streams.group_positions import check_stopped, commit, standing
from streams.positions import Known, Position, PositionProblem


def add_to(app: typer.Typer) -> None:
    """Add this command to the command line."""
    app.command()(rebuild)


def rebuild(feed: Annotated[str, typer.Argument(help="The feed whose aggregates changed.")]) -> None:
    """Build the windows of a feed as they are declared now from its raw rows, and show them once they are complete.

    Until then the views show the old ones in full. The processor has to be stopped, and the sink to have stored what
    it processed. Ended in the middle, it can simply be run again.

    Example: citystream rebuild traffic_flow
    """
    city = Installation.load()
    chosen = city.choose([feed])[feed]
    if problems := check(city.catalogue, {feed: chosen}):
        raise SchemaProblem("\n".join(problems))
    client = city.server("owner").connect()
    try:
        _rebuild(city, chosen, client)
    finally:
        client.disconnect()


def _rebuild(city: Installation, feed: Feed, client: Client) -> None:
    definitions = source_definitions([feed])
    found = {_number(known): known for known, _ in standing(city.cluster, PROCESSOR, definitions)}
    last = {number: position for number, known in found.items() if (position := position_repair.rebuilt_from(known))}
    topics.create(city.cluster, topics.topics([feed]))
    for statement in statements(feed, city.dialect):
        client.execute(statement)
    now = shown(client.execute, feed)
    new = [aggregate for aggregate in feed.aggregates if now.get(aggregate.name) != aggregate.topic]
    is_changed = any(position.definition != found[number].definition for number, position in last.items())
    problems = _build(city, feed, client, found, last, now) if is_changed else []
    behind = _behind(feed, client, new, now)
    if not behind:
        _show(city, feed, client, new, now)
    for problem in problems + behind:
        typer.echo(problem, err=True)
    if problems or behind:
        raise typer.Exit(1)


def _show(city: Installation, feed: Feed, client: Client, new: Sequence[Aggregate], now: Mapping[str, str]) -> None:
    gone = now.keys() - {aggregate.name for aggregate in feed.aggregates}
    show(client, feed, gone, city.dialect)
    for aggregate in new:
        typer.echo(f"city.{aggregate.name} shows version {aggregate.version}")
    for view in sorted(now.keys() & {*gone, *(aggregate.name for aggregate in new)}):
        typer.echo(f"the topic {now[view]} and the table raw.{now[view]} are kept and no longer written")
    if not new and not gone:
        typer.echo(f"the views of {feed.name} show what is declared")


def _build(
    city: Installation,
    feed: Feed,
    client: Client,
    found: Mapping[int, Known],
    last: Mapping[int, Position],
    now: Mapping[str, str],
) -> list[str]:
    """Build what was not counted all the time, and let the processor go on; why it cannot, where it cannot."""
    counted = set.intersection(*(set(position.definition.split(".")) for position in last.values()))
    wanted = [aggregate for aggregate in feed.aggregates if feed.fingerprint(aggregate) not in counted]
    for aggregate in wanted:
        if now.get(aggregate.name) == aggregate.topic:
            raise SchemaProblem(
                f"city.{aggregate.name} shows version {aggregate.version}, which would be half-built meanwhile; "
                "raise its version"
            )
    check_stopped(city.cluster, [PROCESSOR])
    _check_stored(city, feed, last)
    work = Rebuild(client, feed, last, city.dialect)
    _build_parts(work, wanted)
    oldest = work.oldest({number: known.log_start for number, known in found.items()})
    after = {n: position_repair.rebuilt(found[n], position, oldest.get(n)) for n, position in last.items()}
    commit(city.cluster, PROCESSOR, {(found[n].topic, found[n].partition): p for n, p in after.items()})
    return [problem for n, position in after.items() if (problem := _problem(found[n], position))]


def _build_parts(work: Rebuild, wanted: Sequence[Aggregate]) -> None:
    spans = work.spans()
    rows = sum(span.rows for span in spans)
    with progress() as bars:
        for aggregate in wanted:
            building = bars.add_task(aggregate.topic, total=rows)
            work.begin(aggregate)
            for span in spans:
                work.build(aggregate, span)
                bars.advance(building, span.rows)
            work.finish(aggregate)
    for aggregate in wanted:
        typer.echo(f"{aggregate.name}: version {aggregate.version} is built of {rows:,} raw rows")


def _check_stored(city: Installation, feed: Feed, last: Mapping[int, Position]) -> None:
    records = {generation.topic: generation.records for generation in generations(feed)}
    for sink, _ in standing(city.cluster, SINK, records):
        position = last.get(_number(sink))
        if position is not None and (sink.committed or 0) < position.processed:
            raise PositionProblem(
                f"{sink.where}: rows are stored up to offset {sink.committed or 0} and were processed up to "
                f"{position.processed}; let the sink catch up with the feed as it was, then try again"
            )


def _number(known: Known) -> int:
    """The number of a partition in ClickHouse."""
    return source(known.topic, known.partition)[1]


def _behind(feed: Feed, client: Client, new: Sequence[Aggregate], now: Mapping[str, str]) -> list[str]:
    """What must not be shown yet, because the view would show less than it does."""
    return [
        f"{aggregate.topic} has not come as far as {now[aggregate.name]}, which city.{aggregate.name} goes on showing; "
        f"start both workers, and when they have caught up run again: citystream rebuild {feed.name}"
        for aggregate in new
        if aggregate.name in now and is_behind(client, now[aggregate.name], aggregate.topic)
    ]


def _problem(known: Known, position: Position) -> str | None:
    """Why the worker cannot go on from a position."""
    try:
        positions.resume(replace(known, committed=position.processed, metadata=position.metadata()))
    except PositionProblem as problem:
        return str(problem)
    return None

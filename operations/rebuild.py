"""Rebuilding: windows by another definition, built beside the old ones and shown once they are complete.

Until then the views show the old ones in full. Ended in the middle, it can simply be done again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from clickhouse_driver import Client

from operations.positions import positions_of, rebuilt, rebuilt_from
from operations.progress import OnProgress, unheard
from processors import GROUP as PROCESSOR
from schemas.catalogue import Catalogue, SchemaProblem, check
from schemas.feed import Aggregate, Feed
from sinks import GROUP as SINK
from sinks.dialect import Dialect
from sinks.migrate import statements
from sinks.rebuild import Rebuild, is_behind
from sinks.shown import hide, show, shown
from sinks.tables import late_column
from streams import topics
from streams.cluster import Cluster
from streams.positions import Position, PositionProblem


@dataclass
class Rebuilt:
    """What was done.

    So many raw ``rows`` were taken for each of the aggregates ``built``; the views of those in ``shows`` show what is
    declared from now on. The topics, and tables, ``kept`` are no longer written. ``problems`` say what is left to do.
    """

    rows: int = 0
    built: Sequence[Aggregate] = ()
    shows: Sequence[Aggregate] = ()
    kept: Sequence[str] = ()
    problems: list[str] = field(default_factory=list)


def rebuild(
    cluster: Cluster,
    client: Client,
    catalogue: Catalogue,
    feed: Feed,
    dialect: Dialect,
    on_progress: OnProgress = unheard,
) -> Rebuilt:
    """Build the windows of a feed as they are declared now, as the ClickHouse user ``owner``, and let its views show
    them.

    ``on_progress`` hears of each aggregate how many rows it was built of, and of how many positions are set.

    Raises
    ------
    SchemaProblem
        The feed is not frozen as declared, or a view would show windows half-built.
    PositionProblem
        The processor runs, the sink has not stored what it processed, or a position cannot be gone on from.
    """
    if problems := check(catalogue, {feed.name: feed}):
        raise SchemaProblem("\n".join(problems))
    processor = positions_of(cluster, PROCESSOR, [feed])
    found = processor.by_number()
    last = {number: position for number, one in found.items() if (position := rebuilt_from(one))}
    topics.create(cluster, topics.topics([feed]))
    for statement in statements(feed, dialect):
        client.execute(statement)
    now, done = shown(client.execute, feed), Rebuilt()
    if any(position.definition != found[number].definition for number, position in last.items()):
        counted = set.intersection(*(set(position.definition.split(".")) for position in last.values()))
        done.built = [aggregate for aggregate in feed.aggregates if feed.fingerprint(aggregate) not in counted]
        if shows := next((one for one in done.built if now.get(one.name) == one.topic), None):
            raise SchemaProblem(
                f"city.{shows.name} shows version {shows.version}, which would be half-built meanwhile; "
                "raise its version"
            )
        processor.check_stopped()
        _check_stored(cluster, feed, last)
        work = Rebuild(client, feed, last, dialect)
        done.rows = _build(work, done.built, on_progress)
        oldest = work.oldest({number: one.log_start for number, one in found.items()})
        after = {n: rebuilt(found[n], position, oldest.get(n)) for n, position in last.items()}
        on_progress("positions", 0, len(after))
        processor.write({found[n].place: p for n, p in after.items()})
        on_progress("positions", len(after), len(after))
        done.problems += [problem for n, position in after.items() if (problem := found[n].set_to(position).why_not())]
    new = [aggregate for aggregate in feed.aggregates if now.get(aggregate.name) != aggregate.topic]
    behind = [
        f"{aggregate.topic} has not come as far as {now[aggregate.name]}, which city.{aggregate.name} goes on showing; "
        f"start both workers, and when they have caught up run again: citystream rebuild {feed.name}"
        for aggregate in new
        if aggregate.name in now and is_behind(client, now[aggregate.name], aggregate.topic)
    ]
    done.problems += behind
    if not behind:
        gone = now.keys() - {aggregate.name for aggregate in feed.aggregates}
        for aggregate in feed.aggregates:
            show(client.execute, feed, aggregate, dialect)
        for name in gone:
            hide(client.execute, feed, name, dialect)
        client.execute(f"ALTER TABLE raw.{feed.name} MODIFY COLUMN {late_column(feed)}")
        done.shows, done.kept = new, sorted(now[name] for name in now.keys() & {*gone, *(one.name for one in new)})
    return done


def _check_stored(cluster: Cluster, feed: Feed, last: Mapping[int, Position]) -> None:
    sinks = positions_of(cluster, SINK, [feed]).by_number()
    for number, position in last.items():
        sink = sinks[number]
        if (sink.committed or 0) < position.processed:
            raise PositionProblem(
                f"{sink.where}: rows are stored up to offset {sink.committed or 0} and were processed up to "
                f"{position.processed}; let the sink catch up with the feed as it was, then try again"
            )


def _build(work: Rebuild, wanted: Sequence[Aggregate], on_progress: OnProgress) -> int:
    """Build the parts of these aggregates; of how many rows."""
    spans = work.spans()
    rows = sum(span.rows for span in spans)
    for aggregate in wanted:
        done = 0
        on_progress(aggregate.topic, done, rows)
        work.begin(aggregate)
        for span in spans:
            work.build(aggregate, span)
            done += span.rows
            on_progress(aggregate.topic, done, rows)
        work.finish(aggregate)
    return rows

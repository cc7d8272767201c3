"""What analysts query: ``city.<feed>`` and ``city.<aggregate>``, repeats and superseded revisions already gone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta

from schemas.expressions import written
from schemas.feed import Aggregate, Feed, RollUp, Spans, milliseconds
from schemas.model import Field
from schemas.sql import literal
from sinks.dialect import Dialect
from sinks.sql import ToSql, behind_ms, counted, is_late, merged, read, window_start_ms
from sinks.tables import (
    BYTES,
    MASKED,
    QUARANTINE,
    TableColumn,
    feed_columns,
    field_columns,
    instant,
    key_columns,
    quarantine_columns,
    source_columns,
)
from streams.feed_topics import FeedTopic, feed_topics
from streams.watermark import closes_at

#: Lets a view read ``raw`` for a reader who may not.
SECURITY = "DEFINER = owner SQL SECURITY DEFINER"

#: A view fixes what its numbers depend on: a query may change any setting in a subquery of its own, whoever asks.
FIXED = "SETTINGS " + ", ".join(
    [
        "do_not_merge_across_partitions_select_final = 0",
        # Late rows are found by a skip index under FINAL, which is right in this mode only.
        "use_skip_indexes_if_final_exact_mode = 1",
        *(f"{kind}_overflow_mode = 'throw'" for kind in ("group_by", "join", "set", "distinct", "sort", "read")),
    ]
)

#: All of a query sees a table as at one moment.
ONE_MOMENT = "enable_shared_storage_snapshot_in_query = 1"

#: Raw rows that conflicts are looked for in, by arrival: all of them would take too much memory.
CONFLICTS_SHOWN = timedelta(days=1)
#: Bytes that looking for conflicts takes before it goes on from disk.
CONFLICTS_BYTES = 500_000_000


def view_columns(feed: Feed, timezone: str) -> list[TableColumn]:
    """Columns of a feed's view: its fields, and where in the log a record lies."""
    shown = ("source_partition", "source_offset", "arrived_at")
    of_log = [column for column in source_columns(timezone) if column.name in shown]
    return [c for field in feed.fields for c in _shown(field, timezone)] + of_log


def _shown(field: Field, timezone: str) -> list[TableColumn]:
    """Columns of a field as analysts see them."""
    columns = field_columns(field, timezone)
    if field.decimals is None:
        return columns
    return [replace(c, comment=f"{c.comment}, to {field.decimals} decimals") for c in columns]


def aggregate_view_columns(
    feed: Feed, aggregate: Aggregate, timezone: str, rollup: RollUp | None = None
) -> list[TableColumn]:
    """Columns of an aggregate's view, or of one of its roll-ups."""
    span = f"the window of {aggregate.window}" if rollup is None else f"the {rollup.to}"
    share = "Share that arrived of the records there should be"
    return [
        instant("window_start", f"Start of {span}", timezone),
        *key_columns(feed, aggregate),
        TableColumn("events", "Int64", "Events counted, repeats left out"),
        *(
            TableColumn(r.name, "Nullable(Float64)", f"{r.description} [{r.unit}]")
            for measure in aggregate.measures
            for r in measure.results
        ),
        *([] if rollup is None else [TableColumn("capture", "Float64", f"{share} [1]")]),
        TableColumn("final", "Bool", "No event in time can change the window any more"),
        instant("as_of", "Event time up to which the numbers are complete", timezone),
    ]


def conflict_view_columns(feed: Feed, timezone: str) -> list[TableColumn]:
    """Columns of the view of a feed's conflicts."""
    shown = ("event_id", feed.key, feed.event_time, "source_partition", "source_offset", "arrived_at")
    columns = {column.name: column for column in feed_columns(feed, timezone)}
    return [columns[name] for name in shown]


def conflict_view(feed: Feed, dialect: Dialect) -> str:
    """Statement creating the view of a feed's conflicts: events that share an event id and are not the same event.

    It groups the raw rows by event id, in a few bytes for each: 64 bits of a hash stand for key and event time.
    """
    columns = conflict_view_columns(feed, dialect.timezone)
    recent = f"arrived_at > now() - INTERVAL {CONFLICTS_SHOWN // timedelta(hours=1)} HOUR"
    identity = f"cityHash64({feed.key}, {feed.event_time})"
    select = (
        f"SELECT {_names(columns)} FROM raw.{feed.name} WHERE {recent} AND event_id IN (SELECT event_id FROM "
        f"raw.{feed.name} WHERE {recent} GROUP BY event_id HAVING min({identity}) != max({identity}) "
        f"SETTINGS max_bytes_before_external_group_by = {CONFLICTS_BYTES}) "
        f"ORDER BY event_id, {feed.key}, {feed.event_time}, source_offset, source_partition "
        f"LIMIT 1 BY event_id, {feed.key}, {feed.event_time}"
    )
    about = (
        f"Events of the last {CONFLICTS_SHOWN // timedelta(hours=1)} hours, by arrival, that share an event_id under "
        f"different {feed.key} or {feed.event_time}; each of them counts"
    )
    return view(dialect, f"city.{feed.name}_conflicts", columns, about, select)


def feed_view(feed: Feed, dialect: Dialect) -> str:
    """Statement creating a feed's view."""
    columns, values = view_columns(feed, dialect.timezone), _values(feed, dialect)
    return view(dialect, f"city.{feed.name}", columns, feed.description, f"SELECT {values} FROM raw.{feed.name} FINAL")


def latest_views(feed: Feed, dialect: Dialect) -> list[str]:
    """Statements creating the views of a feed's newest states, if it has them: now, at any time ``t``, and active.

    Which time is the newest of an entity is asked first, of two columns; then only rows of these times are read. Of
    those, repeats are told as ``FINAL`` tells them, which would read all. Both see the table as at one moment.
    """
    by, time, table = feed.latest_by, feed.event_time, f"raw.{feed.name}"
    if by is None:
        return []
    columns, values = view_columns(feed, dialect.timezone), _values(feed, dialect)
    moment = f"{{t:DateTime64(3, {literal(dialect.timezone)})}}"
    views = [("now", "", ""), ("at", f"WHERE {time} <= {moment} ", " up to t, as is known today")]
    statements = [
        view(
            dialect,
            f"city.{feed.name}_{ending}",
            columns,
            f"{feed.description}; the newest of each {by}{about}",
            f"SELECT {values} FROM {table} WHERE ({by}, {time}) IN "
            f"(SELECT {by}, max({time}) FROM {table} {until}GROUP BY {by}) "
            f"ORDER BY {by}, toUInt128(event_id) DESC, {feed.key} DESC, version DESC LIMIT 1 BY {by}",
            f"{FIXED}, {ONE_MOMENT}",
        )
        for ending, until, about in views
    ]
    if (active := feed.latest_active) is not None:
        about = f"{feed.description}; the newest of each {by} that is active: {written(active)}"
        select = f"SELECT {_names(columns)} FROM city.{feed.name}_now WHERE {ToSql(feed).expression(active)}"
        statements.append(view(dialect, f"city.{feed.name}_active", columns, about, select))
    return statements


def span_columns(feed: Feed, spans: Spans, timezone: str) -> list[TableColumn]:
    """Columns of a feed's view of spans."""
    (state,) = field_columns(feed.field(spans.of), timezone)
    return [
        *view_columns(feed, timezone),
        TableColumn("before", f"Nullable({state.type})", f"The {spans.of} before; null where none is known"),
        instant("began", "When it began; since, if it held then", timezone),
        instant("ended", f"When the next {spans.of} began; null while this one lasts", timezone, nullable=True),
        TableColumn("duration", "Nullable(Float64)", "How long it lasted from began on; null while it does [s]"),
    ]


def span_views(feed: Feed, dialect: Dialect) -> list[str]:
    """The statement creating the view of a feed's spans, if it has them.

    The states that held at the beginning are found as in ``latest_views``.
    """
    if feed.spans is None:
        return []
    state, by, time, table = feed.spans.of, feed.spans.by or feed.key, feed.event_time, f"raw.{feed.name}"
    columns, values = span_columns(feed, feed.spans, dialect.timezone), _values(feed, dialect)
    since, until = (f"{{{name}:DateTime64(3, {literal(dialect.timezone)})}}" for name in ("since", "until"))
    held = (
        f"SELECT {values} FROM {table} WHERE ({by}, {time}) IN "
        f"(SELECT {by}, max({time}) FROM {table} WHERE {time} < {since} GROUP BY {by}) "
        f"ORDER BY {by}, toUInt128(event_id) DESC, {feed.key} DESC, version DESC LIMIT 1 BY {by}"
    )
    events = f"{held} UNION ALL SELECT {values} FROM {table} FINAL WHERE {time} >= {since} AND {time} < {until}"
    whole = "ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING"
    in_order = f"(PARTITION BY {by} ORDER BY {time}, toUInt128(event_id), {feed.key} {whole})"
    changes = (
        f"SELECT *, lagInFrame(toNullable({state})) OVER {in_order} AS before FROM ({events}) "
        f"QUALIFY ifNull(before != {state}, true)"
    )
    select = (
        f"SELECT *, greatest({time}, {since}) AS began, leadInFrame(toNullable({time})) OVER {in_order} AS ended, "
        f"(toUnixTimestamp64Milli(ended) - toUnixTimestamp64Milli(began)) / 1000 AS duration FROM ({changes}) "
        f"QUALIFY ifNull(ended > {since}, true)"
    )
    return [
        view(
            dialect,
            f"city.{feed.name}_spans",
            columns,
            f"{feed.description}; from when to when each {by} was in each {state}, from since to until",
            select,
            f"{FIXED}, {ONE_MOMENT}",
        )
    ]


def _values(feed: Feed, dialect: Dialect) -> str:
    """What a feed's view shows of a raw row."""
    columns = view_columns(feed, dialect.timezone)
    coarse = {
        column.name: f"round({column.name}, {field.decimals}) AS {column.name}"
        for field in feed.fields
        if field.decimals is not None
        for column in field_columns(field, dialect.timezone)
    }
    return ", ".join(coarse.get(column.name, column.name) for column in columns)


def masked_view(feeds: Iterable[Feed], dialect: Dialect) -> str:
    """Statement creating the quarantine as the operator sees it: no bytes but those of feeds without personal fields.

    Whatever was sent to a feed with personal fields, or to the topic of dead letters itself, may name a person.
    """
    columns = quarantine_columns(dialect.timezone)
    open_to_all = [feed.name for feed in feeds if not any(field.personal for field in feed.fields)]
    is_open = f"has([{', '.join(map(literal, open_to_all))}]::Array(String), topic)"
    names = [c.name if c.name not in BYTES else f"if({is_open}, {c.name}, NULL) AS {c.name}" for c in columns]
    return view(
        dialect, MASKED, columns, "The quarantine, without bytes that may name a person",
        f"SELECT {', '.join(names)} FROM {QUARANTINE} FINAL",
    )  # fmt: skip


def aggregate_view(feed: Feed, aggregate: Aggregate, dialect: Dialect, rollup: RollUp | None = None) -> str:
    """Statement creating an aggregate's view, or that of one of its roll-ups, which merges its windows once more.

    A window is the merge of its parts: what each partition counted in time, and what came too late for that, counted
    from the raw rows. A row is late by the same predicate that kept it out of the stream's part, so it is in one of
    the two, whenever it arrives. How far it was behind has an index, so few rows are read when few are late.

    A query sees each table as it was when the query came to it, from left to right. So progress stands to the left of
    the parts: what it says is stored is there to be read.
    """
    columns = aggregate_view_columns(feed, aggregate, dialect.timezone, rollup)
    partials = [p for measure in aggregate.measures for p in measure.partials]
    names = ["events", *(p.name for p in partials)]
    keys = ", ".join(aggregate.by)
    late_parts = (
        f"SELECT {keys}, fromUnixTimestamp64Milli({window_start_ms(feed, aggregate)}, {literal(dialect.timezone)}) "
        "AS window_start, source_partition"
        + "".join(f", {value} AS {name}" for name, value in zip(names, counted(feed, aggregate), strict=True))
        + f" FROM raw.{feed.name} FINAL "
        f"WHERE {behind_ms(feed)} > {milliseconds(feed.lateness + feed.disorder)} AND {is_late(feed, aggregate)} "
        f"GROUP BY {keys}, window_start, source_partition"
    )
    stream_parts = (
        f"SELECT {keys}, window_start, source_partition, events"
        + "".join(f", {read(p)} AS {p.name}" for p in partials)
        + f" FROM raw.{aggregate.topic} FINAL"
    )
    windows = (
        f"SELECT {keys}, window_start, sum(events) AS events"
        + "".join(f", {merged(p)} AS {p.name}" for p in partials)
        + f", groupUniqArray(source_partition) AS partitions FROM ({stream_parts} UNION ALL {late_parts}) "
        # One without events lost them with a publication that was withdrawn.
        f"GROUP BY {keys}, window_start HAVING events > 0"
    )
    progress = (
        "SELECT mapFromArrays(groupArray(source_partition), groupArray(watermark)) AS progress "
        "FROM (SELECT source_partition, max(p.watermark) AS watermark FROM raw.progress AS p "
        f"WHERE aggregate = {literal(aggregate.topic)} GROUP BY source_partition)"
    )
    start, closes, capture = "window_start", f"toUnixTimestamp64Milli(window_start) + {closes_at(feed, aggregate)}", ""
    if rollup is not None:
        end = span_end_ms(rollup)
        windows = (
            f"SELECT {keys}, {span_start(rollup, dialect)} AS span_start, sum(fine.events) AS events"
            + "".join(f", {merged(p)} AS {p.name}" for p in partials)
            + ", groupUniqArrayArray(fine.partitions) AS partitions, "
            f"sum(least(fine.events, {aggregate.expected})) AS _arrived FROM ({windows}) AS fine "
            f"GROUP BY {keys}, span_start"
        )
        expected = f"intDiv({end} - toUnixTimestamp64Milli(span_start), {milliseconds(aggregate.window)})"
        capture = f", _arrived / ({aggregate.expected} * {expected}) AS capture"
        start, closes = "span_start AS window_start", f"{end} + {milliseconds(feed.lateness + feed.disorder)}"
    to_sql, least = ToSql(feed), 0 if rollup is None else rollup.capture
    results = [(r.name, to_sql.expression(r.value)) for measure in aggregate.measures for r in measure.results]
    select = (
        f"WITH {_seen(feed, aggregate)} AS seen SELECT {start}, {keys}, events"
        + "".join(
            f", {f'if(capture >= {least}, {value}, NULL)' if least else value} AS {name}" for name, value in results
        )
        + f"{capture}, CAST({closes} <= seen AS Bool) AS final"
        + f", fromUnixTimestamp64Milli(seen - {milliseconds(feed.disorder)}, {literal(dialect.timezone)}) AS as_of"
        + f" FROM ({progress}) AS progressed CROSS JOIN ({windows}) AS windows"
    )
    if rollup is None:
        return view(dialect, f"city.{aggregate.name}", columns, aggregate.description, select)
    return view(dialect, f"city.{rollup.name}", columns, f"{aggregate.description}, by {rollup.to}", select)


def span_start(rollup: RollUp, dialect: Dialect) -> str:
    """Where the hour or the day begins, in the city's time zone, that a window lies in."""
    zone = literal(dialect.timezone)
    return f"toDateTime64(toStartOf{rollup.to.title()}(window_start, {zone}), 3, {zone})"


def span_end_ms(rollup: RollUp) -> str:
    """Where it ends; a day may have 23 or 25 hours."""
    return f"toUnixTimestamp64Milli(add{rollup.to.title()}s(span_start, 1))"


def _seen(feed: Feed, aggregate: Aggregate) -> str:
    """The maximum of event time that every partition which may add to a window has come to, as SQL.

    An outgrown topic speaks for itself until it is settled; from then on the next one does.
    """
    *outgrown, present = feed_topics(feed).values()
    seen = _come_to(aggregate, present)
    for topic in reversed(outgrown):
        end, own = topic.beyond, _come_to(aggregate, topic)
        seen = f"if({own} < {end}, {own}, greatest(toInt64({end}), {seen}))"
    return seen


def _come_to(aggregate: Aggregate, topic: FeedTopic) -> str:
    """The same for one topic: the partitions that hold the window's group, if it is known, or else all."""
    numbers = f"range(toUInt16({topic.first}), toUInt16({topic.end}))"
    if topic.feed.key in aggregate.by:
        own = f"arrayIntersect(partitions, {numbers})"
        numbers = f"if(empty({own}), {numbers}, {own})"
    return f"arrayMin(number -> progress[number], {numbers})"


def view(
    dialect: Dialect,
    name: str,
    columns: list[TableColumn],
    description: str,
    select: str,
    settings: str = FIXED,
    security: str = SECURITY,
) -> str:
    """Statement creating a view, which reads ``raw`` for whoever may ask it."""
    body = ", ".join(f"{c.name} {c.type} COMMENT {literal(c.comment)}" for c in columns)
    return (
        f"CREATE OR REPLACE VIEW {name}{dialect.everywhere} ({body}) {security} AS {select} {settings} "
        f"COMMENT {literal(description)}"
    )


def _names(columns: list[TableColumn]) -> str:
    return ", ".join(c.name for c in columns)

"""The same work in ClickHouse's own Kafka engine: AvroConfluent, materialized views, nothing of ours.

It neither validates nor drops repeats nor decides what is late.
"""

from __future__ import annotations

import time
from typing import Any

from kafka import OffsetAndMetadata, TopicPartition

from bench.process import Timing, cpu_seconds, rss_mb
from schemas.feed import Aggregate, Feed
from schemas.measures import Partial
from schemas.model import Field
from sinks.sql import ToSql, window_start_ms
from streams.clients import new_consumer
from streams.cluster import Cluster

SOURCE = "source_partition UInt64, source_offset UInt64, arrived_at Nullable(DateTime64(3))"
PLACE = "Tuple(longitude Nullable(Float64), latitude Nullable(Float64))"

_TYPES = {
    "string": "String",
    "enum": "String",
    "uuid": "String",
    "int": "Int32",
    "float": "Float64",
    "bool": "Bool",
    "date": "Date32",
    "instant": "DateTime64(3, 'UTC')",
}


def run(owner: Any, pid: int, cluster: Cluster, registry: str, feed: Feed, events: int, *, raw_rows: bool) -> Timing:
    """Let the engine work off the topic of a feed; times from attaching the views to the last row counted."""
    clear(owner)
    began, cpu = time.monotonic(), cpu_seconds(pid)
    attach(owner, cluster, registry, feed, f"engine-{time.time_ns()}", raw_rows=raw_rows)
    counted = [f"SELECT sum(events) FROM raw.{feed.aggregates[-1].name}"]
    counted += [f"SELECT count() FROM raw.{feed.name}"] if raw_rows else []
    while any(owner.execute(query)[0][0] < events for query in counted):
        time.sleep(0.05)
    timing = Timing(began, time.monotonic(), cpu_seconds(pid) - cpu, rss_mb(pid))
    owner.execute("DROP DATABASE raw SYNC")
    return timing


def clear(owner: Any) -> None:
    """Make room for its tables: all of ours go."""
    for database in ("city", "raw"):
        owner.execute(f"DROP DATABASE IF EXISTS {database} SYNC")
    owner.execute("CREATE DATABASE raw")


def from_now_on(cluster: Cluster, feed: Feed, group: str) -> None:
    """Let a group begin at the end of a feed's topic; the engine begins at its start."""
    consumer = new_consumer(cluster, group_id=group)
    try:
        partitions = [TopicPartition(feed.name, number) for number in range(feed.partitions)]
        consumer.assign(partitions)
        consumer.commit({tp: OffsetAndMetadata(end, "", -1) for tp, end in consumer.end_offsets(partitions).items()})
    finally:
        consumer.close()


def attach(owner: Any, cluster: Cluster, registry: str, feed: Feed, group: str, *, raw_rows: bool = True) -> None:
    """Create a feed's queue, the tables of its windows and its rows, and the views that fill them."""
    columns = ", ".join(f"{field.name} {_type(field)}" for field in feed.fields)
    owner.execute(
        f"CREATE TABLE raw.{feed.name}_queue ({columns}) ENGINE = Kafka SETTINGS kafka_broker_list = '{cluster}', "
        f"kafka_topic_list = '{feed.name}', kafka_group_name = '{group}', kafka_format = 'AvroConfluent', "
        f"format_avro_schema_registry_url = '{registry}', kafka_flush_interval_ms = 1000, "
        "kafka_handle_error_mode = 'stream', input_format_avro_allow_missing_fields = 1"
    )
    for aggregate in feed.aggregates:
        _attach_windows(owner, feed, aggregate)
    if raw_rows:
        owner.execute(
            f"CREATE TABLE raw.{feed.name} ({columns}, {SOURCE}) ENGINE = ReplacingMergeTree "
            f"ORDER BY ({feed.key}, {feed.event_time}, event_id)"
        )
        owner.execute(
            f"CREATE MATERIALIZED VIEW raw.{feed.name}_rows TO raw.{feed.name} AS SELECT {_names(feed)}, "
            "_partition AS source_partition, _offset AS source_offset, _timestamp_ms AS arrived_at "
            f"FROM raw.{feed.name}_queue WHERE empty(_error)"
        )


def _attach_windows(owner: Any, feed: Feed, aggregate: Aggregate) -> None:
    partials = [p for measure in aggregate.measures for p in measure.partials]
    by, to_sql = ", ".join(aggregate.by), ToSql(feed)
    columns = [*(f"{name} String" for name in aggregate.by), "w Int64", "events SimpleAggregateFunction(sum, Int64)"]
    columns += [f"{partial.name} SimpleAggregateFunction({_merged(partial)})" for partial in partials]
    owner.execute(
        f"CREATE TABLE raw.{aggregate.name} ({', '.join(columns)}) ENGINE = AggregatingMergeTree ORDER BY ({by}, w)"
    )
    values = "".join(f", {_partial(to_sql, partial)} AS {partial.name}" for partial in partials)
    owner.execute(
        f"CREATE MATERIALIZED VIEW raw.{aggregate.name}_filled TO raw.{aggregate.name} AS SELECT {by}, "
        f"{window_start_ms(feed, aggregate)} AS w, toInt64(count()) AS events{values} "
        f"FROM raw.{feed.name}_queue WHERE empty(_error) GROUP BY {by}, w"
    )


def _merged(partial: Partial) -> str:
    match partial.merge:
        case "histogram":
            return "sumMap, Tuple(Array(Int32), Array(Int64))"
        case "sum":
            return "sum, Int64"
    return f"{partial.merge}, Nullable(Int64)"


def _partial(to_sql: ToSql, partial: Partial) -> str:
    """As ours, but for sums of 64 bits."""
    if partial.merge == "sum":
        return f"sum(toInt64(ifNull({to_sql.expression(partial.value)}, 0)))"
    return to_sql.partial(partial)


def _type(field: Field) -> str:
    if field.kind == "place":
        return PLACE
    return f"Nullable({_TYPES[field.kind]})" if field.nullable else _TYPES[field.kind]


def _names(feed: Feed) -> str:
    return ", ".join(field.name for field in feed.fields)

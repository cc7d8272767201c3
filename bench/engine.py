"""The same work in ClickHouse's own Kafka engine: AvroConfluent, materialized views, nothing of ours.

It neither validates nor drops repeats nor decides what is late.
"""

from __future__ import annotations

import time
from typing import Any

from bench.process import FEED, Timing, cpu_seconds, rss_mb

COLUMNS = (
    "event_id String, segment_id String, lane Int32, district String, intensity Int32, occupancy Nullable(Float64), "
    "average_vehicle_speed Nullable(Float64), free_flow_speed Nullable(Float64), congested Nullable(Bool), "
    "date_observed_from Int64, date_observed_to Int64, "
    "place Tuple(longitude Nullable(Float64), latitude Nullable(Float64))"
)
SOURCE = "source_partition UInt64, source_offset UInt64, arrived_at Nullable(DateTime64(3))"
SUMS = (
    "count() AS events, sum(intensity) AS vehicles_sum, "
    "sum(ifNull(toInt64(floor(average_vehicle_speed * intensity * 100 + 0.5)), 0)) AS speed_over, "
    "sumIf(intensity * 100, average_vehicle_speed IS NOT NULL) AS speed_under, "
    "sum(ifNull(toInt64(floor(free_flow_speed * intensity * 100 + 0.5)), 0)) AS delay_over"
)


def run(owner: Any, pid: int, bootstrap: str, registry: str, events: int, *, raw_rows: bool) -> Timing:
    """Let the engine work off the topic; times from attaching the views to the last row counted."""
    owner.execute("DROP DATABASE IF EXISTS raw SYNC")
    owner.execute("CREATE DATABASE raw")
    owner.execute(
        f"CREATE TABLE raw.queue ({COLUMNS}) ENGINE = Kafka SETTINGS kafka_broker_list = '{bootstrap}', "
        f"kafka_topic_list = '{FEED}', kafka_group_name = 'engine-{time.time_ns()}', kafka_format = 'AvroConfluent', "
        f"format_avro_schema_registry_url = '{registry}', kafka_flush_interval_ms = 1000, "
        "input_format_avro_allow_missing_fields = 1"
    )
    began, cpu = time.monotonic(), cpu_seconds(pid)
    for name, seconds, by in _windows():
        owner.execute(
            f"CREATE TABLE raw.{name} ({by} String, w Int64, events Int64, vehicles_sum Int64, speed_over Int64, "
            f"speed_under Int64, delay_over Int64) ENGINE = SummingMergeTree ORDER BY ({by}, w)"
        )
        owner.execute(
            f"CREATE MATERIALIZED VIEW raw.{name}_mv TO raw.{name} AS SELECT {by}, "
            f"date_observed_to - date_observed_to % {seconds * 1000} AS w, {SUMS} FROM raw.queue GROUP BY {by}, w"
        )
    if raw_rows:
        owner.execute(
            f"CREATE TABLE raw.rows ({COLUMNS}, {SOURCE}) ENGINE = ReplacingMergeTree "
            "ORDER BY (segment_id, date_observed_to, event_id)"
        )
        owner.execute(
            "CREATE MATERIALIZED VIEW raw.rows_mv TO raw.rows AS SELECT *, _partition AS source_partition, "
            "_offset AS source_offset, _timestamp_ms AS arrived_at FROM raw.queue"
        )
    counted = ["SELECT sum(events) FROM raw.windows_15m_district"] + (
        ["SELECT count() FROM raw.rows"] if raw_rows else []
    )
    while any(owner.execute(query)[0][0] < events for query in counted):
        time.sleep(0.05)
    timing = Timing(began, time.monotonic(), cpu_seconds(pid) - cpu, rss_mb(pid))
    owner.execute("DROP DATABASE raw SYNC")
    return timing


def _windows() -> list[tuple[str, int, str]]:
    return [
        ("windows_1m", 60, "segment_id"),
        ("windows_1m_district", 60, "district"),
        ("windows_15m", 900, "segment_id"),
        ("windows_15m_district", 900, "district"),
    ]

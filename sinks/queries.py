"""Questions that screens ask of ClickHouse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from clickhouse_driver import Client

from schemas.feed import Aggregate, Feed
from sinks.tables import MASKED
from streams.positions import NO_EVENT_TIME
from streams.watermark import ASIDE

#: Whether a quarantined record was published again.
_REDRIVEN = (
    "if((topic, source_partition, source_offset) IN "
    "(SELECT topic, source_partition, source_offset FROM raw.redriven), 'yes', 'no')"
)


def named_rows(client: Client, query: str, parameters: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """What a query finds, each row by the names of its columns."""
    rows, columns = client.execute(query, dict(parameters or {}), with_column_types=True)
    return [dict(zip((name for name, _ in columns), row, strict=True)) for row in rows]


def newest_arrival_ms(client: Client, feed: Feed) -> int | None:
    """When the newest stored record of a feed reached the broker, or None if nothing is stored."""
    ((newest, rows),) = client.execute(f"SELECT toUnixTimestamp64Milli(max(arrived_at)), count() FROM raw.{feed.name}")
    return int(newest) if rows else None


def newest_event_ms(client: Client, feed: Feed) -> int | None:
    """The newest event time stored of a feed, or None if nothing is stored."""
    ((newest, rows),) = client.execute(
        f"SELECT toUnixTimestamp64Milli(max({feed.event_time})), count() FROM raw.{feed.name}"
    )
    return int(newest) if rows else None


def lives(client: Client, feed: Feed, partition: int) -> tuple[int, int]:
    """The last life of a partition that wrote parts, and the offset behind the last one counted into any part."""
    parts = " UNION ALL ".join(
        f"SELECT since, version FROM raw.{aggregate.topic} WHERE source_partition = %(partition)s"
        for aggregate in feed.aggregates
    )
    if not parts:
        return 0, 0
    ((life, counted, rows),) = client.execute(
        f"SELECT max(since), max(intDiv(version, 2)) + 1, count() FROM ({parts})", {"partition": partition}
    )
    return (int(life), int(counted)) if rows else (0, 0)


def holds(client: Client, feed: Feed, partition: int) -> bool:
    """Whether rows or parts of a partition are stored."""
    ((rows,),) = client.execute(
        f"SELECT count() FROM raw.{feed.name} WHERE source_partition = %(partition)s", {"partition": partition}
    )
    return rows > 0 or lives(client, feed, partition) != (0, 0)


def _reached(feed: Feed) -> str:
    """SQL of the maximum of event time (ms) behind some rows; of ticks, those count that came before the last row."""
    return f"greatest(max(toUnixTimestamp64Milli({feed.event_time})), max(seen_before))"


def seen_before(client: Client, feed: Feed, partition: int, offset: int) -> int:
    """The maximum of event time (ms) in a partition before an offset up to which its rows are stored."""
    ((after, seen, newest, rows),) = client.execute(
        "SELECT countIf(source_offset >= %(offset)s), minIf(seen_before, source_offset >= %(offset)s), "
        f"{_reached(feed)}, count() FROM raw.{feed.name} "
        f"WHERE source_partition = %(partition)s AND seen_before < {ASIDE}",
        {"partition": partition, "offset": offset},
    )
    if not rows:
        return NO_EVENT_TIME
    return int(seen if after else newest)


def newest_before(client: Client, feed: Feed, partition: int, offset: int) -> int:
    """The maximum of event time (ms) in a partition before an offset, as far as rows before it are stored."""
    ((newest, rows),) = client.execute(
        f"SELECT {_reached(feed)}, count() FROM raw.{feed.name} "
        f"WHERE source_partition = %(partition)s AND source_offset < %(offset)s AND seen_before < {ASIDE}",
        {"partition": partition, "offset": offset},
    )
    return int(newest) if rows else NO_EVENT_TIME


def quarantined(client: Client) -> dict[str, int]:
    """Quarantined records by topic."""
    return dict(client.execute("SELECT topic, count() FROM raw.quarantine FINAL GROUP BY topic"))


def newly_quarantined(client: Client, minutes: int) -> dict[str, tuple[int, str]]:
    """By topic, how many records became dead letters in the last minutes, and the cause of the newest."""
    found = client.execute(
        "SELECT topic, sum(last_offset - source_offset + 1), argMax(cause, (arrived_at, source_offset)) "
        "FROM raw.quarantine FINAL WHERE arrived_at > now() - INTERVAL %(minutes)s MINUTE "
        "GROUP BY topic ORDER BY topic",
        {"minutes": minutes},
    )
    return {topic: (records, cause) for topic, records, cause in found}


def withdrawn(client: Client) -> dict[str, str]:
    """Who withdrew which publications."""
    return dict(client.execute("SELECT publication, any(withdrawn_by) FROM raw.withdrawn GROUP BY publication"))


def catalogue(client: Client) -> list[dict[str, Any]]:
    """What is declared of each feed and table, and its state by what arrived."""
    return named_rows(client, "SELECT * FROM city.catalogue ORDER BY batch, department, name")


def batches(client: Client) -> list[dict[str, Any]]:
    """How far each batch is connected."""
    return named_rows(client, "SELECT * FROM city.catalogue_batches ORDER BY batch")


def newest_windows(client: Client, aggregate: Aggregate, limit: int) -> list[dict[str, Any]]:
    """The newest windows of the last hour as the aggregate's view shows them."""
    return named_rows(
        client,
        f"SELECT * FROM city.{aggregate.name} WHERE window_start > now() - INTERVAL 1 HOUR "
        f"ORDER BY window_start DESC, events DESC LIMIT {limit:d}",
    )


def quarantine(client: Client, topics: Sequence[str], limit: int) -> list[dict[str, Any]]:
    """The newest quarantined records of these topics, or of all, without their bytes."""
    return named_rows(
        client,
        "SELECT published_at, topic, source_partition AS partition, source_offset AS offset, last_offset, stage, "
        f"cause, {_REDRIVEN} AS redriven "
        "FROM raw.quarantine FINAL WHERE empty(%(topics)s) OR has(%(topics)s, topic) "
        "ORDER BY published_at DESC, topic, partition, offset DESC LIMIT %(limit)s",
        {"topics": list(topics), "limit": limit},
    )


def quarantined_record(client: Client, topic: str, partition: int, offset: int) -> dict[str, Any] | None:
    """One quarantined record with its bytes (hexadecimal) if the operator may see them, or None."""
    found = named_rows(
        client,
        "SELECT topic, source_partition AS partition, source_offset AS offset, "
        "* EXCEPT (topic, source_partition, source_offset), "
        f"{_REDRIVEN} AS redriven FROM {MASKED} WHERE topic = %(topic)s AND source_partition = %(partition)s "
        "AND %(offset)s BETWEEN source_offset AND last_offset",
        {"topic": topic, "partition": partition, "offset": offset},
    )
    return found[0] if found else None

"""What ClickHouse shows against what it has to show."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from clickhouse_driver import Client

from schemas.feed import Aggregate, Feed
from sinks.ledger import Account
from tests.reference.city import Place, Truth

#: Powers are not the same bits everywhere; everything else is.
QUANTILE_TOLERANCE = 1e-12


@dataclass(frozen=True)
class Difference:
    """One row that is not as it has to be; ``events`` are those lost or doubled, 0 where only a value is wrong."""

    feed: str
    kind: Literal["lost", "doubled", "wrong"]
    table: str
    place: Place | None
    events: int
    detail: str

    def __str__(self) -> str:
        where = f"partition {self.place[0]}, offset {self.place[1]}" if self.place else "no event"
        return f"{self.kind}: {self.table}, {where}: {self.detail}"


def differences(client: Client, feed: Feed, truth: Truth, account: Account) -> list[Difference]:
    """Everything that differs for a feed, in the order of the log for each table."""
    found = [*_rows(client, feed, truth), *_letters(client, feed, truth), *_account(feed, truth, account)]
    for aggregate in feed.aggregates:
        found += _windows(client, feed, aggregate, truth)
    return sorted(found, key=lambda one: (one.table, one.place or (0, 0)))


def _rows(client: Client, feed: Feed, truth: Truth) -> Iterator[Difference]:
    table, missing = f"raw.{feed.name}", dict(truth.rows)
    columns = [column for described in feed.fields for column in _columns(described.name, described.kind)]
    query = (
        f"SELECT source_partition, source_offset, {', '.join(columns)}, toUnixTimestamp64Milli(arrived_at), "
        f"seen_before, late FROM {table} FINAL"
    )
    for partition, offset, *cells in client.execute_iter(query, settings={"max_block_size": 50_000}):
        expected = missing.pop((partition, offset), None)
        if expected is None:
            yield Difference(feed.name, "doubled", table, (partition, offset), 1, f"{tuple(cells)} has no place there")
        elif expected != tuple(cells):
            yield Difference(feed.name, "wrong", table, (partition, offset), 0, f"{tuple(cells)} instead of {expected}")
    for place, cells in missing.items():
        yield Difference(feed.name, "lost", table, place, 1, f"{cells} is missing")


def _columns(name: str, kind: str) -> list[str]:
    match kind:
        case "instant":
            return [f"toUnixTimestamp64Milli({name})"]
        case "date":
            return [f"toInt32({name})"]
        case "uuid":
            return [f"toString({name})"]
        case "place":
            return [f"{name}_longitude", f"{name}_latitude"]
    return [name]


def _letters(client: Client, feed: Feed, truth: Truth) -> Iterator[Difference]:
    missing = dict(truth.letters)
    query = (
        "SELECT source_partition, source_offset, last_offset, stage, cause FROM raw.quarantine FINAL "
        "WHERE topic = %(topic)s"
    )
    for partition, first, last, stage, cause in client.execute(query, {"topic": feed.name}):
        for offset in range(first, last + 1):
            expected = missing.pop((partition, offset), None)
            detail = f"{stage}: {cause}"
            if expected is None:
                yield Difference(feed.name, "doubled", "raw.quarantine", (partition, offset), 1, detail)
            elif stage != expected.stage or (
                expected.fields and cause.split(":")[0].split(".")[0] not in expected.fields
            ):
                yield Difference(
                    feed.name, "wrong", "raw.quarantine", (partition, offset), 0, f"{detail} instead of {expected}"
                )
    for place, letter in missing.items():
        yield Difference(feed.name, "lost", "raw.quarantine", place, 1, str(letter))


def _windows(client: Client, feed: Feed, aggregate: Aggregate, truth: Truth) -> Iterator[Difference]:
    table, missing = f"city.{aggregate.name}", dict(truth.windows[aggregate.name])
    results = [result for measure in aggregate.measures for result in measure.results]
    quantiles = {r.name for m in aggregate.measures for r in m.results if m.partials[0].merge == "histogram"}
    query = (
        f"SELECT {', '.join(aggregate.by)}, toUnixTimestamp64Milli(window_start), events, final, "
        f"toUnixTimestamp64Milli(as_of), {', '.join(r.name for r in results)} FROM {table}"
    )
    width = len(aggregate.by) + 1
    for row in client.execute(query):
        key, (events, final, as_of_ms, *values) = tuple(row[:width]), row[width:]
        expected = missing.pop(key, None)
        if expected is None:
            yield Difference(feed.name, "doubled", table, None, events, f"{key} has no place there")
        elif events != expected.events:
            kind: Literal["lost", "doubled"] = "lost" if events < expected.events else "doubled"
            detail = f"{key} has {events} events instead of {expected.events}"
            yield Difference(feed.name, kind, table, expected.last, abs(events - expected.events), detail)
        else:
            shown = {r.name: value for r, value in zip(results, values, strict=True)}
            wrong = {
                n: (v, expected.results[n])
                for n, v in shown.items()
                if not _same(v, expected.results[n], n in quantiles)
            }
            if final != expected.final:
                wrong["final"] = final, expected.final
            if as_of_ms != expected.as_of_ms:
                wrong["as_of"] = as_of_ms, expected.as_of_ms
            if wrong:
                yield Difference(feed.name, "wrong", table, expected.last, 0, f"{key}: found and expected {wrong}")
    for key, window in missing.items():
        yield Difference(feed.name, "lost", table, window.last, window.events, f"{key} is missing")


def _same(found: Any, expected: float | None, quantile: bool) -> bool:
    if quantile and found is not None and expected is not None:
        return math.isclose(found, expected, rel_tol=QUANTILE_TOLERANCE)
    return bool(found == expected)


def _account(feed: Feed, truth: Truth, account: Account) -> Iterator[Difference]:
    expected: Mapping[str, int] = {
        "published": truth.published,
        "stored": len(truth.rows),
        "duplicate": len(truth.repeats),
        "quarantined": len(truth.letters),
        "control": len(truth.control),
        "lost": 0,
        "missing": 0,
        "late": truth.late,
    }
    wrong = {name: (found, n) for name, n in expected.items() if (found := getattr(account, name)) != n}
    if wrong:
        yield Difference(feed.name, "wrong", "raw.ledger", None, 0, f"{feed.name}: found and expected {wrong}")

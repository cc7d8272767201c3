"""citystream feeds: what the city publishes, and where to find it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from citystream.commands.output import Output, OutputOption, print_whole
from citystream.installation import Installation
from citystream.secrets import pseudonym_key
from citystream.settings import SettingsError
from schemas.catalogue import Catalogue
from schemas.feed import Aggregate, Feed
from schemas.model import Field
from schemas.pseudonyms import handed_out, key_id
from sinks.tables import UNDECLARED, TableColumn, aggregate_columns, feed_columns
from sinks.views import aggregate_view_columns, span_columns, view_columns
from streams import deadletters
from streams.feed_topics import FeedPartition
from streams.topics import stored

app = typer.Typer(help="The feeds of the city: contracts, topics, tables.", no_args_is_help=True)


def add_to(parent: typer.Typer) -> None:
    """Add these commands to the command line."""
    parent.add_typer(app, name="feeds")


@app.command("list")
def list_feeds(output: OutputOption = Output.TABLE) -> None:
    """List the feeds by batch and department.

    Example: citystream feeds list
    """
    feeds = Installation.load().feeds.values()
    rows = [_summary(feed) for feed in sorted(feeds, key=lambda f: (f.batch, f.department.name, f.name))]
    if output is Output.JSON:
        _print_json(rows)
    else:
        print_whole(_table("Feeds", [{k: v for k, v in row.items() if k != "description"} for row in rows]))


@app.command("show")
def show_feed(
    feed: Annotated[str, typer.Argument(help="A feed; citystream feeds list has them all.")],
    output: OutputOption = Output.TABLE,
) -> None:
    """Show a feed: its contract, topics, aggregates, and the tables and views with units.

    Example: citystream feeds show traffic_flow
    """
    city = Installation.load()
    found = describe(city.choose([feed])[feed], city.catalogue, city.settings.timezone)
    if output is Output.JSON:
        _print_json(found)
        return
    console = Console()
    console.print(_facts(found))
    console.print(
        _table("Tables and views", [{k: table[k] for k in ("name", "description")} for table in found["tables"]])
    )
    for title in ("topics", "aggregates", "fields"):
        console.print(_table(title.capitalize(), found[title]))
    for table in found["tables"]:
        console.print(_table(f"{table['name']}: {table['description']}", table["columns"]))


@app.command("key")
def department_key(feed: Annotated[str, typer.Argument(help="A feed with personal fields.")]) -> None:
    """Print the pseudonym key of a feed's department, for a machine of its own: the value of CITYSTREAM_PSEUDONYM_KEY.

    It makes the pseudonyms of this department and of no other. Hand it over as you would a password.

    Example: citystream feeds key police_incident
    """
    city = Installation.load()
    chosen = city.choose([feed])[feed]
    key = pseudonym_key(city.settings, chosen)
    if key is None:
        raise SettingsError(f"{feed} has no personal fields and needs no key")
    typer.echo(handed_out(key, chosen.department.name))
    typer.echo(f"citystream: its pseudonyms begin with {key_id(key)}", err=True)


def describe(feed: Feed, catalogue: Catalogue, timezone: str) -> dict[str, Any]:
    """Everything about a feed as plain data; spans in seconds, column comments with units in brackets."""
    return {
        **_summary(feed),
        "contact": feed.department.contact,
        "purpose": feed.department.purpose,
        "licence": feed.licence,
        "key": feed.key,
        "event_time": feed.event_time,
        "disorder_seconds": feed.disorder.total_seconds(),
        "lateness_seconds": feed.lateness.total_seconds(),
        "delay_seconds": None if feed.delay is None else feed.delay.total_seconds(),
        "earliest": feed.earliest.isoformat(),
        "rules": [f"{rule.earlier} is not after {rule.later}" for rule in feed.rules],
        "fields": [_field(field) for field in feed.fields],
        "topics": _topics(feed, catalogue),
        "aggregates": [_aggregate(aggregate) for aggregate in feed.aggregates],
        "tables": _tables(feed, timezone),
    }


def _summary(feed: Feed) -> dict[str, Any]:
    return {
        "name": feed.name,
        "department": feed.department.name,
        "batch": feed.batch,
        "events_per_second": feed.rate,
        "silence_seconds": None if feed.silence is None else feed.silence.total_seconds(),
        "retention_days": feed.retention / timedelta(days=1),
        "description": feed.description,
    }


def _field(field: Field) -> dict[str, Any]:
    return {
        "name": field.name,
        "type": f"{field.kind} or null" if field.nullable else field.kind,
        "bounds": _bounds(field),
        "unit": field.unit,
        "sensitivity": "personal" if field.personal else None if field.decimals is None else "coarse for analysts",
        "description": field.description,
    }


def _bounds(field: Field) -> str | None:
    match field.kind:
        case "enum":
            return ", ".join(field.symbols)
        case "string" | "uuid" if field.pattern:
            return field.pattern
        case "string" if field.low is not None or field.high is not None:
            return f"{field.low or 0:g} to {field.high or float('inf'):g} characters"
        case "int" | "float" if field.low is not None or field.high is not None:
            low, high = (("any" if bound is None else f"{bound:,.10g}") for bound in (field.low, field.high))
            return f"{low} to {high}"
    return None


def _topics(feed: Feed, catalogue: Catalogue) -> list[dict[str, Any]]:
    found = []
    for topic in stored([feed]):
        if topic.name != deadletters.TOPIC:
            frozen = catalogue.latest(FeedPartition.of(topic.name, 0).feed)
            found.append(
                {
                    "name": topic.name,
                    "partitions": topic.partitions,
                    "retention_days": feed.retention / timedelta(days=1),
                    "schema_version": frozen.version,
                    "schema_id": frozen.id,
                }
            )
    return found


def _aggregate(aggregate: Aggregate) -> dict[str, Any]:
    return {
        "name": aggregate.name,
        "version": aggregate.version,
        "group_by": ", ".join(aggregate.by),
        "window_seconds": aggregate.window.total_seconds(),
        "measures": ", ".join(
            ["events", *(f"{r.name} [{r.unit}]" for measure in aggregate.measures for r in measure.results)]
        ),
        "description": aggregate.description,
    }


def _tables(feed: Feed, timezone: str) -> list[dict[str, Any]]:
    found = [
        _columns(f"city.{feed.name}", f"{feed.description}; the view", view_columns(feed, timezone)),
        _columns(f"raw.{feed.name}", f"{feed.description}; as it arrived", [*feed_columns(feed, timezone), UNDECLARED]),
    ]
    if (by := feed.latest_by) is not None:
        views = [("now", ""), ("at(t=...)", " up to t"), ("active", " that is active")]
        for ending, until in views[: 2 if feed.latest_active is None else 3]:
            name = f"{feed.name}_{ending}"
            about = f"{feed.description}; the newest of each {by}{until}"
            found.append(_columns(f"city.{name}", about, view_columns(feed, timezone)))
    if feed.spans is not None:
        name = f"city.{feed.name}_spans(since=..., until=...)"
        about = f"{feed.description}; from when to when each {feed.spans.of} lasted"
        found.append(_columns(name, about, span_columns(feed, feed.spans, timezone)))
    for aggregate in feed.aggregates:
        name, about = aggregate.name, aggregate.description
        view = aggregate_view_columns(feed, aggregate, timezone)
        found += [
            _columns(f"city.{name}", f"{about}; the view", view),
            *(
                _columns(
                    f"city.{one.name}",
                    f"{about}; by {one.to}",
                    aggregate_view_columns(feed, aggregate, timezone, one),
                )
                for one in aggregate.rollups
            ),
            _columns(
                f"raw.{aggregate.topic}", f"{about}; parts by partition", aggregate_columns(feed, aggregate, timezone)
            ),
        ]
    return found


def _columns(name: str, description: str, columns: Iterable[TableColumn]) -> dict[str, Any]:
    return {
        "name": name,
        "description": description,
        "columns": [{"name": c.name, "type": c.type, "comment": c.comment} for c in columns],
    }


def _print_json(data: Any) -> None:
    typer.echo(json.dumps(data, indent=2, ensure_ascii=False))


def _facts(found: Mapping[str, Any]) -> Table:
    table = Table(title=found["name"], title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_header=False)
    for name, value in found.items():
        if not isinstance(value, list):
            table.add_row(name.replace("_", " "), _cell(value))
    for rule in found["rules"]:
        table.add_row("rule", rule)
    return table


def _table(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title=escape(title), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in rows[0] if rows else ():
        table.add_column(name.replace("_", " "), no_wrap=name == "name", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    return table


def _cell(value: Any) -> str:
    """Text as it is: a unit in brackets is no markup."""
    if value is None:
        return "-"
    return escape(f"{value:.5g}" if isinstance(value, float) else str(value))

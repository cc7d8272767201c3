"""citystream rules: which rules are declared, and trying one on the past."""

from __future__ import annotations

import difflib
import json
import time
from collections import Counter
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any
from zoneinfo import ZoneInfo

import typer

import feeds
from citystream.commands.output import Output, OutputOption, show
from citystream.commands.times import given
from citystream.installation import Installation
from citystream.progress import heard
from citystream.settings import SettingsError
from operations.rules import DeclaredRule, declared, in_words
from operations.trying import Episode, Pair, Trial, try_rule
from schemas.feed import Feed


def add_to(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    group = typer.Typer(no_args_is_help=True, help="Which rules are declared, and trying one on the past.")
    group.command("list")(list_rules)
    group.command("try")(try_one)
    app.add_typer(group, name="rules")


def list_rules(output: OutputOption = Output.TABLE) -> None:
    """List the rules: what each watches, of whom, and when its levels begin and end.

    Example: citystream rules list
    """
    rows = [
        {
            "rule": one.rule.name,
            "series": one.series,
            "of": ", ".join(one.of),
            "levels": [in_words(level) for level in one.rule.levels],
        }
        for one in declared(Installation.load().feeds)
    ]
    if output is Output.JSON:
        show(rows, output)
        return
    for row in rows:
        typer.echo(f"{row['rule']}: of {row['of']}, watching {row['series']}")
        typer.echo("\n".join(f"  {level}" for level in row["levels"]))


def try_one(
    rule: Annotated[str, typer.Argument(help="The rule; see: rules list")],
    since: Annotated[str, typer.Option(help="From then on: ISO 8601, of the city's time zone unless given.")],
    until: Annotated[str | None, typer.Option(help="Up to then; until now unless given.")] = None,
    file: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="A file that declares the feed of the rule."),
    ] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Try a rule, as it is declared here, on what is stored of the past: each alert it would have raised, beside those
    that are there.

    Nothing is published or stored. It begins to watch as long before as the rule remembers an entity; one that keeps
    something, with the oldest that is stored.

    Example: citystream rules try parking_full --since 2026-03-22 --until 2026-03-23
    """
    city = Installation.load()
    found = _chosen(city, rule, file)
    zone = ZoneInfo(city.settings.timezone)
    begin, end = given("since", since, zone), given("until", until, zone) or time.time_ns() // 1_000_000
    if begin is None or begin >= end:
        raise SettingsError(f"--since {since} is not before the end of the span")
    with city.server("operator").connect() as client, heard() as on_progress:
        trial = try_rule(client, found, city.references, begin, end, on_progress)
    if output is Output.JSON:
        pairs = [asdict(pair) | {"raised_by": pair.raised_by} for pair in trial.pairs]
        typer.echo(json.dumps(pairs, default=lambda at: str(at.astimezone(zone)), indent=2))
        return
    show([_row(pair, zone) for pair in trial.pairs], output)
    typer.echo(_in_all(trial, found.feed, end, zone))


def _chosen(city: Installation, rule: str, file: Path | None) -> DeclaredRule:
    known = city.feeds
    if file is not None:
        feed = feeds.declared_in(file)
        if feed.name not in known:
            raise SettingsError(f"{file} declares the feed {feed.name}, of which nothing is stored: it is not declared")
        known = {feed.name: feed}
    rules = {one.rule.name: one for one in declared(known)}
    if rule not in rules:
        near = difflib.get_close_matches(rule, rules, 1)
        hint = f"; {near[0]} is meant, perhaps" if near else ""
        raise SettingsError(f"there is no rule {rule}{hint} (there are: {', '.join(rules) or 'none'})")
    for table in rules[rule].rule.tables:
        if table not in city.references:
            raise SettingsError(
                f"{file or rules[rule].feed.name}: the rule {rule} looks something up in {table}, which is no table "
                f"that is declared (there are: {', '.join(city.references) or 'none'}); declare it as "
                f"feeds/<department>/{table}.py"
            )
    return rules[rule]


def _row(pair: Pair, zone: ZoneInfo) -> dict[str, Any]:
    one = pair.tried or pair.present
    assert one is not None
    return {
        "entity": one.entity,
        "raised_by": pair.raised_by,
        "tried": _span(pair.tried, zone),
        "present": _span(pair.present, zone),
    }


def _span(one: Episode | None, zone: ZoneInfo) -> str:
    if one is None:
        return "-"
    begin, end = (f"{at.astimezone(zone):%m-%d %H:%M:%S}" if at else "" for at in (one.onset, one.ended))
    return f"{one.severity} {begin} to {end or '...'}"


def _in_all(trial: Trial, feed: Feed, until: int, zone: ZoneInfo) -> str:
    count = Counter(pair.raised_by for pair in trial.pairs)
    text = (
        f"{trial.watched:,} observations: {count['both']:,} raised by both, {count['tried']:,} only by the one tried, "
        f"{count['present']:,} only by the present one"
    )
    if trial.through < until:
        text += f"; what is stored has come to {datetime.fromtimestamp(trial.through / 1000, zone):%Y-%m-%d %H:%M:%S}"
        if not feed.aggregates:
            text += f", the newest record of {feed.name}: of a feed without aggregates later ticks are not stored"
    return text

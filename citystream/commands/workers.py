"""citystream process and sink: the two workers."""

from __future__ import annotations

import logging
from typing import Annotated

import typer

from citystream.installation import Installation
from processors import worker as processor
from sinks import worker as sink

Feeds = Annotated[list[str] | None, typer.Option("--feeds", help="Only these feeds; may be given several times.")]
Instance = Annotated[
    str | None,
    typer.Option(help="A name that stays over restarts: the group then waits for this worker instead of rebalancing."),
]


def add_to(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.command("process")(process)
    app.command("sink")(move)


def process(
    feeds: Feeds = None,
    instance: Instance = None,
    accept_bad: Annotated[
        bool, typer.Option("--accept-bad", help="Go on although a feed's share of bad records is above its limit.")
    ] = False,
) -> None:
    """Validate, deduplicate and aggregate feeds until Ctrl-C.

    Example: citystream process --feeds traffic_flow
    """
    _log()
    city = Installation.load()
    processor.main(city.choose(feeds), city.catalogue, city.bootstrap, instance, accept_bad=accept_bad)


def move(feeds: Feeds = None, instance: Instance = None) -> None:
    """Move feeds, their aggregates and the dead letters into ClickHouse until Ctrl-C.

    Example: citystream sink --instance sink-1
    """
    _log()
    city = Installation.load()
    chosen, server, zone = city.choose(feeds), city.server("sink"), city.settings.timezone
    sink.main(chosen, city.catalogue, city.bootstrap, server, zone, instance, agrees_with=processor.GROUP)


def _log() -> None:
    logging.basicConfig(level=logging.ERROR, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("citystream").setLevel(logging.INFO)

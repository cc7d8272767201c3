"""citystream clock: lets time pass in feeds without events."""

from __future__ import annotations

import signal
import time
from contextlib import suppress
from functools import partial
from typing import Annotated

import typer

from citystream.commands.workers import log_patiently
from citystream.installation import Installation
from citystream.settings import SettingsError
from streams import clock as of_streams
from streams.topics import states, wait_for_kafka


def add_to(app: typer.Typer) -> None:
    """Add this command to the command line."""
    app.command()(clock)


def clock(
    feeds: Annotated[
        list[str] | None, typer.Argument(help="Only these feeds; all that declare a delay unless given.")
    ] = None,
) -> None:
    """Let time pass in feeds that declare a delay, until Ctrl-C: their windows become final though nothing comes.

    It writes a tick to every partition of their topics every two seconds. Run one beside the workers; a second one
    does no harm. It is for live feeds: of a history that is published meanwhile all is late, and counts as such.

    Example: citystream clock
    """
    log_patiently()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    city = Installation.load()
    chosen = city.choose(feeds).values()
    if not (topics := of_streams.ticking(chosen)):
        raise SettingsError("none of these feeds declares a delay, so no time passes in them without events")
    with suppress(KeyboardInterrupt):
        wait_for_kafka(city.cluster, partial(typer.echo, err=True))
        states(city.cluster, topics)
        typer.echo(
            f"clock works: a tick every {of_streams.EVERY.total_seconds():.0f} s to {', '.join(topics)}", err=True
        )
        of_streams.run(city.cluster, chosen, city.catalogue, time.sleep)

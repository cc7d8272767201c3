"""citystream process and sink: the two workers.

Only where one runs is loaded what it takes: Faust, and the compiled decoder.
"""

from __future__ import annotations

import gc
import logging
import math
import time
from collections.abc import Callable
from typing import Annotated

import typer

import processors
from citystream.installation import Installation
from streams.waiting import CLIENTS, KAFKA

#: Kafka's clients, which complain at each attempt to reach a broker that is away.
LIBRARIES = ("aiokafka", "kafka")
LONGEST_PAUSE = 30.0

Feeds = Annotated[list[str] | None, typer.Argument(help="Only these feeds; all unless given.")]
Instance = Annotated[
    str | None,
    typer.Option(help="A name that stays over restarts: the group then waits for this worker instead of rebalancing."),
]


class Patience(logging.Filter):
    """Of what Kafka's clients complain about, lets one line through at growing pauses, from 1 s up to half a minute.

    After a minute without complaints the pauses start anew. ``clock`` gives seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__()
        self._clock = clock
        self._pause, self._next, self._last = 1.0, 0.0, -math.inf

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to print a record; a complaint says whose it is."""
        if record.name.partition(".")[0] not in LIBRARIES:
            return True
        now = self._clock()
        if now - self._last > 2 * LONGEST_PAUSE:
            self._pause, self._next = 1.0, now
        self._last = now
        if now < self._next:
            return False
        KAFKA.begin(CLIENTS)
        record.msg, record.args = "Kafka does not answer as it should, trying on: %s", (record.getMessage(),)
        record.exc_info = None
        self._next, self._pause = now + self._pause, min(LONGEST_PAUSE, 2 * self._pause)
        return True


def add_to(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.command("process")(process)
    app.command("sink")(move)


def process(
    feeds: Feeds = None,
    instance: Instance = None,
    accept_bad: Annotated[
        list[str] | None,
        typer.Option(
            "--accept-bad",
            metavar="FEED",
            help="Go on with this feed although its share of bad records is too large; may be given several times.",
        ),
    ] = None,
) -> None:
    """Validate, deduplicate and aggregate feeds until Ctrl-C.

    Example: citystream process traffic_flow
    """
    _begin()
    from processors.worker import main  # noqa: PLC0415

    city = Installation.load()
    accepted = city.choose(accept_bad) if accept_bad else ()
    main(
        city.choose(feeds), city.catalogue, city.cluster, instance,
        accept_bad=accepted, status=city.settings.alert_status, others=city.feeds, references=city.references.values(),
    )  # fmt: skip


def move(feeds: Feeds = None, instance: Instance = None) -> None:
    """Move feeds, their aggregates, the dead letters and the reference data into ClickHouse until Ctrl-C.

    Example: citystream sink --instance sink-1
    """
    _begin()
    from sinks.worker import main  # noqa: PLC0415

    city = Installation.load()
    chosen, server, zone = city.choose(feeds), city.server("sink"), city.settings.timezone
    tables = city.references.values()
    main(chosen, city.catalogue, city.cluster, server, zone, instance, processor=processors.GROUP, references=tables)


def _begin() -> None:
    """Say what is logged, and look for no garbage until the worker serves: what a start makes stays."""
    log_patiently()
    gc.disable()


def log_patiently() -> None:
    """Print what is logged, and of what Kafka's clients complain about a line now and then."""
    logging.basicConfig(level=logging.ERROR, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("citystream").setLevel(logging.INFO)
    for handler in logging.getLogger().handlers:
        handler.addFilter(Patience(time.monotonic))

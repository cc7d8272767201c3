"""citystream simulate: feeds as a plausible district would publish them."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from datetime import datetime, timedelta
from functools import partial
from random import SystemRandom
from threading import Timer
from types import FrameType
from typing import Annotated
from zoneinfo import ZoneInfo

import typer
from kafka import KafkaProducer
from rich.console import Console
from rich.live import Live

from citystream.commands.output import Output, OutputOption, show
from citystream.commands.times import of_city
from citystream.commands.workers import log_patiently
from citystream.installation import Installation
from citystream.secrets import pseudonym_key
from simulation.faults import Fault, FaultsError, parse_faults
from simulation.incidents import IncidentsError, parse_incidents
from simulation.running import Report, Simulation, SystemClock
from simulation.world import Kind, World
from streams.publisher import STOP_SECONDS, publishers

FLAT_OUT = "flat-out"
#: Where a simulation faster than reality begins unless told: events must not lie in the future.
HISTORY = timedelta(days=1)


def add_to(app: typer.Typer) -> None:
    """Add this command to the command line."""
    app.command()(simulate)


def simulate(
    feeds: Annotated[list[str], typer.Argument(metavar="FEED...", help="Feeds to simulate, interleaved in time.")],
    rate: Annotated[str, typer.Option(help=f"Times the real rate: 60 is an hour a minute; or {FLAT_OUT}.")] = "1",
    events: Annotated[int | None, typer.Option(min=1, help="End after so many records; else at Ctrl-C.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed and start give the same events.")] = None,
    faults: Annotated[
        str | None, typer.Option(help=f"Mix in faults: all, or some of {', '.join(Fault)}, as name or name=share.")
    ] = None,
    incidents: Annotated[
        str | None,
        typer.Option(help=f"Stage incidents: all, or some of {', '.join(Kind)}, as name or name=number an hour."),
    ] = None,
    start: Annotated[
        str | None, typer.Option(help="ISO time of the first events; else now, or a day ago when faster than reality.")
    ] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Publish what a plausible district would: rush hours, weekends, and on request what goes wrong in reality.

    No event is published before its time has come: a simulation that has caught up with now goes on at the real rate.
    While Kafka is away it waits. Exit code 1 if Kafka did not take every record before it was told to end.

    Incidents are what rules should find, and some things that are nothing; the feed truth tells which there are.
    Feeds tell of one city if they are simulated with the same seed, start and incidents.

    Example: citystream simulate traffic_flow parking_site --rate 60 --faults duplicates=0.02,late

    What alerts tell of: citystream simulate parking_site police_incident truth --incidents dispatch_late=60,concert

    A day's history, the same each time: citystream simulate traffic_flow --rate flat-out --events 1000000 --seed 7
    --start 2026-03-18
    """
    log_patiently()
    city = Installation.load()
    chosen = city.choose(feeds)
    times = _rate(rate)
    shares, staged = _faults(faults), _incidents(incidents)
    clock = SystemClock()
    begin = _start(start, clock.now(), ZoneInfo(city.settings.timezone), live=times is not None and times <= 1)
    seed = SystemRandom().randrange(2**32) if seed is None else seed
    typer.echo(f"the same again: --seed {seed} --start {begin.isoformat()}", err=True)
    keys = {name: pseudonym_key(city.settings, feed) for name, feed in chosen.items()}
    say = partial(typer.echo, err=True)
    with publishers(city.cluster, chosen.values(), city.catalogue, keys, say) as found:
        simulation = Simulation(
            chosen.values(), found, world=World(begin, seed, staged), rate=times, faults=shares, clock=clock
        )
        with _until_signal(clock, found[feeds[0]].producer), _progress(simulation, events):
            simulation.run(events, lambda: clock.stopped)
    reports = simulation.report()
    show([_row(report, shares) for report in reports], output)
    if any(report.acknowledged < report.sent for report in reports):
        raise typer.Exit(1)


def _rate(text: str) -> float | None:
    """Times the real rate; None for flat out."""
    if text == FLAT_OUT:
        return None
    try:
        rate = float(text)
    except ValueError:
        rate = 0
    if not 0 < rate < float("inf"):
        raise typer.BadParameter(f"{text!r} is neither a number above 0 nor {FLAT_OUT}", param_hint="--rate")
    return rate


def _faults(text: str | None) -> dict[Fault, float]:
    try:
        return parse_faults(text) if text is not None else {}
    except FaultsError as error:
        raise typer.BadParameter(str(error), param_hint="--faults") from error


def _incidents(text: str | None) -> dict[Kind, float]:
    try:
        return parse_incidents(text) if text is not None else {}
    except IncidentsError as error:
        raise typer.BadParameter(str(error), param_hint="--incidents") from error


def _start(text: str | None, now: datetime, zone: ZoneInfo, *, live: bool) -> datetime:
    """The event time to begin at; a time without a zone is the city's."""
    if text is None:
        return now if live else now - HISTORY
    try:
        start = of_city(text, zone)
    except ValueError as error:
        raise typer.BadParameter(
            f"{text!r} is no ISO time, such as 2026-03-18 or 2026-03-18T08:00", param_hint="--start"
        ) from error
    if start > now:
        raise typer.BadParameter(f"{text} lies in the future", param_hint="--start")
    return start


@contextmanager
def _until_signal(clock: SystemClock, producer: KafkaProducer) -> Iterator[None]:
    """The first Ctrl-C or termination ends the simulation in order, the second at once.

    Kafka has a few seconds to take what is on its way.
    """
    giving_up = Timer(STOP_SECONDS, producer.close, (0,))
    giving_up.daemon = True

    def end(_number: int, _frame: FrameType | None) -> None:
        clock.stop()
        restore()
        giving_up.start()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        restore()
        giving_up.cancel()


@contextmanager
def _progress(simulation: Simulation, events: int | None) -> Iterator[None]:
    """A line on the terminal, where there is one, until it is done."""

    def line() -> str:
        reports = simulation.report()
        sent = sum(report.sent for report in reports)
        share = f" of {events:,} ({sent / events:.0%})" if events else ""
        return f"{sent:,} sent{share}, {sum(report.acknowledged for report in reports):,} acknowledged"

    console = Console(stderr=True)
    with Live(console=console, get_renderable=line, transient=True) if console.is_terminal else nullcontext():
        yield


def _row(report: Report, shares: Mapping[Fault, float]) -> dict[str, str | int]:
    return {
        "feed": report.feed,
        "sent": report.sent,
        "acknowledged": report.acknowledged,
        "failed": report.failed,
        **{fault.value: report.faults.get(fault, 0) for fault in shares},
    }

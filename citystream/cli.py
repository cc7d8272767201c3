"""The command line: assembles the commands and turns what went wrong into a message and an exit code."""

from __future__ import annotations

import logging
import sys
from importlib import import_module, metadata
from typing import Annotated

import typer

from citystream import commands
from operations.printable import printable

#: The commands and groups of commands, and the module of each, which has ``add_to``.
COMMANDS = {
    "up": "stack",
    "init": "stack",
    "down": "stack",
    "status": "stack",
    "demo": "demo",
    "feeds": "feeds",
    "catalogue": "catalogue",
    "schemas": "schemas",
    "simulate": "simulate",
    "publish": "publish",
    "publications": "publications",
    "reference": "reference",
    "process": "workers",
    "sink": "workers",
    "clock": "clock",
    "lag": "operate",
    "ledger": "operate",
    "positions": "positions",
    "rebuild": "rebuild",
    "rights": "rights",
    "dead-letters": "dead_letters",
    "case": "case",
    "sql": "sql",
    "alerts": "alerts",
    "rules": "rules",
    "registry": "registry",
}


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"citystream {metadata.version('citystream')}")
        raise typer.Exit


def build(word: str = "") -> typer.Typer:
    """The application with the command that a word names, else with all; what the others take is not loaded."""
    app = typer.Typer(
        name="citystream",
        help=(
            "A city's live picture: feeds through Kafka, processed by Faust, stored in ClickHouse.\n\n"
            "Exit codes: 0 all is well, 1 the check failed, 2 wrong use or a wrong setting, 3 the stack is unreachable."
        ),
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    app.callback()(_common)
    for module in dict.fromkeys([COMMANDS[word]] if word in COMMANDS else COMMANDS.values()):
        import_module(f"{commands.__name__}.{module}").add_to(app)
    return app


def _common(
    *,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Say which this is.")
    ] = False,
) -> None:
    """Options of no command."""


def main() -> None:
    """Run one command; people see messages, never a traceback, for what they can put right."""
    logging.getLogger("clickhouse_driver").addHandler(logging.NullHandler())
    try:
        build(*sys.argv[1:2])()
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except Exception as error:
        from citystream.mistakes import explained  # noqa: PLC0415  it takes the libraries of all commands

        if (found := explained(error)) is None:
            raise
        _fail(*found)


def _fail(message: str, code: int) -> None:
    typer.echo("\n".join(map(printable, f"citystream: {message}".splitlines())), err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()

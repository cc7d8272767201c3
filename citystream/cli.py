"""The command line: assembles the commands and turns what went wrong into a message and an exit code."""

from __future__ import annotations

import logging
import sys
from importlib import metadata
from typing import Annotated

import typer
from clickhouse_driver.errors import Error as ClickHouseError
from clickhouse_driver.errors import ServerException
from kafka.errors import KafkaError

from citystream.commands import (
    dead_letters,
    demo,
    feeds,
    operate,
    positions,
    publications,
    publish,
    rebuild,
    registry,
    schemas,
    simulate,
    sql,
    stack,
    workers,
)
from citystream.printable import printable
from citystream.redriving.corrections import CorrectionProblem
from citystream.settings import SettingsError
from citystream.stack.process import StackError
from schemas.catalogue import SchemaProblem
from schemas.feed import DeclarationError
from sinks.clickhouse import first_line
from streams.positions import PositionProblem
from streams.topics import TopicProblem

CHECK_FAILED, WRONG_USE, UNREACHABLE = 1, 2, 3

COMMANDS = (
    stack,
    demo,
    feeds,
    schemas,
    simulate,
    publish,
    publications,
    workers,
    operate,
    positions,
    rebuild,
    dead_letters,
    sql,
    registry,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"citystream {metadata.version('citystream')}")
        raise typer.Exit


def build() -> typer.Typer:
    """The application with all commands; each module of ``COMMANDS`` adds its own."""
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
    for module in COMMANDS:
        module.add_to(app)
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
        build()()
    except SettingsError as error:
        _fail(str(error), WRONG_USE)
    except (StackError, TopicProblem) as error:
        _fail(str(error), UNREACHABLE)
    except KafkaError as error:
        _fail(f"Kafka does not answer ({error}); see: citystream status", UNREACHABLE)
    except ServerException as error:
        _fail(f"ClickHouse refused: {first_line(error)}", CHECK_FAILED)
    except (ClickHouseError, EOFError) as error:
        _fail(f"ClickHouse does not answer ({first_line(error)}); see: citystream status", UNREACHABLE)
    except (SchemaProblem, DeclarationError, PositionProblem, CorrectionProblem) as error:
        _fail(str(error), CHECK_FAILED)
    except KeyboardInterrupt:
        _fail("interrupted", 130)


def _fail(message: str, code: int) -> None:
    typer.echo("\n".join(map(printable, f"citystream: {message}".splitlines())), err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()

"""citystream registry: the frozen schemas for other programs.

Only where it runs is loaded what it takes: a web server.
"""

from __future__ import annotations

import logging
import os
import socket
from typing import Annotated

import typer

from citystream.settings import LOCALHOST, SettingsError, load_settings, variable
from citystream.stack.process import BoundedHandler, Process
from citystream.stack.registry import NAME


def add_to(app: typer.Typer) -> None:
    """Add this command to the command line."""
    app.command()(registry)


def registry(
    host: Annotated[str, typer.Option(help="Address to listen on; there is no password, so keep it private.")] = (
        LOCALHOST
    ),
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help=f"Port to listen on, else that of {variable('registry_port')}.")
    ] = None,
) -> None:
    """Serve the frozen schemas until Ctrl-C, as Confluent's schema registry in read-only mode does.

    Example: citystream registry --port 8081

    In ClickHouse: SETTINGS format_avro_schema_registry_url = 'http://127.0.0.1:8081'
    """
    from citystream import registry as server  # noqa: PLC0415

    settings = load_settings()
    port = port or settings.registry_port
    # A client that breaks off or talks nonsense is worth two kilobytes to the web server.
    logging.getLogger().addHandler(BoundedHandler(Process(NAME, settings.home)))
    try:
        server.serve(host, port, typer.echo)
    except OSError as error:
        other = f"choose another port with --port or {variable('registry_port')}"
        reason = error.strerror if isinstance(error, socket.gaierror) else os.strerror(error.errno or 0)
        raise SettingsError(f"cannot listen on {host}:{port} ({reason}); {other}") from None

"""Which ports are taken on this machine, by whom, and how to choose others."""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass

import psutil

from citystream.settings import LOCALHOST, variable

BELOW_EPHEMERAL = range(20_000, 32_768)


@dataclass(frozen=True)
class BusyPort:
    """A port that is wanted and taken. ``owner`` is empty when it cannot be told."""

    setting: str
    port: int
    owner: str


def busy(wanted: Mapping[str, int]) -> list[BusyPort]:
    """Those of the wanted ports, by name of setting, that another program holds."""
    return [BusyPort(setting, port, owner(port)) for setting, port in wanted.items() if not is_free(port)]


def still_busy(wanted: Mapping[str, int], seconds: float = 5) -> list[BusyPort]:
    """Like ``busy``, but lets a program that is just ending let go of its ports."""
    until = time.monotonic() + seconds
    while taken := busy(wanted):
        if time.monotonic() > until or any(one.owner for one in taken):
            break
        time.sleep(0.05)
    return taken


def is_free(port: int) -> bool:
    """Whether a server could listen on this port of 127.0.0.1 now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOCALHOST, port))
        except OSError:
            return False
    return True


def free_ports(count: int, apart_from: Collection[int] = ()) -> list[int]:
    """So many different ports that nobody listens on, none of which an outgoing connection could be given.

    ``apart_from`` are those that somebody will listen on.
    """
    found: list[int] = []
    for port in random.sample(BELOW_EPHEMERAL, len(BELOW_EPHEMERAL)):
        if len(found) == count:
            break
        if port not in apart_from and is_free(port):
            found.append(port)
    return found


def explain(taken: list[BusyPort]) -> str:
    """A message naming each taken port and the variables that choose others."""
    lines = [f"port {one.port} is taken{f' by {one.owner}' if one.owner else ''}" for one in taken]
    choice = " ".join(f"{variable(one.setting)}={_suggest(one.port)}" for one in taken)
    return "; ".join(lines) + f". Choose others, for example: {choice} citystream up"


def owner(port: int) -> str:
    """The program listening on a port, as "name (process 123)"; empty when it cannot be told."""
    for one in psutil.net_connections("tcp"):
        if one.status == psutil.CONN_LISTEN and one.laddr and one.laddr.port == port and one.pid:
            with suppress(psutil.Error):
                return f"{psutil.Process(one.pid).name()} (process {one.pid})"
    return ""


def _suggest(port: int) -> int:
    moved = (port + 10_000 * step for step in range(1, 6))
    return next((other for other in moved if other <= 65535 and is_free(other)), 0) or free_ports(1)[0]

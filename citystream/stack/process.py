"""A long-running child that outlives the command which started it."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import psutil

from citystream.settings import secret_variables
from schemas.persisted import Newer, check_version

#: Of the note of a process; one of version 1 need not say it.
VERSION = 1
POLL_SECONDS = 0.05
LOG_LINES = 20
#: Bytes at which a log goes on from nothing; as many as before are kept beside it.
LOG_BYTES = 10 * 2**20


class StackError(Exception):
    """The local stack cannot do what was asked; the message says why and what to do."""


@dataclass(frozen=True)
class Running:
    """A process that is alive and ours. ``uptime`` in seconds; ``fingerprint`` tells with what it was started."""

    pid: int
    uptime: float
    fingerprint: str


@dataclass(frozen=True)
class Launch:
    """What to run. ``environment`` is added to this process's own and may hold secrets.

    ``configuration`` is what it will find in its configuration file, as far as the settings decide it.
    """

    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    configuration: str = ""

    @property
    def fingerprint(self) -> str:
        """Differs when the command, its configuration or a secret does."""
        inputs = [self.command, sorted(self.environment.items()), self.configuration]
        return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()


@dataclass(frozen=True)
class Process:
    """A named process of one home, where its log and the note of its process id are kept."""

    name: str
    home: Path

    @property
    def note(self) -> Path:
        """The file that remembers the process id and the command."""
        return self.home / "run" / f"{self.name}.json"

    @property
    def log(self) -> Path:
        """What the process prints; the log of the run before is kept beside it."""
        return self.home / "log" / f"{self.name}.log"

    @property
    def _previous_log(self) -> Path:
        return self.log.with_suffix(".previous.log")

    def running(self) -> Running | None:
        """The process if it is alive; a process id that another program got meanwhile does not count."""
        try:
            note = json.loads(self.note.read_text())
            check_version(note, VERSION)
            pid, command, fingerprint = int(note["pid"]), list(note["command"]), str(note["fingerprint"])
        except Newer as newer:
            raise StackError(f"{self.note} {newer}") from None
        except (OSError, ValueError, KeyError, TypeError):
            return None
        with suppress(ChildProcessError):  # lets go of a child of this very process that has ended
            os.waitpid(pid, os.WNOHANG)
        try:
            found = psutil.Process(pid)
            if _command_line(found) != command:
                return None
            return Running(pid, max(0.0, time.time() - found.create_time()), fingerprint)
        except psutil.Error:
            return None

    def start(self, launch: Launch) -> int:
        """Start it in a session of its own, so that neither Ctrl-C nor a closed terminal ends it; its process id."""
        self.note.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.log.exists():
            self.log.replace(self._previous_log)
        program = shutil.which(launch.command[0])
        if program is None:
            raise StackError(f"{self.name}: {launch.command[0]} is not on this machine; run make setup")
        pid = os.posix_spawn(
            program,
            launch.command,
            {**_inherited(), **launch.environment},
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, str(self.log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,
        )
        note = {"version": VERSION, "pid": pid, "command": launch.command, "fingerprint": launch.fingerprint}
        self.note.write_text(json.dumps(note))
        return pid

    def wait_until(self, ready: Callable[[], bool], seconds: float = 60) -> None:
        """Return once it is ready; ``StackError`` with its last log lines when it ends or takes too long."""
        until = time.monotonic() + seconds
        while not ready():
            if self.running() is None:
                raise StackError(f"{self.name} ended while it was starting. {self._last_lines()}")
            if time.monotonic() > until:
                raise StackError(f"{self.name} does not answer after {seconds:.0f} s. {self._last_lines()}")
            time.sleep(POLL_SECONDS)

    def stop(self, seconds: float = 30) -> bool:
        """Ask it to end, insist after a while; whether it was running."""
        found = self.running()
        if found is None:
            self.note.unlink(missing_ok=True)
            return False
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(found.pid, number)
            until = time.monotonic() + seconds
            while self.running() is not None and time.monotonic() < until:
                time.sleep(POLL_SECONDS)
            if self.running() is None:
                self.note.unlink(missing_ok=True)
                return True
        raise StackError(f"{self.name}: process {found.pid} cannot be ended")

    def bound_log(self) -> None:
        """Move a log that has grown to its bound to the one before; the process goes on writing to its file."""
        if self.log.exists() and self.log.stat().st_size > LOG_BYTES:
            shutil.copyfile(self.log, self._previous_log)
            os.truncate(self.log, 0)

    def last_words(self) -> str:
        """The last line it printed; empty if there is none."""
        return next((line for line in reversed(self._printed()) if line.strip()), "")

    def _last_lines(self) -> str:
        lines = self._printed()[-LOG_LINES:]
        return "\n".join([f"The end of {self.log}:", *(f"  {line}" for line in lines or ["(empty)"])])

    def _printed(self) -> list[str]:
        return self.log.read_text(errors="replace").splitlines() if self.log.exists() else []


class BoundedHandler(logging.StreamHandler[TextIO]):
    """Prints what is logged, and bounds the file it goes to: that of a process of the stack, which nobody watches."""

    def __init__(self, process: Process) -> None:
        super().__init__()
        self._process = process

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record."""
        self._process.bound_log()
        super().emit(record)


def _inherited() -> dict[str, str]:
    """This process's environment without the secrets of others: whoever needs one is given it, or finds it."""
    hidden = secret_variables()
    return {name: value for name, value in os.environ.items() if name not in hidden}


def _command_line(process: psutil.Process) -> list[str]:
    """The command of a living process."""
    for _ in range(20):
        if words := process.cmdline():
            return words
        # It is empty for an instant while a new program is being loaded.
        time.sleep(POLL_SECONDS)
    return []

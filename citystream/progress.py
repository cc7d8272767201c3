"""Progress of what takes a while, on a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn

from operations.progress import OnProgress


@contextmanager
def heard() -> Iterator[OnProgress]:
    """A bar on the terminal for each step of a procedure, once it begins; nothing where there is no terminal."""
    console = Console(stderr=True)
    shown = (TextColumn("{task.description:<10}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*shown, console=console, disable=not console.is_terminal) as bars:
        begun: dict[str, TaskID] = {}

        def hear(step: str, done: int, total: int | None) -> None:
            if step not in begun:
                begun[step] = bars.add_task(step)
            bars.update(begun[step], completed=done, total=total)

        yield hear

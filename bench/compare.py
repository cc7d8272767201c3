"""Two versions side by side: make bench BEFORE=<another checkout>

A machine's speed may change from minute to minute, so both work in turns, each on servers of its own, off the same
events. What is printed are medians, and the median of the ratios of each turn. The other checkout has to be set up
(make setup in it); its own workers are measured, by its own stopwatch.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench import turns
from bench.process import Timing, machine
from bench.turns import CONTENDERS, READY
from citystream.settings import PROJECT

TURNS = 9
#: Between the ports of the two.
APART = 500


class Version:
    """A checkout whose workers are measured when it is asked for."""

    def __init__(self, checkout: Path, process: subprocess.Popen[str]) -> None:
        self._checkout = checkout
        self._process = process
        self._hear(READY)

    def measure(self, contender: str) -> tuple[int, Timing]:
        """Events, and how long they took."""
        print(contender, file=self._process.stdin, flush=True)
        found = json.loads(self._hear(contender))
        return found["events"], Timing(**found["timing"])

    def _hear(self, contender: str) -> str:
        """What it answers, under this word."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            word, _, answer = line.rstrip("\n").partition("\t")
            if word == contender:
                return answer
        sys.exit(f"{self._checkout} cannot be measured, see above")


@contextmanager
def version(checkout: Path, number: int) -> Iterator[Version]:
    """A checkout with its servers."""
    python = checkout / ".venv" / "bin" / "python"
    if not python.exists():
        sys.exit(f"{checkout} is not set up; run make setup in it")
    command = (str(python), "-P", turns.__file__, str(checkout), str(number * APART))
    with subprocess.Popen(command, cwd=checkout, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield Version(checkout, process)


def main(other: str) -> None:
    """Measure both in turns."""
    found: dict[str, list[list[tuple[float, float]]]] = {name: [[], []] for name in CONTENDERS}
    console = Console()
    with ExitStack() as opened:
        both = [opened.enter_context(version(path, n)) for n, path in enumerate((Path(other).resolve(), PROJECT))]
        for turn in range(TURNS + 1):
            for contender, rows in found.items():
                for number in (0, 1) if turn % 2 else (1, 0):
                    events, timing = both[number].measure(contender)
                    seconds = timing.ended - timing.began
                    said = f"{events / seconds:,.0f} events/s, {timing.cpu_seconds:.2f} CPU s"
                    console.print(f"{turn}/{TURNS} {contender}, {('before', 'after')[number]}: {said}")
                    if turn:  # the first one only warms up
                        rows[number].append((events / seconds, timing.cpu_seconds / events * 1e6))
    table = Table(title=f"{machine()}; medians of {TURNS} turns")
    for title in ("what", "events/s before", "after", "ratio", "CPU s a million before", "after", "ratio"):
        table.add_column(title, justify="left" if title == "what" else "right")
    for contender, (before, after) in found.items():
        cells = []
        for column, digits in ((0, 0), (1, 2)):
            old, new = ([row[column] for row in rows] for rows in (before, after))
            ratio = statistics.median(b / a for a, b in zip(old, new, strict=True))
            cells += [f"{statistics.median(old):,.{digits}f}", f"{statistics.median(new):,.{digits}f}", f"{ratio:.2f}"]
        table.add_row(contender, *cells)
    console.print(table)

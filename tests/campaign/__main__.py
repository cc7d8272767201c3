"""Faults on a real city, and whether anything was lost or counted twice: make faults

LONG=1 makes it a hundred kills and more over a million events, and adds what needs a city of its own. SEED chooses the
same faults again. BROKEN names a rule that workers are to break, to see the campaign find it out.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from random import Random, SystemRandom
from tempfile import TemporaryDirectory
from time import monotonic

import pytest
from rich.table import Table

from bench.process import machine
from citystream.commands.output import print_whole
from citystream.settings import PROJECT
from tests.campaign.arena import Stuck
from tests.campaign.campaign import Outcome, run
from tests.campaign.faults import KILLS, LONG_OUTAGES, OUTAGES, Fault
from tests.campaign.worker import BROKEN

EVENTS = 4_000
LONG_EVENTS = 12_000
#: What a long campaign has to reach.
LONG_RECORDS, LONG_KILLS = 1_000_000, 100
#: How often each kill comes in a long campaign.
LONG_TIMES = 3
SHOWN = 20
#: Between two samples of memory that are shown.
MEMORY_SECONDS = 10
#: Faults after which a city is not the one it was, each on a city of its own.
OWN_CITIES = ("topics", "growth", "lost_positions", "members")
OUT = PROJECT / "bench" / "out" / "faults.json"


def deck(random: Random, *, long: bool) -> list[tuple[str, Fault]]:
    """Every fault, in any order; in a long campaign the kills several times."""
    kills, outages = list(KILLS.items()), list(OUTAGES.items())
    found = kills * LONG_TIMES + outages + list(LONG_OUTAGES.items()) if long else kills + outages
    random.shuffle(found)
    return found


def show(outcome: Outcome, seconds: float) -> None:
    """The table at the end."""
    table = Table(title=f"seed {outcome.seed}, {len(outcome.rounds)} faults, {seconds / 60:.0f} min")
    for name in ("fault", "times", "events", "lost", "doubled", "wrong", "s to recover", "at most", "peak MiB"):
        table.add_column(name, justify="left" if name == "fault" else "right")
    lines = outcome.table()
    for line in lines:
        table.add_row(
            line.fault, *(f"{n:,}" for n in (line.times, line.events, line.lost, line.doubled, line.wrong)),
            _seconds(line.recover), _seconds(line.recover_most), f"{line.peak:,}",
        )  # fmt: skip
    total = [sum(getattr(line, name) for line in lines) for name in ("times", "events", "lost", "doubled", "wrong")]
    table.add_section()
    table.add_row("all", *(f"{n:,}" for n in total))
    print_whole(table)
    differences = outcome.comparison.differences
    for difference in differences[:SHOWN]:
        print(difference)
    if len(differences) > SHOWN:
        print(f"... {len(differences):,} differences in all")
    if not differences:
        print("every row, letter, window and offset in ClickHouse is what the reference computes from the topics")
    print("of the records were " + ", ".join(f"{n:,} {kind}" for kind, n in outcome.comparison.kinds.items()))
    finished = outcome.finished
    print(
        f"{len(finished.worse)} of {finished.windows:,} final windows that were watched became less or changed "
        f"in {finished.looks:,} looks"
    )
    for words in finished.worse[:SHOWN]:
        print(f"became less or changed: {words}")
    for words in outcome.ended:
        print(f"ended by itself and was started again: {words}")
    for fault, memory in outages(outcome):
        print(f"{fault}, MiB of the largest worker every {MEMORY_SECONDS} s: {' '.join(map(str, memory))}")


def outages(outcome: Outcome) -> list[tuple[str, list[int]]]:
    """The memory of workers over the time of each long outage."""
    return [(one.fault, one.memory[::MEMORY_SECONDS]) for one in outcome.rounds if one.fault in LONG_OUTAGES]


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def keep(outcome: Outcome, seconds: float, command: str) -> None:
    """Write it for the documentation."""
    OUT.parent.mkdir(exist_ok=True)
    found = {
        "command": command,
        "machine": machine(),
        "minutes": round(seconds / 60),
        "kills": outcome.kills,
        "lines": [asdict(line) for line in outcome.table()],
        "memory": [{"fault": fault, "seconds": MEMORY_SECONDS, "mib": memory} for fault, memory in outages(outcome)],
        "kinds": outcome.comparison.kinds,
        "watched": outcome.finished.windows,
        "looks": outcome.finished.looks,
        "ended": outcome.ended,
        "first": [str(difference) for difference in outcome.comparison.differences[:SHOWN]],
    }
    OUT.write_text(json.dumps(found, indent=2) + "\n")


def main(environment: dict[str, str]) -> int:
    """Exit code 1 if anything differs from the reference."""
    for name, level in (("kafka", logging.ERROR), ("clickhouse_driver", logging.CRITICAL)):
        logging.getLogger(name).setLevel(level)
    seed = int(environment.get("SEED") or SystemRandom().randrange(2**32))
    long, broken = bool(environment.get("LONG")), environment.get("BROKEN") or None
    if broken is not None and broken not in BROKEN:
        print(f"BROKEN={broken}: there is {', '.join(BROKEN)}", file=sys.stderr)
        return 2
    faults = _chosen(environment.get("FAULTS"), deck(Random(seed), long=long))
    if not faults:
        print(f"FAULTS={environment.get('FAULTS')}: there is no such fault; there are:", file=sys.stderr)
        print("\n".join(sorted({*KILLS, *OUTAGES, *LONG_OUTAGES})), file=sys.stderr)
        return 2
    words = {"SEED": seed, "LONG": 1 if long else None, "BROKEN": broken, "FAULTS": environment.get("FAULTS")}
    command = " ".join(["make faults", *(f"{name}='{word}'" for name, word in words.items() if word is not None)])
    print(f"the same again: {command}\nstarting a city", flush=True)
    begun = monotonic()

    def say(message: str) -> None:
        print(f"{monotonic() - begun:7.0f} s  {message}", flush=True)

    with TemporaryDirectory(prefix="citystream-faults-") as folder:
        try:
            outcome = run(Path(folder), seed, faults, LONG_EVENTS if long else EVENTS, say, broken)
        except Stuck as reason:
            print(f"given up, and nothing was compared: {reason}; on a quiet machine: {command}", file=sys.stderr)
            return 1
    show(outcome, monotonic() - begun)
    keep(outcome, monotonic() - begun, command)
    wrong = not outcome.holds
    whole = not environment.get("FAULTS")
    if whole and outcome.absent:
        print(f"this proves little: there was never {', nor '.join(outcome.absent)}")
        wrong = True
    if whole and long and not (outcome.events >= LONG_RECORDS and outcome.kills >= LONG_KILLS):
        print(f"a long campaign has {LONG_RECORDS:,} records and {LONG_KILLS} kills")
        wrong = True
    if whole and long and broken is None:
        print("faults after which a city is not the one it was, each on a city of its own:", flush=True)
        files = [str(PROJECT / "tests" / "integration" / f"test_{name}.py") for name in OWN_CITIES]
        wrong |= pytest.main(["--quiet", "--verbose", *files]) != pytest.ExitCode.OK
    return int(wrong)


def _chosen(words: str | None, faults: Sequence[tuple[str, Fault]]) -> list[tuple[str, Fault]]:
    """Those whose name contains one of the words, separated by commas."""
    if not words:
        return list(faults)
    return [(name, fault) for name, fault in faults if any(word.strip() in name for word in words.split(","))]


if __name__ == "__main__":
    sys.exit(main(dict(os.environ)))

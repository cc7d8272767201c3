"""One fault after the other on a feed of its own, and how fresh the other feeds stay: make isolation"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Any

from rich.table import Table

from bench.process import machine
from citystream.commands.output import as_text, print_whole
from citystream.settings import PROJECT
from tests.isolation import rounds
from tests.isolation.district import Freshness, district
from tests.isolation.faults import FAULTS, Fault
from tests.isolation.rounds import Round

#: How lines begin that are about what a worker does.
WORKERS = ("processor: ", "sink: ")
#: Records that are followed before each fault.
FOLLOWED = 100
OUT = PROJECT / "bench" / "out" / "isolation.json"


def row(fault: Fault, seen: Round) -> dict[str, Any]:
    """What is kept of a round: of each place that something is said of, what was said first."""
    lines = [line.removeprefix("status: ") for line in seen.said[fault.name] if line.startswith("status: ")]
    first = {tuple(line.split()[: 2 if line.startswith(WORKERS) else 1]): line for line in reversed(lines)}
    return {
        "fault": fault.name,
        "seconds": fault.lasts,
        "before": asdict(seen.before),
        "during": asdict(seen.during),
        "lag": seen.lag,
        "disturbed": seen.disturbed,
        "said": sorted(first.values()),
    }


def show(found: Sequence[dict[str, Any]]) -> None:
    """The table at the end."""
    table = Table("done to a feed", "others before, s", "others meanwhile, s", "their lag, s", "what status said")
    for one in found:
        ages = (f"{kept['median']:.1f}, at most {kept['longest']:.1f}" for kept in (one["before"], one["during"]))
        table.add_row(one["fault"], *ages, f"{one['lag']:.1f}", "\n".join(map(as_text, one["said"])))
    print_whole(table)


def main() -> int:
    """Exit code 1 if another feed was hurt, or something differs from the reference afterwards."""
    for name, level in (("kafka", logging.ERROR), ("clickhouse_driver", logging.CRITICAL)):
        logging.getLogger(name).setLevel(level)
    begun, found, hurt = monotonic(), list[dict[str, Any]](), list[str]()
    with TemporaryDirectory(prefix="citystream-isolation-") as folder, district(Path(folder)) as city:
        city.open()
        for fault in FAULTS:
            print(f"{monotonic() - begun:7.0f} s  {fault.name}", flush=True)
            before: Freshness = rounds.usual(city, FOLLOWED)
            seen = rounds.stage(city, [fault], before, fault.lasts)
            rounds.mend(city, [fault])
            found.append(row(fault, seen))
            hurt += [fault.name] * (seen.hurt or seen.slowed)
        city.hush()
        city.drain()
        differing = rounds.differences(city, FAULTS)
    show(found)
    for name in hurt:
        print(f"other feeds were hurt: {name}")
    print("\n".join(differing) or "every row, letter, window and offset is what the reference computes from the topics")
    kept = {
        "machine": machine(),
        "minutes": round((monotonic() - begun) / 60),
        "rounds": found,
        "differences": differing,
    }
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(kept, indent=2) + "\n")
    return int(bool(hurt or differing))


if __name__ == "__main__":
    sys.exit(main())

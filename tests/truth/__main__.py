"""Whether alerts are true: hundreds of incidents, staged on a real city, against what rules say: make truth

LONG=1 takes sixteen times as many hours. SEED chooses the same incidents and faults again.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from dataclasses import asdict
from pathlib import Path
from random import SystemRandom
from tempfile import TemporaryDirectory
from time import monotonic

from bench.process import machine
from citystream.settings import PROJECT
from tests.truth.campaign import Outcome, run

#: Hours of each feed, at the rate of a city; of traffic there are 15 million records a day.
HOURS = {"parking_site": 8.0, "parking_spot": 0.1, "police_incident": 24.0, "traffic_flow": 1.25}
#: Times as long, if it is told to take long: days of what is small.
LONG = 16
#: What precision and recall of every rule have to be.
LEAST = 0.99
OUT = PROJECT / "bench" / "out" / "truth.json"


def main(environment: dict[str, str]) -> int:
    """Exit code 1 if a rule is not as true as it has to be, or a replay says something else."""
    logging.getLogger("kafka").setLevel(logging.ERROR)
    seed = int(environment.get("SEED") or SystemRandom().randrange(2**32))
    long = bool(environment.get("LONG"))
    hours = {name: number * (LONG if long else 1) for name, number in HOURS.items()}
    command = f"make truth SEED={seed}{' LONG=1' if long else ''}"
    print(f"the same again: {command}", flush=True)
    begun = monotonic()

    def say(message: str) -> None:
        print(f"{monotonic() - begun:7.0f} s  {message}", flush=True)

    with TemporaryDirectory(prefix="citystream-truth-") as folder:
        outcome = run(Path(folder), seed=seed, hours=hours, say=say)
    keep(outcome, hours, command, monotonic() - begun)
    for one in outcome.scores:
        print(f"{one}: precision {one.precision:.4f}, recall {one.recall:.4f}")
    for words in (*outcome.differ, *outcome.wrong):
        print(words)
    return int(not holds(outcome))


def holds(outcome: Outcome) -> bool:
    """Whether every rule found what it should and nothing else, and the replay said the same."""
    return not outcome.differ and all(min(one.precision, one.recall) >= LEAST for one in outcome.scores)


def keep(outcome: Outcome, hours: dict[str, float], command: str, seconds: float) -> None:
    """Write it for the documentation."""
    OUT.parent.mkdir(exist_ok=True)
    scores = [asdict(one) | {"precision": one.precision, "recall": one.recall} for one in outcome.scores]
    found = {
        "command": command,
        "machine": machine(),
        "minutes": round(seconds / 60),
        "hours": hours,
        "records": outcome.records,
        "messages": outcome.messages,
        "differ": len(outcome.differ),
        "staged": dict(sorted(outcome.staged.items())),
        "faults": {fault.value: share for fault, share in outcome.faults.items()},
        "scores": scores,
    }
    OUT.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main(dict(os.environ)))

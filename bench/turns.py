"""What measures one checkout when it is asked to (see bench/compare.py): python bench/turns.py CHECKOUT APART

It stands for itself, because all it imports has to be the checkout's: only then is that measured.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from importlib import import_module
from typing import IO, Any

#: What is measured, and how many processors there are in it.
CONTENDERS = {"processor x1": 1, "processor x2": 2, "end to end": 0}
READY = "ready"


def serve(checkout: str, apart: int, questions: IO[str]) -> None:
    """Measure the contenders that are asked for, with the bench of a checkout."""
    sys.path.insert(0, checkout)
    theirs: Any = import_module("bench.__main__")
    settings = theirs._settings(theirs.HOME)
    ports = ("kafka_port", "clickhouse_port", "clickhouse_http_port", "registry_port")
    settings = settings.model_copy(update={name: getattr(settings, name) + apart for name in ports})
    bench, stack = theirs.Bench(theirs.Installation(settings)), theirs.Stack(settings)
    stack.up(lambda _: None)
    try:
        bench.city.prepare(lambda _: None)
        bench.fill()
        print(READY, flush=True)
        for question in questions:
            contender = question.strip()
            if workers := CONTENDERS[contender]:
                theirs.processors(bench, workers)
            else:
                theirs.end_to_end(bench)
            events, timing = bench.timings[contender][-1]
            print(contender, json.dumps({"events": events, "timing": asdict(timing)}), sep="\t", flush=True)
    finally:
        stack.down(lambda _: None)


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), sys.stdin)

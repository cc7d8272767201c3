"""Children under measurement, and what the operating system says about them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from citystream.settings import Settings, variable

FEED = "traffic_flow"
#: Consumer group of the plain Faust agent.
PLAIN = "plain"


@dataclass(frozen=True)
class Timing:
    """What a child measured of itself: monotonic seconds, its CPU seconds in between, peak memory in MiB."""

    began: float
    ended: float
    cpu_seconds: float
    peak_rss_mb: int


def start(module: str, *arguments: str, environment: Mapping[str, str]) -> subprocess.Popen[str]:
    """Start a module of the bench that prints its timing."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def finish(child: subprocess.Popen[str], seconds: float = 600) -> Timing:
    """Wait for a child and read its timing."""
    printed, _ = child.communicate(timeout=seconds)
    if child.returncode:
        raise RuntimeError(f"{' '.join(map(str, child.args))} ended with {child.returncode}")  # type: ignore[arg-type]
    return Timing(**json.loads(printed.splitlines()[-1]))


def cpu_seconds(pid: int) -> float:
    """CPU time of a living process and its threads so far."""
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def rss_mb(pid: int) -> int:
    """Peak resident memory of a living process in MiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM"))


def resident_mib(pid: int) -> int:
    """Resident memory of a living process now, in MiB."""
    return psutil.Process(pid).memory_info().rss >> 20


def environment(settings: Settings) -> dict[str, str]:
    """For children: these settings."""
    names = ("home", "packages", "kafka_port", "clickhouse_port", "clickhouse_http_port", "registry_port")
    return {variable(name): str(getattr(settings, name)) for name in names}


def machine() -> str:
    """What it was measured on."""
    info = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in info if line.startswith("model name")), "unknown CPU")
    return f"{os.cpu_count()} cores of {model}, {psutil.virtual_memory().total >> 30} GiB"

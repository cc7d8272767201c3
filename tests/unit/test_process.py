"""Which process of a home counts as running."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from citystream.stack.process import Launch, Process

SLEEP = ("sleep", "600")


def test_a_process_runs_until_it_is_stopped(tmp_path: Path) -> None:
    process = Process("sink", tmp_path)
    pid = process.start(Launch(SLEEP))
    running = process.running()
    assert running is not None
    assert (running.pid, running.fingerprint) == (pid, Launch(SLEEP).fingerprint)
    assert 0 <= running.uptime < 60
    assert process.stop()
    assert not process.stop()
    assert process.running() is None
    assert not psutil.pid_exists(pid), "it is a child of this process, and was let go of"


def test_one_that_ended_and_that_nobody_lets_go_of_does_not_run(tmp_path: Path) -> None:
    """In a container the first process may wait for no orphan."""
    careless = f"import subprocess; print(subprocess.Popen({SLEEP!r}).pid, flush=True); input()"
    command = (sys.executable, "-c", careless)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        process = Process("sink", tmp_path)
        process.note.parent.mkdir()
        process.note.write_text(json.dumps({"pid": pid, "command": SLEEP, "fingerprint": ""}))
        assert process.running() is not None
        os.kill(pid, signal.SIGKILL)
        until = time.monotonic() + 10
        while psutil.Process(pid).status() != psutil.STATUS_ZOMBIE and time.monotonic() < until:
            time.sleep(0.01)
        assert process.running() is None
        assert psutil.pid_exists(pid)
        parent.communicate("\n")

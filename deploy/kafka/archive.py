"""Keep what the JVM makes of Kafka's classes, for brokers to start in half of the time: python archive.py.

It starts a broker once, which writes the archive when it ends (class data sharing of the JVM). A JVM that the archive
does not fit starts without it.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from citystream.settings import load_settings
from citystream.stack import kafka
from citystream.stack.ports import free_ports

#: How long a broker may take to start, and to end (s), and how often it is looked.
PATIENCE, LOOK_EVERY = 120.0, 0.1


def make() -> None:
    """Write the archive anew."""
    home = Path(tempfile.mkdtemp())
    settings = load_settings().model_copy(update={"home": home, "kafka_port": free_ports(1)[0]})
    kafka.archive(settings).unlink(missing_ok=True)
    try:
        kafka.prepare(settings)
        command = kafka.launch(settings).command
        with subprocess.Popen(
            [command[0], f"-XX:ArchiveClassesAtExit={kafka.archive(settings)}", *command[1:]]
        ) as broker:
            until = time.monotonic() + PATIENCE
            while not kafka.ready(settings):
                if broker.poll() is not None or time.monotonic() > until:
                    sys.exit("the broker did not start")
                time.sleep(LOOK_EVERY)
            broker.terminate()
            broker.wait(PATIENCE)
    finally:
        shutil.rmtree(home)
    if not kafka.archive(settings).exists():
        sys.exit("the JVM has written no archive")


if __name__ == "__main__":
    make()

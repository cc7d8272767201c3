"""Keep what the JVM makes of Kafka's classes, for brokers to start in half of the time: python archive.py.

It starts a broker once, which writes the archive when it ends (class data sharing of the JVM). A JVM that the archive
does not fit starts without it.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from citystream.settings import load_settings
from citystream.stack import kafka
from citystream.stack.ports import free_ports
from citystream.stack.process import Launch, Process

#: How long a broker may take to start, and to end with its archive written (s).
PATIENCE = 120


def make(home: Path) -> None:
    """Write the archive anew, by a broker whose data lie in a folder that is removed afterwards."""
    settings = load_settings().model_copy(update={"home": home, "kafka_port": free_ports(1)[0]})
    kafka.archive(settings).unlink(missing_ok=True)
    kafka.prepare(settings)
    java, *words = kafka.launch(settings).command
    broker = Process(kafka.NAME, home)
    try:
        broker.start(Launch((java, f"-XX:ArchiveClassesAtExit={kafka.archive(settings)}", *words)))
        broker.wait_until(lambda: kafka.ready(settings), PATIENCE)
    finally:
        broker.stop(PATIENCE)
    if not kafka.archive(settings).exists():
        sys.exit("the JVM has written no archive")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder))

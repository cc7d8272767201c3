"""Say which programs `make setup` needs and this machine lacks, all at once.

Runs before anything is installed, on whatever Python is there, so it imports the standard library alone.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys

JAVA_AT_LEAST = 17


def output_of(*command: str) -> str:
    """What a command prints, on either stream; empty when it is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout + done.stderr if done.returncode == 0 else ""


def java_version(text: str) -> int:
    """Major version from `java -version`; 0 when it cannot be told."""
    found = re.search(r'version "(?:1\.)?(\d+)', text)
    return int(found.group(1)) if found else 0


def missing() -> list[tuple[str, str]]:
    """What is missing, each with the Debian command that installs it."""
    found: list[tuple[str, str]] = []
    python = "Python 3.11" in output_of("python3.11", "--version")
    if not python:
        found.append(("Python 3.11", "apt-get install python3.11 python3.11-venv"))
    elif not output_of("python3.11", "-c", "import ensurepip, venv; print('there')"):
        found.append(("the venv module of Python 3.11", "apt-get install python3.11-venv"))
    if java_version(output_of("java", "-version")) < JAVA_AT_LEAST:
        found.append((f"Java {JAVA_AT_LEAST} or later", "apt-get install openjdk-17-jre-headless"))
    if not shutil.which("mvn"):
        found.append(("Maven (mvn)", "apt-get install maven"))
    if not shutil.which("npm"):
        found.append(("npm", "apt-get install nodejs npm"))
    if not shutil.which("clickhouse") and (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        found.append(("ClickHouse on the PATH (the packaged one is for Linux on x86_64)", "see ClickHouse's manual"))
    return found


def main() -> int:
    """Print what is missing; 0 when nothing is, else 1."""
    lacks = missing()
    if not lacks:
        return 0
    print("Missing on this machine:", file=sys.stderr)
    for what, command in lacks:
        print(f"  {what}: {command}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())

"""The command line as a whole."""

import subprocess
import sys


def test_a_command_loads_only_what_it_takes() -> None:
    loaded = "import sys, citystream.cli; print(*sorted({'aiohttp', 'faust', 'numba'} & sys.modules.keys()))"
    found = subprocess.run([sys.executable, "-c", loaded], check=True, capture_output=True, text=True)
    assert found.stdout == "\n"

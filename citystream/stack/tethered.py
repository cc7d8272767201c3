"""A citystream command that ends with the process that started it, however that ended.

Usage: python -m citystream.stack.tethered PARENT WORD...
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(parent: int, words: list[str]) -> None:
    """Run a command; the kernel asks this process to end when ``parent``, a process id, does."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() == parent:  # else it ended before that was said
        sys.argv = ["citystream", *words]
        runpy.run_module("citystream.cli", run_name="__main__")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])

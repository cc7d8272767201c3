"""ClickHouse as a process of its own, run from the shared library of the npm package.

Usage: python -m citystream.stack.chdb_server LIBRARY OPTION...
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time

OPEN_PORTS_AND_WAIT = (
    "SYSTEM START LISTEN TCP; SYSTEM START LISTEN HTTP; "
    "SELECT sleepEachRow(3) FROM numbers(100000000) "
    "SETTINGS max_block_size=1, function_sleep_max_microseconds_per_block=100000000 FORMAT Null"
)
STARTING_SECONDS = 20


def main(library: str, options: list[str]) -> int:
    """Serve until killed; returns only when ClickHouse could not start."""
    os.umask(0o077)
    clickhouse = ctypes.CDLL(library)
    clickhouse.chdb_query_cmdline.restype = ctypes.c_void_p
    clickhouse.chdb_result_error.argtypes = [ctypes.c_void_p]
    clickhouse.chdb_result_error.restype = ctypes.c_char_p
    threading.Thread(target=_type_exit, args=(_terminal_as_stdin(),), daemon=True).start()
    words = ["clickhouse", *options, "--interactive", "--query", OPEN_PORTS_AND_WAIT]
    argv = (ctypes.c_char_p * len(words))(*(word.encode() for word in words))
    result = clickhouse.chdb_query_cmdline(len(words), argv)
    reason = clickhouse.chdb_result_error(result) or b"ClickHouse ended by itself"
    print(reason.decode(errors="replace"), file=sys.stderr, flush=True)
    return 1


def _terminal_as_stdin() -> int:
    """Make `clickhouse local` believe that a person is there; returns the keyboard's end of the terminal.

    When it runs for a script, it ends the whole process at the first error of any connection: a wrong password, or a
    client that went away.
    """
    keyboard, terminal = os.openpty()
    os.dup2(terminal, 0)
    os.set_blocking(keyboard, False)
    return keyboard


def _type_exit(keyboard: int) -> None:
    """Leave the prompt, which is reached only when a port could not be opened."""
    for _ in range(STARTING_SECONDS):
        time.sleep(1)
        try:
            os.write(keyboard, b"exit\r")
        except BlockingIOError:
            return


if __name__ == "__main__":
    os._exit(main(sys.argv[1], sys.argv[2:]))

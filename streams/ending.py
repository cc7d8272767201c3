"""What a worker does not go on with: a feed that stops alone, or the whole process."""

from __future__ import annotations

import logging
import os
import sys

log = logging.getLogger("citystream")

EX_SOFTWARE = 70
EX_CONFIG = 78


class Stop(RuntimeError):
    """A worker must not go on by itself; the message says what is wrong, where, and what to do.

    ``code`` is what a process ends with for it.
    """

    code = EX_SOFTWARE


def end_process(reason: BaseException | str) -> None:
    """End at once and commit nothing: what was not flushed is processed again after the restart."""
    if isinstance(reason, Stop | str):
        log.error("%s", reason)
    else:
        log.error("Stopping: %s: %s", type(reason).__name__, reason, exc_info=reason)
    sys.stderr.flush()
    os._exit(getattr(reason, "code", EX_SOFTWARE))

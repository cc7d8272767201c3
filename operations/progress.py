"""How a procedure says how far it is."""

from __future__ import annotations

from collections.abc import Callable

#: Hears what is being done, how much of it is done, and of how much, None where nobody knows.
OnProgress = Callable[[str, int, int | None], None]


def unheard(_step: str, _done: int, _total: int | None) -> None:
    """Nobody wants to know."""

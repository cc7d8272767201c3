"""Versions of what outlives a release: what the one before wrote is read, what a newer one wrote is refused."""

from __future__ import annotations

from typing import Any


class Newer(Exception):
    """A newer release wrote something; the message goes on from its name."""


def check_version(fields: Any, newest: int) -> None:
    """Look at the version that something persisted says it has; what says none is of version 1.

    Raises
    ------
    Newer
        It is beyond ``newest``, up to which it is understood here.
    ValueError, TypeError
        It is no such thing.
    """
    version = int(fields["version"]) if "version" in fields else 1
    if version > newest:
        raise Newer(
            f"was written by a newer release: it is of version {version}, and this release reads up to {newest}; go on "
            "with that release or a later one, see Upgrades in docs/operator.md"
        )

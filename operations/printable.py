"""Showing people a text that somebody else wrote."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text with whatever moves a cursor, rings or hides written as its number, so that a terminal only shows it."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)

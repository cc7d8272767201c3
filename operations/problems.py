"""What people ask for and cannot have."""

from __future__ import annotations


class CaseProblem(ValueError):
    """There is no such case, or a step cannot come in its state; the message says which can."""

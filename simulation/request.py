"""What a simulation does on request: kinds of things by name, each with or without how often."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

K = TypeVar("K", bound=StrEnum)


@dataclass(frozen=True, kw_only=True)
class Request(Generic[K]):
    """How some kinds are asked for: ``what`` each is, how often it is ``usual``, and how often it may be.

    ``needed`` says in words what ``allows`` allows; ``wrong`` is raised for what makes no sense.
    """

    what: str
    usual: Mapping[K, float]
    needed: str
    allows: Callable[[float], bool]
    wrong: type[ValueError]

    def parse(self, text: str) -> dict[K, float]:
        """How often by kind, from ``all``, or from names with or without numbers: ``one=0.02,other``."""
        if text == "all":
            return dict(self.usual)
        kinds = {kind.value: kind for kind in self.usual}
        found: dict[K, float] = {}
        for part in text.split(","):
            name, given, number = part.strip().partition("=")
            if name not in kinds:
                raise self.wrong(f"there is no {self.what} {name!r}; there are {', '.join(kinds)}, or all")
            found[kinds[name]] = self._number(kinds[name], number) if given else self.usual[kinds[name]]
        return found

    def _number(self, kind: K, text: str) -> float:
        try:
            found = float(text)
        except ValueError:
            found = float("nan")
        if not self.allows(found):
            raise self.wrong(f"{kind}={text}: {self.needed}, such as {kind}={self.usual[kind]:g}")
        return found

"""Questions that the people of a department ask: each is a view, so that everyone asks it in the same words."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from schemas.fields import Record
from schemas.model import NAME, VERSIONED, DeclarationError, Field, fields_of

_PARAMETER = re.compile(r"\{(\w+):")


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question, the SQL that answers it and the columns of the answer.

    The view is ``city.<name>``, and takes ``parameters`` if there are any: those that the SQL has in braces with their
    types, each with a value as an example. ``answer`` has the columns of the SQL as fields. The SQL reads with
    the rights of whoever asks: of an analyst, so views of ``city`` alone.
    """

    name: str
    asks: str
    answer: type[Record]
    sql: str
    parameters: Mapping[str, str] = field(default_factory=dict)
    fields: tuple[Field, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "fields", fields_of(self.answer))
        for reason in _problems(self):
            raise DeclarationError(f"question {self.name}: {reason}")

    @property
    def views(self) -> list[str]:
        """The views it reads, without their database."""
        return [*dict.fromkeys(re.findall(r"\bcity\.(\w+)", self.sql))]

    @property
    def query(self) -> str:
        """SQL that asks it, with the examples."""
        values = ", ".join(f"{name}='{value}'" for name, value in self.parameters.items())
        return f"SELECT * FROM city.{self.name}{f'({values})' if values else ''}"  # noqa: S608


def _problems(question: Question) -> Iterator[str]:
    if not NAME.fullmatch(question.name) or VERSIONED.fullmatch(question.name):
        yield "a name is lower-case words joined by underscores, without a version"
    if not question.asks.endswith("?"):
        yield f"{question.asks!r} is no question: it ends in a question mark"
    if not question.views:
        yield "it reads no view of city"
    used = set(_PARAMETER.findall(question.sql))
    for name in sorted(used ^ set(question.parameters)):
        yield f"{name} is " + ("a parameter without an example" if name in used else "no parameter of its SQL")

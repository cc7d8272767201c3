"""Reference data: what is known beside the events, such as sites, limits, areas and plans, declared like records."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta

from schemas.department import Department, contract_problems
from schemas.fields import Record
from schemas.model import NAME, VERSIONED, DeclarationError, Field, Kind, fields_of

#: Rows a table has at most: every worker that looks something up holds all of them, with their history.
MOST_ROWS = 50_000
#: How much older than a record's arrival, by the brokers' clocks, what is looked up for it is: so the log of the table
#: has come that far when the record is judged.
GRACE = timedelta(seconds=10)
#: Kinds of fields that rows are looked up by.
KEYS: tuple[Kind, ...] = ("string", "enum", "int")
#: Columns that its table has beside its fields.
_STORED = ("removed", "source_offset", "arrived_at")


@dataclass(frozen=True, kw_only=True)
class Reference:
    """One table of reference data of one department.

    Rows are looked up by ``key``, the names of one or more fields. With ``valid_from`` and ``valid_to``, fields of
    instants, a row holds for events from the one until before the other; null is open. Of the rows of a key that hold,
    the one that begins last is taken: a row for an evening stands before the one for always. A row that is published
    with the key and beginning of another one takes its place, and a file without it takes it away.
    ``licence`` is the address of that under which anybody may have it; without one it is for the roles of the city.
    """

    name: str
    description: str
    record: type[Record]
    key: tuple[str, ...]
    department: Department
    batch: int = 1
    valid_from: str | None = None
    valid_to: str | None = None
    licence: str | None = None
    fields: tuple[Field, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "fields", fields_of(self.record))
        for reason in _problems(self):
            raise DeclarationError(f"reference {self.name}: {reason}")

    @property
    def views(self) -> list[str]:
        """The names of its views."""
        return [self.name, f"{self.name}_at"]

    def field(self, name: str) -> Field:
        """The description of the field of a name."""
        return next(field for field in self.fields if field.name == name)


def _problems(reference: Reference) -> Iterator[str]:
    known = {field.name: field for field in reference.fields}
    yield from contract_problems(reference.batch, reference.licence, [])
    if not NAME.fullmatch(reference.name) or VERSIONED.fullmatch(reference.name):
        yield "a name is lower-case words joined by underscores, without a version"
    if not reference.key:
        yield "it needs a key to look rows up by"
    for name in reference.key:
        if name not in known or known[name].kind not in KEYS or known[name].nullable:
            yield f"the key {name} has to be a field that is a text, an enum or a whole number and is never null"
        elif known[name].shape:
            yield f"the key {name} is a shape, and nobody looks one up by that"
    if len(set(reference.key)) < len(reference.key):
        yield "a field is named twice in its key"
    if (reference.valid_from is None) != (reference.valid_to is None):
        yield "valid_from and valid_to mean something together only"
    for name in (name for name in (reference.valid_from, reference.valid_to) if name is not None):
        if name not in known or known[name].kind != "instant":
            yield f"{name} has to be a field that is an Instant, or null where it is open"
    if reference.valid_from is not None and reference.valid_from == reference.valid_to:
        yield "valid_from and valid_to are one field"
    for name in (name for name in known if name in _STORED):
        yield f"{name} is the name of a column that every table has"
    for name in (one.name for one in known.values() if one.personal):
        yield f"{name} is personal, and reference data is open to every worker and analyst"

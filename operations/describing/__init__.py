"""The catalogue in the words of the standards, for programs that read those: DCAT-AP 3 and AsyncAPI 3.

Both say what is declared, where it is, and who may read it; never a value of a record.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from schemas.catalogue import Catalogue
from schemas.feed import Feed
from schemas.reference import Reference
from streams.cluster import Cluster

#: The role that reads views and topics of all that is declared.
READER = "analyst"


class Access(StrEnum):
    """Who may have a data set, in the words of the European authority table of access rights."""

    PUBLIC = "PUBLIC"
    RESTRICTED = "RESTRICTED"
    NON_PUBLIC = "NON_PUBLIC"


@dataclass(frozen=True)
class Described:
    """What is described: all feeds and tables, their frozen schemas, and where they are."""

    feeds: Mapping[str, Feed]
    tables: Mapping[str, Reference]
    schemas: Catalogue
    cluster: Cluster
    sql: str

    @property
    def all(self) -> list[Feed | Reference]:
        """Feeds, then tables."""
        return [*self.feeds.values(), *self.tables.values()]


def access(one: Feed | Reference) -> Access:
    """Who may have a feed or table: everybody under its licence, the roles of the city, or these for a purpose only."""
    if any(field.personal for field in one.fields):
        return Access.NON_PUBLIC
    return Access.PUBLIC if one.licence else Access.RESTRICTED


def readers(one: Feed | Reference) -> str:
    """The same in a sentence."""
    department = one.department
    roles = f"the role {READER} and those above it"
    match access(one):
        case Access.PUBLIC:
            return f"Everybody may have it under {one.licence}; here {roles} read it. Ask {department.contact}."
        case Access.RESTRICTED:
            return f"It is for {roles}. Ask {department.contact}."
        case Access.NON_PUBLIC:
            return (
                f"It is about persons, under pseudonyms: for {roles}, for the purpose it is collected for "
                f"({department.purpose}). Ask {department.contact}."
            )

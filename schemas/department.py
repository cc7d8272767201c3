"""Who publishes, and what its data may be used for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from schemas.model import DeclarationError

_MAIL = re.compile(r"[^@\s/]+@[^@\s/]+")
_ADDRESS = re.compile(r"https?://\S+")


@dataclass(frozen=True, kw_only=True)
class Department:
    """A department: its name, who answers questions about its data, and what the city has them for.

    >>> Department(name="Parks", contact="data@parks.example", purpose="Care of the parks")

    ``contact`` is a mail address, or a web page that begins with https://.
    """

    name: str
    contact: str
    purpose: str

    def __post_init__(self) -> None:
        for reason in self._problems():
            raise DeclarationError(f"department {self.name}: {reason}")

    @property
    def mail(self) -> bool:
        """Whether the contact is a mail address."""
        return _MAIL.fullmatch(self.contact) is not None

    def _problems(self) -> Iterator[str]:
        if not self.name.strip():
            yield "it needs a name"
        if not self.mail and not _ADDRESS.fullmatch(self.contact):
            yield f"the contact {self.contact!r} is no mail address, and no web page that begins with https://"
        if not self.purpose.strip():
            yield "it needs a purpose: what the city has its data for"


def contract_problems(batch: int, licence: str | None, personal: list[str]) -> Iterator[str]:
    """What makes no sense of when something is connected, and of what others may do with it."""
    if batch < 1:
        yield "batch is a number from 1 on"
    if licence is not None and not _ADDRESS.fullmatch(licence):
        yield f"the licence {licence!r} is no address of its text that begins with https://"
    if licence is not None and personal:
        yield f"{personal[0]} is personal, so there can be no licence for everybody"

"""What stands in the log in the place of a personal value, and the keys it is made with.

The city has one key, and each department one that is derived from it: whoever has a department's key can make the
pseudonyms of that department, and of no other.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from schemas.feed import Feed
from schemas.fields import PSEUDONYM_LENGTH

#: Digits at the begin of a pseudonym that say which key it was made with.
KEY_DIGITS = 4

_OWN = re.compile(r"(?P<department>.+):(?P<key>[0-9a-f]{64})", re.DOTALL)


class OtherDepartment(ValueError):
    """A key is another department's; the message names both."""


def normalised(text: str) -> str:
    """A text without differences that mean none: NFKC, in one case, runs of spaces as one and none at the ends."""
    folded = unicodedata.normalize("NFD", text)
    for _ in range(2):  # as Unicode defines its NFKC_Casefold
        folded = unicodedata.normalize("NFKC", folded.casefold())
    return " ".join(folded.split())


def key_id(key: bytes) -> str:
    """The first digits of every pseudonym that is made with a key."""
    return hashlib.sha256(b"key id:" + key).hexdigest()[:KEY_DIGITS]


def pseudonym(key: bytes, value: str) -> str:
    """``PSEUDONYM_LENGTH`` hexadecimal digits: the id of the key, then the HMAC-SHA256 of the normalised value."""
    digest = hmac.new(key, normalised(value).encode(), hashlib.sha256).hexdigest()
    return key_id(key) + digest[: PSEUDONYM_LENGTH - KEY_DIGITS]


def replaced(feed: Feed, key: bytes, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a record with pseudonyms in the place of personal ones."""
    personal = (field.name for field in feed.fields if field.personal)
    return {**values, **{name: pseudonym(key, values[name]) for name in personal if values[name] is not None}}


def department_key(key: str, department: str) -> bytes:
    """The key of a department, from the city's key or from the department's own as ``handed_out`` writes it.

    Raises
    ------
    OtherDepartment
        It is another department's own.
    """
    if own := _OWN.fullmatch(key):
        if own["department"] != department:
            raise OtherDepartment(f"the pseudonym key is that of {own['department']}, and this needs {department}'s")
        return bytes.fromhex(own["key"])
    return hmac.digest(key.encode(), b"department:" + department.encode(), hashlib.sha256)


def handed_out(key: bytes, department: str) -> str:
    """The key of a department as text, to be given to it."""
    return f"{department}:{key.hex()}"

"""Ticks: control records that say how far event time has come in a partition, whatever its events say.

A tick has no key, so it is no event; other clients know it by its schema id.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from schemas.catalogue import TICK, Catalogue
from schemas.record_codec import NotDecodable, decode, encode, schema_id
from schemas.verdict import instant_ms


def encode_tick(catalogue: Catalogue, event_ms: int) -> bytes:
    """The value of a tick: event time has come to here."""
    return encode(catalogue.latest(TICK), {"event_time": datetime.fromtimestamp(event_ms / 1000, UTC)})


def read_tick(catalogue: Catalogue, value: bytes) -> int | None:
    """The time that a tick says, in ms; None if the value is no tick."""
    frozen = catalogue.by_id.get(schema_id(value) or 0)
    if frozen is None or frozen.subject != TICK:
        return None
    try:
        said: Any = decode(catalogue, value)["event_time"]
    except NotDecodable:
        return None
    return instant_ms(said)

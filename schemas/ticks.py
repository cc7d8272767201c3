"""Ticks: control records that say how far event time has come in a partition, whatever its events say.

A tick has no key, so it is no event; other clients know it by its schema id. What it says stands in itself and in the
broker's time, so a change of the feed changes no tick that is in the log.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from schemas.catalogue import TICK, Catalogue
from schemas.feed import milliseconds
from schemas.record_codec import NotDecodable, decode, encode, schema_id
from schemas.verdict import instant_ms


def encode_tick(catalogue: Catalogue, event_ms: int) -> bytes:
    """The value of a tick of a publisher that ends: event time has come to here."""
    return encode(catalogue.latest(TICK), {"event_time": datetime.fromtimestamp(event_ms / 1000, UTC)})


def encode_clock_tick(catalogue: Catalogue, delay: timedelta) -> bytes:
    """The value of a tick of a clock: event time has come to so long before it arrives."""
    return encode(catalogue.latest(TICK), {"delay": milliseconds(delay)})


def read_tick(catalogue: Catalogue, value: bytes, arrived_ms: int) -> int | None:
    """The time that a tick says which arrived then, both in ms; None if the value is no tick, or says none."""
    frozen = catalogue.by_id.get(schema_id(value) or 0)
    if frozen is None or frozen.subject != TICK:
        return None
    try:
        tick: dict[str, Any] = decode(catalogue, value)
    except NotDecodable:
        return None
    if tick["event_time"] is not None:
        return instant_ms(tick["event_time"])
    return None if tick["delay"] is None else arrived_ms - int(tick["delay"])

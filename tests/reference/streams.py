"""Random logs of the toy feed: out of order, late, repeated, one id at two times, nulls, and records that are wrong."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from hypothesis import strategies as st

from schemas.catalogue import Catalogue
from schemas.record_codec import encode
from schemas.ticks import encode_clock_tick, encode_tick
from tests.reference.batches import batch
from tests.reference.partition import Logged
from tests.reference.toy import CATALOGUE, SECOND, Mood, event_id, instant

ARRIVED_AFTER = 1000 * SECOND
#: Makes event ids of numbers that have all bits, and another order.
SCATTER = 0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835


@dataclass(frozen=True)
class Log:
    """A partition: ``cuts`` are the offsets batches start at, the first of them 0; ``end`` is its end."""

    records: tuple[Logged, ...]
    cuts: tuple[int, ...]

    @property
    def end(self) -> int:
        return len(self.records)

    def batches(self, catalogue: Catalogue = CATALOGUE, feed: str = "toy") -> list[bytes]:
        """As the broker has it, its records of a feed that has those of the toy feed."""
        ends = [*self.cuts[1:], self.end]
        return [
            batch(
                [(r.key, _encoded(r, catalogue, feed), []) for r in self.records[start:end]],
                start,
                arrived_ms=self.records[0].arrived_ms,
            )
            for start, end in zip(self.cuts, ends, strict=True)
        ]


def _encoded(logged: Logged, catalogue: Catalogue, feed: str) -> bytes:
    if logged.tick_ms is not None:
        return encode_tick(catalogue, logged.tick_ms)
    if logged.delay_ms is not None:
        return encode_clock_tick(catalogue, timedelta(milliseconds=logged.delay_ms))
    if logged.values is None:
        return b"noise"
    values: dict[str, Any] = dict(logged.values)
    for name in ("observed_at", "began_at"):
        values[name] = None if values[name] is None else instant(values[name])
    return encode(catalogue.latest(feed), values)


def wire(number: int, device: str, observed_at: int, more: tuple[Any, ...]) -> dict[str, Any]:
    """A record with mood, level, load, wait, how long before it its period began, note, and whether it is open."""
    mood, level, load, wait, since, note, is_open = (*more, None, None)[:7]
    return {
        "event_id": event_id(number * SCATTER % 2**128),
        "device_id": device,
        "observed_at": observed_at,
        "began_at": None if since is None else observed_at - since,
        "mood": mood,
        "level": level,
        "wait": wait,
        "load": load,
        "weight": 0.0,
        "open": is_open,
        "built": None,
        "note": note,
        "place": None,
    }


more_values = st.tuples(
    st.sampled_from([mood.value for mood in Mood]),
    st.sampled_from([-1000, -1, 0, 3, 7, 100_000]),
    st.sampled_from([None, -100.0, -0.005, 0.0, 0.005, 0.015, 0.5, 0.1 + 0.2, 99.99]),
    st.sampled_from([None, 0, -5, 1, 2, 50, 100, 51, 2**31 - 1]),
    st.sampled_from([None, 0, 1, 60_000, 10**11]),
    st.sampled_from([None, "", "湖"]),
    st.sampled_from([None, False, True]),
)
steps = st.tuples(
    st.sampled_from(
        ["event"] * 8 + ["repeat", "repeat", "moved", "noise", "broken", "wrong key", "future", "tick", "clock"]
    ),
    st.sampled_from(["d-1", "d-1", "湖"]),
    st.sampled_from([0] * 9 + [-9000, -5000, -4999, -1000, -1, 500, 999, 2000, 9000]),
    st.sampled_from([0, 1, 500, 999, 1000, 1500, 2000]),
    st.integers(0, 40),
    more_values,
)


def cuts(size: int) -> st.SearchStrategy[tuple[int, ...]]:
    """Where the batches of a log of this size start."""
    inner = st.lists(st.integers(1, max(1, size - 1)), unique=True, max_size=8)
    return inner.map(lambda found: (0, *sorted(cut for cut in found if cut < size)))


@st.composite
def logs(draw: st.DrawFn, base_ms: int, max_size: int = 40) -> Log:
    """A log whose event times go up by a second or so a record, with all that can go wrong."""
    records: list[Logged] = []
    now = base_ms
    events: list[dict[str, Any]] = []
    size = draw(st.integers(1, max_size))
    drawn = draw(st.lists(steps, min_size=size, max_size=size))
    for offset, (kind, device, off, step, pick, more) in enumerate(drawn):
        now += step
        values = wire(offset, device, now + off, more)
        if kind == "repeat" and events:
            values = events[pick % len(events)]
        elif kind == "moved" and events:
            values = events[pick % len(events)] | {"observed_at": now + off, "began_at": None}
        elif kind == "tick":
            records.append(Logged(offset, None, None, base_ms + ARRIVED_AFTER, tick_ms=now + off))
            continue
        elif kind == "clock":
            delay_ms = base_ms + ARRIVED_AFTER - now - off
            records.append(Logged(offset, None, None, base_ms + ARRIVED_AFTER, delay_ms=delay_ms))
            continue
        elif kind == "broken":
            values = values | {"level": 100_001}
        elif kind == "future":
            values = values | {"observed_at": base_ms + ARRIVED_AFTER + 5001}
        else:
            events.append(values)
        key: bytes | None = values["device_id"].encode()
        if kind == "wrong key":
            key = b"other"
        records.append(Logged(offset, key, None if kind == "noise" else values, base_ms + ARRIVED_AFTER))
    return Log(tuple(records), draw(cuts(len(records))))

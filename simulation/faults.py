"""What reality does to a feed, mixed into a simulation on request: repeats, delays, wrong clocks and worse."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from hashlib import blake2b
from random import Random
from typing import Any

from schemas.catalogue import Catalogue
from schemas.feed import Feed
from schemas.fields import Record
from schemas.record_codec import NotDecodable, decode
from simulation.request import Request
from simulation.world import whole_ms


class Fault(StrEnum):
    """DUPLICATES: an event again, at once or up to an hour later. DISORDER: delayed within the feed's disorder. LATE:
    delayed beyond disorder and lateness. SKEW: an event time further in the future than the feed allows. CORRUPT: bytes
    flipped (which may leave a valid record), cut off or random. SILENT: a device says nothing for a while. BEHIND: the
    clock of a device is slow, always by the same, within the feed's disorder; what it tells suffers nothing else.
    """

    DUPLICATES = "duplicates"
    DISORDER = "disorder"
    LATE = "late"
    SKEW = "skew"
    CORRUPT = "corrupt"
    SILENT = "silent"
    BEHIND = "behind"


#: Shares of the events, or for SILENT of devices' time, or for BEHIND of devices, of faults named without one.
USUAL = {
    Fault.DUPLICATES: 0.01,
    Fault.DISORDER: 0.05,
    Fault.LATE: 0.005,
    Fault.SKEW: 0.001,
    Fault.CORRUPT: 0.001,
    Fault.SILENT: 0.01,
    Fault.BEHIND: 0.01,
}
#: Faults that devices have, and not single events.
OF_DEVICES = (Fault.SILENT, Fault.BEHIND)
LONGEST_REPEAT = timedelta(hours=1)
LONGEST_SKEW = timedelta(hours=1)
#: A silent device is silent for this many times the longest pause that is normal.
SILENCES = 3
#: That pause of a feed that promises none.
QUIET = timedelta(hours=1)


class FaultsError(ValueError):
    """A description of faults makes no sense; the message says what there is."""


_REQUEST = Request(
    what="fault",
    usual=USUAL,
    needed="a share between 0 and 1 is needed",
    allows=lambda share: 0 <= share <= 1,
    wrong=FaultsError,
)


def parse_faults(text: str) -> dict[Fault, float]:
    """Shares by fault, from ``all``, or from names with or without shares: ``duplicates=0.02,late``.

    Raises
    ------
    FaultsError
        A name does not exist, a share is not between 0 and 1, or the shares add up to more than 1.
    """
    shares = _REQUEST.parse(text)
    if sum(shares.values()) > 1:
        raise FaultsError(f"the shares add up to {sum(shares.values()):g}; at most 1 is possible")
    return shares


@dataclass(frozen=True)
class Sending:
    """A record, when it is due, and what is wrong with it; a SILENT one is not sent and a CORRUPT one not as it is."""

    due: datetime
    record: Record
    fault: Fault | None = None


def plan(
    feed: Feed,
    records: Iterable[Record],
    shares: Mapping[Fault, float],
    random: Random,
    now: Callable[[], datetime],
) -> Iterator[Sending]:
    """Sendings in the order they are due, to the last: each record at its event time, except for what faults do to it.

    An event suffers at most one fault. ``now`` tells when a record arrives, to which a wrong clock is compared.
    """
    salt = random.getrandbits(64)
    longest = max((a.window for a in feed.aggregates), default=timedelta(minutes=1))
    delayed: list[tuple[datetime, int, Sending]] = []

    def delay(number: int, record: Record, fault: Fault, by: timedelta) -> None:
        due = _event_time(feed, record) + by
        heapq.heappush(delayed, (due, number, Sending(due, record, fault)))

    for number, record in enumerate(records):
        at = _event_time(feed, record)
        while delayed and delayed[0][0] <= at:
            yield heapq.heappop(delayed)[2]
        match _draw(feed, record, shares, random, salt):
            case Fault.DISORDER:
                delay(number, record, Fault.DISORDER, feed.disorder * random.random())
            case Fault.LATE:
                delay(number, record, Fault.LATE, feed.allowance + 2 * longest * (1 - random.random()))
            case Fault.DUPLICATES:
                yield Sending(at, record)
                delay(number, record, Fault.DUPLICATES, random.choice((0, 1)) * random.random() * LONGEST_REPEAT)
            case Fault.SKEW:
                ahead = feed.allowance + timedelta(minutes=1) + LONGEST_SKEW * random.random()
                wrong = whole_ms(max(at, now()) + ahead)
                yield Sending(at, record.model_copy(update={feed.event_time: wrong}), Fault.SKEW)
            case Fault.BEHIND:
                yield Sending(at, _set_back(feed, record, salt), Fault.BEHIND)
            case fault:
                yield Sending(at, record, fault)
    while delayed:
        yield heapq.heappop(delayed)[2]


def _draw(feed: Feed, record: Record, shares: Mapping[Fault, float], random: Random, salt: int) -> Fault | None:
    if (silent := shares.get(Fault.SILENT, 0)) and _chance_for_now(feed, record, salt) < silent:
        return Fault.SILENT
    if (behind := shares.get(Fault.BEHIND, 0)) and _chance(feed, record, salt, "clock") < behind:
        return Fault.BEHIND
    drawn = random.random()
    for fault, share in shares.items():
        if fault not in OF_DEVICES:
            if drawn < share:
                return fault
            drawn -= share
    return None


def _set_back(feed: Feed, record: Record, salt: int) -> Record:
    """What a device tells whose clock is slow: all its times are earlier."""
    by = feed.disorder * _chance(feed, record, salt, "behind")
    times = {field.name: getattr(record, field.name) for field in feed.fields if field.kind == "instant"}
    return record.model_copy(update={name: whole_ms(at - by) for name, at in times.items() if at is not None})


def _chance_for_now(feed: Feed, record: Record, salt: int) -> float:
    """A number from 0 to 1 that stays the same for a device during one possible silence."""
    turn = _event_time(feed, record).timestamp() // (SILENCES * (feed.silence or QUIET).total_seconds())
    return _chance(feed, record, salt, turn)


def _chance(feed: Feed, record: Record, salt: int, purpose: object) -> float:
    """A number from 0 to 1 that is a device's own."""
    digest = blake2b(f"{salt}/{getattr(record, feed.key)}/{purpose}".encode(), digest_size=8).digest()
    return float(int.from_bytes(digest) / 2**64)


def corrupted(value: bytes, random: Random) -> bytes:
    """Bytes that came to harm: some flipped, the end cut off, or all of them noise."""
    match random.choice(("flipped", "cut", "noise")):
        case "flipped":
            broken = bytearray(value)
            for _ in range(random.randint(1, 4)):
                broken[random.randrange(len(broken))] ^= random.randint(1, 255)
            return bytes(broken)
        case "cut":
            return value[: random.randrange(len(value))]
        case _:
            return random.randbytes(random.randint(1, 2 * len(value)))


def corrupted_history(catalogue: Catalogue, feed: Feed, value: bytes, random: Random) -> bytes:
    """Corrupted bytes of a record that is published long after it happened; cut in half if they say that it happened
    later than its feed would believe when it happened: what arrives late cannot be told from the future by its arrival.
    """
    broken = corrupted(value, random)
    try:
        told = decode(catalogue, broken).get(feed.event_time)
    except NotDecodable:
        return broken
    latest = decode(catalogue, value)[feed.event_time] + feed.disorder
    return value[: len(value) // 2] if isinstance(told, datetime) and told > latest else broken


def _event_time(feed: Feed, record: Record) -> datetime:
    value: Any = getattr(record, feed.event_time)
    assert isinstance(value, datetime)
    return value

"""What ClickHouse shows against what it has to show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, takewhile
from typing import Any, Literal

from clickhouse_driver import Client

from schemas.alerts import FEED_NAME
from schemas.feed import Aggregate, Feed
from sinks.ledger import Account
from tests.reference import found
from tests.reference.city import Letter, Place, Shown, Truth
from tests.reference.found import FoundLetter, FoundWindow, Stretch
from tests.reference.partition import Key
from tests.reference.rules import Told

#: Words of which the cause of a letter for a whole batch has to have one.
OF_A_BATCH = frozenset({"batch", "unknown compression"})
#: How many offsets of many are named, and how many bytes of a value are shown.
NAMED, SHOWN_BYTES = 5, 16


@dataclass(frozen=True)
class Difference:
    """One row that is not as it has to be; ``events`` are those lost or doubled, 0 where only a value is wrong.

    ``feed`` is the topic. ``place`` is None where no offset can be named: for sums, and for a window that has no place
    and holds nothing the stream counted.
    """

    feed: str
    kind: Literal["lost", "doubled", "wrong"]
    table: str
    place: Place | None
    events: int
    detail: str

    def __str__(self) -> str:
        where = f"partition {self.place[0]}, offset {self.place[1]}" if self.place else "at no single offset"
        return f"{self.kind}: {self.feed} {where}, in {self.table}: {self.detail}"


def differences(client: Client, feed: Feed, truth: Truth, account: Account) -> list[Difference]:
    """Everything that differs for a feed, in the order of the log for each table."""
    differing = [
        *_rows(feed.name, truth, found.rows(client, feed)),
        *_letters(feed.name, truth, found.letters(client, feed.name)),
        *_control(feed.name, truth, found.control(client, feed.name)),
        *_ledger(feed.name, truth, found.ledger(client, feed.name)),
        *_sums(truth, account),
    ]
    if feed.raises_alerts:
        differing += _alerts(feed.name, truth, list(found.alerts(client, feed.name)))
    for aggregate in feed.aggregates:
        counted = found.counted_last(client, aggregate)
        differing += _windows(feed.name, aggregate, truth, found.windows(client, aggregate), counted)
    return sorted(differing, key=lambda one: (one.table, one.place or (-1, -1)))


def strangers(client: Client, feeds: Sequence[str]) -> list[Difference]:
    """Rows of the quarantine and of ``raw.control`` whose topic is no feed's."""
    return [
        Difference(
            row.topic, "wrong", row.table, (row.partition, row.first), 0, f"to {row.last}: the topic is no feed's"
        )
        for row in found.elsewhere(client, feeds)
    ]


def _rows(topic: str, truth: Truth, rows: Iterable[tuple[Place, tuple[Any, ...]]]) -> Iterator[Difference]:
    table, missing = f"raw.{topic}", dict(truth.rows)
    for place, cells in rows:
        expected = missing.pop(place, None)
        if expected is None:
            yield Difference(topic, "doubled", table, place, 1, f"{cells} has no place there")
        elif expected != cells:
            yield Difference(topic, "wrong", table, place, 0, f"{cells} instead of {expected}")
    for place, cells in missing.items():
        yield Difference(topic, "lost", table, place, 1, f"{cells} is missing")


def _alerts(topic: str, truth: Truth, said: Sequence[Told]) -> Iterator[Difference]:
    wanted, there = Counter(truth.alerts), Counter(said)
    for one, count in (wanted - there).items():
        yield Difference(topic, "lost", f"raw.{FEED_NAME}", None, count, str(one))
    for one, count in (there - wanted).items():
        yield Difference(topic, "doubled", f"raw.{FEED_NAME}", None, count, str(one))


def _letters(topic: str, truth: Truth, letters: Iterable[FoundLetter]) -> Iterator[Difference]:
    table, missing = "raw.quarantine", dict(truth.letters)
    for there in letters:
        count, place = _unknown(truth, there.partition, there.first, there.last, missing)
        if count:
            detail = f"{_objection(truth, place)}, {count:,} in all: {there.stage}: {there.cause}"
            yield Difference(topic, "doubled", table, place, count, detail)
        for offset in _inside(truth, there.partition, there.first, there.last):
            letter = missing.pop((there.partition, offset), None)
            wrong = letter and _wrong_letter(there, _of_a_batch(letter) if there.first < there.last else letter)
            if wrong:
                detail = f"found and expected {wrong}"
                yield Difference(topic, "wrong", table, (there.partition, offset), 0, detail)
    for place, letter in missing.items():
        detail = f"{letter.stage} for {' or '.join(sorted(letter.causes))} is missing"
        yield Difference(topic, "lost", table, place, 1, detail)


def _of_a_batch(letter: Letter) -> Letter:
    """The letter of a record whose whole batch could not be opened."""
    return replace(letter, stage="DECODE", causes=OF_A_BATCH, key=None, value=None)


def _wrong_letter(there: FoundLetter, letter: Letter) -> dict[str, tuple[Any, Any]]:
    """What is there and what has to be, by the name of what is wrong."""
    wrong: dict[str, tuple[Any, Any]] = {}
    if there.stage != letter.stage:
        wrong["stage"] = there.stage, letter.stage
    if not letter.is_explained_by(there.cause):
        wrong["cause"] = there.cause, " or ".join(sorted(letter.causes))
    for name, text, kept in zip(("key", "value"), (there.key, there.value), letter.kept, strict=True):
        expected = None if kept is None else kept.hex()
        if text != expected:
            wrong[name] = _apart(text, expected)
    if there.published_ms != letter.arrived_ms:
        wrong["published_at"] = there.published_ms, letter.arrived_ms
    return wrong


def _apart(there: str | None, expected: str | None) -> tuple[str, str]:
    """Two hexadecimal texts from the first byte on in which they differ."""
    same = takewhile(lambda pair: pair[0] == pair[1], zip(there or "", expected or "", strict=False))
    at = sum(1 for _ in same) // 2
    return _from_byte(at, there), _from_byte(at, expected)


def _from_byte(at: int, text: str | None) -> str:
    if text is None:
        return "none"
    return f"{len(text) // 2} bytes, from byte {at} on {text[2 * at : 2 * (at + SHOWN_BYTES)]}"


def _control(topic: str, truth: Truth, stretches: Iterable[Stretch]) -> Iterator[Difference]:
    for there in stretches:
        count, place = _unknown(truth, there.partition, there.first, there.last, truth.control)
        if count:
            yield Difference(topic, "wrong", there.table, place, 0, f"{_objection(truth, place)}, {count:,} in all")


def _inside(truth: Truth, partition: int, first: int, last: int) -> range:
    """The offsets of a stretch that the log has."""
    return range(first, min(last + 1, truth.ends.get(partition, 0)))


def _unknown(truth: Truth, partition: int, first: int, last: int, known: Collection[Place]) -> tuple[int, Place]:
    """How many offsets of a stretch are not known, and the first of them; without any, the stretch's first.

    What lies beyond the log can be long and is not written out.
    """
    inside = [o for o in _inside(truth, partition, first, last) if (partition, o) not in known]
    beyond = range(max(first, truth.ends.get(partition, 0)), last + 1)
    return len(inside) + len(beyond), (partition, next(chain(inside, beyond), first))


def _objection(truth: Truth, place: Place) -> str:
    if place[0] not in truth.ends:
        return "the topic has no such partition"
    return "the log ends before" if place[1] >= truth.ends[place[0]] else "nothing of the kind has a place there"


def _ledger(topic: str, truth: Truth, ledger: Mapping[str, set[Place]]) -> Iterator[Difference]:
    """What the ledger has an offset as, against what it has to be; offsets with one and the same error together."""
    right = {
        "received": truth.rows.keys() | truth.repeats,
        "quarantined": set(truth.letters),
        "control": truth.control,
    }
    errors: dict[tuple[int, str, str], list[int]] = {}
    for place in sorted(set().union(*(ledger.get(kind, set()) ^ places for kind, places in right.items()))):
        error = place[0], _kinds(ledger, place), _kinds(right, place)
        errors.setdefault(error, []).append(place[1])
    for (partition, there, expected), offsets in errors.items():
        detail = f"{there} instead of {expected}, {len(offsets):,} in all: {', '.join(map(str, offsets[:NAMED]))}"
        yield Difference(topic, "wrong", "raw.ledger", (partition, offsets[0]), 0, detail)


def _kinds(sets: Mapping[str, Collection[Place]], place: Place) -> str:
    return " and ".join(kind for kind, places in sets.items() if place in places) or "not there"


def _sums(truth: Truth, account: Account) -> Iterator[Difference]:
    expected = {
        "published": sum(truth.ends.values()),
        "stored": len(truth.rows),
        "duplicate": len(truth.repeats),
        "quarantined": len(truth.letters),
        "control": len(truth.control),
        "on_its_way": 0,
        "lost": 0,
        "missing": 0,
        "beyond": 0,
        "disputed": 0,
        "late": truth.late,
    }
    wrong = {name: (there, n) for name, n in expected.items() if (there := getattr(account, name)) != n}
    if wrong:
        yield Difference(account.feed, "wrong", "raw.accounts", None, 0, f"found and expected {wrong}")


def _windows(
    topic: str, aggregate: Aggregate, truth: Truth, windows: Iterable[FoundWindow], counted: Mapping[Key, Place]
) -> Iterator[Difference]:
    """A window without a place is put down to the last event the stream counted into it."""
    table, missing = f"city.{aggregate.name}", dict(truth.windows[aggregate.name])
    for there in windows:
        expected = missing.pop(there.key, None)
        if expected is None:
            place, detail = counted.get(there.key), f"{there.key} has no place there"
            yield Difference(topic, "doubled", table, place, there.events, detail)
        elif there.events != expected.events:
            kind: Literal["lost", "doubled"] = "lost" if there.events < expected.events else "doubled"
            detail = f"{there.key} has {there.events} events instead of {expected.events}"
            yield Difference(topic, kind, table, expected.last, abs(there.events - expected.events), detail)
        elif wrong := _wrong_window(there, expected):
            yield Difference(topic, "wrong", table, expected.last, 0, f"{there.key}: found and expected {wrong}")
    for key, window in missing.items():
        yield Difference(topic, "lost", table, window.last, window.events, f"{key} is missing")


def _wrong_window(there: FoundWindow, expected: Shown) -> dict[str, tuple[Any, Any]]:
    """What is there and what has to be, by the name of what is wrong."""
    wrong: dict[str, tuple[Any, Any]] = {
        name: (value, expected.results[name])
        for name, value in there.results.items()
        if value != expected.results[name]
    }
    if there.final != expected.final:
        wrong["final"] = there.final, expected.final
    if there.as_of_ms != expected.as_of_ms:
        wrong["as_of"] = there.as_of_ms, expected.as_of_ms
    return wrong

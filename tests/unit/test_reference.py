"""The reference says what has to be there, and the comparison reports whatever is not so: without any server."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from schemas.catalogue import freeze
from schemas.expressions import Column
from schemas.measures import Measure, quantiles, ratio, share, spread, total
from schemas.record_codec import prefix
from sinks.ledger import Account
from streams.decode import LARGEST_LETTER, Decoder
from tests.reference.batches import ARRIVED, batch_of, record_bytes, run, sized
from tests.reference.city import BEGINNING, UNREADABLE, Letter, Schemas, Shown, Truth, truth
from tests.reference.compare import differences, strangers
from tests.reference.finished import Finished
from tests.reference.results import results_of
from tests.reference.toy import CATALOGUE, FEED, NOON, SECOND, Mood, event_id, instant, value

KEY = b"d-1"
END = 9
#: Value of the record at each offset; there is none at 7.
VALUES = {
    0: value(event_id=event_id(0), observed_at=instant(NOON + 1 * SECOND), load=0.5, wait=100),
    1: value(event_id=event_id(1), observed_at=instant(NOON + 2 * SECOND), level=7, mood=Mood.BUSY),
    2: value(event_id=event_id(0), observed_at=instant(NOON + 1 * SECOND), load=0.5, wait=100),
    3: b"noise",
    4: value(event_id=event_id(4), observed_at=instant(NOON + 10 * SECOND), level=1),
    5: value(
        event_id=event_id(5), observed_at=instant(NOON + 3 * SECOND), level=3, load=0.125,
        began_at=instant(NOON + 2 * SECOND),
    ),
    6: value(event_id=event_id(6), observed_at=instant(NOON + 4 * SECOND), level=100_001),
    8: value(event_id=event_id(8), observed_at=instant(NOON + 11 * SECOND), level=-1),
}  # fmt: skip

Rows = list[tuple[Any, ...]]
#: Rows of each table, with the columns that are asked for.
Tables = dict[str, Rows]


@pytest.fixture(scope="module")
def schemas(tmp_path_factory: pytest.TempPathFactory) -> Schemas:
    folder = tmp_path_factory.mktemp("frozen")
    freeze({"toy": FEED}, folder)
    return Schemas(folder)


@pytest.fixture(scope="module")
def expected(schemas: Schemas) -> Truth:
    """What follows from ``VALUES``."""
    return truth(FEED, [(0, END, [schemas.record("toy", n, KEY, v, ARRIVED) for n, v in VALUES.items()])])


def row(number: int, second: int, before: int, late: int, **more: Any) -> tuple[Any, ...]:
    """Cells of a row of the toy feed; ``before`` is the maximum of event time before it."""
    plain: dict[str, Any] = {
        "event_id": event_id(number), "device_id": "d-1", "observed_at": NOON + second * SECOND, "began_at": None,
        "mood": "calm", "level": 5, "wait": None, "load": None, "weight": 1.5, "open": None, "built": None,
        "note": None, "longitude": None, "latitude": None,
    }  # fmt: skip
    return (*(plain | more).values(), ARRIVED, before, late)


def test_every_record_is_a_row_a_repeat_a_letter_or_control(expected: Truth) -> None:
    ten = NOON + 10 * SECOND
    assert expected.ends == {0: END}
    assert expected.rows == {
        (0, 0): row(0, 1, BEGINNING, 0, load=0.5, wait=100),
        (0, 1): row(1, 2, NOON + 1 * SECOND, 0, level=7, mood="busy"),
        (0, 4): row(4, 10, NOON + 2 * SECOND, 0, level=1),
        (0, 5): row(5, 3, ten, 1, level=3, load=0.125, began_at=NOON + 2 * SECOND),
        (0, 8): row(8, 11, ten, 0, level=-1),
    }
    assert expected.repeats == {(0, 2)}
    assert expected.letters == {
        (0, 3): Letter("DECODE", frozenset(["does not start with"]), KEY, VALUES[3], ARRIVED),
        (0, 6): Letter("VALIDATE", frozenset(["level"]), KEY, VALUES[6], ARRIVED),
    }
    assert expected.control == {(0, 7)}
    assert expected.late == 1


def test_a_window_is_what_its_distinct_events_add_up_to(expected: Truth) -> None:
    """By hand: gain is (25 + 4) / (50 + 30) in steps of 1/10, slope 5 / 2000 in steps of 1/1000. Quantiles are
    the middles of [100, 101) and [1000, 1008) ms."""
    nine = NOON + 9 * SECOND
    nothing = dict.fromkeys(("load_min", "load_max", "load_mean", "gain", "slope"))
    loads = {"load_min": 0.13, "load_max": 0.5, "load_mean": 0.315, "gain": 0.3625, "slope": 0.0025}
    assert expected.windows["toy_4s"] == {
        ("d-1", NOON): Shown((0, 5), 3, {"level": 15.0, **loads}, True, nine),
        ("d-1", NOON + 8 * SECOND): Shown((0, 8), 2, {"level": 0.0, **nothing}, False, nine),
    }
    unknown = {"high": None, "wait_p50": None, "wait_p90": None, "delay_p50": None}
    known = {"high": 0.5, "wait_p50": 0.1005, "wait_p90": 0.1005, "delay_p50": 1004.0}
    assert expected.windows["toy_5s_mood"] == {
        ("calm", "d-1", NOON): Shown((0, 5), 2, {"busy": 0.0, **known}, True, nine),
        ("busy", "d-1", NOON): Shown((0, 1), 1, {"busy": 1.0, **unknown}, True, nine),
        ("calm", "d-1", NOON + 10 * SECOND): Shown((0, 8), 2, {"busy": 0.0, **unknown}, False, nine),
    }


A, B = Column("a"), Column("b")


@pytest.mark.parametrize(
    ("measure", "events", "results"),
    [
        (total("t", A, unit="1", description="x", scale=10), [(0.25, 0), (0.25, 0), (None, 0)], {"t": 0.6}),
        (total("t", A, unit="1", description="x"), [(None, 0)], {"t": 0.0}),
        (
            spread("s", A, unit="1", description="x", scale=10),
            [(-0.25, 0), (0.25, 0), (1.0, 0), (None, 0)],
            {"s_min": -0.2, "s_max": 1.0, "s_mean": 11 / 3 / 10},
        ),
        (share("p", A >= 2, description="x"), [(2, 0), (1, 0), (3, 0), (None, 0)], {"p": 2 / 3}),
        (ratio("r", A, B, unit="1", description="x", scale=10), [(1.5, 2), (None, 5), (2.0, None)], {"r": 0.75}),
        (ratio("r", A, B, unit="1", description="x", scale=10), [(1.5, 0)], {"r": None}),
        (
            quantiles("q", A, (0.25, 0.5, 0.9, 1.0), unit="s", description="x", divisor=10),
            [(n, 0) for n in (300, 0, 200, -5, 100, None)],
            {"q_p25": 0.0, "q_p50": 10.05, "q_p90": 20.1, "q_p100": 30.2},
        ),
    ],
    ids=["steps", "nothing", "spread", "share", "ratio", "over zero", "quantiles"],
)
def test_a_result_follows_from_the_declaration_and_the_events(
    measure: Measure, events: Sequence[tuple[Any, Any]], results: dict[str, float | None]
) -> None:
    found = results_of(measure, [dict(zip("ab", event, strict=True)) for event in events])
    assert found == results


GOOD = value()
BODY = " or ".join(UNREADABLE)
#: What is wrong, key and value.
BAD: list[tuple[str, bytes | None, bytes | None]] = [
    ("no key", None, GOOD),
    ("no key", None, None),
    ("no value", KEY, None),
    ("frame", KEY, b""),
    ("frame", KEY, GOOD[:4]),
    ("frame", KEY, b"\x01" + GOOD[1:]),
    ("id 99", KEY, prefix(99) + GOOD[5:]),
    ("id 2", KEY, prefix(2) + sized(b"d-1") + bytes(15)),
    ("body", KEY, prefix(2) + sized(b"d-1")),
    ("body", KEY, GOOD[:-1]),
    ("body", KEY, GOOD + b"\x00"),
    ("body", KEY, GOOD.replace(b"d-1", b"d\xff1")),
    ("body", KEY, GOOD[:5] + b"\xc8\x00" + GOOD[6:]),
    ("level", KEY, value(level=100_001)),
    ("place", KEY, value(place={"longitude": 0.0, "latitude": 91.0})),
    ("device_id", b"d-2", GOOD),
    ("observed_at", KEY, value(observed_at=instant(ARRIVED + 6 * SECOND))),
]


def letters_of(schemas: Schemas, records: Sequence[tuple[bytes | None, bytes | None]]) -> list[Letter]:
    """What the reference makes of records that are all bad."""
    read = [schemas.record("toy", n, key, content, ARRIVED) for n, (key, content) in enumerate(records)]
    return list(truth(FEED, [(0, len(read), read)]).letters.values())


def test_a_cause_has_to_say_what_is_wrong(schemas: Schemas) -> None:
    """The worker's words for one thing are taken for no other."""
    records = [(key, content) for _, key, content in BAD]
    body = b"".join(record_bytes(delta, *fields) for delta, fields in enumerate(records))
    dead = Decoder(CATALOGUE, "toy", FEED).read(run(batch_of(body, len(records))), 0).dead
    letters = letters_of(schemas, records)
    assert [(d.stage, d.key, d.value, d.arrived_ms) for d in dead] == [
        (r.stage, r.key, r.value, r.arrived_ms) for r in letters
    ]
    assert [[letter.is_explained_by(one.cause) for one in dead] for letter in letters] == [
        [wrong == other for other, *_ in BAD] for wrong, *_ in BAD
    ]


@pytest.mark.parametrize("more", [0, 1])
def test_a_large_record_is_kept_without_its_bytes(schemas: Schemas, more: int) -> None:
    content = bytes([1] * (LARGEST_LETTER - len(KEY) + more))
    (dead,) = Decoder(CATALOGUE, "toy", FEED).read(run(batch_of(record_bytes(0, KEY, content), 1)), 0).dead
    (letter,) = letters_of(schemas, [(KEY, content)])
    assert letter.kept == (dead.key, dead.value)
    assert letter.is_explained_by(dead.cause)
    assert (letter.key, letter.value) == (KEY, content)


class Fake:
    """A client of a ClickHouse that has these tables."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables

    def execute(self, query: str, parameters: Any = None, settings: Any = None) -> Rows:
        (table,) = re.findall(r"FROM (\S+)", query)
        return self._tables[table]

    execute_iter = execute


CAUSES = {3: "the value does not start with 0x00 and a schema id", 6: "level: above 100000"}


def right(expected: Truth) -> Tables:
    """Tables as they have to be."""
    tables = {
        "raw.toy": [(*place, *cells) for place, cells in expected.rows.items()],
        "raw.quarantine": [
            (0, n, n, letter.stage, CAUSES[n], KEY.hex(), (letter.value or b"").hex(), ARRIVED)
            for (_, n), letter in expected.letters.items()
        ],
        "raw.control": [(0, 7, 7)],
        "raw.ledger": [(0, "received", 0, [0, 1, 2, 4, 5, 8]), (0, "quarantined", 0, [3, 6]), (0, "control", 0, [7])],
    }
    for name, windows in expected.windows.items():
        tables[f"raw.{name}"] = [(*key, shown.last) for key, shown in windows.items()]
        tables[f"city.{name}"] = [
            (*key, shown.events, shown.final, shown.as_of_ms, *shown.results.values()) for key, shown in windows.items()
        ]
    return tables


ACCOUNT = Account(
    feed="toy", published=END, stored=5, duplicate=1, withdrawn=0, quarantined=2, redriven=0, control=1, on_its_way=0,
    lost=0, missing=0, beyond=0, late=1, disputed=0, conflicts=0,
)  # fmt: skip


def said(expected: Truth, tables: Tables, **account: Any) -> list[str]:
    """What the comparison says of these tables."""
    return [str(one) for one in differences(Fake(tables), FEED, expected, replace(ACCOUNT, **account))]


def test_nothing_is_said_of_what_is_right(expected: Truth) -> None:
    assert said(expected, right(expected)) == []


def changed(table: str, number: int, column: int, content: Any) -> Callable[[Tables], None]:
    """Change a cell."""

    def change(tables: Tables) -> None:
        cells = list(tables[table][number])
        cells[column] = content
        tables[table][number] = tuple(cells)

    return change


def without(table: str, number: int) -> Callable[[Tables], None]:
    """Take a row away."""

    def change(tables: Tables) -> None:
        del tables[table][number]

    return change


def more(table: str, *cells: Any) -> Callable[[Tables], None]:
    """Add a row."""
    return lambda tables: tables[table].append(cells)


def again(table: str, number: int) -> Callable[[Tables], None]:
    """Add a row that is there already."""
    return lambda tables: tables[table].append(tables[table][number])


LATER = NOON + 8 * SECOND


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (without("raw.toy", 1), "lost: toy partition 0, offset 1, in raw.toy: "),
        (again("raw.toy", 0), "doubled: toy partition 0, offset 0, in raw.toy: "),
        (more("raw.toy", 0, 2, *row(0, 1, BEGINNING, 0)), "doubled: toy partition 0, offset 2, in raw.toy: "),
        (changed("raw.toy", 2, 7, 2), "wrong: toy partition 0, offset 4, in raw.toy: "),
        (changed("raw.toy", 3, 18, 0), "wrong: toy partition 0, offset 5, in raw.toy: "),
        (without("raw.quarantine", 0), "lost: toy partition 0, offset 3, in raw.quarantine: DECODE for does not"),
        (again("raw.quarantine", 1), "doubled: toy partition 0, offset 6, in raw.quarantine: nothing of the kind"),
        (changed("raw.quarantine", 0, 3, "VALIDATE"), "wrong: toy partition 0, offset 3, in raw.quarantine: "),
        (changed("raw.quarantine", 0, 4, "the record has no key"),
         "wrong: toy partition 0, offset 3, in raw.quarantine: found and expected "
         "{'cause': ('the record has no key', 'does not start with')}"),
        (changed("raw.quarantine", 1, 4, "load: above 100"), "wrong: toy partition 0, offset 6, in raw.quarantine: "),
        (changed("raw.quarantine", 0, 5, "642d32"),
         "wrong: toy partition 0, offset 3, in raw.quarantine: found and expected "
         "{'key': ('3 bytes, from byte 2 on 32', '3 bytes, from byte 2 on 31')}"),
        (changed("raw.quarantine", 0, 6, b"noisy".hex()),
         "wrong: toy partition 0, offset 3, in raw.quarantine: found and expected "
         "{'value': ('5 bytes, from byte 4 on 79', '5 bytes, from byte 4 on 65')}"),
        (changed("raw.quarantine", 1, 6, None),
         "wrong: toy partition 0, offset 6, in raw.quarantine: found and expected {'value': ('none', "),
        (changed("raw.quarantine", 1, 7, ARRIVED + 1),
         "wrong: toy partition 0, offset 6, in raw.quarantine: found and expected {'published_at': "),
        (more("raw.quarantine", 0, 4, 5, "DECODE", "it", None, None, ARRIVED),
         "doubled: toy partition 0, offset 4, in raw.quarantine: "
         "nothing of the kind has a place there, 2 in all: DECODE: it"),
        (more("raw.quarantine", 1, 0, 0, "DECODE", "it", None, None, ARRIVED),
         "doubled: toy partition 1, offset 0, in raw.quarantine: the topic has no such partition, 1 in all"),
        (more("raw.quarantine", 0, 9, 2**40 + 8, "DECODE", "it", None, None, ARRIVED),
         "doubled: toy partition 0, offset 9, in raw.quarantine: the log ends before, 1,099,511,627,776 in all"),
        (more("raw.control", 0, 7, 8), "wrong: toy partition 0, offset 8, in raw.control: nothing of the kind"),
        (more("raw.control", 2, 0, 2), "wrong: toy partition 2, offset 0, in raw.control: the topic has no such"),
        (without("raw.ledger", 2), "wrong: toy partition 0, offset 7, in raw.ledger: not there instead of control"),
        (changed("raw.ledger", 1, 3, [3]), "wrong: toy partition 0, offset 6, in raw.ledger: not there instead of "),
        (changed("raw.ledger", 1, 3, [3, 5, 6, 8]),
         "wrong: toy partition 0, offset 5, in raw.ledger: received and quarantined instead of received, "
         "2 in all: 5, 8"),
        (more("raw.ledger", 3, "received", 1, [2]),
         "wrong: toy partition 3, offset 65538, in raw.ledger: received instead of not there, 1 in all: 65538"),
        (without("city.toy_4s", 0), "lost: toy partition 0, offset 5, in city.toy_4s: "),
        (again("city.toy_4s", 1), "doubled: toy partition 0, offset 8, in city.toy_4s: "),
        (changed("city.toy_4s", 0, 2, 2),
         f"lost: toy partition 0, offset 5, in city.toy_4s: ('d-1', {NOON}) has 2 events instead of 3"),
        (changed("city.toy_4s", 0, 2, 4), "doubled: toy partition 0, offset 5, in city.toy_4s: "),
        (changed("city.toy_4s", 0, 3, False),
         f"wrong: toy partition 0, offset 5, in city.toy_4s: ('d-1', {NOON}): found and expected {{'final': (False, "),
        (changed("city.toy_4s", 1, 4, NOON), "wrong: toy partition 0, offset 8, in city.toy_4s: "),
        (changed("city.toy_4s", 0, 8, 0.31500000000000006), "wrong: toy partition 0, offset 5, in city.toy_4s: "),
        (changed("city.toy_4s", 1, 9, 0.0), "wrong: toy partition 0, offset 8, in city.toy_4s: "),
        (changed("city.toy_5s_mood", 0, 8, 0.1025), "wrong: toy partition 0, offset 5, in city.toy_5s_mood: "),
        (more("city.toy_4s", "d-2", NOON, 1, True, NOON, *[None] * 6),
         f"doubled: toy at no single offset, in city.toy_4s: ('d-2', {NOON}) has no place there"),
    ],
)  # fmt: skip
def test_one_wrong_thing_is_one_difference(expected: Truth, change: Callable[[Tables], None], line: str) -> None:
    tables = right(expected)
    change(tables)
    (found,) = said(expected, tables)
    assert found.startswith(line)


def test_a_window_without_a_place_is_put_down_to_the_last_event_counted_in(expected: Truth) -> None:
    tables = right(expected)
    more("city.toy_4s", "d-2", NOON, 1, True, NOON, *[None] * 6)(tables)
    more("raw.toy_4s", "d-2", NOON, (0, 4))(tables)
    (found,) = said(expected, tables)
    assert found.startswith("doubled: toy partition 0, offset 4, in city.toy_4s: ")


def test_an_offset_of_another_kind_is_named_though_the_sums_are_right(expected: Truth) -> None:
    tables = right(expected)
    changed("raw.ledger", 0, 3, [0, 1, 2, 3, 5, 8])(tables)
    changed("raw.ledger", 1, 3, [4, 6])(tables)
    assert said(expected, tables) == [
        "wrong: toy partition 0, offset 3, in raw.ledger: received instead of quarantined, 1 in all: 3",
        "wrong: toy partition 0, offset 4, in raw.ledger: quarantined instead of received, 1 in all: 4",
    ]


def test_a_lost_letter_and_another_one_too_many_do_not_cancel(expected: Truth) -> None:
    tables = right(expected)
    changed("raw.quarantine", 0, 1, 4)(tables)
    changed("raw.quarantine", 0, 2, 4)(tables)
    assert [line.split(", in ")[0] for line in said(expected, tables)] == [
        "lost: toy partition 0, offset 3",
        "doubled: toy partition 0, offset 4",
    ]


@pytest.mark.parametrize("name", ["stored", "duplicate", "late", "disputed", "beyond", "missing", "lost", "on_its_way"])
def test_a_wrong_sum_is_reported(expected: Truth, name: str) -> None:
    wrong = getattr(ACCOUNT, name) + 1
    assert said(expected, right(expected), **{name: wrong}) == [
        "wrong: toy at no single offset, in raw.accounts: found and expected "
        f"{{'{name}': ({wrong}, {getattr(ACCOUNT, name)})}}"
    ]


def test_a_letter_of_a_whole_batch_has_no_bytes_and_speaks_of_the_batch(schemas: Schemas) -> None:
    records = [schemas.record("toy", n, KEY, b"noise", ARRIVED) for n in range(3)]
    bad = truth(replace(FEED, aggregates=()), [(0, 3, records)])
    whole = (0, 0, 2, "DECODE", "the batch decompresses to more than 64 MiB", None, None, ARRIVED)
    tables: Tables = {
        "raw.toy": [], "raw.control": [], "raw.quarantine": [whole], "raw.ledger": [(0, "quarantined", 0, [0, 1, 2])],
    }  # fmt: skip
    account = replace(ACCOUNT, published=3, stored=0, duplicate=0, quarantined=3, control=0, late=0)
    feed = replace(FEED, aggregates=())
    assert differences(Fake(tables), feed, bad, account) == []
    changed("raw.quarantine", 0, 4, CAUSES[3])(tables)
    changed("raw.quarantine", 0, 6, b"noise".hex())(tables)
    found = differences(Fake(tables), feed, bad, account)
    assert [one.place for one in found] == [(0, 0), (0, 1), (0, 2)]
    assert all("'cause'" in one.detail and "'value'" in one.detail for one in found)


def test_topics_that_are_no_feeds_are_reported() -> None:
    tables: Tables = {"raw.quarantine": [("elsewhere", 1, 5, 6)], "raw.control": [("toy_4s", 0, 3, 3)]}
    assert [str(one) for one in strangers(Fake(tables), ["toy"])] == [
        "wrong: elsewhere partition 1, offset 5, in raw.quarantine: to 6: the topic is no feed's",
        "wrong: toy_4s partition 0, offset 3, in raw.control: to 3: the topic is no feed's",
    ]


@pytest.mark.parametrize(
    ("later", "worse"),
    [
        ([("a", 1, 3, 1, "(7.5)"), ("b", 1, 9, 0, "(2)")], False),
        ([("a", 1, 4, 1, "(8)")], False),
        ([("a", 1, 2, 1, "(7.5)")], True),
        ([("a", 1, 3, 0, "(7.5)")], True),
        ([("a", 1, 3, 1, "(7.6)")], True),
        ([("b", 1, 9, 1, "(2)")], True),
    ],
    ids=["the same", "more by a late event", "fewer events", "final no more", "another measure", "gone"],
)
def test_a_final_window_never_becomes_less(later: list[tuple[Any, ...]], worse: bool) -> None:
    """Keys, events, final, measures."""
    finished = Finished([])
    finished.compare("toy_1m", [("a", 1, 3, 1, "(7.5)"), ("b", 1, 2, 0, "(1)")])
    finished.compare("toy_1m", later)
    assert bool(finished.worse) == worse
    assert finished.windows >= 1

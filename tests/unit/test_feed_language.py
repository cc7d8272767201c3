"""A declaration that makes no sense is refused when it is loaded, saying which part and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import (
    AfterValidator,
    AwareDatetime,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    create_model,
    field_validator,
)

from feeds.events import event_plan
from feeds.parking.parking_limit import REFERENCE
from schemas.alerts import Category, Severity
from schemas.avro import feed_schema
from schemas.catalogue import FrozenSchema
from schemas.expressions import (
    SAID_OF_TEXTS,
    Column,
    Constant,
    Expression,
    Mistyped,
    Present,
    Quantile,
    Scaled,
    When,
    least,
    written,
)
from schemas.feed import Aggregate, DeclarationError, Feed, Latest, NotAfter, Outgrown, RollUp, Spans
from schemas.fields import (
    DAYS,
    INSTANTS,
    INT32,
    Coarse,
    Count,
    Day,
    EventId,
    Instant,
    Location,
    Personal,
    Place,
    Record,
    Text,
    Unit,
)
from schemas.measures import Measure, count_where, quantiles, spread, total
from schemas.model import fields_of
from schemas.pseudonyms import pseudonym
from schemas.record_codec import encode
from schemas.rules import (
    Due,
    Held,
    Level,
    Memory,
    Rule,
    above,
    covering,
    lookup,
    previous,
    rate,
    running_total,
    while_true,
)
from streams.wire.column_reader import ColumnReader
from tests.reference.toy import FEED, NOON, Mood, Toy, instant, record

D = "Described"


class Plain(StrEnum):
    YES = "yes"


class Dashed(StrEnum):
    ON_SCENE = "on-scene"
    UNKNOWN = "unknown"


Many = StrEnum("Many", {f"S{n}": f"s{n}" for n in range(64)} | {"UNKNOWN": "unknown"})  # type: ignore[misc]
Wide = StrEnum("Wide", {f"S{n}": f"s{n}" for n in range(63)} | {"UNKNOWN": "unknown"})  # type: ignore[misc]


def one_field(annotation: Any, default: Any = ...) -> type[Record]:
    fields: dict[str, Any] = {"it": (annotation, default)}
    return create_model("Thing", __base__=Record, **fields)


A_FIELD_IS = (
    "a field is str, int, float, bool, Instant, Day, Place, "
    "a StrEnum with a symbol 'unknown', or one of these or None (not an enum)"
)
BOUNDS_ARE = "the bounds of a field are ge and le, min_length, max_length and pattern"
INSTANT = "has to be declared as Instant, without other bounds; Feed.earliest and Feed.rules bound it further"
DAY = INSTANT.replace("Instant", "Day")
NO_DEFAULT = "has a default Avro cannot have; that of a nullable field is None"


A_PLACE = "a place can be coarse, to 0 to 6 decimals"
PSEUDONYM = "it is personal, and its bounds would refuse its pseudonym of 32 characters"


@pytest.mark.parametrize(
    ("annotation", "reason"),
    [
        (int, "it needs a description"),
        (Text, "it needs a description"),
        (Annotated[bytes, Field(description=D)], A_FIELD_IS),
        (Annotated[list[int], Field(description=D)], A_FIELD_IS),
        (Annotated[dict[str, int], Field(description=D)], A_FIELD_IS),
        (Annotated[int | str, Field(description=D)], A_FIELD_IS),
        (Annotated[int | str | None, Field(description=D)], A_FIELD_IS),
        (Annotated[Any, Field(description=D)], A_FIELD_IS),
        (Annotated[datetime, Field(description=D)], A_FIELD_IS),
        (Annotated[Record, Field(description=D)], A_FIELD_IS),
        (Annotated[Plain, Field(description=D)], "the enum it needs a symbol 'unknown' and cannot be null"),
        (Annotated[Mood | None, Field(description=D)], "the enum it needs a symbol 'unknown' and cannot be null"),
        (
            Annotated[Dashed, Field(description=D)],
            "the enum it has to have at most 64 symbols of letters, digits and _",
        ),
        (Annotated[Many, Field(description=D)], "the enum it has to have at most 64 symbols of letters, digits and _"),
        (Annotated[int, Field(gt=0, description=D)], f"it has Gt(gt=0); {BOUNDS_ARE}"),
        (Annotated[float | None, Field(lt=1, description=D)], f"it has Lt(lt=1); {BOUNDS_ARE}"),
        (Annotated[int, Field(multiple_of=5, description=D)], f"it has MultipleOf(multiple_of=5); {BOUNDS_ARE}"),
        (Annotated[float, Field(allow_inf_nan=True, description=D)], BOUNDS_ARE),
        (Annotated[str, StringConstraints(to_lower=True), Field(description=D)], BOUNDS_ARE),
        (Annotated[str, AfterValidator(str.strip), Field(description=D)], BOUNDS_ARE),
        (Annotated[Text | None, AfterValidator(str), Field(description=D)], BOUNDS_ARE),
        (Annotated[int, Field(le=2**31, description=D)], "it has a bound that does not fit 32 bits"),
        (Annotated[int | None, Field(ge=-(2**31) - 1, description=D)], "it has a bound that does not fit 32 bits"),
        (Annotated[float, Field(ge=float("-inf"), description=D)], "the bounds of it have to be finite"),
        (Annotated[float, Field(le=float("nan"), description=D)], "the bounds of it have to be finite"),
        (Annotated[AwareDatetime, Field(description=D)], INSTANT),
        (Annotated[Instant, Field(ge=instant(NOON), description=D)], INSTANT),
        (Annotated[date, Field(description=D)], DAY),
        (Annotated[Day, Field(le=date(2000, 1, 1), description=D)], DAY),
        (Annotated[int, Personal(), Field(description=D)], "only a string can be personal, it is int"),
        (
            Annotated[str, Personal(), Field(pattern="^[A-Z]", description=D)],
            "it is personal and has a pattern, which its pseudonym would not match",
        ),
        (Annotated[str, Personal(), Field(max_length=31, description=D)], PSEUDONYM),
        (Annotated[str | None, Personal(), Field(min_length=33, description=D)], PSEUDONYM),
        (Annotated[Text, Coarse(2), Field(description=D)], f"it has Coarse(decimals=2); {A_PLACE}"),
        (Annotated[Location, Coarse(7)], f"it has Coarse(decimals=7); {A_PLACE}"),
    ],
)
def test_a_field_outside_the_language_is_refused(annotation: Any, reason: str) -> None:
    with pytest.raises(DeclarationError) as refused:
        fields_of(one_field(annotation))
    assert str(refused.value).startswith("Thing: ")
    assert str(refused.value).removesuffix(THERE).endswith(reason)


@pytest.mark.parametrize(
    ("annotation", "default"),
    [
        (Annotated[int | None, Field(description=D)], 5),
        (Annotated[Instant, Field(description=D)], instant(NOON)),
        (Annotated[Day, Field(description=D)], date(2024, 1, 1)),
        (Annotated[Place, Field(description=D)], Place(longitude=0.0, latitude=0.0)),
        (Annotated[int, Field(description=D, default_factory=int)], ...),
    ],
)
def test_a_default_that_avro_cannot_have_is_refused(annotation: Any, default: Any) -> None:
    with pytest.raises(DeclarationError, match=f"^Thing: it {NO_DEFAULT}$"):
        fields_of(one_field(annotation) if default is ... else one_field(annotation, default))


@pytest.mark.parametrize(
    ("annotation", "default"),
    [
        (Annotated[int, Field(description=D)], 5),
        (Annotated[int | None, Field(description=D)], None),
        (Annotated[str, Field(description=D)], ""),
        (Annotated[Mood, Field(description=D)], Mood.UNKNOWN),
        (Annotated[Location, Field(description=D)], None),
    ],
)
def test_other_defaults_are_kept(annotation: Any, default: Any) -> None:
    (field,) = fields_of(one_field(annotation, default))
    assert (field.default, field.has_default) == (default, True)


def test_a_record_with_validators_or_configuration_is_refused() -> None:
    class Checked(Record):
        it: Annotated[int, Field(description=D)]

        @field_validator("it")
        @classmethod
        def check(cls, it: int) -> int:
            return it

    class Loose(Record):
        model_config = ConfigDict(strict=False)

        it: Annotated[int, Field(description=D)]

    for kind in (Checked, Loose):
        with pytest.raises(DeclarationError, match=r"a record has no configuration or validators; the feed has rules$"):
            fields_of(kind)


def test_a_field_is_described_by_everything_said_of_it() -> None:
    class Said(Record):
        a: Annotated[Text | None, Field(max_length=40, description=D), Unit("1"), Personal()]
        b: Annotated[Annotated[int, Field(ge=0, le=9, description="Inner"), Unit("m")], Field(le=5)]
        c: Annotated[float | None, Field(ge=0.5, description=D), Unit("km")]
        d: Annotated[Instant | None, Field(description=D)]
        e: Annotated[Day, Field(description=D)]
        f: Annotated[Wide, Field(description=D)]
        g: Location
        h: Annotated[EventId | None, Field(description=D)]
        i: Annotated[Count, Field(description=D)]

    a, b, c, d, e, f, g, h, i = fields_of(Said)
    assert (a.kind, a.nullable, a.low, a.high, a.unit, a.personal, a.description) == (
        "string",
        True,
        1,
        40,
        "1",
        True,
        D,
    )
    assert (b.kind, b.nullable, b.low, b.high, b.unit, b.description) == ("int", False, 0, 5, "m", "Inner")
    assert (c.kind, c.nullable, c.low, c.high, c.unit) == ("float", True, 0.5, None, "km")
    assert (d.kind, d.nullable, d.low, d.high) == ("instant", True, *INSTANTS)
    assert (e.kind, e.nullable, e.low, e.high) == ("date", False, *DAYS)
    assert (f.kind, len(f.symbols)) == ("enum", 64)
    assert (g.kind, g.nullable) == ("place", True)
    assert (h.nullable, h.pattern is not None) == (True, True)
    assert (i.low, i.high) == (0, INT32[1])


lengths = st.none() | st.integers(0, 9)


@given(lengths, lengths, lengths, lengths, st.booleans())
def test_of_several_bounds_those_hold_that_pydantic_holds(
    inner_low: int | None, inner_high: int | None, low: int | None, high: int | None, nullable: bool
) -> None:
    inner: Any = Annotated[str, Field(min_length=inner_low, max_length=inner_high)]
    if nullable:
        inner |= None
    model = one_field(Annotated[inner, Field(min_length=low, max_length=high, description=D)])
    (field,) = fields_of(model)
    for size in range(11):
        try:
            accepted = bool(model.model_validate({"it": "x" * size}))
        except ValidationError:
            accepted = False
        assert accepted == ((field.low or 0) <= size <= (10 if field.high is None else field.high))


def test_two_places_and_a_wide_enum_are_one_record_and_read_as_columns() -> None:
    class Trip(Toy):
        origin: Annotated[Place | None, Field(description=D)]
        wide: Annotated[Wide, Field(description=D)]

    feed = replace(FEED, record=Trip)
    frozen = FrozenSchema(1, "toy", 1, feed_schema(feed))
    there, here = {"longitude": 1.0, "latitude": 2.0}, {"longitude": 3.0, "latitude": 4.0}
    values = record(place=here) | {"origin": there, "wide": "unknown"}
    rows, bad = ColumnReader(frozen).read_values([encode(frozen, values), encode(frozen, values | {"origin": None})])
    assert bad == []
    assert rows.select("place", "origin", "wide").rows() == [(here, there, "unknown"), (here, None, "unknown")]


HOURS = RollUp(name="toy_1h", to="hour", capture=0.75)


def aggregate(**changes: Any) -> dict[str, Any]:
    return {"aggregates": (replace(FEED.aggregates[0], **changes),)}


def rolled_up(rollup: RollUp = HOURS, **changes: Any) -> dict[str, Any]:
    """An aggregate of 5 s with a roll-up."""
    return aggregate(**{"name": "toy_5s", "window": timedelta(seconds=5), "rollups": (rollup,), **changes})


class NoId(Record):
    device_id: Annotated[Text, Field(description=D)]
    observed_at: Annotated[Instant, Field(description=D)]
    began_at: Annotated[Instant | None, Field(description=D)]


class Rounded(Toy):
    """Toys whose place is shown to two decimals."""

    place: Annotated[Location, Coarse(2)]


class Ended(Toy):
    ended: Annotated[Instant | None, Field(description=D)]


class Whose(Toy):
    owner: Annotated[Text, Field(description=D), Personal()]


FRACTIONS = (
    Column("load"), Column("level") * 0.5, Column("level") / 2, When(Column("open"), Column("wait") - Column("load"))
)  # fmt: skip


def test_quantiles_of_whole_numbers_and_of_steps_of_a_fraction_are_declared() -> None:
    for value in (*(Scaled(value, 1000) for value in FRACTIONS), Column("level") - 3, Column("observed_at")):
        replace(FEED, **aggregate(measures=(quantiles("n", value, (0.5,), unit="1", description=D),)))


def level(name: str) -> tuple[Measure, ...]:
    return (total(name, Column("level"), unit="1", description=D),)


THERE = f" (there are: {', '.join(one.name for one in FEED.fields)})"
COMPARED = f"{SAID_OF_TEXTS}; what a rule keeps is named in keep and read as Column(...)"
LEVEL, MOOD, OPEN, PLACE = (Column(name) for name in ("level", "mood", "open", "place"))
MISTYPED = [
    (When(OPEN, MOOD).equals("angry"), "mood is never 'angry': it is one of calm, busy, unknown"),
    (Constant(True) & OPEN, "True is no finite number, text or expression; " + COMPARED),
    (Constant(float("nan")) > LEVEL, "nan is no finite number, text or expression; " + COMPARED),
    (Quantile("level", 0.5) > 3, "Quantile(histogram='level', q=0.5) is no expression; " + SAID_OF_TEXTS),
    (LEVEL.equals("5"), "(level == '5') needs a number, and '5' is a text"),
    (LEVEL < MOOD, "(level < mood) needs a number, and mood is a text"),
    (LEVEL & OPEN, "(level and open) needs a condition, and level is a number"),
    (OPEN | Constant(1), "(open or 1) needs a condition, and 1 is a number"),
    (~LEVEL, "(not level) needs a condition, and level is a number"),
    (OPEN.equals(OPEN), "(open == open) compares conditions: they are joined by & and |, turned by ~"),
    (MOOD.is_in("calm", "angry"), "mood is never 'angry': it is one of calm, busy, unknown"),
    (Constant("angry").equals(MOOD), "mood is never 'angry': it is one of calm, busy, unknown"),
    (Column("built") >= 5, "built is date, which is neither a number nor a text nor a condition"),
    (PLACE > 5, "place is place, which is neither a number nor a text nor a condition"),
    (PLACE.component("height") > 5, "place is place; a place has the components longitude and latitude"),
    (LEVEL.component("latitude") > 5, "level is int; a place has the components longitude and latitude"),
    (least(LEVEL, OPEN) > 5, "min(level, open) needs a number, and open is a condition"),
    (Present(Column("nothing")), "nothing is no field of the record"),
    (When(LEVEL, OPEN), "(open if level) needs a condition, and level is a number"),
]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"name": "Toy"}, "a name is lower-case words joined by underscores"),
        ({"name": "toy_"}, "a name is lower-case words joined by underscores"),
        ({"record": NoId, "aggregates": ()}, "the record needs a field event_id of type EventId"),
        ({"key": "note"}, "the key note has to be a string field that is never null"),
        ({"key": "level"}, "the key level has to be a string field that is never null"),
        ({"key": "nothing"}, "the key nothing has to be a string field that is never null"),
        ({"event_time": "began_at"}, "the event time began_at has to be an Instant that is never null"),
        ({"event_time": "level"}, "the event time level has to be an Instant that is never null"),
        ({"rules": (NotAfter("level", "observed_at"),)}, "needs level to be an Instant field"),
        ({"rules": (NotAfter("observed_at", "nothing"),)}, "needs nothing to be an Instant field"),
        ({"disorder": timedelta(seconds=-1)}, "disorder and lateness cannot be negative"),
        ({"lateness": timedelta(seconds=-1)}, "disorder and lateness cannot be negative"),
        ({"bad_ratio": 0.0}, "bad_ratio is a share between 0 and 1"),
        ({"bad_ratio": 1.1}, "bad_ratio is a share between 0 and 1"),
        ({"batch": 0}, "batch is a number from 1 on"),
        ({"rate": 0.0}, "rate and silence have to be more than nothing"),
        ({"silence": timedelta(0)}, "rate and silence have to be more than nothing"),
        ({"rate": None}, "rate and silence are given both, or are both None of a feed that promises nothing"),
        ({"silence": None}, "rate and silence are given both, or are both None of a feed that promises nothing"),
        (
            {"by_workers": True},
            "workers write it when something is found, so it can promise nothing: rate and silence are None",
        ),
        ({"licence": "mine"}, "the licence 'mine' is no address of its text that begins with https://"),
        ({"open_groups": 0}, "open_groups is a number from 1 on"),
        ({"partitions": 0}, "a topic has at least one partition"),
        ({"outgrown": (Outgrown(partitions=0, until=instant(NOON)),)}, "a topic has at least one partition"),
        ({"outgrown": (Outgrown(partitions=2**16, until=instant(NOON)),)},
         "its topics have more than 65,536 partitions together"),
        ({"outgrown": (Outgrown(partitions=1, until=datetime(2000, 1, 1)),)}, "until needs a time zone"),  # noqa: DTZ001
        ({"outgrown": (Outgrown(partitions=1, until=instant(NOON)),) * 2},
         "outgrown topics end one after the other, the oldest first"),
        ({"earliest": datetime(2000, 1, 1)}, "earliest needs a time zone"),  # noqa: DTZ001
        ({"aggregates": (FEED.aggregates[0],) * 2}, "two aggregates have one name"),
        (aggregate(name="other_4s"), "the aggregate other_4s has to be named toy_<window>[_<group>]"),
        (aggregate(name="toy_4S"), "the aggregate toy_4S has to be named toy_<window>[_<group>]"),
        (aggregate(name="toy_conflicts"), "toy_conflicts is the name of the view of conflicts"),
        (aggregate(name="toy_now"), "toy_now is the name of the view of the latest states"),
        (aggregate(name="toy_at"), "toy_at is the name of the view of states at a time"),
        (aggregate(name="toy_active"), "toy_active is the name of the view of the active ones"),
        ({"latest": Latest(active=LEVEL)}, "the latest state is active by level, which is a number and no condition"),
        ({"latest": Latest(active=MOOD > 5)},
         "the latest state is active by (mood > 5): (mood > 5) needs a number, and mood is a text"),
        ({"latest": Latest(by="nothing")}, "the latest state goes by nothing, which is no field of the record"),
        *(({"latest": Latest(by=name)},
           f"the latest state goes by {name}, which is {kind}: an entity is told by a text or a whole number")
          for name, kind in (("note", "string or null"), ("weight", "float"), ("place", "place or null"))),
        ({"spans": Spans(of="nothing")}, "its spans are of nothing, which is no field of the record"),
        *(({"spans": Spans(of=name)},
           f"its spans are of {name}, which is {kind}: a state is one of few values, and never null")
          for name, kind in (("note", "string or null"), ("weight", "float"), ("observed_at", "instant"))),
        ({"spans": Spans(of="device_id")}, "its spans are of device_id, by which they tell entities apart"),
        ({"spans": Spans(of="mood", by="note")},
         "a span goes by note, which is string or null: an entity is told by a text or a whole number"),
        ({"spans": Spans(of="mood"), "record": Ended},
         "its spans have a column ended, which is a field of the record already"),
        (rolled_up(RollUp(name="toy_spans", to="hour")), "toy_spans is the name of the view of spans"),
        (rolled_up(expected=0), "toy_5s expects 0 records of a window, which is no number from 1 on"),
        (rolled_up(window=timedelta(seconds=32)),
         "toy_5s is rolled up, so its window has to divide a quarter of an hour, where hours begin"),
        ({"earliest": datetime(1969, 1, 1, tzinfo=UTC), **rolled_up()},
         "toy_5s is rolled up, to hours and days since 1970, and earliest is before"),
        (rolled_up(measures=level("capture")), "toy_5s is rolled up, so capture is what arrived and no other column"),
        (rolled_up(RollUp(name="toy_1w", to="week")),  # type: ignore[arg-type]
         "toy_1w goes to an hour or a day, and its capture is a share between 0 and 1"),
        (rolled_up(RollUp(name="toy_1h", to="hour", capture=75)),
         "toy_1h goes to an hour or a day, and its capture is a share between 0 and 1"),
        (rolled_up(RollUp(name="other_1h", to="hour")),
         "the aggregate other_1h has to be named toy_<window>[_<group>]"),
        (rolled_up(RollUp(name="toy_5s", to="hour")), "two aggregates have one name"),
        (rolled_up(RollUp(name="toy_now", to="hour")), "toy_now is the name of the view of the latest states"),
        (aggregate(name="toy_4s_v2"), "the version of toy_4s_v2 is a number from 1 on, and no part of its name"),
        (aggregate(version=0), "the version of toy_4s is a number from 1 on, and no part of its name"),
        ({"ahead": timedelta(seconds=-1)}, "ahead cannot be negative"),
        ({"delay": timedelta(seconds=-1)}, "delay cannot be negative"),
        (aggregate(window=timedelta(milliseconds=500)), "the window of toy_4s has to be between a second and 0:15:00"),
        (aggregate(window=timedelta(minutes=16)), "the window of toy_4s has to be between a second and 0:15:00"),
        (aggregate(window=timedelta(seconds=7)), "the window of toy_4s has to be whole seconds that divide a day"),
        (aggregate(window=timedelta(seconds=1.5625)), "the window of toy_4s has to be whole seconds that divide a day"),
        (aggregate(by=()), "toy_4s has to group by a field"),
        (aggregate(by=("nothing",)), "toy_4s groups by nothing, which is no field of the record"),
        *((aggregate(by=(name,)), f"toy_4s groups by {name}, which is {kind} and not string, enum, int, bool")
          for name, kind in (("load", "float"), ("place", "place"), ("built", "date"), ("began_at", "instant"),
                             ("event_id", "uuid"))),
        (aggregate(by=("mood", "mood")), "toy_4s has two columns named mood"),
        (aggregate(measures=level("a") + level("a")), "toy_4s has two columns named a_sum"),
        (aggregate(measures=level("events")), "toy_4s has two columns named events"),
        (aggregate(measures=level("mood"), by=("mood",)), "toy_4s has two columns named mood"),
        (aggregate(measures=(total("n", Constant(1), unit="1", description=D),)),
         "toy_4s measures n_sum from no field; the number of records is in events"),
        (aggregate(measures=(total("n", Column("nothing") + 1, unit="1", description=D),)),
         "toy_4s measures round((nothing + 1) * 1): nothing is no field of the record"),
        *((aggregate(measures=(count_where("n", wrong, description=D),)), reason) for wrong, reason in MISTYPED),
        ({"record": Whose},
         "place is exact beside personal fields: declare it as Annotated[Location, Coarse(decimals=2)]"),
        *((aggregate(measures=(quantiles("n", value, (0.5,), unit="1", description=D),)),
           f"toy_4s measures n_histogram from {written(value)}, which may be a fraction: quantiles count whole "
           "numbers; say Scaled(value, 1000) and divisor=1000 for steps of a thousandth") for value in FRACTIONS),
    ],
)  # fmt: skip
def test_a_feed_that_makes_no_sense_is_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(DeclarationError) as refused:
        replace(FEED, **changes)
    assert str(refused.value).startswith(f"feed {changes.get('name', 'toy')}: ")
    assert str(refused.value).removesuffix(THERE).endswith(reason)


HIGH = Level(severity=Severity.MINOR, when=above(LEVEL, 5))
DUE = Level(severity=Severity.MINOR, when=Due(at=Column("observed_at") + 1000))


def rule(*levels: Level, **changes: Any) -> Rule:
    return Rule(**{"name": "r", "headline": "R", "category": Category.OTHER, "levels": levels or (HIGH,)} | changes)


def keeping(memory: Memory) -> Rule:
    return rule(keep={"kept": memory})


def held(**changes: Any) -> Rule:
    return rule(replace(HIGH, clear=Held(**changes)))


OWN = lookup(REFERENCE, Column("device_id"))
SITE, OF_NOTHING = OWN.column("site_id"), lookup(REFERENCE, Column("nothing")).column("full")
FULL_OF = lookup(REFERENCE, Column("kept"))
WITHIN = "the rule r at Minor, clear: within a time, which takes two times at least, some time, and no lasting"
RULES_REFUSED = [
    (rule(levels=()), "the rule r has no level"),
    (rule(HIGH, HIGH), "the rule r has levels of Minor, Minor; they go from the mildest to the gravest, each once"),
    (rule(replace(HIGH, severity=Severity.SEVERE), HIGH),
     "the rule r has levels of Severe, Minor; they go from the mildest to the gravest, each once"),
    (rule(replace(HIGH, severity=Severity.UNKNOWN)), "the rule r has to say how severe a level is"),
    (rule(of=("device_id", "level")), "the rule r is of level, which is no string or enum that is never null"),
    (rule(of=("device_id", "note")), "the rule r is of note, which is no string or enum that is never null"),
    (rule(of=("device_id", "nothing")), "the rule r is of nothing, which is no string or enum that is never null"),
    (rule(of=("mood",)), "the rule r is of mood; what one entity does has to be in one partition, so it is of "
     "device_id at least"),
    (rule(remembers=timedelta(0)), "the rule r has to remember an entity for some time"),
    (rule(keep={"mood": previous(LEVEL)}), "the rule r keeps mood, which is a column already"),
    (keeping(previous(Column("nothing"))),
     f"the rule r keeps of kept nothing: nothing is no field of the record{THERE}"),
    (keeping(previous(5)), "the rule r keeps of kept 5, which reads no column"),
    (keeping(running_total(MOOD)), "the rule r keeps of kept mood, which is a text and no number"),
    (keeping(running_total(LEVEL, reset=LEVEL)), "the rule r resets kept by level, which is a number and no condition"),
    (keeping(rate(OPEN, per=timedelta(1))), "the rule r keeps of kept open, which is a condition and no number"),
    (keeping(rate(LEVEL, per=timedelta(0))), "the rule r keeps kept per no time"),
    (rule(keep={"first": previous(Column("second")), "second": previous(LEVEL)}),
     f"the rule r keeps of first second: second is no field of the record{THERE}"),
    (rule(keep={"first": previous(MOOD), "second": running_total(Column("first"))}),
     "the rule r keeps of second first, which is a text and no number"),
    (rule(replace(HIGH, when=above(LEVEL, FULL_OF.column("full"))), keep={"kept": previous(Column("device_id"))}),
     "the rule r looks up parking_limit[kept].full by kept, which it keeps and is no field of the record"),
    (rule(replace(HIGH, when=above(LEVEL, covering(event_plan.REFERENCE, MOOD).column("parking_full")))),
     "the rule r at Minor needs (level >= event_plan[mood].parking_full): mood is enum; a place has the components "
     "longitude and latitude"),
    (rule(replace(DUE, when=Due(at=MOOD))), "the rule r at Minor is due at mood, which is a text and no number"),
    (rule(replace(DUE, when=Due(at=LEVEL, start=LEVEL))),
     "the rule r at Minor waits for level, which is a number and no condition"),
    (rule(replace(DUE, when=Due(at=LEVEL, done=MOOD.equals("angry")))),
     "the rule r at Minor waits for (mood == 'angry'): mood is never 'angry': it is one of calm, busy, unknown"),
    (rule(replace(DUE, held=Held(times=2))),
     "the rule r at Minor is due at a time, so nothing is held or cleared for a while"),
    (rule(replace(HIGH, when=while_true(LEVEL))),
     "the rule r at Minor needs level, which is a number and no condition"),
    (rule(replace(HIGH, when=while_true(OPEN, until=MOOD))),
     "the rule r at Minor needs mood, which is a text and no condition"),
    (held(times=0), "the rule r at Minor, clear: 0 times; it can be 1 to 100"),
    (held(times=101), "the rule r at Minor, clear: 101 times; it can be 1 to 100"),
    (held(lasting=timedelta(seconds=-1)), "the rule r at Minor, clear: lasting -1 s, which is less than no time"),
    (held(within=timedelta(seconds=1)), WITHIN),
    (held(times=2, within=timedelta(0)), WITHIN),
    (held(times=2, within=timedelta(seconds=1), lasting=timedelta(seconds=1)), WITHIN),
    (rule(keep={"No name": previous(LEVEL)}), "the rule r keeps 'No name', which has to be named in lower-case words"),
    (rule(shows={"value": LEVEL}), "the rule r shows a value of its own, and an alert has one already: rename it"),
    (rule(headline=" "), "the rule r has no headline"),
    (rule(shows={"mood": MOOD}), "the rule r shows as mood mood, which is a text and no number"),
    (rule(name="High"), "the rule 'High' has to be named in lower-case words"),
]  # fmt: skip


@pytest.mark.parametrize(("refused", "reason"), RULES_REFUSED)
def test_a_rule_that_makes_no_sense_is_refused(refused: Rule, reason: str) -> None:
    with pytest.raises(DeclarationError) as raised:
        replace(FEED, alerts=(refused,))
    assert str(raised.value) == f"feed toy: {reason}"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"alerts": (rule(), rule())}, "two rules are named r"),
        ({"alerts": (rule(),), **aggregate(alerts=(rule(),))}, "two rules are named r"),
        (aggregate(measures=(quantiles("n", LEVEL, (0.5,), unit="1", description=D),),
                   alerts=(rule(replace(HIGH, when=above(Column("n_p50"), 5))),)),
         "the rule r at Minor needs (n_p50 >= 5): n_p50 is no field of the record"),
        (aggregate(by=("device_id", "note"), alerts=(rule(replace(HIGH, when=above(Column("events"), 5))),)),
         "the rule r is of note, which is no string or enum that is never null"),
        (aggregate(by=("mood",), alerts=(rule(replace(HIGH, when=above(Column("events"), OWN.column("full")))),)),
         "the rule r looks up parking_limit[device_id].full; a rule on records can, or one on windows by device_id, "
         "whose last record is known in one partition"),
        (aggregate(by=("device_id",), alerts=(rule(replace(HIGH, when=while_true(SITE.equals("d-1")))),)),
         "the rule r looks up parking_limit[device_id].site_id, a text; of windows it can be a number or a condition"),
        (aggregate(by=("device_id",), alerts=(rule(replace(HIGH, when=above(Column("wait"), OWN.column("full")))),)),
         "the rule r reads wait, which is no column of the windows"),
        (aggregate(by=("device_id",), alerts=(rule(replace(HIGH, when=above(Column("events"), OF_NOTHING))),)),
         "the rule r at Minor needs (events >= parking_limit[nothing].full): nothing is no field of the record"),
    ],
)  # fmt: skip
def test_rules_that_make_no_sense_together_or_over_windows_are_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(DeclarationError) as raised:
        replace(FEED, **changes)
    assert str(raised.value).startswith(f"feed toy: {reason}")


def test_the_exact_place_is_not_measured_where_people_see_a_coarse_one() -> None:
    latitude = spread("latitude", Column("place").component("latitude"), unit="1", scale=1, description=D)
    refused = "place is shown to 2 decimals; what is made of it would show it exactly"
    with pytest.raises(DeclarationError, match=refused):
        replace(FEED, record=Rounded, **aggregate(measures=(latitude,)))


@pytest.mark.parametrize(
    "say",
    [
        lambda: 0 < LEVEL < 5,
        lambda: OPEN and LEVEL > 5,
        lambda: OPEN or LEVEL > 5,
        lambda: not OPEN,
        lambda: LEVEL.equals(None),  # type: ignore[arg-type]
        lambda: MOOD.is_in(["calm", "busy"]),  # type: ignore[arg-type]
        lambda: OPEN & True,
        lambda: float("inf") < LEVEL,
    ],
)
def test_what_python_would_take_for_another_condition_is_refused(say: Callable[[], Expression]) -> None:
    with pytest.raises(Mistyped):
        say()


@pytest.mark.parametrize(
    ("say", "words"),
    [
        (lambda: above(LEVEL, 5, release=-1), "the release is -1; with less than 0 it would begin and end"),
        (lambda: while_true(False), "while_true takes a condition, and False is none; texts are compared by"),  # type: ignore[arg-type]
        (lambda: above(previous(LEVEL), 5), "named in keep and read as Column"),  # type: ignore[arg-type]
        (lambda: replace(HIGH, when=LEVEL > 5), r"\(level > 5\) is a condition alone, .*: while_true"),  # type: ignore[arg-type]
        (lambda: replace(HIGH, severity="Minor"), "instance of Severity"),  # type: ignore[arg-type]
        (lambda: rule(category="Other"), "instance of Category"),
        (lambda: rule(levels=HIGH), "valid tuple"),
        (lambda: rule(of="device_id"), "valid tuple"),
        (lambda: rule(keep={"kept": LEVEL}), "instance of Previous"),
        (lambda: rule(heading="R"), "Unexpected keyword argument"),
        (lambda: Held(lasting=20), "valid timedelta"),  # type: ignore[arg-type]
        (lambda: Held(times=1.5), "valid integer"),  # type: ignore[arg-type]
    ],
)
def test_parts_of_rules_are_of_their_types(say: Callable[[], Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        say()


def test_a_number_stands_on_either_side() -> None:
    assert (Constant(0.5) * LEVEL, Constant(1) + LEVEL, Constant(0) - LEVEL) == (0.5 * LEVEL, 1 + LEVEL, -LEVEL)
    assert (Constant(1) - LEVEL, Constant(1) / LEVEL) == (1 - LEVEL, 1 / LEVEL)


def test_a_measure_of_text_is_refused() -> None:
    with pytest.raises(DeclarationError, match=r"measures .*: .* needs a number, and mood is a text"):
        replace(FEED, **aggregate(measures=(total("n", Column("mood"), unit="1", description=D),)))


DEFINING: list[dict[str, Any]] = [
    {"disorder": timedelta(seconds=1)},
    {"lateness": timedelta(seconds=1)},
    {"rules": ()},
    {"earliest": instant(NOON)},
    {"partitions": 2},
    {"aggregates": FEED.aggregates[:1]},
    aggregate(window=timedelta(seconds=5)),
    aggregate(by=("mood",)),
    aggregate(measures=level("level")),
]


@pytest.mark.parametrize("changes", DEFINING)
def test_what_results_depend_on_changes_the_definition(changes: dict[str, Any]) -> None:
    assert replace(FEED, **changes).definition != FEED.definition


WINDOWS_ALONE: list[dict[str, Any]] = [
    {"aggregates": FEED.aggregates[:1]},
    {"lateness": timedelta(minutes=1), "ahead": FEED.allowance},
    aggregate(version=2),
    aggregate(window=timedelta(seconds=5)),
    aggregate(by=("mood",)),
    aggregate(measures=level("level")),
]


@pytest.mark.parametrize("changes", WINDOWS_ALONE)
def test_what_only_windows_depend_on_leaves_the_records(changes: dict[str, Any]) -> None:
    assert replace(FEED, **changes).record_definition == FEED.record_definition
    assert replace(FEED, **changes).definition != FEED.definition


@pytest.mark.parametrize("changes", DEFINING[:5])
def test_what_verdicts_depend_on_changes_the_records(changes: dict[str, Any]) -> None:
    assert replace(FEED, **changes).record_definition != FEED.record_definition


def test_a_definition_holds_each_aggregate_by_itself() -> None:
    first, second = FEED.aggregates
    changed = replace(FEED, aggregates=(replace(second, version=2), first))
    assert set(changed.definition.split(".")) & set(FEED.definition.split(".")) == {
        FEED.record_definition,
        FEED.fingerprint(first),
    }
    assert replace(FEED, aggregates=(second, first)).definition == FEED.definition


def test_a_group_key_that_may_be_null_from_now_on_changes_the_definition() -> None:
    """The table of parts has it in its order, so no column there can become another one."""

    class Noted(Toy):
        note: Annotated[str, Field(description=D)]

    before, after = (replace(FEED, record=record, **aggregate(by=("note",))) for record in (Noted, Toy))
    assert before.definition_of(before.aggregates[0])["by"] == ["note"]
    assert after.fingerprint(after.aggregates[0]) != before.fingerprint(before.aggregates[0])


def test_a_version_has_a_topic_of_its_own() -> None:
    assert [replace(FEED.aggregates[0], version=version).topic for version in (1, 2)] == ["toy_4s", "toy_4s_v2"]


def test_another_key_changes_the_definition() -> None:
    class TwoKeys(Toy):
        room_id: Annotated[Text, Field(description="Room")]

    two = replace(FEED, record=TwoKeys)
    assert replace(two, key="room_id").definition != two.definition


def test_what_results_do_not_depend_on_leaves_the_definition() -> None:
    changed = replace(
        FEED,
        latest=Latest(),
        spans=Spans(of="mood"),
        department=replace(FEED.department, name="Others"),
        batch=2,
        rate=5.0,
        silence=timedelta(days=1),
        retention=timedelta(days=1),
        licence="https://example.org/open",
    )
    assert changed.definition == FEED.definition == replace(FEED).definition


def test_roll_ups_and_what_is_expected_of_a_window_leave_the_definition() -> None:
    """They are made of the same parts, so nothing is built anew."""
    before, after = (
        replace(FEED, **rolled_up(rollups=rollups, expected=n)) for n, rollups in ((1, ()), (15, (HOURS,)))
    )
    assert before.definition == after.definition


def test_an_aggregate_is_a_plain_declaration() -> None:
    assert Aggregate(name="a", by=("b",), window=timedelta(seconds=1), measures=(), description=D).measures == ()
    assert isinstance(FEED, Feed)


def test_a_pseudonym_keeps_the_bounds_of_the_shortest_personal_field_there_may_be() -> None:
    model = one_field(Annotated[str, Personal(), Field(min_length=32, max_length=32, description=D)])
    assert fields_of(model)[0].personal
    assert model.model_validate({"it": pseudonym(b"k" * 32, "Wensan Road 1")})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"name": " "}, "needs a name"),
        ({"contact": "the third door"}, "is no mail address, and no web page that begins with https://"),
        ({"purpose": ""}, "needs a purpose"),
    ],
)
def test_a_department_that_says_too_little_is_refused(changes: dict[str, str], reason: str) -> None:
    with pytest.raises(DeclarationError, match=reason):
        replace(FEED.department, **changes)


@pytest.mark.parametrize(("pause_ms", "silent"), [(0, False), (60_000, False), (60_001, True)])
def test_a_feed_is_silent_when_its_newest_record_is_older_than_the_longest_normal_pause(
    pause_ms: int, silent: bool
) -> None:
    assert FEED.silence == timedelta(minutes=1)
    assert FEED.is_silent(NOON, NOON + pause_ms) == silent
    assert not FEED.is_silent(None, NOON), "nothing ever came: it is not connected"
    assert not replace(FEED, rate=None, silence=None).is_silent(NOON, NOON + pause_ms), "it promises nothing"


def test_a_place_lies_in_the_one_area_of_a_table() -> None:
    with pytest.raises(Mistyped, match="parking_limit has 0 areas, and a place lies in one that is meant"):
        covering(REFERENCE, Column("place"))

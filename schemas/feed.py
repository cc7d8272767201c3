"""A feed and its aggregates: typed, frozen declarations that are refused at load when they make no sense."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any, Literal

from schemas.department import Department, contract_problems
from schemas.expressions import (
    Carried,
    Energy,
    Expression,
    LookedUp,
    Mistyped,
    Operand,
    Quantile,
    Type,
    as_expression,
    columns,
    is_whole,
    leaves,
    type_of,
    written,
)
from schemas.fields import Record
from schemas.made import made_problems
from schemas.measures import Measure
from schemas.model import NAME, TEXTS, VERSIONED, DeclarationError, Field, Kind, fields_of, milliseconds
from schemas.rules import Rule, rule_problems

LONGEST_WINDOW = QUARTER = timedelta(minutes=15)
#: Of all topics a feed ever had: ClickHouse keeps a partition's number in 16 bits.
MOST_PARTITIONS = 2**16
#: Kinds of fields that records are grouped by.
GROUPED: tuple[Kind, ...] = (*TEXTS, "int", "bool")
#: Columns that every part of a window has on its topic, and every window in its view.
_PART = ("window_start", "source_partition", "since", "version", "watermark", "events")
_SHOWN = ("window_start", "events", "final", "as_of")
#: Columns that a view of spans has beside those of its feed.
_OF_SPANS = ("before", "began", "ended", "duration")

__all__ = [
    "Aggregate", "DeclarationError", "Feed", "Latest", "MadeOf", "NotAfter", "Outgrown", "RollUp", "Spans",
    "milliseconds",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RollUp:
    """A view of the windows of an aggregate, merged to hours or days of the city's time zone, with the same measures.

    >>> RollUp(name="gate_1h", to="hour", capture=0.75)

    Its column ``capture`` is the share that arrived of the records there should be: those of each window, at most as
    many as the aggregate says are ``expected`` of a group, over these in all windows of the hour or day. Where it is
    less than the ``capture`` that is declared, measures are null.
    """

    name: str
    to: Literal["hour", "day"]
    capture: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Aggregate:
    """Measures over tumbling windows of event time, one for each group of records that are alike in the fields ``by``.

    >>> Aggregate(name="gate_1m", by=("open",), window=timedelta(minutes=1), measures=(), description="Gates")

    They are texts, enums, whole numbers and conditions. Null is a group of its own, not that of the empty text.

    ``events``, the number of events, is always there. ``name`` is the view. ``version`` is raised with every change of
    what the windows hold, so that the new ones can be built beside the old. ``alerts`` are the rules that final windows
    are held to. ``rollups`` are merged of the windows; ``expected`` is how many records one of a group should have.
    """

    name: str
    by: tuple[str, ...]
    window: timedelta
    measures: tuple[Measure, ...]
    description: str
    version: int = 1
    alerts: tuple[Rule, ...] = ()
    rollups: tuple[RollUp, ...] = ()
    expected: int = 1

    @property
    def topic(self) -> str:
        """The name of this version alone: of its topic, its schema and its table of parts."""
        return self.name if self.version == 1 else f"{self.name}_v{self.version}"

    @property
    def views(self) -> list[str]:
        """The names of its view and of those of its roll-ups."""
        return [self.name, *(rollup.name for rollup in self.rollups)]


@dataclass(frozen=True, kw_only=True)
class Latest:
    """The newest state of each entity, as a view ``<feed>_now``, and as of any time ``t``, ``<feed>_at(t=...)``.

    >>> Latest(by="status")

    ``by`` is the field that tells entities apart, the feed's key unless it is given. The newest event is the last one
    by event time, then by the text of its event id, whenever it arrived, of the raw rows that are kept. Those that
    ``active`` is true for have a view ``<feed>_active`` of their own.
    """

    by: str | None = None
    active: Expression | None = None


@dataclass(frozen=True, kw_only=True)
class Spans:
    """From when to when each entity was in each state, as a view ``<feed>_spans(since=..., until=...)``.

    >>> Spans(of="status")

    ``of`` is the field that says the state, and ``by`` the one that tells entities apart, the feed's key unless it is
    given. The view has the first event of each state, in the order of ``Latest``, with the state ``before`` it, when it
    ``began`` and ``ended``, and its ``duration`` between them; null where nothing is known of before, and while it
    lasts. Events from ``since`` on, and before ``until``, take part, and the newest event of each entity before
    ``since``, whose state held then: that one is cut off, and begins at ``since``.
    """

    of: str
    by: str | None = None


@dataclass(frozen=True, kw_only=True)
class MadeOf:
    """What records of another feed become in this one, as soon as they arrive; a worker writes it.

    >>> MadeOf(
    ...     of=DEVICE,
    ...     key=("device_id",),
    ...     where=Column("level") >= 6,
    ...     fields={"noted_at": Column("observed_at"), "text": Column("status"), "over": Column("level") - 5},
    ... )

    Records that are alike in the fields ``key`` of the other feed have one key here. ``fields`` says what the others
    are; one that is not said is null, or its default. A record for which ``where`` is not true, or of which a field
    would be null that never is, becomes none: so may a row that is looked up decide it. Of several ways for one feed
    the first whose ``where`` is true is taken.
    """

    of: Feed
    key: tuple[str, ...]
    fields: Mapping[str, Operand]
    where: Expression | None = None

    @property
    def given(self) -> dict[str, Expression]:
        """What the fields are made of."""
        return {name: as_expression(value) for name, value in self.fields.items()}

    @property
    def looked_up(self) -> Iterator[LookedUp]:
        """What is looked up for it."""
        for expression in (*self.given.values(), *([] if self.where is None else [self.where])):
            yield from (leaf for leaf in leaves(expression) if isinstance(leaf, LookedUp))


@dataclass(frozen=True)
class NotAfter:
    """A rule: the instant ``earlier`` is not after the instant ``later``; true where either is null."""

    earlier: str
    later: str


@dataclass(frozen=True, kw_only=True)
class Outgrown:
    """A topic that a feed had before the present one: its partitions, and when its publishers were stopped."""

    partitions: int
    until: datetime


@dataclass(frozen=True, kw_only=True)
class Feed:
    """One feed of one department.

    ``event_time`` names the field windows go by; ``disorder`` is how far events may come out of order before the
    watermark passes them, ``lateness`` how much longer their windows stay open; ``ahead`` is how far an event time may
    lie after the record's arrival, both together unless it is given. ``rate`` is events a second expected
    of a district and ``silence`` the longest pause that is normal; both are None of a feed that promises nothing, since
    it tells of what may not happen for long. ``delay`` is the longest normal way from an event to
    its arrival: where it is given, a clock lets time pass without events (``streams/clock.py``), and says it in its
    ticks. ``partitions`` is fixed for the life of a topic;
    ``outgrown`` are the topics of the feed before the present one, oldest first. ``open_groups`` is how many groups of
    an aggregate may be open in a partition, in all its windows together, or how many entities a rule may watch there:
    they are held in memory. ``alerts`` are the rules that its records are held to. One that is written ``by_workers``
    is published by nobody else; what is ``made_of`` records of other feeds workers write, too. ``licence`` is the
    address of that under which anybody may have its data; without one they are for the roles of the city.

    ``department``, ``batch``, ``rate`` and ``silence`` are its contract. Whether it is connected is no part of it: that
    is seen by what arrives (``sinks/catalogue.py``).
    """

    name: str
    description: str
    record: type[Record]
    key: str
    event_time: str
    department: Department
    batch: int
    rate: float | None
    silence: timedelta | None
    disorder: timedelta
    lateness: timedelta
    ahead: timedelta | None = None
    delay: timedelta | None = None
    aggregates: tuple[Aggregate, ...] = ()
    latest: Latest | None = None
    spans: Spans | None = None
    rules: tuple[NotAfter, ...] = ()
    alerts: tuple[Rule, ...] = ()
    retention: timedelta = timedelta(days=7)
    earliest: datetime = datetime(2000, 1, 1, tzinfo=UTC)
    partitions: int = 4
    outgrown: tuple[Outgrown, ...] = ()
    bad_ratio: float = 0.5
    open_groups: int = 100_000
    by_workers: bool = False
    licence: str | None = None
    made_of: tuple[MadeOf, ...] = ()
    fields: tuple[Field, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "fields", fields_of(self.record))
        _check(self)

    @property
    def record_definition(self) -> str:
        """Fingerprint of what decides which records are valid, and which of them are one event.

        The fields are no part of it: they are frozen, and each record is read and judged by the version it names.
        """
        return _fingerprint(json.dumps(self.definition_of_records(), sort_keys=True), 16)

    @property
    def definition(self) -> str:
        """Fingerprints of everything results depend on, joined by points: of the records, then of each aggregate.

        A worker refuses positions of another definition.
        """
        return ".".join([self.record_definition, *self.fingerprints])

    @property
    def fingerprints(self) -> list[str]:
        """Those of its aggregates, in an order of their own."""
        return sorted(self.fingerprint(aggregate) for aggregate in self.aggregates)

    def definition_of_records(self) -> dict[str, Any]:
        """What decides which records are valid, and which of them are one event, as plain data; instants in ms.

        A word that is added to the language is in it only where it is used: so it changes no fingerprint of a feed that
        does without.
        """
        return {
            "key": self.key,
            "event_time": self.event_time,
            "rules": [{"not_after": [rule.earlier, rule.later]} for rule in self.rules],
            "ahead_ms": milliseconds(self.allowance),
            "earliest_ms": milliseconds(self.earliest - datetime(1970, 1, 1, tzinfo=UTC)),
            "partitions": [*(topic.partitions for topic in self.outgrown), self.partitions][0],
        }

    def fingerprint(self, aggregate: Aggregate) -> str:
        """Fingerprint of what makes the windows of an aggregate out of valid records."""
        return _fingerprint(json.dumps([aggregate.topic, self.definition_of(aggregate)], sort_keys=True), 8)

    def definition_of(self, aggregate: Aggregate) -> dict[str, Any]:
        """What makes the windows of an aggregate out of valid records, as plain data; spans in ms."""
        return {
            "event_time": self.event_time,
            "by": [f"{f.name} or null" if f.nullable else f.name for f in self.grouped_by(aggregate)],
            "window_ms": milliseconds(aggregate.window),
            "disorder_ms": milliseconds(self.disorder),
            "lateness_ms": milliseconds(self.lateness),
            "partials": {p.name: p.definition for m in aggregate.measures for p in m.partials},
        }

    def has(self, name: str) -> bool:
        """Whether there is a field of a name."""
        return any(field.name == name for field in self.fields)

    @property
    def views(self) -> list[str]:
        """The names of all its views."""
        states = [] if self.latest is None else ["now", "at"] if self.latest.active is None else ["now", "at", "active"]
        spans = [] if self.spans is None else ["spans"]
        own = [f"{self.name}_{ending}" for ending in ("conflicts", *states, *spans)]
        return [self.name, *own, *(view for aggregate in self.aggregates for view in aggregate.views)]

    @property
    def latest_by(self) -> str | None:
        """The field that tells the entities apart whose newest states have views; None if there are none."""
        return None if self.latest is None else self.latest.by or self.key

    @property
    def latest_active(self) -> Expression | None:
        """What is true of the newest states that have a view of their own; None if none have."""
        return None if self.latest is None else self.latest.active

    def field(self, name: str) -> Field:
        """The description of the field of a name."""
        return next(field for field in self.fields if field.name == name)

    def grouped_by(self, aggregate: Aggregate) -> list[Field]:
        """The fields that an aggregate groups by."""
        return [self.field(name) for name in aggregate.by]

    @property
    def tables(self) -> list[str]:
        """The tables of reference data that its rules look something up in."""
        return [*dict.fromkeys(table for _, rule in self.watched for table in rule.tables)]

    @property
    def is_source(self) -> bool:
        """Whether it tells of the city, and not of what workers found in other feeds."""
        return not self.by_workers and not self.made_of

    def gathers(self, aggregate: Aggregate) -> bool:
        """Whether rules watch windows of an aggregate whose groups lie in several partitions."""
        return bool(aggregate.alerts) and self.key not in aggregate.by

    @property
    def watched(self) -> list[tuple[Aggregate | None, Rule]]:
        """Its rules, those on its records first, each of the others with the aggregate whose windows it watches."""
        of_windows = ((aggregate, rule) for aggregate in self.aggregates for rule in aggregate.alerts)
        return [*((None, rule) for rule in self.alerts), *of_windows]

    @property
    def raises_alerts(self) -> bool:
        """Whether anything of it is held to rules."""
        return bool(self.watched)

    def definition_of_series(self) -> dict[str, Any]:
        """What its records are as a series for rules, as plain data; spans in ms."""
        return {"event_time": self.event_time, "key": self.key, "disorder_ms": milliseconds(self.disorder)}

    @property
    def place(self) -> str | None:
        """The field that says where a record happened, if there is one and only one that shows it exactly."""
        places = [one.name for one in self.fields if one.kind == "place" and one.decimals is None]
        return places[0] if len(places) == 1 else None

    def is_silent(self, newest_ms: int | None, now_ms: int) -> bool:
        """Whether the pause since its newest record arrived is longer than is normal; both in ms since 1970.

        A feed of which nothing ever arrived is not silent: it is not connected.
        """
        return self.silence is not None and newest_ms is not None and now_ms - newest_ms > milliseconds(self.silence)

    @property
    def allowance(self) -> timedelta:
        """How far an event time may lie after the record's arrival."""
        return self.disorder + self.lateness if self.ahead is None else self.ahead


def made_from(feed: Feed, feeds: Iterable[Feed]) -> list[Feed]:
    """Those of these feeds into which records of a feed are made."""
    return [one for one in feeds if any(way.of.name == feed.name for way in one.made_of)]


def _fingerprint(text: str, digits: int) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:digits]


def _check(feed: Feed) -> None:
    known = {f.name: f for f in feed.fields}
    reasons = [
        *_identity_problems(feed, known),
        *_place_problems(feed),
        *_setting_problems(feed),
        *_latest_problems(feed, known),
        *_span_problems(feed, known),
        *(reason for rule in feed.rules for reason in _rule_problems(rule, known)),
        *(reason for aggregate in feed.aggregates for reason in _name_problems(feed, aggregate)),
        *(reason for aggregate in feed.aggregates for reason in _aggregate_problems(aggregate, known)),
        *(reason for aggregate in feed.aggregates for reason in _rollup_problems(feed, aggregate)),
        *_alert_problems(feed, known),
        *_made_problems(feed, known),
    ]
    if reasons:
        raise DeclarationError(f"feed {feed.name}: {reasons[0]}")


def _identity_problems(feed: Feed, known: Mapping[str, Field]) -> Iterator[str]:
    def is_a(name: str, kind: Kind) -> bool:
        return name in known and known[name].kind == kind and not known[name].nullable

    if not NAME.fullmatch(feed.name):
        yield "a name is lower-case words joined by underscores"
    if not is_a("event_id", "uuid"):
        yield "the record needs a field event_id of type EventId"
    if not is_a(feed.key, "string"):
        yield f"the key {feed.key} has to be a string field that is never null"
    if not is_a(feed.event_time, "instant"):
        yield f"the event time {feed.event_time} has to be an Instant that is never null"


def _place_problems(feed: Feed) -> Iterator[str]:
    """An exact place says which pseudonym is whose."""
    if any(field.personal for field in feed.fields):
        for name in (field.name for field in feed.fields if field.kind == "place" and field.decimals is None):
            yield f"{name} is exact beside personal fields: declare it as Annotated[Location, Coarse(decimals=2)]"
    for name in (one.name for one in feed.fields if one.shape):
        yield f"{name} is a shape, which only reference data has"


def _setting_problems(feed: Feed) -> Iterator[str]:
    yield from contract_problems(feed.batch, feed.licence, [field.name for field in feed.fields if field.personal])
    if (feed.rate is None) != (feed.silence is None):
        yield "rate and silence are given both, or are both None of a feed that promises nothing"
    elif feed.rate is not None and feed.silence is not None and (feed.rate <= 0 or feed.silence <= timedelta(0)):
        yield "rate and silence have to be more than nothing"
    if feed.rate is not None and not feed.is_source:
        yield "workers write it when something is found, so it can promise nothing: rate and silence are None"
    if feed.disorder < timedelta(0) or feed.lateness < timedelta(0):
        yield "disorder and lateness cannot be negative"
    if feed.allowance < timedelta(0):
        yield "ahead cannot be negative"
    if feed.delay is not None and feed.delay < timedelta(0):
        yield "delay cannot be negative"
    if not 0 < feed.bad_ratio <= 1:
        yield "bad_ratio is a share between 0 and 1"
    if feed.open_groups < 1:
        yield "open_groups is a number from 1 on"
    counts = [feed.partitions, *(topic.partitions for topic in feed.outgrown)]
    if min(counts) < 1:
        yield "a topic has at least one partition"
    if sum(counts) > MOST_PARTITIONS:
        yield f"its topics have more than {MOST_PARTITIONS:,} partitions together"
    ends = [topic.until for topic in feed.outgrown]
    if any(end.tzinfo is None for end in ends):
        yield "until needs a time zone"
    elif any(later <= earlier for earlier, later in pairwise(ends)):
        yield "outgrown topics end one after the other, the oldest first"
    if feed.earliest.tzinfo is None:
        yield "earliest needs a time zone"
    names = [name for aggregate in feed.aggregates for name in aggregate.views]
    if len(set(names)) != len(names):
        yield "two aggregates have one name"


def _latest_problems(feed: Feed, known: Mapping[str, Field]) -> Iterator[str]:
    name = feed.latest_by
    if feed.latest_active is not None:
        wrong = _expression_problems(feed.latest_active, known, "condition")
        yield from (f"the latest state is active by {reason}" for reason in wrong)
    if name is not None:
        yield from (f"the latest state {reason}" for reason in _told_problems(name, known))


def _span_problems(feed: Feed, known: Mapping[str, Field]) -> Iterator[str]:
    if feed.spans is None:
        return
    name = feed.spans.of
    if name not in known:
        yield f"its spans are of {name}, which is no field of the record"
    elif known[name].kind not in GROUPED or known[name].nullable:
        yield f"its spans are of {name}, which is {_kind(known[name])}: a state is one of few values, and never null"
    elif name == (feed.spans.by or feed.key):
        yield f"its spans are of {name}, by which they tell entities apart"
    yield from (f"a span {reason}" for reason in _told_problems(feed.spans.by or feed.key, known))
    for column in (column for column in _OF_SPANS if column in known):
        yield f"its spans have a column {column}, which is a field of the record already"


def _told_problems(name: str, known: Mapping[str, Field]) -> Iterator[str]:
    """Why entities are not told apart by a field."""
    if name not in known:
        yield f"goes by {name}, which is no field of the record"
    elif known[name].kind not in GROUPED or known[name].nullable:
        yield f"goes by {name}, which is {_kind(known[name])}: an entity is told by a text or a whole number"


def _kind(field: Field) -> str:
    return f"{field.kind} or null" if field.nullable else field.kind


def _rule_problems(rule: NotAfter, known: Mapping[str, Field]) -> Iterator[str]:
    for name in (rule.earlier, rule.later):
        if name not in known or known[name].kind != "instant":
            yield f"the rule {rule} needs {name} to be an Instant field"


def _name_problems(feed: Feed, aggregate: Aggregate) -> Iterator[str]:
    taken = {
        "conflicts": "of conflicts",
        "now": "of the latest states",
        "at": "of states at a time",
        "active": "of the active ones",
        "spans": "of spans",
    }
    for name in aggregate.views:
        if not name.startswith(f"{feed.name}_") or not NAME.fullmatch(name):
            yield f"the aggregate {name} has to be named {feed.name}_<window>[_<group>]"
        if (ending := name.removeprefix(f"{feed.name}_")) in taken:
            yield f"{name} is the name of the view {taken[ending]}"
        if VERSIONED.fullmatch(name) or aggregate.version < 1:
            yield f"the version of {name} is a number from 1 on, and no part of its name"


def _aggregate_problems(aggregate: Aggregate, known: Mapping[str, Field]) -> Iterator[str]:
    if not timedelta(seconds=1) <= aggregate.window <= LONGEST_WINDOW:
        yield f"the window of {aggregate.name} has to be between a second and {LONGEST_WINDOW}"
    elif timedelta(days=1) % aggregate.window or aggregate.window % timedelta(seconds=1):
        yield f"the window of {aggregate.name} has to be whole seconds that divide a day"
    if not aggregate.by:
        yield f"{aggregate.name} has to group by a field"
    for name in aggregate.by:
        if name not in known:
            yield f"{aggregate.name} groups by {name}, which is no field of the record"
        elif known[name].kind not in GROUPED:
            yield f"{aggregate.name} groups by {name}, which is {known[name].kind} and not {', '.join(GROUPED)}"
    partials = [partial for measure in aggregate.measures for partial in measure.partials]
    results = [result for measure in aggregate.measures for result in measure.results]
    for names in [*_PART, *(p.name for p in partials)], [*_SHOWN, *(r.name for r in results)]:
        often = Counter([*aggregate.by, *names])
        yield from (f"{aggregate.name} has two columns named {name}" for name in often if often[name] > 1)
    for partial in partials:
        read = list(columns(partial.value))
        if not read:
            yield f"{aggregate.name} measures {partial.name} from no field; the number of records is in events"
        yield from (f"{aggregate.name} measures {reason}" for reason in _expression_problems(partial.value, known))
        kinds = {name: declared.kind for name, declared in known.items()}
        if not is_whole(partial.value, kinds):
            yield (
                f"{aggregate.name} measures {partial.name} from {written(partial.value)}, which may be a fraction: "
                "quantiles count whole numbers; say Scaled(value, 1000) and divisor=1000 for steps of a thousandth"
            )


def _alert_problems(feed: Feed, known: Mapping[str, Field]) -> Iterator[str]:
    names = Counter(rule.name for _, rule in feed.watched)
    yield from (f"two rules are named {name}" for name in names if names[name] > 1)
    yield from (f"the rule {name!r} has to be named in lower-case words" for name in names if not NAME.fullmatch(name))
    for rule in feed.alerts:
        yield from rule_problems(rule, (feed.key,), known, known)
    for aggregate in feed.aggregates:
        for rule in aggregate.alerts:
            yield from _looked_up_problems(feed, aggregate, rule)
            yield from rule_problems(rule, aggregate.by, _windows_as_series(aggregate, known), known)


def _looked_up_problems(feed: Feed, aggregate: Aggregate, rule: Rule) -> Iterator[str]:
    """Why a rule cannot look something up for windows."""
    for leaf in rule.looked_up:
        if feed.key not in aggregate.by:
            yield (
                f"the rule {rule.name} looks up {written(leaf)}; a rule on records can, or one on windows by "
                f"{feed.key}, whose last record is known in one partition"
            )
        elif leaf.field.kind in TEXTS:
            yield f"the rule {rule.name} looks up {written(leaf)}, a text; of windows it can be a number or a condition"


def _made_problems(feed: Feed, known: Mapping[str, Field]) -> Iterator[str]:
    for way in feed.made_of:
        source = {field.name: field for field in way.of.fields}
        own = ("event_id", feed.key)
        wrong = made_problems(way.given, way.where, way.key, source, known, own)
        yield from (f"as it is made of {way.of.name}, {reason}" for reason in wrong)


def _windows_as_series(aggregate: Aggregate, known: Mapping[str, Field]) -> dict[str, Field]:
    """The columns of final windows; what is made of a histogram or carried is none of them."""
    results = [result for measure in aggregate.measures for result in measure.results]
    plain = [
        one for one in results if not any(isinstance(leaf, Carried | Energy | Quantile) for leaf in leaves(one.value))
    ]
    numbers = [Field(one.name, "float", True, one.description, one.unit) for one in plain]
    own = [Field("events", "int", False, "Events"), Field("window_start", "instant", False, "Start of the window")]
    return {one.name: one for one in [*(known[name] for name in aggregate.by if name in known), *own, *numbers]}


def _rollup_problems(feed: Feed, aggregate: Aggregate) -> Iterator[str]:
    if aggregate.expected < 1:
        yield f"{aggregate.name} expects {aggregate.expected} records of a window, which is no number from 1 on"
    if not aggregate.rollups:
        return
    if QUARTER % aggregate.window:
        yield f"{aggregate.name} is rolled up, so its window has to divide a quarter of an hour, where hours begin"
    if feed.earliest < datetime(1970, 1, 1, tzinfo=UTC):
        yield f"{aggregate.name} is rolled up, to hours and days since 1970, and earliest is before"
    if "capture" in (*aggregate.by, *(r.name for measure in aggregate.measures for r in measure.results)):
        yield f"{aggregate.name} is rolled up, so capture is what arrived and no other column"
    for rollup in aggregate.rollups:
        if rollup.to not in ("hour", "day") or not 0 <= rollup.capture <= 1:
            yield f"{rollup.name} goes to an hour or a day, and its capture is a share between 0 and 1"


def _expression_problems(expression: Expression, known: Mapping[str, Field], wanted: Type = "number") -> Iterator[str]:
    try:
        if (found := type_of(expression, known)) != wanted:
            yield f"{written(expression)}, which is a {found} and no {wanted}"
    except Mistyped as reason:
        yield f"{written(expression)}: {reason}"

"""Rules: what of a feed's records, or of the final windows of an aggregate, raises an alert, keeps it and ends it.

A rule watches one series for each *entity*: its records, or its final windows, in the order of event time, once the
watermark has passed them. What comes later is counted and moves no rule. An alert of a rule and an entity begins when a
level of the rule holds, is updated when another level is the highest that holds, and ends when none does. All of it is
a function of the log.

Numbers of a rule are IEEE doubles, with one meaning of null as in ``schemas.expressions``. Null is not known: it
neither begins nor breaks nor ends anything.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict
from pydantic.dataclasses import dataclass as checked

from schemas.alerts import Category, Severity
from schemas.expressions import (
    SAID_OF_TEXTS,
    Column,
    Component,
    Expression,
    LookedUp,
    Mistyped,
    Operand,
    Type,
    as_expression,
    columns,
    leaves,
    type_of,
    written,
)
from schemas.model import NAME, TEXTS, Field, Kind, milliseconds
from schemas.reference import Reference

#: What an alert shows of itself.
SHOWN = ("value", "limit")
#: How much memory one entity may take: hits of ``within`` that are kept.
MOST_TIMES = 100
_SEVERITIES = list(Severity)
#: What a declaration is made of is looked at where it is written.
STRICT = ConfigDict(strict=True, extra="forbid", arbitrary_types_allowed=True)


@checked(frozen=True, config=STRICT)
class Condition:
    """When a level begins and when it ends; ``value`` and ``limit`` are shown with the alert."""

    begins: Expression
    ends: Expression
    value: Expression | None = None
    limit: Expression | None = None


def above(value: Operand, limit: Operand, *, release: Operand = 0) -> Condition:
    """From where ``value`` is ``limit`` or more until it is less than ``limit - release``.

    >>> above(Column("level"), 5, release=2)

    For *more than* use ``while_true(Column("level") > 5)``. The release moves with the limit, so the two cannot
    contradict each other.
    """
    value, limit, release = as_expression(value), as_expression(limit), _release(release)
    return Condition(begins=value >= limit, ends=value < limit - release, value=value, limit=limit)


def below(value: Operand, limit: Operand, *, release: Operand = 0) -> Condition:
    """From where ``value`` is ``limit`` or less until it is more than ``limit + release``.

    >>> below(Column("level"), 3)
    """
    value, limit, release = as_expression(value), as_expression(limit), _release(release)
    return Condition(begins=value <= limit, ends=value > limit + release, value=value, limit=limit)


def _release(release: Operand) -> Expression:
    if isinstance(release, int | float) and release < 0:
        raise Mistyped(f"the release is {release}; with less than 0 it would begin and end at the same values")
    return as_expression(release)


def while_true(begins: Expression, *, until: Expression | None = None) -> Condition:
    """From where a condition is true until it is false, or until another one is true.

    >>> while_true(Column("status").equals("busy"), until=Column("status").equals("calm"))
    """
    if not isinstance(begins, Expression):
        raise Mistyped(f"while_true takes a condition, and {begins!r} is none; {SAID_OF_TEXTS}")
    return Condition(begins=begins, ends=~begins if until is None else until)


@dataclass(frozen=True)
class Lookup:
    """What ``lookup`` and ``covering`` give: a row is told by these fields, and by columns of the record."""

    reference: Reference
    fields: tuple[Field, ...]
    keys: tuple[Column, ...]

    def column(self, name: str) -> LookedUp:
        """A field of the row."""
        return LookedUp(self.reference.name, self.fields, self.keys, self.reference.field(name))


def lookup(reference: Reference, *keys: Column) -> Lookup:
    """The row of a table of reference data that counts for a record; ``column`` is a field of it.

    >>> above(Column("level"), lookup(LIMITS, Column("status")).column("most"))

    It is the row of these keys as it was known when the record arrived, and that holds at its event time. Where there
    is none all its columns are null: an entity that is not in the table, or not any more, is not judged. Of a window it
    is the row of the record that was the last one to be counted in.

    Raises
    ------
    Mistyped
        There are not as many keys as the table has.
    """
    if len(keys) != len(reference.key):
        raise Mistyped(f"{reference.name} is looked up by {', '.join(reference.key)}, and not by {len(keys)} columns")
    return Lookup(reference, tuple(map(reference.field, reference.key)), keys)


def covering(reference: Reference, place: Column) -> Lookup:
    """The row of a table of reference data whose area a record's place lies in, or on the border of.

    >>> above(Column("level"), covering(ZONES, Column("place")).column("most"))

    It is known and holds as that of a ``lookup``; of several rows the one that begins last, and of these the one whose
    key comes first. Where there is none, or the place is null, all its columns are null.

    Raises
    ------
    Mistyped
        The table has no area, or more than one.
    """
    areas = tuple(field for field in reference.fields if field.shape == "area")
    if len(areas) != 1:
        raise Mistyped(f"{reference.name} has {len(areas)} areas, and a place lies in one that is meant")
    return Lookup(reference, areas, (place,))


@checked(frozen=True, config=STRICT)
class Held:
    """How much of a condition it takes: ``times`` observations in a row, over a time of ``lasting``.

    >>> Level(
    ...     severity=Severity.MINOR,
    ...     when=above(Column("level"), 5),
    ...     held=Held(times=2),
    ...     clear=Held(lasting=timedelta(seconds=15)),
    ... )

    ``times`` is 1 to 100. With ``within``, the observations need not be in a row, but must lie in so long a time.
    ``lasting`` is over when the watermark says so, whether or not there is another observation.
    """

    times: int = 1
    lasting: timedelta = timedelta(0)
    within: timedelta | None = None


@checked(frozen=True, config=STRICT)
class Due:
    """What has to come: a level begins at the time ``at`` that an observation with ``start`` says, unless one with
    ``done`` comes by then, and ends with one.

    >>> Due(at=Column("observed_at") + 30_000)

    None for ``start`` or ``done`` is any observation, so that this one is silence of 30 s. Where ``at`` is
    null, nothing is due.
    """

    at: Expression
    start: Expression | None = None
    done: Expression | None = None


@checked(frozen=True, config=STRICT)
class Previous:
    """The last known value before an observation."""

    value: Expression


@checked(frozen=True, config=STRICT)
class Running:
    """What ``running_total`` declares."""

    value: Expression
    reset: Expression | None


@checked(frozen=True, config=STRICT)
class Rate:
    """What ``rate`` declares."""

    value: Expression
    per: timedelta


#: What a rule keeps of an entity.
Memory = Previous | Running | Rate


def previous(value: Operand) -> Memory:
    """The value at the observation before; where it was null, the last that was not.

    >>> previous(Column("level"))

    It counts observations, however long ago. What was two of them ago is kept twice, in this order:
    ``{"one": previous(Column("level")), "two": previous(Column("one"))}``.
    """
    return Previous(as_expression(value))


def running_total(value: Operand, *, reset: Expression | None = None) -> Memory:
    """The sum of a value over all observations up to this one, from the last one on for which ``reset`` is true.

    >>> running_total(Column("level"), reset=Column("status").equals("calm"))
    """
    return Running(value=as_expression(value), reset=reset)


def rate(value: Operand, *, per: timedelta) -> Memory:
    """By how much a value changed since the last known one, in so much time.

    >>> rate(Column("level"), per=timedelta(minutes=1))
    """
    return Rate(value=as_expression(value), per=per)


def _condition_or_due(when: Any) -> Any:
    if isinstance(when, Expression):
        raise Mistyped(f"{written(when)} is a condition alone, and a level needs to know when it ends: while_true(...)")
    return when


@checked(frozen=True, kw_only=True, config=STRICT)
class Level:
    """One severity of a rule: when it begins and ends, and how much of it each takes.

    >>> Level(severity=Severity.SEVERE, when=above(Column("level"), 7), clear=Held(times=2))

    An observation at which the condition is null neither counts nor breaks a row of those that do.
    """

    severity: Severity
    when: Annotated[Condition | Due, BeforeValidator(_condition_or_due)]
    held: Held = Held()
    clear: Held = Held()


@checked(frozen=True, kw_only=True, config=STRICT)
class Rule:
    """What raises alerts of one kind.

    >>> Rule(
    ...     name="filling",
    ...     headline="It fills up",
    ...     category=Category.OTHER,
    ...     keep={"before": previous(Column("level"))},
    ...     levels=(
    ...         Level(severity=Severity.MINOR, when=above(Column("level"), 5, release=2)),
    ...         Level(severity=Severity.SEVERE, when=above(Column("level"), 7), held=Held(times=2)),
    ...     ),
    ...     shows={"more": Column("level") - Column("before")},
    ... )

    ``headline`` is what an alert says, ``category`` one of GEO, MET, SAFETY, SECURITY, RESCUE, FIRE, HEALTH,
    ENVIRONMENT, TRANSPORT, INFRASTRUCTURE and OTHER. ``of`` are the fields that make an entity, the feed's key or the
    groups of the aggregate unless they are given. ``keep`` names what is remembered of it, which expressions then read
    as columns, and so does what is kept behind it; it is worked out at every observation. ``shows`` are numbers an
    alert carries. ``previous``, ``running_total`` and ``rate`` stand there and nowhere else. ``levels`` go from the
    mildest to the gravest: MINOR, MODERATE, SEVERE, EXTREME. An entity without an alert that nothing is due of is
    forgotten when it was not observed for ``remembers``, a day unless given.
    """

    name: str
    headline: str
    levels: tuple[Level, ...]
    category: Category
    of: tuple[str, ...] = ()
    keep: Mapping[str, Memory] = field(default_factory=dict)
    shows: Mapping[str, Expression] = field(default_factory=dict)
    remembers: timedelta = timedelta(days=1)

    @property
    def definition(self) -> dict[str, Any]:
        """What its alerts depend on beside its series, as plain data; spans in ms."""
        return {
            "name": self.name,
            "of": list(self.of),
            "keep": [[name, *_memory_definition(memory)] for name, memory in self.keep.items()],
            "levels": [_level_definition(level) for level in self.levels],
            "shows": [[name, written(value)] for name, value in self.shows.items()],
            "remembers_ms": milliseconds(self.remembers),
        }

    def fingerprint(self, series: Mapping[str, Any]) -> str:
        """Of all its alerts depend on; ``series`` is what it watches, as plain data."""
        text = json.dumps([self.definition, series], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def expressions(self) -> Iterator[Expression]:
        """Everything that is worked out of an observation, but for what is kept."""
        for level in self.levels:
            yield from _parts(level.when)
        yield from self.shows.values()

    @property
    def remembered(self) -> Iterator[Expression]:
        """Everything that is worked out of an observation in order to keep it."""
        for memory in self.keep.values():
            yield memory.value
            if isinstance(memory, Running) and memory.reset is not None:
                yield memory.reset

    @property
    def looked_up(self) -> list[LookedUp]:
        """What it looks up."""
        return [*dict.fromkeys(leaf for leaf in read_by(self) if isinstance(leaf, LookedUp))]

    @property
    def tables(self) -> list[str]:
        """The tables of reference data that it looks something up in."""
        return [*dict.fromkeys(leaf.table for leaf in self.looked_up)]


def read_by(rule: Rule) -> Iterator[Column | Component | LookedUp]:
    """The columns of its series that a rule reads, and what it looks up."""
    for expression in (*rule.expressions, *rule.remembered):
        for leaf in leaves(expression):
            if isinstance(leaf, LookedUp) or (isinstance(leaf, Column | Component) and leaf.name not in rule.keep):
                yield leaf


def _parts(when: Condition | Due) -> list[Expression]:
    named = [when.at, when.start, when.done] if isinstance(when, Due) else [when.begins, when.ends]
    shown = [when.value, when.limit] if isinstance(when, Condition) else []
    return [part for part in (*named, *shown) if part is not None]


def _level_definition(level: Level) -> dict[str, Any]:
    when = level.when
    if isinstance(when, Due):
        said = {"due": [None if part is None else written(part) for part in (when.at, when.start, when.done)]}
    else:
        said = {"begins": [written(when.begins)], "ends": [written(when.ends)]}
    return {"severity": level.severity.value, **said, "held": _held(level.held), "clear": _held(level.clear)}


def _held(held: Held) -> list[int | None]:
    return [held.times, milliseconds(held.lasting), None if held.within is None else milliseconds(held.within)]


def _memory_definition(memory: Memory) -> list[Any]:
    match memory:
        case Previous(value):
            return ["previous", written(value)]
        case Running(value, reset):
            return ["running total", written(value), None if reset is None else written(reset)]
        case Rate(value, per):
            return ["rate", written(value), milliseconds(per)]


def rule_problems(
    rule: Rule, entity: tuple[str, ...], series: Mapping[str, Field], record: Mapping[str, Field]
) -> Iterator[str]:
    """Why a rule makes no sense over a series whose columns are these; ``entity`` are the columns it must go by.

    What it looks up goes by the fields of a ``record``.
    """
    where = f"the rule {rule.name}"
    if not rule.levels:
        yield f"{where} has no level"
    severities = [_SEVERITIES.index(level.severity) for level in rule.levels]
    if severities != sorted(set(severities)):
        named = ", ".join(level.severity.value for level in rule.levels)
        yield f"{where} has levels of {named}; they go from the mildest to the gravest, each once"
    if not rule.headline.strip():
        yield f"{where} has no headline"
    if any(level.severity is Severity.UNKNOWN for level in rule.levels):
        yield f"{where} has to say how severe a level is"
    for name in rule.of or entity:
        if name not in series or series[name].kind not in TEXTS or series[name].nullable:
            yield f"{where} is of {name}, which is no string or enum that is never null"
    if rule.of and not set(entity) <= set(rule.of):
        yield (
            f"{where} is of {', '.join(rule.of)}; what one entity does has to be in one partition, so it is of "
            f"{', '.join(entity)} at least"
        )
    if rule.remembers <= timedelta(0):
        yield f"{where} has to remember an entity for some time"
    read = {**record, **series} if rule.looked_up else series
    yield from (f"{where} {reason}" for reason in _keep_problems(rule, series, read))
    known = {**read, **kept_fields(rule, series)}
    for level in rule.levels:
        yield from (f"{where} {reason}" for reason in _level_problems(level, known))
    for name, value in rule.shows.items():
        if name in SHOWN:
            yield f"{where} shows a {name} of its own, and an alert has one already: rename it"
        yield from (f"{where} shows as {name} {reason}" for reason in _typed(value, "number", known))
    for leaf in read_by(rule):
        if isinstance(leaf, LookedUp):
            missing = [key.name for key in leaf.keys if key.name not in record]
            yield from (
                f"{where} looks up {written(leaf)} by {name}, which is no field of the record" for name in missing
            )
        elif leaf.name not in series:
            yield f"{where} reads {leaf.name}, which is no column of the windows"


def _keep_problems(rule: Rule, series: Mapping[str, Field], read: Mapping[str, Field]) -> Iterator[str]:
    known = dict(read)
    for name, memory in rule.keep.items():
        if not NAME.fullmatch(name):
            yield f"keeps {name!r}, which has to be named in lower-case words"
        if name in series:
            yield f"keeps {name}, which is a column already"
        wanted: Type | None = None if isinstance(memory, Previous) else "number"
        yield from (f"keeps of {name} {reason}" for reason in _typed(memory.value, wanted, known))
        if isinstance(memory, Running) and memory.reset is not None:
            yield from (f"resets {name} by {reason}" for reason in _typed(memory.reset, "condition", known))
        if isinstance(memory, Rate) and memory.per <= timedelta(0):
            yield f"keeps {name} per no time"
        known[name] = _kept_field(name, memory, known)
    for leaf in rule.looked_up:
        for key in (key.name for key in leaf.keys if key.name in rule.keep):
            yield f"looks up {written(leaf)} by {key}, which it keeps and is no field of the record"


def kept_fields(rule: Rule, series: Mapping[str, Field]) -> dict[str, Field]:
    """What a rule keeps, as columns."""
    known = dict(series)
    for name, memory in rule.keep.items():
        known[name] = _kept_field(name, memory, known)
    return {name: known[name] for name in rule.keep}


def _kept_field(name: str, memory: Memory, series: Mapping[str, Field]) -> Field:
    kinds: Mapping[Type, Kind] = {"number": "float", "text": "string", "condition": "bool"}
    try:
        kind = kinds[type_of(memory.value, series)]
    except Mistyped:
        kind = "float"  # said already
    read = list(columns(memory.value))
    symbols = series[read[0]].symbols if kind == "string" and len(read) == 1 and read[0] in series else ()
    return Field(name=name, kind="enum" if symbols else kind, nullable=True, description="Kept", symbols=symbols)


def _level_problems(level: Level, known: Mapping[str, Field]) -> Iterator[str]:
    where = f"at {level.severity.value}"
    match level.when:
        case Due(at, start, done):
            yield from (f"{where} is due at {reason}" for reason in _typed(at, "number", known))
            for part in (start, done):
                if part is not None:
                    yield from (f"{where} waits for {reason}" for reason in _typed(part, "condition", known))
            if level.held != Held() or level.clear != Held():
                yield f"{where} is due at a time, so nothing is held or cleared for a while"
        case Condition(begins, ends):
            for part in (begins, ends):
                yield from (f"{where} needs {reason}" for reason in _typed(part, "condition", known))
    for name, held in (("held", level.held), ("clear", level.clear)):
        yield from (f"{where}, {name}: {reason}" for reason in _held_problems(held))


def _held_problems(held: Held) -> Iterator[str]:
    if not 1 <= held.times <= MOST_TIMES:
        yield f"{held.times} times; it can be 1 to {MOST_TIMES}"
    if held.lasting < timedelta(0):
        yield f"lasting {held.lasting.total_seconds():g} s, which is less than no time"
    if held.within is not None and (held.times < 2 or held.lasting or held.within <= timedelta(0)):
        yield "within a time, which takes two times at least, some time, and no lasting"


def _typed(expression: Expression, wanted: Type | None, known: Mapping[str, Field]) -> Iterator[str]:
    if not list(columns(expression)):
        yield f"{written(expression)}, which reads no column"
        return
    try:
        found = type_of(expression, known)
    except Mistyped as reason:
        yield f"{written(expression)}: {reason}"
        return
    if wanted is not None and found != wanted:
        yield f"{written(expression)}, which is a {found} and no {wanted}"


__all__ = [
    "Condition", "Due", "Held", "Level", "Memory", "Rule", "above", "below", "covering", "lookup", "previous", "rate",
    "running_total", "while_true",
]  # fmt: skip

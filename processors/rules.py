"""One rule and all its entities in one partition: from observations in their order to messages about alerts."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from processors import automata
from processors.observations import Numbers, Observations
from processors.programs import Programs, substituted
from processors.tables import Integers, Table, Texts, longer
from schemas.expressions import Column, Component, Constant, Expression, LookedUp, When, written
from schemas.feed import Feed, milliseconds
from schemas.rules import Due, Held, Memory, Previous, Rate, Rule, Running
from streams.ending import Stop
from streams.positions import NO_EVENT_TIME

#: In the place of programs that are not there.
NONE = (0, 0)


class TooManyEntities(Stop):
    """A rule watches more entities than a feed declares, and they take memory."""


@dataclass(frozen=True)
class Series:
    """What a rule watches, and in which columns of its observations texts and values lie.

    ``view`` shows it, by a column ``time`` that lies ``span_ms`` before the event time of an observation.
    ``stands_for`` has what names of columns stand for, ``place`` names a field of where it happened. ``definition`` is
    what its observations depend on, as plain data.
    """

    feed: Feed
    view: str
    time: str
    span_ms: int
    entity: tuple[str, ...]
    texts: Mapping[str, int]
    values: Mapping[Expression, int]
    stands_for: Mapping[str, Expression]
    place: str | None
    definition: Mapping[str, Any]

    @property
    def no_rows(self) -> Observations:
        """Observations of nothing."""
        texts, values = np.zeros((0, len(self.texts)), np.int64), np.zeros((0, len(self.values)))
        return Observations(texts[:, :0].reshape(0), texts, values)


@dataclass(frozen=True)
class Said:
    """What a message says of an alert: times are in ms, ``before`` is what the last message did and when.

    ``numbers`` are those shown, the level's own among them, and ``place`` longitude and latitude.
    """

    does: int
    entity: Mapping[str, str]
    sent: int
    level: int
    onset: int
    before: tuple[int, int] | None
    observed: int
    numbers: Mapping[str, float]
    place: tuple[float, float] | None


@dataclass(frozen=True)
class Standing:
    """How a level of a rule stands with an entity; times are in ms.

    It ``holds`` or not, since when. ``hits`` observations ``run``, since a time, that would turn it, and it is ``due``
    to turn at another; None where there is none.
    """

    holds: bool
    since: int | None
    hits: int
    run: int | None
    due: int | None


class Compiled:
    """A rule over a series as tables of numbers for ``automata``."""

    def __init__(self, rule: Rule, series: Series) -> None:
        self.rule, self.series = rule, series
        self.of = rule.of or series.entity
        self.columns = [series.texts[name] for name in self.of]
        self.programs = Programs(series.values, series.texts, {name: n for n, name in enumerate(rule.keep)})
        self.memories = np.array([self._memory(one) for one in rule.keep.values()], np.int64).reshape(-1, 6)
        #: Those that keep the number of a text.
        self.text_memories = [*_texts_kept(rule, series)]
        self.levels = np.zeros((len(rule.levels), automata.LEVEL_COLUMNS), np.int64)
        shows = {name: self._program(value) for name, value in rule.shows.items()}
        for n, level in enumerate(rule.levels):
            if isinstance(level.when, Due):
                kind, parts = automata.DEADLINE, (level.when.at, level.when.start, level.when.done)
            else:
                kind, parts = automata.CONDITION, (level.when.begins, level.when.ends, None)
                if level.when.value is not None:
                    shows[f"{n} value"] = self._program(level.when.value)
                    shows[f"{n} limit"] = self._program(level.when.limit)
            programs = [border for part in parts for border in self._program(part)]
            within = [held.times for held in (level.held, level.clear) if held.within is not None]
            row = [kind, *programs, *_held(level.held), *_held(level.clear)]
            self.levels[n] = [*row, automata.first_cell(self.levels, n), max(within, default=0)]
        if series.place is not None:
            for part in ("longitude", "latitude"):
                shows[f"place {part}"] = self._program(Component(series.place, part))
        self.shown = [*shows]
        self.shows = np.array([*shows.values()], np.int64).reshape(-1, 2)
        self.code = np.array(self.programs.code, np.int64).reshape(-1, 2)

    def _program(self, expression: Expression | None) -> tuple[int, int]:
        if expression is None:
            return NONE
        return self.programs.add(substituted(expression, self.series.stands_for))

    def _memory(self, memory: Memory) -> list[int]:
        match memory:
            case Previous(value):
                return [automata.PREVIOUS, *self._program(value), *NONE, 0]
            case Running(value, reset):
                return [automata.RUNNING, *self._program(value), *self._program(reset), 0]
            case Rate(value, per):
                return [automata.RATE, *self._program(value), *NONE, milliseconds(per)]


def _texts_kept(rule: Rule, series: Series) -> Iterator[int]:
    texts = {*series.texts}
    for n, (name, memory) in enumerate(rule.keep.items()):
        if isinstance(memory, Previous) and _is_text(memory.value, texts):
            texts.add(name)
            yield n


def _is_text(value: Expression, texts: Collection[str]) -> bool:
    match value:
        case When(_, then):
            return _is_text(then, texts)
        case Column() | LookedUp():
            return written(value) in texts
        case Constant(constant):
            return isinstance(constant, str)
    return False


def _held(held: Held) -> list[int]:
    return [held.times, milliseconds(held.lasting), -1 if held.within is None else milliseconds(held.within)]


class Watch:
    """The state of a rule: each entity's, as a pure function of its observations and of ``through``.

    All observations up to the event time ``through`` (ms) are taken; what comes later of such a time is too late.
    """

    def __init__(self, rule: Rule, series: Series) -> None:
        self.compiled = Compiled(rule, series)
        self.fingerprint = rule.fingerprint(series.definition)
        self.through = NO_EVENT_TIME
        self._most = series.feed.open_groups
        self._constants: Numbers | None = None
        self._entities = Table(len(self.compiled.of))
        self._integers = np.zeros((0, automata.cells(self.compiled.levels)), np.int64)
        self._numbers = np.zeros((0, 2 * len(self.compiled.memories) + len(self.compiled.shows)))

    def advance(self, rows: Observations, through: int, texts: Texts) -> list[Said]:
        """Take rows up to an event time (ms), which are all there will be, and what falls due by then.

        Returns
        -------
        What there is to say, by the time it is sent and the entity.

        Raises
        ------
        TooManyEntities
            More are watched than the feed declares as open groups.
        """
        compiled = self.compiled
        new = rows.times > self.through
        rows, self.through = rows if new.all() else rows.where(new), max(self.through, through)
        entities, _ = self._entities.number(rows.texts[:, compiled.columns])
        self._make_room()
        due = automata.due(self._integers, len(self._entities), compiled.levels)
        visited = np.union1d(entities, np.flatnonzero(due <= self.through))
        if not len(visited):
            return []
        order = np.argsort(entities, kind="stable")
        ordered, entities = rows.where(order), entities[order]
        begins, ends = (np.searchsorted(entities, visited, side) for side in ("left", "right"))
        if self._constants is None:
            self._constants = compiled.programs.numbered(texts)
        room = len(rows) * (1 + len(compiled.levels)) + len(visited) * len(compiled.levels) + 1
        said = np.zeros((room, automata.MESSAGE_COLUMNS), np.int64)
        shown = np.zeros((room, len(compiled.shows)))
        machine = compiled.code, self._constants
        rule = machine, compiled.levels, compiled.memories, compiled.shows, milliseconds(compiled.rule.remembers)
        count = automata.observe(
            (self._integers, self._numbers),
            (visited, begins, ends),
            (ordered.times, ordered.values, ordered.texts),
            self.through,
            rule,
            (said, shown),
        )
        found = [self._said(row, shows, texts) for row, shows in zip(said[:count], shown[:count], strict=True)]
        self._forget()
        return sorted(found, key=lambda one: (one.sent, *one.entity.values()))

    def due(self) -> int:
        """When the next thing falls due of anybody (ms); ``automata.NEVER`` if nothing does."""
        return int(automata.due(self._integers, len(self._entities), self.compiled.levels).min(initial=automata.NEVER))

    def standing(self, entity: int) -> list[Standing]:
        """How each level stands with one of those watched, numbered from 0."""
        found = []
        for level in self.compiled.levels:
            cell = int(level[automata.CELL])
            holds, since, run, hits, due = self._integers[entity, cell : cell + 5].tolist()
            found.append(
                Standing(
                    holds=holds == 1,
                    since=since if holds else None,
                    hits=hits,
                    run=run if hits else None,
                    due=None if due == automata.NEVER else due,
                )
            )
        return found

    def shown(self, entity: int) -> dict[str, float]:
        """What was worked out to be shown at the last observation of one of those watched, numbered from 0."""
        cells = self._numbers[entity, 2 * len(self.compiled.memories) :]
        return dict(zip(self.compiled.shown, cells.tolist(), strict=True))

    def __len__(self) -> int:
        return len(self._entities)

    def _make_room(self) -> None:
        held = len(self._integers)
        if len(self._entities) > held:
            room = 2 * len(self._entities)
            self._integers, self._numbers = longer(self._integers, room), longer(self._numbers, room)
            compiled = self.compiled
            automata.begin_all(self._integers[held:], self._numbers[held:], compiled.levels, compiled.memories)

    def _forget(self) -> None:
        """Forget who is idle, when they are half of all or there are too many."""
        compiled, count = self.compiled, len(self._entities)
        remembers = milliseconds(compiled.rule.remembers)
        kept = ~automata.idle(self._integers, count, self.through, remembers, compiled.levels)
        watched = int(kept.sum())
        if watched > self._most:
            raise TooManyEntities(
                f"{compiled.rule.name}: {watched:,} entities by {', '.join(compiled.of)} are watched in one partition, "
                f"more than the {self._most:,} that the feed declares as open_groups. Mend the publisher if they are "
                "none; else declare more, for which the processor needs memory, and start it again: nothing is lost"
            )
        if 2 * watched < count:
            self._hold(self._entities.rows[kept], self._integers[:count][kept], self._numbers[:count][kept])

    def _hold(self, entities: Integers, integers: Integers, numbers: Numbers) -> None:
        self._entities.replace(np.ascontiguousarray(entities))
        self._integers, self._numbers = self._integers[:0], self._numbers[:0]
        self._make_room()
        self._integers[: len(integers)], self._numbers[: len(numbers)] = integers, numbers

    def _said(self, row: Integers, shows: Numbers, texts: Texts) -> Said:
        compiled, cells = self.compiled, row.tolist()
        level = cells[automata.LEVEL]
        shown = dict(zip(compiled.shown, shows.tolist(), strict=True))
        own = {name: shown[f"{level} {name}"] for name in ("value", "limit") if f"{level} {name}" in shown}
        before = cells[automata.KIND_BEFORE], cells[automata.SENT_BEFORE]
        place = shown.get("place longitude", np.nan), shown.get("place latitude", np.nan)
        entity = texts.of(self._entities.rows[cells[automata.ENTITY]].tolist())
        return Said(
            does=cells[automata.DOES],
            entity=dict(zip(compiled.of, entity, strict=True)),
            sent=cells[automata.SENT_AT],
            level=level,
            onset=cells[automata.ONSET],
            before=None if before[0] < 0 else before,
            observed=cells[automata.LAST],
            numbers={**{name: shown[name] for name in compiled.rule.shows}, **own},
            place=None if np.isnan(place).any() else place,
        )

    @property
    def texts(self) -> Integers:
        """Numbers of the texts of what is held."""
        memories = [self._texts_in(self._numbers, n) for n in self.compiled.text_memories]
        kept = [column[~np.isnan(column)].astype(np.int64) for column in memories]
        return np.concatenate([self._entities.rows.reshape(-1), *kept])

    def _texts_in(self, numbers: Numbers, memory: int) -> Numbers:
        return numbers[: len(self._entities), 2 * memory]

    def renumber(self, texts: Integers) -> None:
        """Go by other numbers of texts, which stand at the old ones."""
        entities, integers, numbers = self._renumbered(texts)
        self._hold(entities, integers, numbers)
        self._constants = None

    def _renumbered(self, texts: Integers) -> tuple[Integers, Integers, Numbers]:
        count = len(self._entities)
        numbers = self._numbers[:count].copy()
        for n in self.compiled.text_memories:
            column = self._texts_in(numbers, n)
            known = ~np.isnan(column)
            column[known] = texts[column[known].astype(np.int64)]
        return texts[self._entities.rows], self._integers[:count], numbers

    def saved(self, texts: Texts) -> tuple[dict[str, Any], tuple[Integers, Integers, Numbers]]:
        """Everything it holds, its texts as a list of their own that the tables go by."""
        used = np.unique(self.texts)
        places = np.zeros(len(texts), np.int64)
        places[used] = np.arange(len(used))
        said = {"rule": self.compiled.rule.name, "fingerprint": self.fingerprint, "through": self.through}
        return {**said, "texts": texts.of(used.tolist())}, self._renumbered(places)

    def recall(self, said: Mapping[str, Any], tables: tuple[Integers, Integers, Numbers], texts: Texts) -> None:
        """Hold what was saved."""
        self.through = int(said["through"])
        self._hold(*tables)
        self.renumber(texts.number_all(said["texts"]))

"""A rule watching one entity step by step: what was observed, what each level said of it, and what followed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from processors.observations import Observations
from processors.rules import Said, Series, Standing, Watch
from processors.tables import Texts
from schemas.expressions import Column, Expression, written
from schemas.rules import Due, Level, Rule, read_by

#: A number, a text, or None where it is not known.
Value = float | str | None


@dataclass(frozen=True)
class LevelStep:
    """What a level said of an observation, and how it stood then.

    ``said`` has what each of its conditions came to, by what it is: True, False, or None where it is not known.
    ``value`` and ``limit`` are what it compares, where it does.
    """

    said: Mapping[str, bool | None]
    value: float | None
    limit: float | None
    standing: Standing | None


@dataclass(frozen=True)
class Step:
    """An instant of an entity: its event time (ms), how many observations it had, and how they left the rule.

    Without observations something fell due. ``values`` are what the rule reads, keeps and shows of the last one.
    """

    time: int
    observations: int
    values: Mapping[str, Value]
    levels: tuple[LevelStep, ...]
    said: Said | None


class Stepping:
    """Watches one entity by a rule, as ``Watch`` does; all it says is what the rule says."""

    def __init__(self, rule: Rule, series: Series) -> None:
        """``rule`` is watched with everything shown that it works out."""
        self._rule = rule
        read = {written(leaf): leaf for leaf in read_by(rule)}
        kept = {name: Column(name) for name in rule.keep}
        #: What is shown of an observation, by the name it has there, in the order of its first place.
        self._values: dict[str, Expression] = {**read, **kept, **rule.shows}
        self._parts = [_parts(level) for level in rule.levels]
        self._nothing = series.no_rows
        shows = {f"value {name}": value for name, value in self._values.items()}
        for n, parts in enumerate(self._parts):
            shows |= {f"{n} {what}": part for what, part in parts.items()}
        self.watch = Watch(replace(rule, shows={**rule.shows, **shows}), series)
        names = [*rule.keep]
        #: Names of values that are the numbers of texts.
        self._texts = {*series.texts, *(names[n] for n in self.watch.compiled.text_memories)}

    def take(self, rows: Observations, through: int, texts: Texts) -> Iterator[Step]:
        """Take rows up to an event time (ms), as ``Watch.advance`` does; gives each instant."""
        times = [at for at in sorted({*rows.times.tolist()}) if at > self.watch.through]
        for at in [*times, None]:
            end = through if at is None else at - 1
            while (due := self.watch.due()) <= end:
                yield self._step(self._nothing, due, texts)
            if at is not None:
                yield self._step(rows.where(rows.times == at), at, texts)
        self.watch.advance(self._nothing, through, texts)

    def _step(self, rows: Observations, at: int, texts: Texts) -> Step:
        said = [self._own(one) for one in self.watch.advance(rows, at, texts)]
        shown = self.watch.shown(0) if len(rows) and len(self.watch) else {}
        standing = self.watch.standing(0) if len(self.watch) else [None] * len(self._parts)
        levels = (
            LevelStep(
                said={what: _truth(shown[f"{n} {what}"]) for what in parts if shown},
                value=_known(shown.get(f"{n} value")),
                limit=_known(shown.get(f"{n} limit")),
                standing=stands,
            )
            for n, (parts, stands) in enumerate(zip(self._parts, standing, strict=True))
        )
        values = {name: self._value(name, shown, texts) for name in self._values if shown}
        return Step(at, len(rows), values, tuple(levels), said[0] if said else None)

    def _own(self, said: Said) -> Said:
        """What the rule itself shows."""
        own = [*self._rule.shows, "value", "limit"]
        return replace(said, numbers={name: said.numbers[name] for name in own if name in said.numbers})

    def _value(self, name: str, shown: Mapping[str, float], texts: Texts) -> Value:
        number = _known(shown[f"value {name}"])
        return texts.of([int(number)])[0] if name in self._texts and number is not None else number


def _parts(level: Level) -> dict[str, Expression]:
    """The conditions of a level, by what they are."""
    when = level.when
    named = (
        {"start": when.start, "done": when.done}
        if isinstance(when, Due)
        else {"begins": when.begins, "ends": when.ends}
    )
    return {what: part for what, part in named.items() if part is not None}


def _truth(number: float) -> bool | None:
    return None if math.isnan(number) else number == 1


def _known(number: float | None) -> float | None:
    return None if number is None or math.isnan(number) else number

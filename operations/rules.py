"""The rules that are declared: what each watches, and what it says in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta

from schemas.expressions import Expression, Not, written
from schemas.feed import Aggregate, Feed
from schemas.rules import Condition, Due, Held, Level, Rule


@dataclass(frozen=True)
class DeclaredRule:
    """A rule, and what it watches: the records of a feed, or the final windows of one of its aggregates."""

    feed: Feed
    aggregate: Aggregate | None
    rule: Rule

    @property
    def series(self) -> str:
        """The view that shows what it watches."""
        return self.feed.name if self.aggregate is None else self.aggregate.name

    @property
    def of(self) -> tuple[str, ...]:
        """The fields that make an entity."""
        return self.rule.of or ((self.feed.key,) if self.aggregate is None else self.aggregate.by)


def declared(feeds: Mapping[str, Feed]) -> list[DeclaredRule]:
    """The rules of these feeds."""
    return [DeclaredRule(feed, aggregate, rule) for feed in feeds.values() for aggregate, rule in feed.watched]


def in_words(level: Level) -> str:
    """When a level begins and ends."""
    return f"{level.severity.value}: {'; '.join(_parts(level))}"


def _parts(level: Level) -> Iterator[str]:
    match level.when:
        case Due(at, start, done):
            what = "nothing comes" if done is None else f"none comes with {_plain(done)}"
            yield f"where {what} by {_plain(at)}"
            if start is not None:
                yield f"from {_plain(start)} on"
        case Condition(begins, ends):
            yield f"where {_plain(begins)}{_held(level.held)}"
            yield f"until {'it is not' if ends == Not(begins) else _plain(ends)}{_held(level.clear)}"


def _plain(expression: Expression) -> str:
    """An expression without the parentheses around all of it."""
    text = written(expression)
    return text[1:-1] if text.startswith("(") else text


def _held(held: Held) -> str:
    times = f" {held.times} times" if held.times > 1 else ""
    if held.within is not None:
        return f"{times} within {span_words(held.within)}"
    return (f"{times} in a row" if times else "") + (f" for {span_words(held.lasting)}" if held.lasting else "")


def span_words(span: timedelta) -> str:
    """A span as people say it, such as 1 h 30 min."""
    seconds = span.total_seconds()
    found = []
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        whole, seconds = divmod(seconds, size)
        found += [f"{whole:.0f} {unit}"] if whole else []
    return " ".join([*found, f"{seconds:g} s"] if seconds or not found else found)

"""The words that fields are put together with, each with its docstring and an example that is worked out here."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import polars as pl

import feeds
from schemas import expressions, feed, measures
from schemas.expressions import Column, Expression, to_polars
from schemas.feed import Aggregate, DeclarationError
from tests.reference.results import results_of

NUMBERS = (
    Column, Column.component, Expression.__add__, Expression.__sub__, Expression.__mul__, Expression.__truediv__,
    expressions.least, expressions.greatest, expressions.Absolute, expressions.Scaled, expressions.When,
)  # fmt: skip
CONDITIONS = (
    Expression.__lt__, Expression.__le__, Expression.__gt__, Expression.__ge__, Expression.equals, Expression.is_in,
    Expression.__and__, Expression.__or__, Expression.__invert__, expressions.Present,
)  # fmt: skip
MEASURES = (
    measures.total, measures.count_where, measures.spread, measures.share, measures.ratio, measures.quantiles,
    measures.energy_mean, measures.first, measures.last,
)  # fmt: skip
SIGNS = {
    "__add__": "+", "__sub__": "-", "__mul__": "*", "__truediv__": "/", "__lt__": "<", "__le__": "<=", "__gt__": ">",
    "__ge__": ">=", "__and__": "&", "__or__": "|", "__invert__": "~",
}  # fmt: skip

#: What every example is worked out of.
RECORDS: list[dict[str, Any]] = [
    {"status": "busy", "level": 5, "load": 0.5, "open": True, "place": {"longitude": 120.1, "latitude": 30.3}},
    {"status": "calm", "level": 0, "load": None, "open": False, "place": None},
    {"status": "closed", "level": 3, "load": 0.25, "open": None, "place": {"longitude": 120.2, "latitude": 30.2}},
    {"status": "busy", "level": 7, "load": -1.0, "open": True, "place": {"longitude": 120.1, "latitude": 30.1}},
]


def refused() -> str:
    """What is said of a declaration that makes no sense."""
    flow = feeds.load()["traffic_flow"]
    jams = measures.count_where("jams", Column("intensity") & Column("congested"), description="Jams")
    try:
        replace(flow, aggregates=(replace(flow.aggregates[0], measures=(jams,)),))
    except DeclarationError as reason:
        return f"```text\n{reason}\n```"
    raise AssertionError("it makes sense")


def records() -> str:
    """The records, as a table."""
    return _table(RECORDS[0], (record.values() for record in RECORDS))


def numbers() -> str:
    """Expressions that are numbers."""
    return "\n\n".join(_word(word, _of_each_record) for word in NUMBERS)


def conditions() -> str:
    """Expressions that are conditions."""
    return "\n\n".join(_word(word, _of_each_record) for word in CONDITIONS)


def of_windows() -> str:
    """What may be measured of the records of a window."""
    return "\n\n".join(_word(word, _of_all_records) for word in MEASURES)


def groups() -> str:
    """What the records of a window are grouped by."""
    return _word(Aggregate, _of_groups)


def _word(word: Callable[..., Any], work_out: Callable[[Any], str]) -> str:
    before, _, rest = (inspect.getdoc(word) or "").partition(">>> ")
    example, _, after = rest.partition("\n")
    name = SIGNS.get(word.__name__, word.__name__)
    names = {**vars(expressions), **vars(measures), **vars(feed)}
    found = work_out(eval(example, names))  # noqa: S307 - this project's own docstring
    texts = [f"### `{name}`", _plain(before), f"```python\n{example}\n```", found, _plain(after)]
    return "\n\n".join(filter(None, texts))


def _plain(text: str) -> str:
    return text.strip().replace("``", "`")


def _of_each_record(expression: Expression) -> str:
    values = pl.DataFrame(RECORDS).select(to_polars(expression)).to_series().to_list()
    return "Of the records above: " + ", ".join(f"`{_shown(value)}`" for value in values)


def _of_all_records(measure: measures.Measure) -> str:
    found = results_of(measure, RECORDS)
    return "Of the records above: " + ", ".join(f"`{name}` is `{_shown(value)}`" for name, value in found.items())


def _of_groups(aggregate: Aggregate) -> str:
    found = Counter(tuple(record[name] for name in aggregate.by) for record in RECORDS)
    rows = [(*group, events) for group, events in found.items()]
    return f"Of the records above, if they are of one minute:\n\n{_table([*aggregate.by, 'events'], rows)}"


def _table(names: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    head = [f"`{name}`" for name in names]
    lines = [head, ["---"] * len(head), *([*map(_shown, row)] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _shown(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case float():
            return f"{value:.6g}"
        case Mapping():
            return ", ".join(str(part) for part in value.values())
    return str(value)

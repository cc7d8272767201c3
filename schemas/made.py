"""What records of one feed become in another: how such a record is identified, and which declarations make no sense.

A record that is made is a function of the one it is made of and of what was known when that arrived. Its names are made
of the same, so one that is written twice is one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from uuid import UUID, uuid5

from schemas.expressions import Column, Constant, Expression, LookedUp, Mistyped, is_whole, leaves, type_of, written
from schemas.model import TEXTS, Field

#: Of identifiers: what is made of the same words is the same everywhere.
_NAMES = UUID("f2c1d0c5-8f3e-4f0e-9a53-3d9b7d0a6b11")


def made_key(feed: str, source: str, values: Sequence[str]) -> str:
    """What records are called in a feed that are alike in these values in the feed they are made of."""
    return str(uuid5(_NAMES, "\n".join((feed, source, *values))))


def made_id(feed: str, source: str, key: str, event_ms: int, event_id: str) -> str:
    """The id of the event that one of another feed becomes, by what identifies that one there."""
    return str(uuid5(_NAMES, "\n".join((feed, source, key, str(event_ms), event_id))))


def made_problems(
    given: Mapping[str, Expression],
    where: Expression | None,
    key: Sequence[str],
    source: Mapping[str, Field],
    fields: Mapping[str, Field],
    own: Sequence[str],
) -> Iterator[str]:
    """Why it makes no sense to make records with ``fields`` of records with the fields ``source``.

    ``key`` are fields of the source that make the key; ``own`` are fields that are never ``given``.
    """
    for name in key or ("",):
        if name not in source or source[name].kind not in TEXTS or source[name].nullable or source[name].personal:
            yield f"it needs a key of texts that are never null and not personal, and has {name or 'none'}"
    if where is not None and (reason := _mistyped(where, "condition", source)):
        yield reason
    for name, value in given.items():
        if name in own or name not in fields:
            yield f"{name} is {'made by itself' if name in own else 'no field of the record'}"
        else:
            yield from (f"{name} is made of {reason}" for reason in _value_problems(value, source, fields[name]))
    for field in fields.values():
        if field.name not in (*given, *own) and not field.nullable and not field.has_default:
            yield f"it says nothing of {field.name}, which is never null"


def _mistyped(expression: Expression, wanted: str, source: Mapping[str, Field]) -> str:
    try:
        found = type_of(expression, source)
    except Mistyped as reason:
        return f"{written(expression)}: {reason}"
    return "" if found == wanted else f"{written(expression)}, which is a {found} and no {wanted}"


def _value_problems(value: Expression, source: Mapping[str, Field], to: Field) -> Iterator[str]:
    read = [source[leaf.name] for leaf in leaves(value) if isinstance(leaf, Column) and leaf.name in source]
    if to.personal or any(field.personal for field in read):
        yield f"{written(value)}; no worker has the key of a personal field"
    elif to.kind in ("place", "date", "uuid"):
        yield from _copy_problems(value, source, to)
    else:
        wanted = {"string": "text", "enum": "text", "bool": "condition"}.get(to.kind, "number")
        if reason := _mistyped(value, wanted, source):
            yield reason
        elif to.kind == "enum":
            yield from _symbol_problems(value, source, to)
        elif to.kind in ("int", "instant") and not is_whole(value, {name: f.kind for name, f in source.items()}):
            yield f"{written(value)}, which may be a fraction"


def _copy_problems(value: Expression, source: Mapping[str, Field], to: Field) -> Iterator[str]:
    """A place is copied, and not shown more exactly than where it comes from."""
    found = source.get(value.name) if isinstance(value, Column) else None
    if to.kind == "uuid" or found is None or found.kind != to.kind:
        yield f"{written(value)}; a {to.kind} is made of no expression" + ("" if to.kind == "uuid" else ", only copied")
    elif found.decimals is not None and (to.decimals is None or to.decimals > found.decimals):
        yield f"{written(value)}, which is shown to {found.decimals} decimals: declare {to.name} as Coarse, too"


def _symbol_problems(value: Expression, source: Mapping[str, Field], to: Field) -> Iterator[str]:
    match value:
        case Constant(str(symbol)):
            symbols: tuple[str, ...] = (symbol,)
        case Column(name):
            symbols = source[name].symbols or ("any text",)
        case LookedUp(_, _, _, field):
            symbols = field.symbols or ("any text",)
        case _:
            symbols = ("any text",)
    for symbol in symbols:
        if symbol not in to.symbols:
            yield f"{written(value)}, which may be {symbol} and not one of {', '.join(to.symbols)}"

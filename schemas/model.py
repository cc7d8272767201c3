"""From a pydantic record model to the descriptions of its fields, which everything else is derived from."""

from __future__ import annotations

import math
import re
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from enum import StrEnum
from typing import Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Le, MaxLen, MinLen
from pydantic import AwareDatetime
from pydantic.fields import FieldInfo

from schemas.fields import (
    DAYS,
    INSTANTS,
    INT32,
    PSEUDONYM,
    PSEUDONYM_LENGTH,
    UUID,
    Coarse,
    Day,
    Instant,
    Personal,
    Place,
    Record,
    Shape,
    Unit,
)

#: Names of feeds, tables and rules, and how no other name may end than that of a version.
NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
VERSIONED = re.compile(r".*_v[0-9]+")

Kind = Literal["string", "uuid", "int", "float", "bool", "instant", "date", "enum", "place"]

#: Kinds of fields that are texts.
TEXTS: tuple[Kind, ...] = ("string", "enum")
#: The two integers of 64 bits that are a UUID, as a column.
UUID_HALVES = ("high", "low")
#: What a field of several numbers is made of, as a column.
COMPONENTS: Mapping[Kind, tuple[str, str]] = {"place": ("longitude", "latitude"), "uuid": UUID_HALVES}

_KINDS: dict[type, Kind] = {
    str: "string",
    int: "int",
    float: "float",
    bool: "bool",
    AwareDatetime: "instant",
    date: "date",
    Place: "place",
}

_SYMBOL = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_WORDS: dict[Kind, tuple[str, Any]] = {"instant": ("Instant", Instant), "date": ("Day", Day)}
_CONSTRAINTS: dict[Kind, tuple[type, ...]] = {"string": (MinLen, MaxLen), "int": (Ge, Le), "float": (Ge, Le)}


class DeclarationError(ValueError):
    """A declaration makes no sense; the message names the feed or reference, the part and the reason."""


@dataclass(frozen=True)
class Field:
    """A field as every other part sees it: kind, nullability, bounds and metadata.

    ``low`` and ``high`` bound a number's value or a string's length in characters. The pattern of a personal field is
    that of its pseudonym. ``decimals`` is how exact a place is for analysts, None for as it came. ``shape`` is what a
    text is that is a geometry.
    """

    name: str
    kind: Kind
    nullable: bool
    description: str
    unit: str | None = None
    low: float | None = None
    high: float | None = None
    pattern: str | None = None
    symbols: tuple[str, ...] = ()
    personal: bool = False
    decimals: int | None = None
    shape: Literal["area", "line"] | None = None
    default: Any = None
    has_default: bool = False


def milliseconds(span: timedelta) -> int:
    """A span in whole milliseconds."""
    return span // timedelta(milliseconds=1)


def fields_of(record: type[Record]) -> tuple[Field, ...]:
    """Describe a record's fields.

    Raises
    ------
    DeclarationError
        A field has no description or a type outside the feed language.
    """
    own = record.model_config, record.__pydantic_decorators__
    if own != (Record.model_config, Record.__pydantic_decorators__):
        raise DeclarationError(f"{record.__name__}: a record has no configuration or validators; the feed has rules")
    return tuple(_field(record.__name__, name, info) for name, info in record.model_fields.items())


def _field(record: str, name: str, info: FieldInfo) -> Field:
    kind, nullable, symbols, inner = _type(record, name, info.annotation)
    marks = _flatten([*inner, *info.metadata])[::-1]
    for reason in _mark_problems(kind, marks):
        raise DeclarationError(f"{record}: {name} {reason}")
    low, high = _bounds(kind, marks)
    description = info.description or next((d for m in marks if (d := getattr(m, "description", None))), None)
    if not description:
        raise DeclarationError(f"{record}: {name} needs a description")
    if any(isinstance(bound, float) and not math.isfinite(bound) for bound in (low, high)):
        raise DeclarationError(f"{record}: the bounds of {name} have to be finite")
    plain = not nullable and kind not in (*_WORDS, "place") and info.default_factory is None
    if not info.is_required() and not plain and info.default is not None:
        raise DeclarationError(f"{record}: {name} has a default Avro cannot have; that of a nullable field is None")
    personal = any(isinstance(mark, Personal) for mark in marks)
    if personal and kind != "string":
        raise DeclarationError(f"{record}: only a string can be personal, {name} is {kind}")
    pattern = next((p for mark in marks if (p := getattr(mark, "pattern", None))), None)
    if personal and pattern:
        raise DeclarationError(f"{record}: {name} is personal and has a pattern, which its pseudonym would not match")
    if personal and not (low or 0) <= PSEUDONYM_LENGTH <= (PSEUDONYM_LENGTH if high is None else high):
        raise DeclarationError(
            f"{record}: {name} is personal, and its bounds would refuse its pseudonym of {PSEUDONYM_LENGTH} characters"
        )
    return Field(
        name=name,
        kind="uuid" if pattern == UUID and not (nullable or personal) and low is high is None else kind,
        nullable=nullable,
        description=description,
        unit=next((mark.symbol for mark in marks if isinstance(mark, Unit)), None),
        low=low,
        high=high,
        pattern=PSEUDONYM if personal else pattern,
        symbols=symbols,
        personal=personal,
        decimals=next((mark.decimals for mark in marks if isinstance(mark, Coarse)), None),
        shape=next((mark.kind for mark in marks if isinstance(mark, Shape)), None),
        default=None if info.is_required() else info.default,
        has_default=not info.is_required(),
    )


def _type(record: str, name: str, annotation: Any) -> tuple[Kind, bool, tuple[str, ...], list[Any]]:
    """Kind, nullability, an enum's symbols, and the marks inside the annotation."""
    declared, nullable, marks = annotation, False, []
    if get_origin(annotation) in (Union, types.UnionType):
        members = [member for member in get_args(annotation) if member is not type(None)]
        nullable = len(members) < len(get_args(annotation))
        annotation = members[0] if len(members) == 1 else None
    while hasattr(annotation, "__metadata__"):
        marks += annotation.__metadata__
        annotation = get_args(annotation)[0]
    if isinstance(annotation, type) and issubclass(annotation, StrEnum):
        symbols = tuple(symbol.value for symbol in annotation)
        if nullable or "unknown" not in symbols:
            raise DeclarationError(f"{record}: the enum {name} needs a symbol 'unknown' and cannot be null")
        if len(symbols) > 64 or not all(_SYMBOL.fullmatch(symbol) for symbol in symbols):
            raise DeclarationError(f"{record}: the enum {name} has to have at most 64 symbols of letters, digits and _")
        return "enum", False, symbols, marks
    if annotation not in _KINDS:
        raise DeclarationError(
            f"{record}: {name} is {declared!r}; a field is str, int, float, bool, Instant, Day, Place, "
            "a StrEnum with a symbol 'unknown', or one of these or None (not an enum)"
        )
    return _KINDS[annotation], nullable, (), marks


def _mark_problems(kind: Kind, marks: list[Any]) -> Iterator[str]:
    """What pydantic would hold a value against and the columns would not."""
    constraints = [mark for mark in marks if not isinstance(mark, FieldInfo | Unit | Personal | Coarse | Shape)]
    for coarse in (mark for mark in marks if isinstance(mark, Coarse)):
        if kind != "place" or not 0 <= coarse.decimals <= 6:
            yield f"has {coarse!r}; a place can be coarse, to 0 to 6 decimals"
    if kind != "string" and any(isinstance(mark, Shape) for mark in marks):
        yield "is a shape and no text: declare it as Area or Line"
    if kind in _WORDS:
        word, definition = _WORDS[kind]
        if sorted(constraints, key=repr) != sorted(_flatten(list(definition.__metadata__))[:2], key=repr):
            yield f"has to be declared as {word}, without other bounds; Feed.earliest and Feed.rules bound it further"
        return
    known = _CONSTRAINTS.get(kind, ())
    for mark in constraints:
        if not isinstance(mark, known) and not (kind == "string" and set(getattr(mark, "__dict__", ())) == {"pattern"}):
            yield f"has {mark!r}; the bounds of a field are ge and le, min_length, max_length and pattern"
    bounds: list[Any] = [mark.ge if isinstance(mark, Ge) else mark.le for mark in constraints if kind == "int"]
    if any(not INT32[0] <= bound <= INT32[1] for bound in bounds):
        yield "has a bound that does not fit 32 bits"


def _bounds(kind: Kind, marks: list[Any]) -> tuple[float | None, float | None]:
    """The bounds that hold: of several, pydantic takes the outermost, which is the first mark."""
    if kind == "instant":
        return INSTANTS
    if kind == "date":
        return DAYS
    low = next((m.ge if isinstance(m, Ge) else m.min_length for m in marks if isinstance(m, Ge | MinLen)), None)
    high = next((m.le if isinstance(m, Le) else m.max_length for m in marks if isinstance(m, Le | MaxLen)), None)
    if kind == "int":
        return INT32[0] if low is None else low, INT32[1] if high is None else high  # type: ignore[return-value]
    return low, high  # type: ignore[return-value]


def _flatten(metadata: list[Any]) -> list[Any]:
    """Marks with the constraints of nested ``Field(...)`` among them."""
    flat = []
    for mark in metadata:
        flat += [*_flatten(mark.metadata), mark] if isinstance(mark, FieldInfo) else [mark]
    return flat

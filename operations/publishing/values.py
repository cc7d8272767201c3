"""From what stands in a file to a value of a field's kind; the errors are for the people who keep the file."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from typing import Any
from zoneinfo import ZoneInfo

from schemas.model import Kind

WHOLE = re.compile(r"[+-]?\d{1,18}(\.0*)?", re.ASCII)
#: One in the English way to write numbers, a thousand in the German.
GROUPED = re.compile(r"[+-]?\d{1,3}\.000", re.ASCII)
DECIMAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)
TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}

#: Seconds since 1970, or their parts, by the name of the format.
UNIX = {"unix": 1, "unix_ms": 1_000}

Convert = Callable[[Any], Any]


class NotConvertible(ValueError):
    """A value is not of its kind; the message reads after the value."""


def converter(kind: Kind, symbols: type[StrEnum] | None, time: Convert) -> Convert:
    """The function that makes a value of this kind from a text, a number or a bool; it raises NotConvertible."""
    match kind:
        case "string" | "uuid":
            return _text
        case "int":
            return _whole
        case "float":
            return _number
        case "bool":
            return _truth
        case "instant":
            return time
        case "date":
            return _date
        case "enum":
            assert symbols is not None
            return lambda value: _symbol(symbols, value)
        case "place":
            raise TypeError("a place is converted by halves")


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise NotConvertible("is no text")


def _whole(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and GROUPED.fullmatch(value):
        raise NotConvertible("may have a decimal point or one for thousands; write whole numbers without")
    if isinstance(value, str) and WHOLE.fullmatch(value):
        return int(value.partition(".")[0])
    raise NotConvertible("is no whole number")


def _number(value: Any) -> float:
    if (isinstance(value, int | float) and not isinstance(value, bool)) or (
        isinstance(value, str) and DECIMAL.fullmatch(value)
    ):
        with suppress(OverflowError):
            return float(value)
    raise NotConvertible("is no number (with a decimal point)")


def _truth(value: Any) -> bool:
    truth = TRUTH.get(str(value).lower()) if isinstance(value, str | int) else None
    if truth is None:
        raise NotConvertible("is neither true nor false")
    return truth


def _date(value: Any) -> date:
    try:
        return date.fromisoformat(value)
    except (TypeError, ValueError):
        raise NotConvertible("is no date such as 2026-03-29") from None


def _symbol(symbols: type[StrEnum], value: Any) -> StrEnum:
    try:
        return symbols(value)
    except ValueError:
        raise NotConvertible(f"is none of {', '.join(symbols)}") from None


def time_converter(
    pattern: str, zone: ZoneInfo | None, plus_minutes: int = 0, on_twice: Callable[[], None] = lambda: None
) -> Convert:
    """The function that makes an instant, in whole milliseconds, from a text of this pattern.

    Of a local time that exists twice, when the clocks go back, the first is taken and ``on_twice`` called; one that
    does not exist, when they go forward, is refused.
    """

    def convert(value: Any) -> datetime:
        try:
            time = _parse(pattern, value)
            if time.tzinfo is None:
                time = _from_local(time, zone, on_twice)
            time = time.astimezone(UTC) + timedelta(minutes=plus_minutes)
        except NotConvertible:
            raise
        except (OverflowError, OSError, ValueError):
            raise NotConvertible(f"is no time anyone can mean{_hint(pattern)}") from None
        return time.replace(microsecond=time.microsecond // 1000 * 1000)

    return convert


def refuse_pattern(pattern: str) -> None:
    """Raise ``ValueError`` for a pattern by which nothing can be read, or something is read and forgotten."""
    if pattern in ("iso", *UNIX):
        return
    said = pattern.replace("%%", "")
    if "%Z" in said:
        raise ValueError("%Z reads the name of a zone and forgets it; use %z for an offset, or say the time zone")
    if ("%I" in said) != ("%p" in said):
        raise ValueError("%I, hours to 12, and %p, before or after noon, mean something together only")
    day = datetime(2001, 11, 23, tzinfo=UTC)
    try:
        read = datetime.strptime(day.strftime(pattern), pattern)  # noqa: DTZ007
    except (re.error, ValueError) as error:
        raise ValueError(f"{pattern!r} cannot be read: {error}") from None
    if read.date() != day.date():
        raise ValueError(f"{pattern!r} does not say which day it is")


def _parse(pattern: str, value: Any) -> datetime:
    if pattern in UNIX:
        return datetime.fromtimestamp(_number(value) / UNIX[pattern], UTC)
    if pattern == "iso" and isinstance(value, str) and _is_date(value):
        raise NotConvertible("has no time of day")
    try:
        return datetime.fromisoformat(value) if pattern == "iso" else datetime.strptime(value, pattern)  # noqa: DTZ007
    except (TypeError, ValueError):
        form = "no time such as 2026-03-29T08:00:00" if pattern == "iso" else f"no time of the form {pattern}"
        raise NotConvertible(f"is {form} (see --time-format)") from None


def _is_date(text: str) -> bool:
    try:
        date.fromisoformat(text)
    except ValueError:
        return False
    return True


def _hint(pattern: str) -> str:
    return f" (as {pattern}, see --time-format)" if pattern in UNIX else ""


def _from_local(time: datetime, zone: ZoneInfo | None, on_twice: Callable[[], None]) -> datetime:
    if zone is None:
        raise NotConvertible("has no UTC offset; name its time zone with --time-zone")
    aware = time.replace(tzinfo=zone)
    if aware.astimezone(UTC).astimezone(zone).replace(tzinfo=None) != time:
        raise NotConvertible(f"did not exist in {zone.key}: the clocks went forward")
    if aware.utcoffset() != aware.replace(fold=1).utcoffset():
        on_twice()
    return aware

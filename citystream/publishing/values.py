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
DECIMAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)
TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}

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


def time_converter(pattern: str, zone: ZoneInfo | None, plus_minutes: int = 0) -> Convert:
    """The function that makes an instant, in whole milliseconds, from a text of this pattern.

    Of a local time that exists twice, when the clocks go back, the first is taken; one that does not exist, when they
    go forward, is refused.
    """

    def convert(value: Any) -> datetime:
        try:
            time = _parse(pattern, value)
            if time.tzinfo is None:
                time = _from_local(time, zone)
            time = time.astimezone(UTC) + timedelta(minutes=plus_minutes)
        except (OverflowError, OSError):
            raise NotConvertible("is no time anyone can mean") from None
        return time.replace(microsecond=time.microsecond // 1000 * 1000)

    return convert


def _parse(pattern: str, value: Any) -> datetime:
    if pattern in ("unix", "unix_ms"):
        return datetime.fromtimestamp(_number(value) / (1000 if pattern == "unix_ms" else 1), UTC)
    try:
        return datetime.fromisoformat(value) if pattern == "iso" else datetime.strptime(value, pattern)  # noqa: DTZ007
    except (TypeError, ValueError):
        form = "no time such as 2026-03-29T08:00:00" if pattern == "iso" else f"no time of the form {pattern}"
        raise NotConvertible(f"is {form} (see --time-format)") from None


def _from_local(time: datetime, zone: ZoneInfo | None) -> datetime:
    if zone is None:
        raise NotConvertible("has no UTC offset; name its time zone with --time-zone")
    aware = time.replace(tzinfo=zone)
    if aware.astimezone(UTC).astimezone(zone).replace(tzinfo=None) != time:
        raise NotConvertible(f"did not exist in {zone.key}: the clocks went forward")
    return aware

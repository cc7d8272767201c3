"""Times that people give on the command line."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

from citystream.settings import SettingsError
from schemas.verdict import instant_ms


def of_city(text: str, zone: ZoneInfo) -> datetime:
    """The time that a text says in ISO 8601, of the city's zone unless it has one; ``ValueError`` if it says none."""
    at = datetime.fromisoformat(text)
    return at if at.tzinfo else at.replace(tzinfo=zone)


def given(name: str, text: str | None, zone: ZoneInfo) -> int | None:
    """Milliseconds of the time that an option says, if it is given; one without a zone is the city's.

    Raises
    ------
    SettingsError
        It is none.
    """
    if text is None:
        return None
    try:
        return instant_ms(of_city(text, zone))
    except ValueError:
        raise SettingsError(f"--{name}: {text} is no time such as 2026-03-29T08:00:00") from None

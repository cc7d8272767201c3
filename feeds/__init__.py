"""What the city publishes: a folder a department, a file a feed. ``load`` finds them; no name appears anywhere else."""

from __future__ import annotations

import importlib
import pkgutil
import traceback
from functools import cache

from schemas.feed import DeclarationError, Feed


def load() -> dict[str, Feed]:
    """Every declared feed by name.

    Raises
    ------
    DeclarationError
        A file is wrong.
    """
    found, wrong = look()
    for problem in wrong.values():
        raise problem
    return found


@cache
def look() -> tuple[dict[str, Feed], dict[str, DeclarationError]]:
    """Every declared feed by name, and what is wrong with the files that declare none."""
    found: dict[str, Feed] = {}
    wrong: dict[str, DeclarationError] = {}
    for module in pkgutil.walk_packages(__path__, "feeds."):
        if not module.ispkg:
            name = module.name.rpartition(".")[2]
            try:
                found[name] = _declared(module.name, name)
            except Exception as error:  # noqa: BLE001  whatever a file raises is a mistake in that file
                wrong[name] = _problem(f"{module.name.replace('.', '/')}.py", error)
    return found, wrong


def _declared(module: str, name: str) -> Feed:
    if module.count(".") != 2:
        raise DeclarationError(f"belongs into the folder of its department: feeds/<department>/{name}.py")
    feed = getattr(importlib.import_module(module), "FEED", None)
    if not isinstance(feed, Feed) or feed.name != name:
        raise DeclarationError(f"has to declare FEED = Feed(name='{name}', ...)")
    return feed


def _problem(file: str, error: Exception) -> DeclarationError:
    """Where a file is wrong, and what is."""
    if isinstance(error, SyntaxError):
        line, what = error.lineno, error.msg
    else:
        lines = [at.lineno for at in traceback.extract_tb(error.__traceback__) if at.filename.endswith(f"/{file}")]
        line = lines[-1] if lines else None
        what = str(error) if isinstance(error, DeclarationError) else f"{type(error).__name__}: {error}"
    return DeclarationError(f"{file}{f', line {line}' if line else ''}: {what}")

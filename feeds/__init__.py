"""What the city publishes: one file a feed. ``load`` finds them; no name appears anywhere else."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from schemas.feed import DeclarationError, Feed


@cache
def load() -> dict[str, Feed]:
    """Every declared feed by name.

    Raises
    ------
    DeclarationError
        A file declares no ``FEED``, or under another name than its own.
    """
    feeds = {}
    for module in pkgutil.iter_modules(__path__):
        feed = getattr(importlib.import_module(f"feeds.{module.name}"), "FEED", None)
        if not isinstance(feed, Feed) or feed.name != module.name:
            raise DeclarationError(f"feeds/{module.name}.py has to declare FEED = Feed(name='{module.name}', ...)")
        feeds[feed.name] = feed
    return feeds

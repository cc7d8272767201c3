"""A plausible district: a simulator of every feed, one world for all. It imports feeds; no worker imports it."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial

from schemas.feed import Feed
from schemas.fields import Record
from simulation.incidents import USUAL
from simulation.plausible import records
from simulation.world import World

#: The world of samples, in which there is some of everything.
FIRST = World(datetime(2026, 1, 5, tzinfo=UTC), 0, USUAL)

#: Yields what a feed tells of a world, in order of event time, from its start on, for ever.
Simulator = Callable[[World], Iterator[Record]]


def simulator(feed: Feed) -> Simulator:
    """The simulator of a feed: that of its domain, or records of which all that is plausible is the declaration."""
    domain = (*feed.record.__module__.split("."), "")[1]
    own: dict[str, Simulator] = {}
    if domain in {module.name for module in pkgutil.iter_modules(__path__)}:
        own = getattr(importlib.import_module(f"simulation.{domain}"), "SIMULATORS", {})
    return own.get(feed.name) or partial(records, feed)


def first(feed: Feed) -> Record:
    """The first record of a feed, the same each time."""
    return next(iter(simulator(feed)(FIRST)))

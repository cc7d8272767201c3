"""Records of any feed, made of its declaration alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from random import Random
from typing import Any

from rstr import Rstr

from schemas.feed import Feed
from schemas.fields import INT32, Record
from schemas.model import Field
from simulation.world import World, arrivals, event_id, place

#: How many entities a feed tells of, and other texts a field holds.
ENTITIES = 40
#: Records a second of a feed that promises none.
SELDOM = 0.1
#: Share of values that are null where they may be.
UNKNOWN = 0.05
#: Numbers without a bound go up to this.
HIGH = 1000


def records(feed: Feed, world: World) -> Iterator[Record]:
    """Valid records at the declared rate: each value between its bounds, every instant that of the event."""
    random = world.random(feed.name)
    for at in arrivals(world.start, random, lambda _: feed.rate or SELDOM):
        value = {field.name: _value(field, feed, at, random) for field in feed.fields}
        yield feed.record.model_validate_json(json.dumps(value))


def _value(field: Field, feed: Feed, at: datetime, random: Random) -> Any:
    needed = field.name in (feed.key, feed.event_time)
    if field.nullable and not needed and random.random() < UNKNOWN:
        return None
    match field.kind:
        case "uuid":
            return event_id(random)
        case "string":
            return _text(field, random)
        case "int":
            low = INT32[0] if field.low is None and (field.high or 0) < 0 else int(field.low or 0)
            return random.randint(low, int(field.high) if field.high is not None else low + HIGH)
        case "float":
            least = field.low or 0.0 if field.high is None else min(field.low or 0.0, field.high)
            return round(random.uniform(least, least + HIGH if field.high is None else field.high), 3)
        case "bool":
            return random.random() < 0.5
        case "instant":
            return at.isoformat()
        case "date":
            return at.date().isoformat()
        case "enum":
            return random.choice(field.symbols)
        case "place":
            return place(random.random(), random.random()).model_dump()


def _text(field: Field, random: Random) -> str:
    if field.pattern is not None and not field.personal:
        return Rstr(random).xeger(field.pattern)
    text = f"{field.name}-{random.randrange(ENTITIES):02d}"
    return text.ljust(int(field.low or 0), "-")[-int(field.high or len(text)) :]

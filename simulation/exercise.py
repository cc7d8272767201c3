"""The truth about what is staged, of all domains."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from operator import attrgetter

from feeds.exercise.truth import Truth
from simulation import parking, police, traffic
from simulation.world import World, event_id


def truth(world: World) -> Iterator[Truth]:
    """Every incident as it begins; nothing where none are staged."""
    random = world.random("truth")
    incidents = (domain.incidents(world) for domain in (parking, police, traffic))
    for one in heapq.merge(*incidents, key=attrgetter("begins")):
        yield Truth(
            event_id=event_id(random),
            kind=one.kind,
            entity=one.entity,
            begins=one.begins,
            ends=one.ends,
            rule=one.rule,
            found_by=one.found_by,
            place=one.place,
        )


SIMULATORS = {"truth": truth}

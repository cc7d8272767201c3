"""Sixteen small feeds that no city has, declared as a department would.

The bench measures with all of them what a city of many feeds costs; the tests' city has a few. Their schemas are frozen
in a copy of the contract alone (``bench.city``, ``tests.city``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from random import Random
from typing import Annotated, Any

from pydantic import Field

from schemas.department import Department
from schemas.expressions import Column
from schemas.feed import Aggregate, Feed
from schemas.fields import Count, EventId, Instant, Location, Place, Record, Text, Unit
from schemas.measures import Measure, count_where, quantiles, share, spread, total
from simulation import Simulator
from simulation.world import HEIGHT, SOUTH, WEST, WIDTH, World, arrivals, event_id

DEPARTMENT = Department(name="Bench", contact="bench@city.example", purpose="Measurements")
ZONES = tuple(f"zone-{number:02d}" for number in range(12))


class State(StrEnum):
    """What a machine says of itself."""

    WORKS = "works"
    STANDS = "stands"
    BROKEN = "broken"
    UNKNOWN = "unknown"


class Reading(Record):
    """A sensor's reading."""

    event_id: EventId
    device_id: Annotated[Text, Field(description="Sensor")]
    zone: Annotated[Text, Field(description="Zone of the city")]
    value: Annotated[float | None, Field(ge=-1e6, le=1e6, description="What was measured"), Unit("1")]
    observed_at: Annotated[Instant, Field(description="When it was measured: the event time")]
    place: Location


class Passage(Record):
    """What a counter has counted since it reported last."""

    event_id: EventId
    device_id: Annotated[Text, Field(description="Counter")]
    zone: Annotated[Text, Field(description="Zone of the city")]
    inward: Annotated[Count, Field(description="Came in"), Unit("{passage}")]
    outward: Annotated[Count, Field(description="Went out"), Unit("{passage}")]
    observed_at: Annotated[Instant, Field(description="When it was counted: the event time")]


class Change(Record):
    """A machine that changed its state."""

    event_id: EventId
    device_id: Annotated[Text, Field(description="Machine")]
    zone: Annotated[Text, Field(description="Zone of the city")]
    state: Annotated[State, Field(description="State from now on")]
    observed_at: Annotated[Instant, Field(description="When it changed: the event time")]


class Call(Record):
    """A call that was answered."""

    event_id: EventId
    device_id: Annotated[Text, Field(description="Line")]
    zone: Annotated[Text, Field(description="Zone of the city")]
    waited: Annotated[Count, Field(description="How long it waited"), Unit("ms")]
    urgent: Annotated[bool | None, Field(description="Whether it was urgent; null when nobody said")]
    observed_at: Annotated[Instant, Field(description="When it was answered: the event time")]


@dataclass(frozen=True)
class Kind:
    """What feeds of a kind have in common; ``values`` makes the fields that are not those of every record."""

    record: type[Any]
    measures: tuple[Measure, ...]

    def values(self, random: Random) -> dict[str, Any]:
        """Fields of a record beside those all have."""
        if self.record is Reading:
            place = Place(longitude=WEST + WIDTH * random.random(), latitude=SOUTH + HEIGHT * random.random())
            return {"value": None if random.random() < 0.01 else round(random.gauss(20, 8), 2), "place": place}
        if self.record is Passage:
            return {"inward": random.randrange(20), "outward": random.randrange(20)}
        if self.record is Change:
            return {"state": random.choice(tuple(State))}
        return {"waited": int(random.expovariate(1 / 9000)), "urgent": random.choice((True, False, None))}


READINGS = Kind(Reading, (spread("value", Column("value"), unit="1", scale=100, description="the value"),))
PASSAGES = Kind(
    Passage,
    (
        total("inward", Column("inward"), unit="{passage}", description="Passages inward"),
        total("outward", Column("outward"), unit="{passage}", description="Passages outward"),
    ),
)
CHANGES = Kind(
    Change, (count_where("broken", Column("state").equals(State.BROKEN.value), description="Machines that broke"),)
)
CALLS = Kind(
    Call,
    (
        quantiles("waited", Column("waited"), (0.5, 0.95), unit="ms", description="how long calls waited"),
        share("long", Column("waited") >= 20_000, description="Share of calls that waited for 20 s or more"),
    ),
)

#: Kind, events a second, devices, and how far events come out of order (s), of each.
SHAPES: dict[str, tuple[Kind, float, int, int]] = {
    "made_up_a": (READINGS, 500, 5000, 10),
    "made_up_b": (PASSAGES, 400, 800, 5),
    "made_up_c": (READINGS, 250, 2500, 30),
    "made_up_d": (CHANGES, 200, 3000, 10),
    "made_up_e": (PASSAGES, 150, 300, 5),
    "made_up_f": (READINGS, 100, 1000, 20),
    "made_up_g": (CALLS, 60, 40, 5),
    "made_up_h": (CHANGES, 40, 900, 10),
    "made_up_i": (READINGS, 20, 200, 10),
    "made_up_j": (PASSAGES, 15, 30, 5),
    "made_up_k": (CALLS, 8, 10, 5),
    "made_up_l": (CHANGES, 4, 100, 10),
    "made_up_m": (READINGS, 2, 60, 30),
    "made_up_n": (CHANGES, 0.7, 50, 10),
    "made_up_o": (CALLS, 0.2, 4, 5),
    "made_up_p": (READINGS, 0.1, 3, 30),
}


def _simulator(name: str, kind: Kind, rate: float, devices: int) -> Simulator:
    def simulate(world: World) -> Iterator[Record]:
        random = world.random(name)
        for at in arrivals(world.start, random, lambda _: rate):
            device = random.randrange(devices)
            values = {
                "event_id": event_id(random),
                "device_id": f"device-{device:04d}",
                "zone": ZONES[device % len(ZONES)],
                "observed_at": at,
            }
            yield kind.record(**values, **kind.values(random))

    return simulate


def _feed(name: str, kind: Kind, rate: float, disorder: int) -> Feed:
    def aggregate(minutes: int, by: str, suffix: str) -> Aggregate:
        return Aggregate(
            name=f"{name}_{minutes}m{suffix}",
            by=(by,),
            window=timedelta(minutes=minutes),
            measures=kind.measures,
            description=f"{kind.record.__name__} by {by} in {minutes} min",
        )

    return Feed(
        name=name,
        description=f"Made up for the bench: {kind.record.__doc__}",
        record=kind.record,
        key="device_id",
        event_time="observed_at",
        department=DEPARTMENT,
        batch=1,
        rate=rate,
        silence=timedelta(minutes=5),
        disorder=timedelta(seconds=disorder),
        lateness=timedelta(seconds=30),
        aggregates=(aggregate(1, "zone", "_zone"), aggregate(5, "device_id", "")),
    )


FEEDS = {name: _feed(name, kind, rate, disorder) for name, (kind, rate, _, disorder) in SHAPES.items()}
SIMULATORS = {name: _simulator(name, kind, rate, devices) for name, (kind, rate, devices, _) in SHAPES.items()}


def declarations(names: Iterable[str], module: str = __name__) -> dict[str, str]:
    """The texts of files that declare feeds of a module's ``FEEDS``, by their names."""
    return {name: f"from {module} import FEEDS\n\nFEED = FEEDS[{name!r}]\n" for name in names}


def add_department(sources: Path, texts: Mapping[str, str]) -> Path:
    """Let a folder of sources declare these feeds, too, in a department of their own; gives its folder."""
    department = sources / "feeds" / "made_up"
    department.mkdir(parents=True)
    (department / "__init__.py").touch()
    for name, text in texts.items():
        (department / f"{name}.py").write_text(text)
    return department

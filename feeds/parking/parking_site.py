"""Car parks as a whole: OffStreetParking of the Smart Data Models."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from pydantic import Field

from feeds.events import event_plan
from feeds.parking import DEPARTMENT, parking_capacity, parking_limit
from schemas.alerts import Category, Severity
from schemas.expressions import Absolute, Column, When, least
from schemas.feed import Aggregate, Feed, Latest, RollUp
from schemas.fields import Count, EventId, Instant, Location, Record, Text, Unit
from schemas.measures import share, spread
from schemas.rules import Held, Level, Rule, above, covering, lookup, previous, running_total


class ParkingSite(Record):
    """What a car park reports about itself."""

    event_id: EventId
    site_id: Annotated[Text, Field(description="Parking site")]
    total_spot_number: Annotated[
        Count | None, Field(description="Spots of the site; null when it does not tell"), Unit("{spot}")
    ]
    occupied_spot_number: Annotated[
        Count, Field(description="Spots taken; real sites report more than they have"), Unit("{spot}")
    ]
    available_spot_number: Annotated[Count | None, Field(description="Spots a driver can still take"), Unit("{spot}")]
    vehicle_entrance_count: Annotated[
        Count | None, Field(description="Vehicles that came in since the last report"), Unit("{vehicle}")
    ]
    vehicle_exit_count: Annotated[
        Count | None, Field(description="Vehicles that went out since the last report"), Unit("{vehicle}")
    ]
    observed_at: Annotated[Instant, Field(description="When the spots were counted: the event time")]
    place: Location


SITE, AT, TAKEN = Column("site_id"), Column("observed_at"), Column("occupied_spot_number")
OCCUPANCY = TAKEN / Column("total_spot_number")
#: Spots there, also of a car park that does not tell.
SPOTS = Column("total_spot_number").otherwise(lookup(parking_capacity.REFERENCE, SITE).column("spot_number"))
#: Some car parks have a limit of their own, for always or while an event lasts.
LIMIT = lookup(parking_limit.REFERENCE, SITE)
#: The plan of a major event around it.
PLAN = covering(event_plan.REFERENCE, Column("place"))

FULL = Rule(
    name="parking_full",
    headline="Car park full",
    category=Category.TRANSPORT,
    levels=(
        Level(
            severity=Severity.MODERATE,
            when=above(
                TAKEN / SPOTS,
                least(LIMIT.column("full").otherwise(0.95), PLAN.column("parking_full").otherwise(2)),
                release=LIMIT.column("release").otherwise(0.05),
            ),
            held=Held(lasting=timedelta(minutes=10)),
        ),
    ),
    shows={"free": SPOTS - TAKEN},
)

#: What one report says goes with the one before where none is missing between them; ms.
LONGEST_STEP, PAUSE = 90_000, 600_000
GATES = Column("vehicle_entrance_count") - Column("vehicle_exit_count")
SINCE_BEFORE = AT - Column("was_at")

#: By how many vehicles the gates went away from the spots. A missing report adds nothing, and a pause begins anew.
DRIFT = Rule(
    name="gate_drift",
    headline="Gate counters and spots do not agree",
    category=Category.INFRASTRUCTURE,
    keep={
        "was": previous(TAKEN),
        "was_at": previous(AT),
        "drift": running_total(
            When(SINCE_BEFORE <= LONGEST_STEP, GATES - (TAKEN - Column("was"))), reset=SINCE_BEFORE > PAUSE
        ),
    },
    levels=(Level(severity=Severity.MINOR, when=above(Absolute(Column("drift")), 20, release=10)),),
    shows={"drift": Column("drift"), "taken": TAKEN},
)

FEED = Feed(
    name="parking_site",
    description="Spots taken and free, and vehicles in and out, by car park",
    record=ParkingSite,
    key="site_id",
    event_time="observed_at",
    department=DEPARTMENT,
    batch=1,
    rate=10,
    silence=timedelta(minutes=5),
    disorder=timedelta(seconds=30),
    delay=timedelta(seconds=60),
    lateness=timedelta(seconds=90),
    latest=Latest(),
    alerts=(FULL, DRIFT),
    aggregates=(
        Aggregate(
            name="parking_site_15m",
            by=("site_id",),
            window=timedelta(minutes=15),
            measures=(
                spread("occupancy", OCCUPANCY, unit="1", scale=1_000_000, description="spots taken over spots there"),
                share("full", OCCUPANCY >= 0.95, description="Share of reports with 0.95 or more of the spots taken"),
            ),
            description="Occupancy by site_id in 15 min",
            rollups=(
                RollUp(name="parking_site_1h", to="hour", capture=0.75),
                RollUp(name="parking_site_1d", to="day", capture=0.75),
            ),
        ),
    ),
)

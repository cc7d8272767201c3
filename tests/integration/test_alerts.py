"""Alerts on a real stack: from records to their topic and ClickHouse, over kills, are those of the reference."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from datetime import timedelta

import pytest

from feeds.alerts import alert
from schemas.alerts import FEED_NAME
from tests.city import START, City, made_up, own_city
from tests.reference.whole import compare

pytestmark = pytest.mark.integration

WATCHED = "made_up_j"
RULES = """
from dataclasses import replace
from datetime import timedelta

from bench.made_up import FEEDS
from schemas.alerts import Category, Severity
from schemas.expressions import Column
from schemas.rules import Due, Held, Level, Rule, above, previous, while_true

INWARD, SECONDS = Column("inward"), 1000


def rule(name, *whens, **more):
    levels = tuple(Level(severity=one, **dict(when)) for one, when in zip((Severity.MINOR, Severity.SEVERE), whens))
    return Rule(name=name, headline=f"It is {name}", category=Category.OTHER, levels=levels, **more)


BUSY = rule(
    "busy",
    {"when": above(INWARD, 12, release=4)}.items(),
    {"when": above(INWARD, 16), "held": Held(times=2), "clear": Held(lasting=timedelta(seconds=3))}.items(),
    shows={"outward": Column("outward")},
)
SILENT = rule("silent", {"when": Due(at=Column("observed_at") + 4 * SECONDS)}.items())
JUMPED = rule("jumped", {"when": while_true(INWARD - Column("was") > 15)}.items(), keep={"was": previous(INWARD)})
FULL = rule("full", {"when": above(Column("inward"), 2000, release=500), "held": Held(times=2)}.items())
CROWDED = rule("crowded", {"when": above(Column("inward"), 4000, release=1000), "clear": Held(times=2)}.items())
MADE = FEEDS["made_up_j"]
FEED = replace(
    MADE,
    alerts=(BUSY, SILENT, JUMPED),
    aggregates=(replace(MADE.aggregates[0], alerts=(CROWDED,)), replace(MADE.aggregates[1], alerts=(FULL,))),
)
"""
#: The declaration of alerts, in a city that has no other of the project's feeds.
ALERTS = inspect.getsource(alert).replace("from feeds.alerts", "from bench.made_up")


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Iterator[City]:
    home = tmp_path_factory.mktemp("city")
    with own_city(home, made_up(home / "sources", "made_up_k", **{WATCHED: RULES, FEED_NAME: ALERTS})) as opened:
        yield opened


def test_alerts_are_those_of_the_reference_over_kills(city: City) -> None:
    """Killed at any point, a worker goes on from a snapshot or from its first position, and says the same again.

    Of the windows by zone each lies in all partitions of the feed."""
    for part in range(4):
        city.publish([WATCHED], START + timedelta(minutes=10 * part), part, 9_000)
        city.kill("processor")
        city.start("processor")
        city.drain()
    found = compare(city.installation, city.feeds)
    assert found.differences == []
    client = city.installation.server("analyst").connect()
    rules = dict(client.execute(f"SELECT rule, count() FROM city.{FEED_NAME} WHERE msg_type = 'Alert' GROUP BY rule"))
    assert rules.keys() == {"busy", "silent", "jumped", "full", "crowded"}, rules
    ((query,),) = client.execute(
        f"SELECT query FROM city.{FEED_NAME} WHERE rule = 'full' AND msg_type = 'Alert' LIMIT 1"
    )
    assert client.execute(query), "it shows the windows that raised the alert"
    ended = "SELECT alert_id FROM city.alert WHERE msg_type = 'Cancel'"
    ids = f"SELECT alert_id, max(sent) FROM city.alert WHERE alert_id NOT IN ({ended}) GROUP BY alert_id"
    shown = client.execute(f"SELECT alert_id, sent FROM city.{FEED_NAME}_active ORDER BY ALL")
    assert shown, "something is active"
    assert shown == client.execute(f"{ids} ORDER BY ALL")
    client.disconnect()

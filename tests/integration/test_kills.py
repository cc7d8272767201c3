"""A worker killed with -9 at any moment: rows, windows and ledger are those of a run nobody disturbed."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path
from random import Random

import pytest

from tests.city import FEEDS, START, WORKERS, own_city

pytestmark = pytest.mark.integration

SEED = 20260321
ROUNDS = 8
#: Event time a round goes on; windows of 5 min close in between.
SPAN = timedelta(minutes=8)


def test_kills_change_nothing(tmp_path: Path) -> None:
    """Kills at random moments while records with all faults are on their way and windows open and close."""
    random = Random(SEED)
    with own_city(tmp_path) as city:
        for number in range(ROUNDS):
            start, seed = START + number * SPAN, SEED + number
            for feed in FEEDS:
                city.publish([feed], start, seed, 1_500)
            name = random.choice(list(WORKERS))
            time.sleep(random.random() * 2)
            city.kill(name)
            city.start(name)
        city.drain()
        disturbed = city.snapshot()
        undisturbed = city.undisturbed()

    assert all(disturbed[name] for name in disturbed)
    for name, rows in undisturbed.items():
        assert disturbed[name] == rows, f"{name} differs"
    assert all(balances for _, balances in undisturbed["ledger"])

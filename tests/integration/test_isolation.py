"""What is done to one feed hurts no other, is said with the command that helps, and is mended without a loss."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.isolation import rounds
from tests.isolation.district import district
from tests.isolation.faults import FAULTS

pytestmark = pytest.mark.integration

#: Records that are followed before, and seconds for which the faults last.
FOLLOWED, SECONDS = 40, 14


def test_feeds_do_not_hurt_each_other(tmp_path: Path) -> None:
    """All faults side by side, each on a feed of its own; none of the others' records waits until they are over.

    `make isolation` does one after the other, and longer, on a machine that has nothing else to do: there every
    record counts.
    """
    with district(tmp_path) as city:
        city.open()
        before = rounds.usual(city, FOLLOWED)
        found = rounds.stage(city, FAULTS, before, SECONDS)
        assert not found.hurt, found
        assert found.during.longest < found.lasted / 2, found
        rounds.mend(city, FAULTS)
        city.hush()
        city.drain()
        assert rounds.differences(city, FAULTS) == []

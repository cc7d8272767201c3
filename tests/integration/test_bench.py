"""The bench's row of the city at its real rate, in a short run that claims no speed: that it can be measured at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.city import Lengths, RealRate
from bench.rules import FEEDS
from tests.conftest import settings_in

pytestmark = pytest.mark.integration

KEYS = [
    "events_per_second", "processor_cores", "sink_cores", "clickhouse_cores", "broker_cores", "plain_faust_cores",
    "kafka_engine_cores", "idle_processor_cores", "idle_sink_cores", "view_p50_s", "view_p99_s",
    "alert_p50_s", "alert_p99_s", "unwatched_processor_cores", "unwatched_sink_cores", "start_cpu_s",
    "processor_mib", "sink_mib",
]  # fmt: skip
#: One feed of each kind.
SOME = {name: FEEDS[name] for name in ("made_up_f", "made_up_g", "made_up_h", "made_up_j")}
SHORT = Lengths(starting=120, warm_up=0, measured=2, latency=3, alone=1, every=4)


def test_the_row_has_its_keys_and_every_part_worked(tmp_path: Path) -> None:
    found = RealRate(settings_in(tmp_path), SHORT, SOME).run()
    row, more = found["city"], found["city_details"]
    assert list(row) == KEYS
    may_be_nothing = {"idle_processor_cores", "idle_sink_cores", "kafka_engine_cores"}
    assert all(value > 0 or (name in may_be_nothing and value == 0) for name, value in row.items()), row
    assert row["view_p50_s"] <= row["view_p99_s"]
    assert row["start_cpu_s"] == max(more["processor_start_cpu_s"], more["sink_start_cpu_s"])

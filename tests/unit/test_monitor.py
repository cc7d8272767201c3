"""What operators see on a terminal."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from rich.console import Console

from citystream.monitor import FeedLine, Snapshot, WindowLine, render
from streams.lag import TopicLag

WINDOW = WindowLine(
    "traffic_flow_15m_district",
    {
        "window_start": datetime(2026, 5, 4, 20, 15, tzinfo=UTC),
        "district": "xihu-beat-11",
        "category": "traffic accident with injuries",
        "events": 5_512,
        "mean_speed": 41.25,
        "final": 0,
        "as_of": datetime(2026, 5, 4, 20, 20, tzinfo=UTC),
    },
)


@pytest.mark.parametrize("columns", [80, 120, 200])
def test_a_narrow_terminal_cuts_off_groups_and_measures_and_nothing_else(columns: int) -> None:
    console = Console(width=columns)
    with console.capture() as printed:
        console.print(render(Snapshot(0, [], [WINDOW]), ""))
    lines = printed.get().splitlines()
    (line,) = [line for line in lines if "5,512" in line]
    cells = line.split()
    assert cells[:2] == ["city.traffic_flow_15m_district", "20:15"]
    assert cells[2].startswith("xihu")
    assert "open" in cells
    assert max(map(len, lines)) <= columns


def test_the_feeds_fit_eighty_columns() -> None:
    feed = FeedLine(
        "police_incident", 12_345_678, 1_200.0, TopicLag("", 9_999, 12.5, None), TopicLag("", 9_999, None, None), 3.4,
        False, 12_345,
    )  # fmt: skip
    console = Console(width=80)
    with console.capture() as printed:
        console.print(render(Snapshot(0, [feed], []), ""))
    (line,) = [line for line in printed.get().splitlines() if "police" in line]
    assert line.split() == ["police_incident", "1,200", "12,345,678", "9,999", "12.5", "9,999", "3.4", "12,345"]


def test_what_kafka_does_not_say_is_left_open() -> None:
    unknown = TopicLag("", None, None, "toy does not exist")
    console = Console(width=80)
    with console.capture() as printed:
        console.print(render(Snapshot(0, [FeedLine("toy", None, 0.0, unknown, unknown, None, False, 0)], []), ""))
    (line,) = [line for line in printed.get().splitlines() if "toy" in line]
    assert line.split() == ["toy", "0", "-", "-", "-", "-", "-", "0"]


def test_a_silent_feed_is_said_to_be() -> None:
    lag = TopicLag("", 0, 0.0, None)
    feeds = [FeedLine(name, 9, 0.0, lag, lag, 300.5, silent, 0) for name, silent in (("loud", False), ("quiet", True))]
    console = Console(width=120)
    with console.capture() as printed:
        console.print(render(Snapshot(0, feeds, []), ""))
    found = {line.split()[0]: "300.5 silent" in line for line in printed.get().splitlines() if "300.5" in line}
    assert found == {"loud": False, "quiet": True}

"""Within the bound, the order of events changes nothing; nor does it how often each is sent."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.feed import milliseconds
from tests.reference.partition import Key, Logged, truth
from tests.reference.streams import ARRIVED_AFTER, Log, cuts, more_values, wire
from tests.reference.toy import FEED, NOON
from tests.unit.test_partition import World, live, live_to_the_end, newest, steps, world

#: How far behind the newest event before it, in ms, an event may come and is counted in time.
BOUND = milliseconds(FEED.disorder + FEED.lateness)

Event = dict[str, Any]
#: Content of each window of an aggregate, and whether it is final.
Windows = dict[Key, tuple[dict[str, Any], bool]]


@st.composite
def in_order(draw: st.DrawFn) -> list[Event]:
    """Events in the order of their times, no two the same."""
    drawn = draw(
        st.lists(
            st.tuples(
                st.sampled_from(["d-1", "d-1", "湖"]), st.sampled_from([0, 1, 500, 1500, 4999, 9000]), more_values
            ),
            min_size=1,
            max_size=25,
        )
    )
    events, at = [], NOON
    for number, (device, step, more) in enumerate(drawn):
        at += step
        events.append(wire(number, device, at, more))
    return events


@st.composite
def disordered(draw: st.DrawFn, events: list[Event]) -> list[Event]:
    """Any order in which no event is further than the bound behind the newest before it.

    Every such order is that of arrivals after delays of up to the bound, equal ones in any order.
    """
    delays = st.sampled_from([0, 1, BOUND - 1, BOUND]) | st.integers(0, BOUND)
    arrivals = [(event["observed_at"] + draw(delays), event) for event in draw(st.permutations(events))]
    return [event for _, event in sorted(arrivals, key=lambda one: one[0])]


@st.composite
def repeated(draw: st.DrawFn, events: list[Event]) -> list[Event]:
    """The same events, some of them again anywhere behind the first time."""
    sent = list(events)
    for _ in range(draw(st.integers(0, 8))):
        again = draw(st.integers(0, len(sent) - 1))
        sent.insert(draw(st.integers(again + 1, len(sent))), sent[again])
    return sent


@st.composite
def logged(draw: st.DrawFn, events: list[Event]) -> Log:
    """These events as a log."""
    records = tuple(Logged(n, e["device_id"].encode(), e, NOON + ARRIVED_AFTER) for n, e in enumerate(events))
    return Log(records, draw(cuts(len(records))))


def windows(here: World, aggregate: str) -> Windows:
    """What was written last of each window."""
    last = {key: version for _, key, version, _ in sorted((p for p in here.written if p[0] == aggregate), key=_version)}
    return {key: (content, last[key] % 2 == 1) for key, content in newest(here, aggregate).items()}


def _version(part: tuple[str, Key, int, dict[str, Any]]) -> int:
    return part[2]


def of_the_reference(events: list[Event], aggregate: str) -> Windows:
    """What the events come to if each is sent once and in order."""
    found = truth(FEED, [Logged(n, e["device_id"].encode(), e, NOON + ARRIVED_AFTER) for n, e in enumerate(events)])
    return {key: (one.snapshot(), key in found.final[aggregate]) for key, one in found.windows[aggregate].items()}


@settings(max_examples=50)
@given(st.data(), in_order())
def test_any_order_within_the_bound_and_any_repeats_give_the_windows_of_events_in_order(
    data: st.DataObject, events: list[Event]
) -> None:
    sent = data.draw(disordered(events).flatmap(repeated))
    here = world(FEED, data.draw(logged(sent)))
    live(here, data.draw(st.lists(steps, max_size=6)))
    live_to_the_end(here)
    for aggregate in FEED.aggregates:
        assert windows(here, aggregate.name) == of_the_reference(events, aggregate.name)
        late = set(here.expected.late[aggregate.name])
        assert late <= set(here.expected.repeats), "an event that comes for the first time is in time"


@pytest.mark.parametrize(("behind", "counted"), [(BOUND, 2), (BOUND + 1, 1)])
def test_the_bound_is_sharp(behind: int, counted: int) -> None:
    """The last millisecond of a window is the first to be late for it."""
    aggregate = FEED.aggregates[0]
    last = NOON + milliseconds(aggregate.window) - 1
    records = tuple(
        Logged(n, b"d-1", wire(n, "d-1", at, ("calm", 1, None, None, None)), NOON + ARRIVED_AFTER)
        for n, at in enumerate((NOON, last + behind, last))
    )
    here = world(FEED, Log(records, (0, 1, 2)))
    live_to_the_end(here)
    content, _ = windows(here, aggregate.name)["d-1", NOON]
    assert content["events"] == counted

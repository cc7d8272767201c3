"""Members of a group that die in their replay, or are thought dead and come back: commits never go back."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from threading import Event, Thread

import pytest
from kafka import TopicPartition

from streams.lag import committed_offsets
from tests.city import FEEDS, START, WORKERS, City, own_city
from tests.reference.whole import compare

pytestmark = pytest.mark.integration

EVENTS = 4_000
#: Event time of a round; windows of 15 min stay open over several, so a rewind is far.
SPAN = timedelta(minutes=2)
SESSION_SECONDS = 10


def publish(city: City, number: int) -> None:
    """A round of records of all feeds with all faults."""
    for name in FEEDS:
        city.publish([name], START + number * SPAN, number, EVENTS)


@contextmanager
def watched(city: City) -> Iterator[dict[str, int]]:
    """Look at the commits of both groups all the time; gives how often one of each group moved."""
    newest: dict[tuple[str, TopicPartition], int] = {}
    moved = dict.fromkeys(WORKERS, 0)
    back: list[str] = []
    stop = Event()

    def look() -> None:
        with city.admin() as admin:
            while not stop.wait(0.05):
                for group in WORKERS:
                    for tp, commit in committed_offsets(admin, group).items():
                        before = newest.get((group, tp), 0)
                        if commit.offset < before:
                            back.append(f"{group} in {tp}: from {before} to {commit.offset}")
                        moved[group] += commit.offset > before
                        newest[group, tp] = commit.offset

    watcher = Thread(target=look)
    watcher.start()
    try:
        yield moved
    finally:
        stop.set()
        watcher.join()
    assert all(moved.values())
    assert not back


def counted(city: City, name: str, word: str) -> int:
    """How often a worker has said a word."""
    return city.process(name).log.read_text().count(word)


def test_kills_in_the_replay_change_nothing(tmp_path: Path) -> None:
    """Again and again, in the middle of it and with a run around the processed offset; records go on arriving."""
    with own_city(tmp_path) as city:
        publish(city, 0)
        city.drain()
        with watched(city):
            for number, (word, times) in enumerate(
                [("replays", 30), ("straddles", 1), ("replays", 15), ("straddles", 2)]
            ):
                city.kill("processor")
                publish(city, 1 + number)
                city.start("processor", "tests.slow_processor")
                city.wait(lambda word=word, times=times: counted(city, "processor", word) >= times)  # type: ignore[misc]
            city.drain()
        assert [str(one) for one in compare(city.installation, FEEDS).differences] == []
        disturbed = city.snapshot()
        assert disturbed == city.undisturbed()


def test_a_worker_thought_dead_comes_back_and_spoils_nothing(tmp_path: Path) -> None:
    """Stopped in the middle of its work for two sessions, while another one goes on with its partitions."""
    with own_city(tmp_path) as city:
        publish(city, 0)
        city.drain()
        for name in WORKERS:
            city.start(f"{name}-too")
            city.wait(lambda name=name: len(city.members(name)) == 2)  # type: ignore[misc]
        enough = Event()

        def go_on_publishing() -> None:
            number = 1
            while not enough.is_set():
                publish(city, number)
                number += 1

        publisher = Thread(target=go_on_publishing)
        publisher.start()
        try:
            with watched(city) as moved:
                city.wait(lambda: all(moved.values()))
                for name in WORKERS:
                    city.signal(name, signal.SIGSTOP)
                until = time.monotonic() + 2 * SESSION_SECONDS
                for name in WORKERS:
                    city.wait(lambda name=name: city.members(name) == {f"{name}-too-1"})  # type: ignore[misc]
                taken_over = dict(moved)
                city.wait(lambda: all(moved[name] > taken_over[name] for name in WORKERS))
                city.wait(lambda: time.monotonic() > until)
                for name in WORKERS:
                    city.signal(name, signal.SIGCONT)
                for name in WORKERS:
                    city.wait(lambda name=name: len(city.members(name)) == 2)  # type: ignore[misc]
                enough.set()
                publisher.join()
                city.drain()
        finally:
            enough.set()
            publisher.join()
        assert [str(one) for one in compare(city.installation, FEEDS).differences] == []
        disturbed = city.snapshot()
        assert disturbed == city.undisturbed()

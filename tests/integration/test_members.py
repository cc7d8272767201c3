"""Members of a group that die in their replay, or are thought dead and come back: commits never go back."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.coordinator.assignors.abstract import AbstractPartitionAssignor
from aiokafka.coordinator.protocol import ConsumerProtocolMemberMetadata
from aiokafka.errors import KafkaError as AiokafkaError
from kafka import TopicPartition

from streams.ending import EX_SOFTWARE
from streams.lag import committed_offsets
from streams.members import is_member_name, members
from streams.transport.membership import MEETING
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


def pids(city: City) -> dict[str, int | None]:
    """The processes of the workers."""
    return {name: one.pid if one else None for name in city.started for one in [city.process(name).running()]}


def counted(city: City, name: str, word: str) -> int:
    """How often a worker has said a word."""
    return city.process(name).log.read_text().count(word)


class Stranger(AbstractPartitionAssignor):
    """Asks for partitions under the name of the workers' protocol, with anything."""

    name = "faust"
    version = 2
    asked: bytes | ConsumerProtocolMemberMetadata

    @classmethod
    def metadata(cls, topics: Iterable[str]) -> Any:
        return cls.asked

    @classmethod
    def assign(cls, cluster: Any, members: Any) -> dict[str, Any]:
        raise AssertionError("it is never the leader")

    @classmethod
    def on_assignment(cls, assignment: Any) -> None: ...


async def a_stranger_joins(city: City, group: str, asked: bytes | ConsumerProtocolMemberMetadata) -> None:
    """Join a group, and leave it when its leader has said so; what it is given cannot be read, so it never starts."""

    def said() -> int:
        words = f"An unknown member of the group {group} gets nothing: stranger-"
        return sum(counted(city, name, words) for name in city.started if name.startswith(group))

    before = said()
    stranger = AIOKafkaConsumer(
        FEEDS[0],
        **city.installation.cluster.kafka_python(),
        group_id=group,
        partition_assignment_strategy=[type("Asking", (Stranger,), {"asked": asked})],
        client_id="stranger",
    )
    joining = asyncio.create_task(stranger.start())
    try:
        await asyncio.to_thread(city.wait, lambda: said() > before)
        assert stranger.assignment() == set()
        shown = [one for one in members(city.installation.cluster, [group]) if not is_member_name(one.name)]
        assert {one.name for one in shown} == {"stranger"}
        assert not any(one.topics for one in shown)
    finally:
        joining.cancel()
        with suppress(AiokafkaError):  # it may have seen already what it was given
            await stranger.stop()
        await stranger._client.close()


def a_second_one_starts(city: City, worker: str) -> None:
    """Start a worker under the name of one that has had it for a while: it ends at once, and says why."""
    group = worker.partition("-")[0]
    second = city.command(*city.worker(worker))
    assert second.returncode == EX_SOFTWARE, second.stderr
    assert f"Another process works in the group {group} under the name {worker}-1" in second.stderr
    assert "Traceback" not in second.stderr
    assert city.logged(worker, f"Another process has joined the group {group} under the name {worker}-1")


def test_kills_in_the_replay_change_nothing(tmp_path: Path) -> None:
    """Again and again, in the middle of it and with a run around the processed offset; records go on arriving."""
    with own_city(tmp_path) as city:
        publish(city, 0)
        city.drain()
        with watched(city):
            for number, (word, times) in enumerate(
                [("replays", 10), ("straddles", 1), ("replays", 5), ("straddles", 2)]
            ):
                city.kill("processor")
                publish(city, 1 + number)
                city.start("processor", "tests.slow_processor")
                city.wait(lambda word=word, times=times: counted(city, "processor", word) >= times)  # type: ignore[misc]
            city.drain()
        assert [str(one) for one in compare(city.installation, FEEDS).differences] == []


def test_a_worker_thought_dead_comes_back_and_spoils_nothing(tmp_path: Path) -> None:
    """Stopped in the middle of its work for two sessions, while another one goes on with its partitions.

    Nor do strangers in their group, and a second process under a name.
    """
    with own_city(tmp_path) as city:
        publish(city, 0)
        city.drain()
        for name in WORKERS:
            city.start(f"{name}-too")
            city.wait(lambda name=name: len(city.members(name)) == 2)  # type: ignore[misc]
        known = time.monotonic() + MEETING * SESSION_SECONDS
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
                before = pids(city)
                for name in WORKERS:
                    for asked in (b"\xff", ConsumerProtocolMemberMetadata(2, [FEEDS[0]], b"garbage")):
                        asyncio.run(a_stranger_joins(city, name, asked))
                city.wait(lambda: time.monotonic() > known)
                for name in WORKERS:
                    a_second_one_starts(city, f"{name}-too")
                assert pids(city) == before
                enough.set()
                publisher.join()
                city.drain()
        finally:
            enough.set()
            publisher.join()
        assert [str(one) for one in compare(city.installation, FEEDS).differences] == []

"""Three brokers as docs/operator.md recommends them: one is killed under load, and nobody writes what is not his."""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer
from kafka.errors import TopicAuthorizationFailedError

from citystream.rights import CLOCK, OPERATOR, publisher, rights
from citystream.settings import Settings
from citystream.stack.stack import Stack
from streams import checkpoints, deadletters
from streams.clients import new_admin
from streams.cluster import Cluster
from streams.publisher import Producer
from streams.topics import TopicProblem, create, topics
from tests.brokers import OWNER, Brokers
from tests.city import START, WORKERS, City, made_up
from tests.reference.whole import compare

pytestmark = pytest.mark.integration

PASSWORD = "a-password-of-this-test"
#: Made up, of two departments; how many records of each there are, published at so many times its rate.
FEED, OTHER = "made_up_j", "made_up_k"
RECORDS, RATE = {FEED: 3_000, OTHER: 1_500}, "30"
ANOTHERS = f"""
from dataclasses import replace
from datetime import timedelta

from bench.made_up import FEEDS
from schemas.department import Department

OTHERS = Department(name="Another", contact="another@city.example", purpose="Tests")
FEED = replace(FEEDS[{OTHER!r}], department=OTHERS, delay=timedelta(minutes=1))
"""


class Secured(City):
    """A city on these brokers, where each process is a user of its own; the test itself is the owner."""

    def __init__(self, home: Path, brokers: Brokers) -> None:
        super().__init__(home, made_up(home / "sources", FEED, **{OTHER: ANOTHERS}))
        self.brokers = brokers
        local = {name: port for name, port in self.settings.ports().items() if name != "kafka_port"}
        owner = {name.removeprefix("CITYSTREAM_").lower(): v for name, v in brokers.environment(OWNER).items()}
        self.settings = Settings.model_validate({"home": home, **local, **owner})
        self.installation = self._installed(self.settings)
        self._user = OWNER
        self.begun: list[subprocess.Popen[bytes]] = []

    @property
    def environment(self) -> dict[str, str]:
        return super().environment | self.brokers.environment(self._user)

    def being(self, user: str) -> Secured:
        """From now on, start processes as a user."""
        self._user = user
        return self

    def begin(self, *words: str, code: str = "") -> subprocess.Popen[bytes]:
        self.begun.append(super().begin(*words, code=code))
        return self.begun[-1]

    def department(self, feed: str) -> str:
        """The user that publishes a feed."""
        return publisher(self.installation.feeds[feed].department.name)


@pytest.fixture
def city(tmp_path: Path) -> Iterator[Secured]:
    brokers = Brokers(tmp_path / "brokers", PASSWORD)
    city = Secured(tmp_path / "city", brokers)
    stack = Stack(city.settings)
    try:
        brokers.up(sorted({right.user for right in rights(city.installation.feeds.values())}))
        stack.up(lambda _: None)
        yield city
    finally:
        for one in city.begun:
            one.kill()
        for name in city.started:
            city.process(name).stop()
        stack.down()
        brokers.down()


def test_one_of_three_brokers_is_killed_under_load_and_nobody_writes_what_is_not_his(city: Secured) -> None:
    for words in (["init"], ["rights", "--apply"]):
        done = city.python("-m", "citystream.cli", *words)
        assert done.returncode == 0, done.stderr
    more = replace(city.installation.cluster, min_insync_replicas=3)
    with pytest.raises(TopicProblem, match="is kept by 3 brokers and acknowledged by 2, and the settings say 3 and 3"):
        create(more, topics(city.installation.feeds.values()))
    for name in WORKERS:
        city.being(name).start(name)
    publishing = [
        city.being(city.department(feed)).begin(
            "simulate", feed, "--rate", RATE, "--events", str(records), "--start", START.isoformat(), "--seed", "7",
            "--faults", "all",
        )
        for feed, records in RECORDS.items()
    ]  # fmt: skip

    city.wait(lambda: sum(city.ends(FEED).values()) > RECORDS[FEED] / 4)
    city.brokers.kill(leader(city.brokers.cluster(OWNER), FEED))
    assert all(one.poll() is None for one in publishing), "it was killed under load"
    for one in publishing:
        said, _ = one.communicate(timeout=120)
        assert one.returncode == 0, said
    city.drain()
    found = compare(city.installation, city.feeds)
    assert not found.differences
    assert all(found.kinds.values()), found.kinds

    lag = city.being(OPERATOR).python("-m", "citystream.cli", "lag")
    assert lag.returncode == 0, lag.stderr
    refused(city)
    ticked(city)
    asyncio.run(let_in_by_a_token(city))


def refused(city: Secured) -> None:
    """What a department may not do is refused by the brokers, and people are told what and why."""
    told = city.being(city.department(OTHER)).python("-m", "citystream.cli", "simulate", FEED, "--events", "1")
    assert told.returncode == 1
    assert f"Kafka does not allow it ([Error 29] TopicAuthorizationFailedError: topic {FEED})" in told.stderr
    own = city.brokers.cluster(city.department(OTHER))
    windows = city.installation.feeds[OTHER].aggregates[0].topic
    with closing(Producer(own)) as producer:
        assert producer.send(OTHER, b"anything").get().offset >= 0
        for topic in (FEED, windows, deadletters.TOPIC, checkpoints.TOPIC):
            with pytest.raises(TopicAuthorizationFailedError, match=topic):
                producer.send(topic, b"anything").get()


def ticked(city: Secured) -> None:
    """The clock writes to the feed that asks for ticks, and may write nowhere else."""
    before = city.ends(OTHER)
    clock = city.being(CLOCK).begin("clock")
    city.wait(lambda: all(end > before[place] for place, end in city.ends(OTHER).items()))
    clock.terminate()
    assert clock.wait(30) == 0
    windows = city.installation.feeds[OTHER].aggregates[0].topic
    with closing(Producer(city.brokers.cluster(CLOCK))) as producer:
        for topic in (FEED, windows, checkpoints.TOPIC):
            with pytest.raises(TopicAuthorizationFailedError, match=topic):
                producer.send(topic, b"anything").get()


async def let_in_by_a_token(city: Secured) -> None:
    """Who logs in by a token is the user that it names, whichever library asks for it."""
    file = city.brokers.home / "token"
    file.write_text(unsigned_token(city.department(OTHER)))
    by_token = city.brokers.cluster(token_file=file)
    with closing(Producer(by_token)) as producer:
        assert producer.send(OTHER, b"anything").get().offset >= 0
    async with AIOKafkaProducer(**by_token.aiokafka()) as sending:
        assert (await sending.send_and_wait(OTHER, b"anything")).offset >= 0


def unsigned_token(user: str) -> str:
    """What brokers believe that check no signatures."""
    claims = {"sub": user, "iat": time.time(), "exp": time.time() + 3600}
    parts = (base64.urlsafe_b64encode(json.dumps(part).encode()) for part in ({"alg": "none"}, claims))
    return ".".join(part.decode().rstrip("=") for part in parts) + "."


def leader(cluster: Cluster, topic: str) -> int:
    """The broker that leads a topic's first partition."""
    with closing(new_admin(cluster)) as admin:
        ((first, *_),) = (found["partitions"] for found in admin.describe_topics([topic]))
    return int(first["leader_id"])

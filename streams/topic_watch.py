"""Whether a worker's topics are still those it began with.

Kafka's requests to read and to commit name a topic, and a name can come to mean another topic: deleted and created
again, it has other records at the same offsets. Nothing says so to a reader, who may go on in the middle of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping

from kafka import KafkaAdminClient
from kafka.errors import KafkaError

from streams.clients import new_admin
from streams.cluster import Cluster
from streams.topics import Topic, TopicProblem, TopicState, check_there, found
from streams.waiting import until_kafka_answers


class TopicWatch:
    """Compares topics with what they were at the first look; ``worker`` is named in what is said."""

    def __init__(self, cluster: Cluster, worker: str, topics: Iterable[Topic]) -> None:
        self.began: Mapping[str, TopicState] = {}
        self._cluster = cluster
        self._worker = worker
        self._topics = {topic.name: topic for topic in topics}
        self._admin: KafkaAdminClient | None = None
        self._looking = asyncio.Lock()
        self._next: asyncio.Task[dict[str, TopicProblem]] | None = None
        #: The topics that the next look is at.
        self._asked: set[str] = set()

    def begin(self) -> dict[str, TopicProblem]:
        """The first look; waits until Kafka answers. What is wrong with topics that are not there as declared."""
        there = self._now(self._topics)
        problems = {}
        for name, topic in self._topics.items():
            try:
                check_there(topic, there.get(name))
            except TopicProblem as problem:
                problems[name] = problem
        self.began = {name: state for name, state in there.items() if name not in problems}
        return problems

    async def look(self, topics: Iterable[str]) -> dict[str, TopicProblem]:
        """What a look that began after this call found wrong with these topics; callers share a look.

        A topic was deleted, deleted and created again, or got more partitions. So what was read before the call came
        from those it does not name.
        """
        names = {*topics}
        self._asked |= names
        if self._next is None:
            self._next = asyncio.create_task(self._look())
        problems = await asyncio.shield(self._next)
        return {name: problem for name, problem in problems.items() if name in names}

    async def _look(self) -> dict[str, TopicProblem]:
        async with self._looking:
            self._next = None
            asked, self._asked = self._asked & self.began.keys(), set()
            now = await asyncio.to_thread(self._now, asked)
            found = {name: compare(self._worker, name, self.began[name], now.get(name)) for name in asked}
            return {name: problem for name, problem in found.items() if problem is not None}

    def _now(self, names: Collection[str]) -> dict[str, TopicState]:
        return until_kafka_answers(self._cluster, lambda: self._ask(names))

    def _ask(self, names: Collection[str]) -> dict[str, TopicState]:
        try:
            self._admin = self._admin or new_admin(self._cluster)
            return found(self._admin, names)
        except (KafkaError, OSError):
            broken, self._admin = self._admin, None
            if broken is not None:
                broken.close()
            raise


def compare(worker: str, name: str, before: TopicState, now: TopicState | None) -> TopicProblem | None:
    """What is wrong with a topic as it is now, and what to do; None if it is what it was."""
    if now is None:
        return TopicProblem(
            f"topic {name} was deleted. If it does not come back: citystream init creates it again, and the {worker} "
            "then says how to go on when it is started again"
        )
    if now.id != before.id:
        return TopicProblem(
            f"topic {name} was deleted and created again, its offsets mean other records now; stop the workers, then "
            "see: citystream positions show processor, and: citystream positions show sink"
        )
    if now.partitions != before.partitions:
        return TopicProblem(
            f"topic {name} has {now.partitions} partitions and had {before.partitions}: keys have moved to other "
            "partitions; the number is fixed for the life of a topic, see More partitions in docs/operator.md"
        )
    return None

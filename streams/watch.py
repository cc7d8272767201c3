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
from streams.topics import Topic, TopicProblem, TopicState, check_partitions, found
from streams.waiting import until_kafka_answers


class Watch:
    """Compares topics with what they were at the first look; ``worker`` is named in what is said."""

    def __init__(self, cluster: Cluster, worker: str, topics: Iterable[Topic]) -> None:
        self.began: Mapping[str, TopicState] = {}
        self._cluster = cluster
        self._worker = worker
        self._topics = {topic.name: topic for topic in topics}
        self._admin: KafkaAdminClient | None = None
        self._looking = asyncio.Lock()
        self._next: asyncio.Task[None] | None = None
        #: The topics that the next look is at.
        self._asked: set[str] = set()

    def begin(self) -> None:
        """The first look; waits until Kafka answers.

        Raises
        ------
        TopicProblem
            A topic does not exist or has another number of partitions than declared.
        """
        self.began = self._now(self._topics)
        if missing := self._topics.keys() - self.began.keys():
            raise TopicProblem(f"topics {', '.join(sorted(missing))} do not exist; run: citystream up")
        for name, topic in self._topics.items():
            check_partitions(topic, self.began[name])

    async def unchanged(self, topics: Iterable[str]) -> None:
        """Return when a look that began after this call has found these topics to be the same; callers share a look.

        So what was read before the call came from these topics.

        Raises
        ------
        TopicProblem
            A topic was deleted, deleted and created again, or got more partitions.
        """
        self._asked.update(topics)
        if self._next is None:
            self._next = asyncio.create_task(self._look())
        await asyncio.shield(self._next)

    async def _look(self) -> None:
        async with self._looking:
            self._next = None
            asked, self._asked = self._asked, set()
            compare(self._worker, {name: self.began[name] for name in asked}, await asyncio.to_thread(self._now, asked))

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


def compare(worker: str, before: Mapping[str, TopicState], now: Mapping[str, TopicState]) -> None:
    """Hold topics as they are now to what they were.

    Raises
    ------
    TopicProblem
        They differ; the message names the first one that does and what to do.
    """
    for name, topic in before.items():
        if name not in now:
            raise TopicProblem(
                f"topic {name} was deleted. If it does not come back: citystream init creates it again, and the "
                f"{worker} then says how to go on"
            )
        if now[name].id != topic.id:
            raise TopicProblem(
                f"topic {name} was deleted and created again, its offsets mean other records now; stop the workers, "
                "then see: citystream positions show processor, and: citystream positions show sink"
            )
        if now[name].partitions != topic.partitions:
            raise TopicProblem(
                f"topic {name} has {now[name].partitions} partitions and had {topic.partitions}: keys have moved to "
                "other partitions; the number is fixed for the life of a topic, see More partitions in docs/operator.md"
            )

"""A worker notices when a topic is no longer the one it began with, before it writes or commits anything of it."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from threading import Event
from uuid import UUID

import pytest

from streams.cluster import Cluster
from streams.topics import Topic, TopicProblem, TopicState
from streams.watch import Watch, compare

ONE, TWO = UUID(int=1), UUID(int=2)
THERE = {"toy": TopicState(ONE, 4), "toy_4s": TopicState(TWO, 4)}
DECLARED = [Topic(name, 4, None) for name in THERE]


class Seeing(Watch):
    """A watch that sees these topics; ``asked`` is set when it looks, and it waits for ``answer``."""

    def __init__(self, now: Mapping[str, TopicState]) -> None:
        super().__init__(Cluster(("nowhere:1",)), "processor", DECLARED)
        self.now = dict(now)
        self.looks: list[set[str]] = []
        self.asked, self.answer = Event(), Event()
        self.answer.set()

    def _now(self, names: Collection[str]) -> dict[str, TopicState]:
        self.looks.append({*names})
        seen = {name: self.now[name] for name in names if name in self.now}
        self.asked.set()
        assert self.answer.wait(10)
        return seen


def test_topics_that_are_what_they_were_pass() -> None:
    compare("processor", THERE, dict(THERE))
    compare("processor", THERE, {**THERE, "other": TopicState(UUID(int=9), 1)})


@pytest.mark.parametrize(
    ("now", "said"),
    [
        ({"toy": THERE["toy"]}, "topic toy_4s was deleted. If it does not come back: citystream init"),
        ({**THERE, "toy": TopicState(UUID(int=3), 4)}, "topic toy was deleted and created again, .* positions show"),
        ({**THERE, "toy": TopicState(ONE, 6)}, "topic toy has 6 partitions and had 4: .* see More partitions"),
        ({**THERE, "toy": TopicState(UUID(int=3), 6)}, "topic toy was deleted and created again"),
    ],
)
def test_a_topic_that_is_not_what_it_was_is_named_with_what_to_do(now: dict[str, TopicState], said: str) -> None:
    with pytest.raises(TopicProblem, match=f"^{said}"):
        compare("processor", THERE, now)


def test_a_worker_does_not_begin_without_its_topics_or_with_other_numbers_of_partitions() -> None:
    with pytest.raises(TopicProblem, match=r"^topics toy_4s do not exist; run: citystream up"):
        Seeing({"toy": THERE["toy"]}).begin()
    with pytest.raises(
        TopicProblem, match=r"^topic toy has 6 partitions and is declared with 4; .* see More partitions"
    ):
        Seeing({**THERE, "toy": TopicState(ONE, 6)}).begin()


def test_who_asks_during_a_look_waits_for_a_later_one() -> None:
    """What was read while the first look was on its way may come from a topic that it did not see."""

    async def ask() -> None:
        watch = Seeing(THERE)
        watch.begin()
        watch.asked.clear()
        watch.answer.clear()
        first = asyncio.create_task(watch.unchanged(["toy_4s"]))
        await asyncio.to_thread(watch.asked.wait, 10)
        watch.now["toy"] = TopicState(UUID(int=3), 4)
        later = [asyncio.create_task(watch.unchanged(names)) for names in (["toy"], ["toy_4s"], ["toy", "toy_4s"])]
        await asyncio.sleep(0)
        watch.answer.set()
        await first
        for one in await asyncio.gather(*later, return_exceptions=True):
            assert isinstance(one, TopicProblem)
        assert watch.looks == [{*THERE}, {"toy_4s"}, {*THERE}], "the second is alone, the last for all who asked later"

    asyncio.run(ask())

"""A worker notices when a topic is no longer the one it began with, before it writes or commits anything of it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Collection, Mapping
from threading import Event
from uuid import UUID

import pytest

from streams.cluster import Cluster
from streams.topic_watch import TopicWatch
from streams.topics import Topic, TopicState

ONE, TWO = UUID(int=1), UUID(int=2)
THERE = {"toy": TopicState(ONE, 4), "toy_4s": TopicState(TWO, 4)}
DECLARED = [Topic(name, 4, None) for name in THERE]


class Seeing(TopicWatch):
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


def looked(watch: TopicWatch, *names: str) -> dict[str, str]:
    """What a look says of topics, after one that saw them as they were."""

    async def look() -> dict[str, str]:
        return {name: str(problem) for name, problem in (await watch.look(names)).items()}

    return asyncio.run(look())


def test_topics_that_are_what_they_were_pass() -> None:
    watch = Seeing({**THERE, "other": TopicState(UUID(int=9), 1)})
    assert watch.begin() == {}
    assert looked(watch, *THERE) == {}


@pytest.mark.parametrize(
    ("now", "changed", "said"),
    [
        ({"toy": THERE["toy"]}, "toy_4s", "topic toy_4s was deleted. If it does not come back: citystream init"),
        (
            {**THERE, "toy": TopicState(UUID(int=3), 4)},
            "toy",
            "topic toy was deleted and created again, .* positions show",
        ),
        ({**THERE, "toy": TopicState(ONE, 6)}, "toy", "topic toy has 6 partitions and had 4: .* see More partitions"),
        ({**THERE, "toy": TopicState(UUID(int=3), 6)}, "toy", "topic toy was deleted and created again"),
    ],
)
def test_a_topic_that_is_not_what_it_was_is_named_alone_with_what_to_do(
    now: dict[str, TopicState], changed: str, said: str
) -> None:
    watch = Seeing(THERE)
    watch.begin()
    watch.now = now
    (found,) = looked(watch, *THERE).items()
    assert found[0] == changed
    assert re.match(said, found[1])


def test_a_worker_begins_without_a_topic_that_is_not_there_or_has_another_number_of_partitions() -> None:
    missing, wrong = Seeing({"toy": THERE["toy"]}), Seeing({**THERE, "toy": TopicState(ONE, 6)})
    (found,) = missing.begin().items()
    assert (found[0], str(found[1])) == ("toy_4s", "topic toy_4s does not exist; run: citystream up")
    (found,) = wrong.begin().items()
    assert found[0] == "toy"
    assert re.match("topic toy has 6 partitions and is declared with 4; .* see More partitions", str(found[1]))
    assert [*missing.began, *wrong.began] == ["toy", "toy_4s"]


def test_who_asks_during_a_look_waits_for_a_later_one() -> None:
    """What was read while the first look was on its way may come from a topic that it did not see."""

    async def ask() -> None:
        watch = Seeing(THERE)
        watch.begin()
        watch.asked.clear()
        watch.answer.clear()
        first = asyncio.create_task(watch.look(["toy_4s"]))
        await asyncio.to_thread(watch.asked.wait, 10)
        watch.now["toy"] = TopicState(UUID(int=3), 4)
        later = [asyncio.create_task(watch.look(names)) for names in (["toy"], ["toy_4s"], ["toy", "toy_4s"])]
        await asyncio.sleep(0)
        watch.answer.set()
        await first
        assert [{*problems} for problems in await asyncio.gather(*later)] == [{"toy"}, set(), {"toy"}]
        assert watch.looks == [{*THERE}, {"toy_4s"}, {*THERE}], "the second is alone, the last for all who asked later"

    asyncio.run(ask())

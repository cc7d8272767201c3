"""Waiting for a server that is away: said while it lasts, and in one line when it is over."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from kafka.errors import AuthorizationError, KafkaError
from tenacity import RetryCallState, Retrying, wait_exponential

from streams.cluster import Cluster

log = logging.getLogger("citystream")

T = TypeVar("T")

#: Seconds in which what several say in the same words is said once.
TOGETHER = 1.0


def always() -> bool:
    """What is wanted however long it takes."""
    return True


class Waiting:
    """All in a process that wait for a server: each says so, and when none is left, that it is ``over`` is said once.

    ``clock`` is in seconds.
    """

    def __init__(self, over: str, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._over = over
        self._say = say
        self._clock = clock
        self._who: set[Hashable] = set()
        self._last = "", -math.inf
        self._changing = threading.Lock()

    def begin(self, who: Hashable, text: str = "") -> None:
        """Somebody waits, or still does; the text is said unless it was just said."""
        with self._changing:
            self._who.add(who)
            (before, at), now = self._last, self._clock()
            said = not text or (text == before and now - at <= TOGETHER)
            self._last = self._last if said else (text, now)
        if not said:
            self._say(text)

    def waits(self, who: Hashable) -> bool:
        """Whether somebody waits."""
        return who in self._who

    def end(self, who: Hashable) -> None:
        """Somebody waits no more, having got what he waited for."""
        if self.waits(who):
            with self._changing:
                self._who.discard(who)
                if over := not self._who:
                    self._last = "", -math.inf
            if over:
                self._say(self._over)

    def retrying(
        self,
        transient: Callable[[BaseException], bool],
        words: Callable[[BaseException], str],
        *,
        longest: float = 30.0,
        wanted: Callable[[], bool] = always,
    ) -> dict[str, Any]:
        """What tenacity takes to call again, at growing pauses, while an error is ``transient`` and it is ``wanted``.

        ``words`` say of an error what does not work; ``longest`` is the longest pause in seconds.
        """

        def failed(state: RetryCallState) -> BaseException | None:
            return state.outcome.exception() if state.outcome else None

        def again(state: RetryCallState) -> bool:
            error = failed(state)
            if error is not None and transient(error):
                return True
            self.end(state)
            return False

        def stop(state: RetryCallState) -> bool:
            if wanted():
                return False
            with self._changing:
                self._who.discard(state)
            return True

        def report(state: RetryCallState) -> None:
            pause, error = state.next_action.sleep if state.next_action else 0, failed(state)
            self.begin(state, f"{words(error) if error else ''}; trying again in {pause:.0f} s")

        wait = wait_exponential(min=1, max=longest)
        return {"retry": again, "stop": stop, "wait": wait, "before_sleep": report, "reraise": True}


KAFKA_ANSWERS = "Kafka answers again"
#: All in this process that wait for Kafka. Its clients are one of them: they say what fails, never that it works again.
KAFKA = Waiting(KAFKA_ANSWERS, log.warning)
CLIENTS = "clients"


def kafka_away(cluster: Cluster) -> Callable[[BaseException], str]:
    """How an error of Kafka's is said; to kafka-python brokers that let nobody in are brokers that are away."""
    refused = ", or does not let us in by this user, token or certificate" if cluster.ca_file or cluster.user else ""

    def words(error: BaseException) -> str:
        if isinstance(error, AuthorizationError):
            return f"Kafka at {cluster} does not allow it ({error}), see: citystream rights"
        return f"Kafka at {cluster} does not answer{refused} ({error})"

    return words


def until_kafka_answers(
    cluster: Cluster, call: Callable[[], T], waiting: Waiting = KAFKA, wanted: Callable[[], bool] = always
) -> T:
    """Call what asks through kafka-python until the brokers answer; its error, when it is not ``wanted`` any more."""

    def is_transient(error: BaseException) -> bool:
        return isinstance(error, KafkaError | OSError)

    return Retrying(**waiting.retrying(is_transient, kafka_away(cluster), wanted=wanted))(call)

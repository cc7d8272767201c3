"""Faust's Kafka transport, delivering one message per fetched run of a partition instead of one per record.

Extension points of faust-streaming 0.15.3 and aiokafka 0.14.0 that this stands on (a contract test fails if one moves):
Faust's ``Consumer._to_message``, ``_add_gap``, ``commit``, ``on_buffer_full``, ``on_partitions_revoked``,
``verify_event_path``, ``perform_seek``, ``_getmany``; its consumer thread's ``_create_worker_consumer``, ``on_start``,
``assignment``, ``_wakeup_timer_in_thread``; aiokafka's ``_fetch_max_bytes``, ``_request_timeout_ms`` and
``_prefetch_backoff``; ``aiokafka.consumer.consumer.GroupCoordinator``, see ``streams.transport.membership``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field, replace
from typing import Any, cast

from aiokafka.consumer import consumer as clients
from aiokafka.errors import (
    CommitFailedError,
    GroupAuthorizationFailedError,
    IllegalStateError,
    KafkaTimeoutError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
)
from aiokafka.errors import KafkaError as AiokafkaError
from aiokafka.structs import OffsetAndMetadata
from aiokafka.structs import TopicPartition as ClientPartition
from faust.transport.drivers import aiokafka as driver
from faust.types import TP, ConsumerMessage
from tenacity import AsyncRetrying

from streams import checkpoints
from streams.assignment import Assigned, TopicPartition
from streams.ending import EX_CONFIG, Stop
from streams.group_positions import PartitionOffsets
from streams.lifecycle import Moment, Stage, tell
from streams.positions import Position
from streams.transport.fetching import PacedFetcher
from streams.transport.membership import MemberCoordinator, NameTaken
from streams.transport.sending import send_unwaited
from streams.waiting import CLIENTS, KAFKA, kafka_away

log = logging.getLogger("citystream")

#: Bytes of a fetch at most, over all partitions of a broker.
FETCH_BYTES = 32 * 2**20
#: Longest wait for the answer to a request. Faust's setting for it is the patience of a seek as well, which has no end.
REQUEST_MS = 90_000
#: Seconds for which a partition with fetched records keeps the other partitions of its broker from being fetched.
UNTIL_TAKEN = 86_400.0


class PositionRefused(Stop):
    """The brokers will never take the positions of a topic."""

    code = EX_CONFIG


def is_transient(error: BaseException) -> bool:
    """Whether an error of aiokafka goes away when one waits for the brokers."""
    return isinstance(error, AiokafkaError) and (bool(error.retriable) or isinstance(error, KafkaTimeoutError))


def _plain(place: tuple[str, int]) -> ClientPartition:
    return ClientPartition(*place)


@dataclass
class Committed:
    """What came of a commit: the partitions it was taken of, and the topics it never will be, each with the reason."""

    taken: list[TopicPartition] = field(default_factory=list)
    refused: dict[str, AiokafkaError] = field(default_factory=dict)


class ConsumerThread(driver.AIOKafkaConsumerThread):
    """Reads committed records only, never resets an offset by itself, and commits positions with their metadata."""

    #: What the client said last of its assignment, and the same in Faust's words.
    _assigned: tuple[frozenset[ClientPartition], frozenset[TP]] = frozenset(), frozenset()

    def _create_worker_consumer(self, transport: Any) -> Any:
        clients.GroupCoordinator, clients.Fetcher = MemberCoordinator, PacedFetcher
        consumer = super()._create_worker_consumer(transport)
        consumer._isolation_level = "read_committed"
        consumer._auto_offset_reset = "none"
        consumer._fetch_max_bytes = FETCH_BYTES
        consumer._request_timeout_ms = consumer._client._request_timeout_ms = REQUEST_MS
        return consumer

    async def on_start(self) -> None:
        """Fetch again only when what was fetched is taken: one fetch waits for the worker, however many partitions."""
        await super().on_start()
        self._ensure_consumer()._fetcher._prefetch_backoff = UNTIL_TAKEN

    async def _wakeup_timer_in_thread(self) -> None:
        """Leave out the time, by which Mode says that the thread does not respond.

        It knows nothing of the thread, and says so when the main loop was busy for 3 s. ``check`` asks the thread.
        """
        await self.sleep(0)

    async def commit_positions(self, positions: Mapping[TopicPartition, Position]) -> Committed:
        """Commit what is assigned of these: in one request, and by topic where the brokers refuse one of them."""
        return cast("Committed", await self.call_thread(self._commit_positions, positions))

    async def _commit_positions(self, positions: Mapping[TopicPartition, Position]) -> Committed:
        assigned = self.assignment()
        offsets = {
            _plain(place): OffsetAndMetadata(position.processed, position.metadata())
            for place, position in positions.items()
            if place in assigned
        }
        done = Committed()
        if not offsets:
            return done
        try:
            await self._ensure_consumer().commit(offsets)
        except CommitFailedError:
            log.info("A commit came after a rebalance; its events will be processed again")
        except GroupAuthorizationFailedError as error:
            await self.app.crash(error)
        except AiokafkaError as error:
            topics = dict.fromkeys(place.topic for place in offsets)
            if is_transient(error):
                KAFKA.begin(CLIENTS, f"Kafka did not take a commit ({error}); it will be tried again")
            elif len(topics) == 1:
                done.refused |= dict.fromkeys(topics, error)
            else:
                for topic in topics:
                    alone = await self._commit_positions({p: one for p, one in positions.items() if p.topic == topic})
                    done.taken += alone.taken
                    done.refused |= alone.refused
        else:
            done.taken += [place for place in positions if _plain(place) in offsets]
        return done

    def assignment(self) -> Set[TP]:
        """Partitions of the present assignment; none while there is no client yet.

        Faust makes the set anew for each question, which is asked of each partition at every flush: with 200 of them
        that was most of what an idle worker did.
        """
        if self._consumer is None:
            return frozenset()
        plain = self._consumer.assignment()
        if plain is not self._assigned[0]:
            self._assigned = plain, frozenset(TP(*tp) for tp in plain)
        return self._assigned[1]

    def set_paused(self, place: TopicPartition, paused: bool) -> None:
        """Fetch no more of a partition, or go on; what was fetched and is not handed on yet is fetched again then."""
        self.thread_loop.call_soon_threadsafe(self._set_paused, _plain(place), paused)

    def _set_paused(self, place: ClientPartition, paused: bool) -> None:
        consumer = self._ensure_consumer()
        if place in consumer.assignment():
            (consumer.pause if paused else consumer.resume)(place)

    def highwater(self, tp: tuple[str, int]) -> int:
        """End of a partition's log at the last fetch; 0 if it is not known or not assigned (any more)."""
        try:
            return self._ensure_consumer().highwater(_plain(tp)) or 0
        except (AssertionError, AttributeError):
            return 0

    async def check(self) -> bool:
        """Raise what the client's tasks ended with or wait for somebody to see, which Faust never looks at.

        Asked for in the thread, past the calls that may be waiting there. Gives whether the group's coordinator is
        known.
        """
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._check(), self.thread_loop))

    async def _check(self) -> bool:
        coordinator, reading = (getattr(self._consumer, name, None) for name in ("_coordinator", "_fetcher"))
        if coordinator is not None:
            coordinator.check_errors()
        if reading is not None and reading.error_future.done():
            reading.error_future.result()
        return coordinator is not None and coordinator.coordinator_id is not None

    async def committed(self, places: Iterable[TopicPartition]) -> dict[TopicPartition, PartitionOffsets]:
        """What the brokers say of each partition."""
        asking = AsyncRetrying(**KAFKA.retrying(is_transient, kafka_away(self.app.cluster)))
        offsets: dict[TopicPartition, PartitionOffsets]
        offsets = await self.call_thread(asking, self._committed, list(places))
        return offsets

    async def _committed(self, places: list[TopicPartition]) -> dict[TopicPartition, PartitionOffsets]:
        consumer = self._ensure_consumer()
        partitions = [_plain(place) for place in places]
        commits = await consumer._coordinator.fetch_committed_offsets(partitions)
        starts = await consumer.beginning_offsets(partitions)
        ends = await consumer.end_offsets(partitions)
        found = {}
        for place, p in zip(places, partitions, strict=True):
            committed, metadata = (commits[p].offset, commits[p].metadata) if p in commits else (None, "")
            found[place] = PartitionOffsets(committed, metadata, starts[p], ends[p])
        return found


class Consumer(driver.Consumer):
    """Tracks positions in place of acknowledged messages: one object for each partition of the assignment."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: The partitions that are read, since the last assignment.
        self.assigned: dict[TopicPartition, Assigned[Any]] = {}
        self._one_commit = asyncio.Lock()
        #: The topics of which the brokers take no position.
        self._refused: set[str] = set()

    def _new_consumer_thread(self) -> ConsumerThread:
        return ConsumerThread(self, loop=self.loop, beacon=self.beacon)

    @property
    def _client(self) -> ConsumerThread:
        return cast("ConsumerThread", self._thread)

    def _to_message(self, tp: TP, record: Any) -> ConsumerMessage:
        return ConsumerMessage(
            record.topic,
            record.partition,
            record.offset,
            record.timestamp / 1000,
            1,
            [],
            None,
            record.value,
            None,
            0,
            0,
            tp,
            generation_id=self.app.consumer_generation_id,
        )

    async def _add_gap(self, tp: TP, offset_from: int, offset_to: int) -> None:
        """A run's offset is its last one, so gaps are the rule."""

    def on_buffer_full(self, tp: TP) -> None:
        """A full buffer makes delivery wait, which is enough; pausing partitions would leave them idle for a poll."""

    def verify_event_path(self, now: float, tp: TP) -> None:
        """Faust's own watchdog goes by acknowledged messages; lag is watched from outside."""

    def pause(self, place: TopicPartition, reason: str) -> None:
        """Read no more of a partition until it is told to go on."""
        if one := self.assigned.get(place):
            one.paused = reason
        self._client.set_paused(place, True)

    def go_on(self, place: TopicPartition) -> None:
        """Read a paused partition on."""
        if one := self.assigned.get(place):
            one.paused = ""
        self._client.set_paused(place, False)

    async def commit(self, topics: Any = None, start_new_transaction: bool = True) -> bool:  # noqa: ARG002
        """Commit what was flushed; Faust calls this every second and at the end.

        1. A flush has left in ``Assigned.flushed`` the position up to which all results are acknowledged.
        2. The topics are seen to be those they were when that was read; the feed of one that is not is stopped.
        3. The brokers take the commit, from a member of the group and for its assignment (``MemberCoordinator``). The
           feed of a topic of which they never will is stopped.
        4. What they took is noted, unless the partition was taken away meanwhile.
        5. It is kept a second time, as a checkpoint; nothing waits for that to be acknowledged.
        """
        async with self._one_commit:
            due = [one for one in self.assigned.values() if one.due and one.place.topic not in self._refused]
            if not due:
                return False
            unchanged = await self.app.stop_changed({one.place.topic for one in due})
            wanted = [one for one in due if one.place.topic in unchanged and one.current]
            positions = {one.place: position for one in wanted if (position := one.due)}
            if not positions:
                return False
            tell(Moment(Stage.COMMITTING))
            done = await self._client.commit_positions(positions)
            self._stop_refused(done.refused)
            for one in wanted:
                if one.place in done.taken:
                    one.committed = positions[one.place]
                    tell(Moment(Stage.COMMITTED, one.place, next=one.committed.processed))
            kept = [checkpoints.record((self.app.conf.id, *place), positions[place]) for place in done.taken]
            await send_unwaited(self.app.producer, checkpoints.TOPIC, kept, "A checkpoint")
            return bool(done.taken)

    def _stop_refused(self, refused: Mapping[str, AiokafkaError]) -> None:
        self._refused |= refused.keys()
        for topic, error in refused.items():
            group = self.app.conf.id
            problem = f"{topic}: Kafka takes no position of the {group} there ({error!r}); its user may lack a right"
            self.app.worker.stop(topic, PositionRefused(f"{problem}, see: citystream rights"))

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """A partition that is taken away has no position, and what was flushed of it is no longer ours to commit."""
        if revoked:
            tell(Moment(Stage.REVOKING))
        for tp in revoked:
            if one := self.assigned.pop(TopicPartition(*tp), None):
                one.end()
        await super().on_partitions_revoked(revoked)

    async def _getmany(self, active_partitions: set[TP] | None, timeout: float) -> Any:  # noqa: ASYNC109
        """What was fetched; stops a feed of whose partitions the log does not have the offset that was asked for."""
        try:
            return await super()._getmany(active_partitions, timeout)
        except NoOffsetForPartitionError:  # just assigned and never committed: perform_seek is about to set its offset
            return {}
        except NameTaken as taken:
            await self.app.crash(taken)
            raise
        except OffsetOutOfRangeError as error:
            ((partition, offset),) = error.args[0].items()
            place = TopicPartition(*partition)
            if self.app.worker.why_stopped(place.topic) or not await self.app.stop_changed([place.topic]):
                return {}
            offsets = await self._client.committed([place])
            await self.app.stop_out_of_range(offset, place, offsets[place])
            return {}

    async def check(self) -> bool:
        """See ``ConsumerThread``."""
        return await self._client.check()

    async def perform_seek(self) -> None:
        """Read each partition again from its rewind offset, with the processed offset as the committed one.

        Those of stopped feeds, and those for which no position can be trusted, are not read.

        Raises
        ------
        IllegalStateError
            Another assignment came meanwhile, for which Faust seeks again: positions asked for before may be outdated.
        """
        tell(Moment(Stage.ASSIGNING))
        assignment = self._assignment_number()
        places = [TopicPartition(*tp) for tp in self.assignment()]
        there = await self.app.stop_changed({place.topic for place in places})  # of others the brokers have no offsets
        offsets = await self._client.committed([place for place in places if place.topic in there])
        positions = await self.app.decide_positions(offsets)
        if assignment != self._assignment_number():
            raise IllegalStateError("the group is rebalancing again")
        for before in self.assigned.values():
            before.end()
        self.assigned = {p: Assigned(p, replace(position, paused=""), position) for p, position in positions.items()}
        rewinds = {p: positions[p].rewind if p in positions else 0 for p in places}
        for place, rewind in rewinds.items():
            self._read_offset[TP(*place)] = rewind
            if reason := self.app.worker.why_stopped(place.topic):
                self.pause(place, reason)
            else:
                self.go_on(place)
        if rewinds:
            await self._thread.seek_wait({TP(*place): rewind for place, rewind in rewinds.items()})
        for place, position in positions.items():
            tell(Moment(Stage.ASSIGNED, place, position.rewind, position.processed))

    def _assignment_number(self) -> tuple[int, int]:
        """Changes when an assignment ends and when the next one begins."""
        return self.app.rebalancing_count, self.app.consumer_generation_id


class Transport(driver.Transport):
    """Faust's aiokafka transport with the consumer above."""

    Consumer = Consumer

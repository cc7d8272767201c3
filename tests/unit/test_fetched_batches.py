"""What a fetch becomes."""

from __future__ import annotations

import asyncio
import re
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from aiokafka.consumer import fetcher
from aiokafka.consumer.fetcher import READ_COMMITTED, UNKNOWN_OFFSET
from aiokafka.consumer.subscription_state import Assignment, SubscriptionState
from aiokafka.errors import NoOffsetForPartitionError
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.structs import OffsetAndMetadata, TopicPartition
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.transport import fetching
from streams.transport.fetching import (
    BACKLOG_BYTES,
    QUIET_MS,
    PacedFetcher,
    _Fetched,
    _partition_records,
    deliver_runs,
    until_next,
)
from streams.wire import fetched_batches
from streams.wire.fetched_batches import Run, joined
from streams.wire.record_batch import CorruptBatch, split
from tests.reference.batches import (
    ABORT,
    COMMIT,
    CONTROL,
    LOG_APPEND_TIME,
    TRANSACTIONAL,
    batch,
    marker_key,
    plain,
    stamped,
)

HERE = TopicPartition("toy", 0)


def marker(base: int, producer: int, kind: int) -> bytes:
    raw = batch([(marker_key(kind), struct.pack(">hi", 0, 0), [])], base)
    return stamped(raw, base, set_attributes=CONTROL | TRANSACTIONAL | LOG_APPEND_TIME, producer=producer)


def transactional(base: int, producer: int, count: int = 2) -> bytes:
    raw = batch([(b"k", b"v", [])] * count, base)
    return stamped(raw, base, set_attributes=TRANSACTIONAL | LOG_APPEND_TIME, producer=producer)


@pytest.fixture
def run_topic() -> Iterator[None]:
    """The topic of these tests is delivered as runs."""
    fetching._run_topics.add(HERE.topic)
    yield
    fetching._run_topics.discard(HERE.topic)


pytestmark = pytest.mark.usefixtures("run_topic")


def fetched(data: bytes, fetch_offset: int, aborted: list[tuple[int, int]] | None = None) -> Any:
    """What stands in for aiokafka's records of a fetch."""
    return _partition_records(HERE, _Fetched(data), aborted, fetch_offset, None, None, True, READ_COMMITTED)


def runs_of(records: Any) -> list[Run]:
    return [record.value for record in records]


def bases(run: Run) -> list[int]:
    return [b.base_offset for b in run.batches]


def test_a_fetch_becomes_one_run_that_ends_at_its_last_offset() -> None:
    records = fetched(plain(10) + plain(13), 10)
    (record,) = list(records)
    run = record.value
    assert (run.topic, run.partition, run.start, run.next, bases(run)) == ("toy", 0, 10, 16, [10, 13])
    assert (record.topic, record.partition, record.offset, record.timestamp) == ("toy", 0, 15, 9013)
    assert records.next_fetch_offset == 16


def test_a_fetch_cut_in_the_middle_of_a_batch_ends_before_it() -> None:
    whole = plain(10) + plain(13)
    records = fetched(whole[:-1], 10)
    (run,) = runs_of(records)
    assert (run.next, bases(run), records.next_fetch_offset) == (13, [10], 13)


def test_a_long_fetch_becomes_runs_that_follow_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many records as a run may have, a batch that has more alone, and the markers and gaps between them."""
    monkeypatch.setattr(fetched_batches, "LONGEST_RUN", 6)
    data = b"".join(
        [plain(10), plain(13), marker(16, 7, COMMIT), plain(17), plain(20, 9), plain(31), marker(34, 7, ABORT)]
    )
    found = runs_of(fetched(data, 11))
    assert [bases(run) for run in found] == [[10, 13], [17], [20], [31]]
    assert [(run.start, run.next) for run in found] == [(11, 17), (17, 20), (20, 31), (31, 35)]


def test_a_fetch_without_a_whole_batch_brings_no_run_and_stays_where_it_is() -> None:
    records = fetched(plain(10)[:-1], 10)
    assert runs_of(records) == []
    assert records.next_fetch_offset == 10


@settings(max_examples=200)
@given(
    st.lists(
        st.tuples(st.sampled_from(["plain", "data", "data", "end"]), st.sampled_from([7, 8]), st.booleans()),
        max_size=12,
    ),
    st.integers(0, 6),
)
def test_the_batches_of_a_run_are_those_aiokafka_takes_records_from(
    log: list[tuple[str, int, bool]], skip: int
) -> None:
    """Transactions of two producers between plain batches, fetched from any batch on."""
    raw: list[bytes] = []
    offsets: list[int] = []
    aborted: list[tuple[int, int]] = []
    open_since: dict[int, int] = {}
    at = 100
    for kind, producer, commits in [*log, ("end", 7, False), ("end", 8, False)]:
        if kind == "end" and producer not in open_since:
            continue
        offsets.append(at)
        if kind == "plain":
            raw.append(plain(at, 2))
        elif kind == "data":
            raw.append(transactional(at, producer))
            open_since.setdefault(producer, at)
        else:
            raw.append(marker(at, producer, COMMIT if commits else ABORT))
            first = open_since.pop(producer)
            if not commits:
                aborted.append((producer, first))
        at += 1 if kind == "end" else 2
    if skip >= len(raw):
        return
    data = b"".join(raw[skip:])
    theirs = fetching.fetcher_partition_records(
        HERE, fetching.fetcher_memory_records(data), list(aborted), offsets[skip], None, None, True, READ_COMMITTED
    )
    expected = [record.offset for record in theirs]
    (run,) = runs_of(fetched(data, offsets[skip], list(aborted)))
    assert [offset for b in run.batches for offset, *_ in b.records()] == expected
    assert run.next == theirs.next_fetch_offset == at


def test_runs_that_follow_each_other_are_joined_up_to_a_gap_or_a_length(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = [next(split(0, batch([(b"k", b"v", [])] * 2, base))) for base in (0, 2, 4, 7)]
    found = [Run("toy", 0, at, at + 2, (one,)) for at, one in zip((0, 2, 4, 7), batches, strict=True)]
    assert joined(found) == (Run("toy", 0, 0, 6, tuple(batches[:3])), 3)
    assert joined(found[3:]) == (found[3], 1)
    monkeypatch.setattr(fetched_batches, "LONGEST_RUN", 4)
    assert joined(found) == (Run("toy", 0, 0, 4, tuple(batches[:2])), 2)


def test_records_stamped_by_their_producer_are_refused_loudly() -> None:
    data = plain(10) + batch([(b"k", b"v", [])], 13, attributes=0)
    (refused,) = fetched(data, 10)
    assert isinstance(refused.value, CorruptBatch)
    assert re.search(r"toy/0 holds records .* set message\.timestamp\.type=LogAppendTime", str(refused.value))


def test_a_wrong_checksum_is_refused_loudly() -> None:
    data = bytearray(plain(10))
    data[-2] ^= 1
    (refused,) = fetched(bytes(data), 10)
    assert isinstance(refused.value, CorruptBatch)
    assert str(refused.value).startswith("toy/0: the batch at offset 10 has a wrong checksum")


def test_a_topic_that_is_no_feed_stays_as_aiokafka_has_it() -> None:
    other = TopicPartition("other", 0)
    records = _partition_records(other, _Fetched(plain(10)), None, 11, None, None, True, READ_COMMITTED)
    assert isinstance(records, fetching.fetcher_partition_records)
    assert [record.offset for record in records] == [11, 12]


class _State:
    paused = False
    position = 10

    def consumed_to(self, offset: int) -> None:
        self.position = offset


class _Assignment:
    active = True

    def __init__(self) -> None:
        self.state = _State()

    def state_value(self, _: TopicPartition) -> _State:
        return self.state


@pytest.mark.parametrize("one_by_one", [True, False])
def test_aiokafka_hands_out_a_run_and_moves_its_position_behind_it(one_by_one: bool) -> None:
    assignment = _Assignment()
    records = fetched(plain(10) + plain(13), 10)
    result = fetcher.FetchResult(HERE, assignment=assignment, partition_records=records, backoff=0)
    (record,) = [result.getone()] if one_by_one else result.getall()
    assert record.offset == 15
    assert assignment.state.position == 16
    assert not (result.getone() if one_by_one else result.has_more())


def test_what_was_fetched_of_a_partition_that_is_paused_is_let_go_and_fetched_again() -> None:
    """Kept, it would hold up every other partition of its broker; passed over, it would be lost."""
    assignment = _Assignment()
    assignment.state.paused = True
    result = fetcher.FetchResult(HERE, assignment=assignment, partition_records=fetched(plain(10), 10), backoff=0)
    assert result.getall() == []
    assert not result.has_more()
    assert assignment.state.position == 10


def test_the_bytes_of_a_fetch_say_whether_it_holds_anything() -> None:
    assert _Fetched(plain(10)).has_next()
    assert not _Fetched(plain(10)[:-1]).has_next()
    assert _Fetched(plain(10)[:-1]).size_in_bytes() == len(plain(10)) - 1
    assert not _Fetched(b"").has_next()


def deliver_runs_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deliver the topic of ``HERE`` as runs until the end of a test."""
    for name in ("MemoryRecords", "PartitionRecords"):
        monkeypatch.setattr(fetcher, name, getattr(fetcher, name))
    deliver_runs([HERE.topic])


class Answer(NamedTuple):
    """What a broker answers to a fetch."""

    topics: list[tuple[str, list[tuple[Any, ...]]]]
    API_VERSION: int = 4


class Brokers:
    """Answer each fetch at once with the same bytes of one partition, and count the fetches."""

    _metadata_max_age_ms = 300_000

    def __init__(self, data: bytes) -> None:
        self._loop = asyncio.get_running_loop()
        self.data = data
        self.asked = 0

    async def send(self, _: int, request: Any) -> Answer:
        self.asked += 1
        return Answer([(HERE.topic, [(HERE.partition, 0, 10, 10, None, self.data)])])


@pytest.mark.parametrize(
    ("data", "asked"), [(plain(0), 1), (batch([(b"k", bytes(BACKLOG_BYTES), [])], 0), 2)], ids=["little", "backlog"]
)
def test_the_next_fetch_waits_for_its_moment_but_not_in_a_backlog(
    data: bytes, asked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "FETCH_SECONDS", 3600.0)

    async def work() -> None:
        brokers = Brokers(data)
        reading = PacedFetcher(brokers, SubscriptionState())
        assignment = Assignment([HERE])
        assignment.state_value(HERE).seek(0)
        request = FetchRequest(0, 1, 2**20, READ_COMMITTED, [(HERE.topic, [(HERE.partition, 0, 2**20)])])
        assert await reading._proc_fetch_request(assignment, 0, request)
        again = asyncio.create_task(reading._proc_fetch_request(assignment, 0, request))
        for _ in range(20):
            await asyncio.sleep(0)
        assert brokers.asked == asked
        again.cancel()
        assert not await again or asked == 2
        await reading.close()

    deliver_runs_in(monkeypatch)
    asyncio.run(work())


def test_a_broker_waits_for_a_record_only_after_an_empty_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each broker by itself; and not one whose partitions are given away while it is asked."""
    monkeypatch.setattr(fetching, "FETCH_SECONDS", 1e-6)

    async def work() -> None:
        brokers = Brokers(b"")
        reading = PacedFetcher(brokers, SubscriptionState())
        assignment = Assignment([HERE])
        assignment.state_value(HERE).seek(0)

        async def ask(node: int, data: bytes) -> int:
            brokers.data = data
            request = FetchRequest(7, 1, 2**20, READ_COMMITTED, [(HERE.topic, [(HERE.partition, 0, 2**20)])])
            assert request._max_wait_ms == 7
            await reading._proc_fetch_request(assignment, node, request)
            reading._records.clear()
            wait: int = request._max_wait_ms
            return wait

        assert [await ask(0, b""), await ask(1, plain(0))] == [0, 0]
        assert [await ask(0, plain(0)), await ask(1, b"")] == [QUIET_MS, 0]
        assert [await ask(0, b""), await ask(1, b"")] == [0, QUIET_MS]
        assignment._unassign()
        assert [await ask(0, b""), await ask(0, b"")] == [QUIET_MS, 0]
        await reading.close()

    deliver_runs_in(monkeypatch)
    asyncio.run(work())


def test_a_partition_whose_leader_changes_before_it_has_a_position_is_asked_for_at_both() -> None:
    """Each answer is that there is none; the second may not end the task that fetches."""

    async def work() -> None:
        reading = PacedFetcher(Brokers(b""), SubscriptionState(), auto_offset_reset="none")
        assignment = Assignment([HERE])
        asked = [asyncio.create_task(reading._update_fetch_positions(assignment, node, [HERE])) for node in (0, 1)]
        await asyncio.sleep(0)
        assignment.state_value(HERE).update_committed(OffsetAndMetadata(UNKNOWN_OFFSET, ""))
        await asyncio.gather(*asked)
        with pytest.raises(NoOffsetForPartitionError):
            reading._records[HERE].check_raise()
        await reading.close()

    asyncio.run(work())


@pytest.mark.parametrize(
    ("last", "now", "wait"), [(100.0, 100.1, 0.9), (100.2, 100.3, 0.7), (101.05, 101.1, 0.9), (100.0, 107.0, 0.0)]
)
def test_all_brokers_are_asked_at_the_same_moments(last: float, now: float, wait: float) -> None:
    """A fetch that was late, or ended late, does not move the moments."""
    assert until_next(began=100.0, last=last, now=now) == pytest.approx(wait)

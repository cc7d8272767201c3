"""A schema whose files come late: what the processor decided about a record stands, and the sink follows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import polars as pl
import pytest
from kafka.errors import NodeNotReadyError

from processors.partition import Output
from schemas.catalogue import AHEAD, Catalogue, freeze
from schemas.record_codec import prefix
from sinks.processor_verdicts import Positions, ProcessorVerdicts
from sinks.topic_rows import FeedReader, PartReader, Unread
from streams.assignment import TopicPartition
from streams.decode import Decoder
from streams.ending import Stop
from streams.feed_topics import feed_topics
from streams.missing_schemas import Awaited, GivenUp, NotYet
from streams.positions import NO_EVENT_TIME, Position, PositionProblem, first
from streams.wire.fetched_batches import Run
from tests.columns import Staged, process
from tests.reference.batches import batch, run
from tests.reference.newer import NEWER, NEWER_SCHEMA, newer
from tests.reference.toy import FEED, value

KEY = b"d-1"
LATE = NEWER_SCHEMA.id
OLD = LATE - 1
PLACE = TopicPartition("toy", 0)
#: Of a log: batches of one version each, and one with both.
LOG: Sequence[Sequence[bytes]] = [[value()], [newer(), newer()], [value(), newer(), value()], [newer()]]


def logged(batches: Sequence[Sequence[bytes]], first_batch: int = 0) -> Run:
    """Batches of a log as a run; offsets are counted over all of them."""
    bases = [sum(map(len, batches[:n])) for n in range(len(batches))]
    raw = [batch([(KEY, one, []) for one in batches[n]], bases[n]) for n in range(first_batch, len(batches))]
    return run(*raw)


class Files:
    """Where the first version is frozen; the newer one comes when it is told to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        freeze({"toy": FEED}, folder)

    def come(self) -> None:
        freeze({"toy": NEWER}, self.folder)

    def reader(self, patience: float = 0.0) -> Decoder:
        catalogue = Catalogue.load(self.folder)
        return Decoder(catalogue, "toy", FEED, Awaited(catalogue, patience))


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def offsets(rows: pl.DataFrame) -> list[int]:
    return rows["_offset"].to_list()


@pytest.mark.parametrize("begin", range(len(LOG)))
def test_what_was_given_up_stays_dead_when_the_files_are_there(files: Files, begin: int) -> None:
    given_up: dict[int, int] = {}
    early = logged(LOG[:3], begin) if begin < 3 else logged(LOG[:3])
    files.reader().read(early, 0, GivenUp(given_up, early.next - 1))
    assert given_up == {LATE: 5}

    files.come()
    whole = logged(LOG)
    decoded = files.reader().read(whole, 0, GivenUp(given_up, whole.next - 1))
    assert offsets(decoded.rows) == [0, 3, 5, 6]
    assert [letter.offset for letter in decoded.dead] == [1, 2, 4]
    assert {letter.cause for letter in decoded.dead} == {f"the schema id {LATE} was not known when this was processed"}
    assert given_up == {LATE: 5}


def test_files_that_come_while_a_run_is_read_come_for_the_next_one(files: Files) -> None:
    given_up: dict[int, int] = {}
    reader, whole = files.reader(), logged(LOG)

    class Coming(GivenUp):
        def give_up(self, schema_id: int) -> None:
            super().give_up(schema_id)
            files.come()

    decoded = reader.read(whole, 0, Coming(given_up, whole.next - 1))
    assert offsets(decoded.rows) == [0, 3, 5]
    assert [letter.offset for letter in decoded.dead] == [1, 2, 4, 6]
    assert given_up == {LATE: 6}


def processed(partition: Staged, *runs: Run) -> Output:
    for one in runs:
        process(partition, one)
    output = partition.flush()
    assert output is not None
    return output


def events(output: Output) -> int:
    """Of all parts of the first aggregate."""
    return int(output.parts[FEED.aggregates[0].name].cells["events"].sum())


def test_a_restarted_processor_counts_nothing_of_what_it_gave_up(files: Files) -> None:
    """Its windows are open, it reads everything again, and the files are there."""
    batches = [[value(event_id=str(UUID(int=n)))] if n % 2 else [newer(event_id=str(UUID(int=n)))] for n in range(6)]
    start = first("id", FEED.definition, 0)
    before = processed(Staged(FEED, 0, files.reader(), start, accept_bad=True), logged(batches))
    assert [letter.offset for letter in before.dead] == [0, 2, 4]
    assert (before.position.rewind, before.position.given_up, events(before)) == (1, {LATE: 5}, 3)

    files.come()
    more = [*batches, [newer(event_id=str(UUID(int=6)))]]
    again = replace(before.position, rewind=0, max_event_ms=NO_EVENT_TIME)
    after = processed(Staged(FEED, 0, files.reader(), again), logged(more))
    assert (after.dead, events(after)) == ([], 4)
    assert after.position.newest_schema == LATE


def test_a_processor_with_older_files_than_the_one_before_does_not_begin(files: Files) -> None:
    """It would make dead letters of what that one had counted."""
    older = files.reader()
    begun = replace(first("id", FEED.definition, 0), newest_schema=LATE)
    with pytest.raises(Stop, match=f"toy/0 was processed with schema ids up to {LATE}, and those here end at {OLD}"):
        Staged(FEED, 0, older, begun)
    files.come()
    Staged(FEED, 0, older, begun)


class Processor:
    """Positions as the brokers give them, one answer after the other; the last one stays."""

    def __init__(self, *answers: Positions | Exception) -> None:
        self.answers = list(answers)

    def ask(self) -> Positions:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def at(processed: int, newest: int = OLD, given_up: int | None = None) -> Positions:
    gone = {} if given_up is None else {LATE: given_up}
    return {PLACE: Position(processed, 0, 0, "id", "def", given_up=gone, newest_schema=newest)}


@pytest.mark.parametrize(
    ("answers", "schema_id", "dead_to", "asked_again"),
    [
        ([at(0)], 1, -1, 0),  # it knew it before it came here
        ([at(9)], 1, -1, 0),
        ([at(9, LATE)], LATE, -1, 0),
        ([at(9, LATE, 4)], LATE, 4, 0),  # it gave it up, and then it came
        ([at(9, OLD, 4)], LATE, 6, 0),  # it gave it up
        ([at(6), at(6), at(6, LATE)], LATE, -1, 2),  # it has not come so far, and then knows it
        ([at(6), at(7)], LATE, 6, 1),  # it came past it
        ([at(6)], OLD + AHEAD + 1, 6, 0),  # nothing it would wait for
        ([at(6, OLD - 1 - AHEAD), at(7, OLD)], OLD, -1, 1),  # it was idle for long
        ([{}], 1, -1, 0),  # there never was one
        ([{}, {}, at(7, LATE)], LATE, -1, 2),
        ([at(6, 0), at(7, LATE)], LATE, -1, 1),  # set from outside
        ([NodeNotReadyError(), OSError(), at(7, LATE)], LATE, -1, 2),
    ],
)
def test_the_sink_goes_by_what_the_processor_decided(
    files: Files, answers: list[Positions | Exception], schema_id: int, dead_to: int, asked_again: int
) -> None:
    """Of a run from offset 0 to 6, whether the sink has the files or not."""
    here, processor = logged(LOG), Processor(*answers)
    assert here.next == 7
    verdicts = ProcessorVerdicts(Catalogue.load(files.folder), processor.ask)
    for _ in range(asked_again):
        with pytest.raises(NotYet):
            verdicts.of(here).dead_to(schema_id)
    assert verdicts.of(here).dead_to(schema_id) == dead_to
    processor.answers = [AssertionError("it has an answer")]
    assert verdicts.of(here).dead_to(schema_id) == dead_to


def test_a_processor_of_a_newer_release_is_in_the_way_of_its_own_partition_alone(files: Files) -> None:
    """It may know a schema that a part of a window names, so none is left out as written by somebody else."""
    problem = PositionProblem("it was written by a newer release")
    processor = Processor({**at(9, OLD), TopicPartition("toy", 1): problem})
    verdicts, here = ProcessorVerdicts(Catalogue.load(files.folder), processor.ask), logged(LOG)
    assert verdicts.of(here).dead_to(1) == -1
    with pytest.raises(PositionProblem, match="newer release"):
        verdicts.of(replace(here, partition=1)).dead_to(1)
    with pytest.raises(NotYet):
        verdicts.of_parts(here).give_up(LATE)


def test_that_there_was_no_processor_does_not_hold_for_ever(files: Files) -> None:
    processor = Processor({}, at(6, OLD, 4))
    catalogue = Catalogue.load(files.folder)
    verdicts, here = ProcessorVerdicts(catalogue, processor.ask), logged(LOG[:3])
    assert verdicts.of(here).dead_to(OLD) == -1
    files.come()
    catalogue.refresh()
    assert verdicts.of(here).dead_to(LATE) == 5, "it has given it up meanwhile"


def test_the_sink_stores_what_the_processor_counted(files: Files) -> None:
    files.come()
    catalogue = Catalogue.load(files.folder)
    verdicts = ProcessorVerdicts(catalogue, Processor(at(6, OLD, 5), at(7, LATE, 5)).ask)
    (topic,) = feed_topics(FEED).values()
    rows, *_ = FeedReader(topic, catalogue, "UTC", verdicts).read([Unread(logged(LOG), 0, NO_EVENT_TIME)])[0]
    assert rows["source_offset"].to_list() == [0, 3, 5, 6]


def test_a_restarted_processor_does_not_wait_again(files: Files) -> None:
    """What the earlier life gave up says that it has waited, with the files that are here."""
    waits = logged([[newer()]])
    given_up = replace(first("id", FEED.definition, 0), given_up={LATE + 1: 0}, newest_schema=OLD)
    assert process(Staged(FEED, 0, files.reader(patience=60), given_up), waits) == 1
    for start in (replace(given_up, given_up={OLD: 0}), replace(given_up, newest_schema=OLD - 1)):
        partition = Staged(FEED, 0, files.reader(patience=60), start)
        with pytest.raises(NotYet):
            process(partition, waits)
        files_came = partition.flush()
        assert files_came is None, "nothing of the run was taken"


def test_a_run_that_had_to_wait_is_taken_as_if_it_had_not(files: Files) -> None:
    partition = Staged(FEED, 0, files.reader(patience=60), first("id", FEED.definition, 0))
    for _ in range(2):
        with pytest.raises(NotYet):
            process(partition, logged(LOG))
    files.come()
    undisturbed = Staged(FEED, 0, files.reader(), first("id", FEED.definition, 0))
    found, expected = (processed(one, logged(LOG)) for one in (partition, undisturbed))
    assert found.position == expected.position
    assert (found.dead, events(found)) == (expected.dead, events(expected)) == ([], 1)


@pytest.mark.parametrize("known", [OLD, LATE])
def test_a_topic_of_windows_waits_only_for_what_the_processor_has(
    files: Files, caplog: pytest.LogCaptureFixture, known: int
) -> None:
    """Anybody may write there. Time is over at once here; what is junk is left out, and said."""
    catalogue = Catalogue.load(files.folder)
    aggregate = FEED.aggregates[0]

    def verdicts(said: Positions) -> ProcessorVerdicts:
        return ProcessorVerdicts(catalogue, Processor(said).ask)

    junk = run(batch([(KEY, prefix(LATE) + b"\x00", [])], 0), topic=aggregate.topic)
    reader = PartReader(FEED, aggregate, catalogue, "UTC", verdicts(at(6, known)), patience=0)
    if known == LATE:
        with pytest.raises(NotYet, match="which the processor has and which is not frozen here"):
            reader.read([Unread(junk, 0, NO_EVENT_TIME)])
    else:
        assert reader.read([Unread(junk, 0, NO_EVENT_TIME)])[0].rows.is_empty()
        assert "1 records from offset 0 on are no parts of windows" in caplog.text
    with pytest.raises(NotYet, match="waiting for its files"):
        PartReader(FEED, aggregate, catalogue, "UTC", verdicts(at(6))).read([Unread(junk, 0, 0)])

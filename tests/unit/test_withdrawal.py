"""When a publication can be taken back, and which rows are its own."""

from __future__ import annotations

from dataclasses import replace

import pytest

from operations.withdrawal import check_stored
from sinks.dialect import Dialect
from sinks.rebuild import Rebuild, Span
from sinks.withdrawal import rows_at
from streams.group_partition import GroupPartition
from streams.positions import Position, PositionProblem
from streams.publications import Publication
from tests.reference.toy import FEED, NOON

PUBLICATION = Publication("id", "toy", "toy.csv", "", "me", 3, 0, {0: ((2, 3), (7, 7))})
SINK = GroupPartition(
    group="sink", topic="toy", partition=0, committed=8, metadata="", kept=None, topic_id="", definition="",
    log_start=0, log_end=8,
)  # fmt: skip


@pytest.mark.parametrize(
    ("sink", "processor", "waits_for"), [(8, 8, None), (7, 8, "sink"), (8, 7, "processor"), (None, 8, "sink")]
)
def test_a_publication_is_taken_back_when_both_workers_are_past_its_last_record(
    sink: int | None, processor: int, waits_for: str | None
) -> None:
    workers = {0: replace(SINK, committed=sink)}, {0: replace(SINK, group="processor", committed=processor)}
    if waits_for is None:
        check_stored(PUBLICATION, *workers)
        return
    with pytest.raises(PositionProblem, match=f"^{waits_for} in toy/0: the records of toy.csv end at offset 7"):
        check_stored(PUBLICATION, *workers)


def test_its_rows_are_told_by_their_offsets_alone() -> None:
    assert "arrayJoin([[2, 3], [7, 7]])" in rows_at(PUBLICATION.stretches)
    assert rows_at({}) == "(0)"


def test_parts_built_without_it_are_of_the_lives_there_are_and_newer_than_all_parts_that_are_final() -> None:
    statements = []

    class Asked:
        def execute(self, statement: str, **_: object) -> list[tuple[int, list[int]]]:
            statements.append(statement)
            return [(0, [0, 40])]

    position = Position(500, 420, NOON, "id-1", FEED.definition, max_processed_ms=NOON, since=40)
    aggregate = FEED.aggregates[0]
    Rebuild(Asked(), FEED, {0: position}, Dialect("UTC")).build_without(aggregate, Span(0, 1, 1), "rows")
    _, of_what_stays, of_nothing = statements
    for statement in (of_what_stays, of_nothing):
        assert statement.startswith(f"INSERT INTO raw.{aggregate.topic} ")
        assert "2 * [500][source_partition + 1] - 1" in statement
        assert "[[0, 0, 40]][source_partition + 1]" in statement
    assert "AND NOT rows AND" in of_what_stays
    assert "events" not in of_nothing.partition("SELECT")[0]

from dataclasses import replace
from datetime import UTC, datetime

from kafka.admin import ACLOperation, ACLResourcePatternType, ResourceType

import feeds
from citystream.rights import CLOCK, SUBSCRIBER, publisher, rights
from schemas.alerts import FEED_NAME
from schemas.feed import Outgrown
from streams import checkpoints, deadletters, publications, snapshots
from streams.feed_topics import feed_topics
from streams.gathered import gathered_topics
from streams.topics import topics

FEEDS = list(feeds.load().values())
PUBLISHED = [feed for feed in FEEDS if not feed.by_workers]
OURS = {deadletters.TOPIC, checkpoints.TOPIC, snapshots.TOPIC, *(feed.name for feed in FEEDS if feed.by_workers)}
OF_WORKERS = {a.topic for feed in FEEDS for a in feed.aggregates} | OURS


def may(operation: ACLOperation, user: str) -> set[str]:
    found = rights(FEEDS)
    return {r.name for r in found if (r.operation, r.kind, r.user) == (operation, ResourceType.TOPIC, user)}


def test_a_topic_of_records_is_written_by_its_department_and_where_it_asks_for_ticks_by_the_clock() -> None:
    for feed in PUBLISHED:
        writers = {r.user for r in rights(FEEDS) if r.operation is ACLOperation.WRITE and r.name == feed.name}
        workers = {"processor"} if feed.made_of else set()
        assert writers == {publisher(feed.department.name)} | workers | ({CLOCK} if feed.delay is not None else set())


def test_windows_alerts_positions_and_dead_letters_are_written_by_workers_alone() -> None:
    writers = {r.user for r in rights(FEEDS) if r.operation is ACLOperation.WRITE and r.name in OF_WORKERS}
    assert writers == {"processor", "sink"}
    assert may(ACLOperation.WRITE, "sink") == {checkpoints.TOPIC}


def test_subscribers_read_alerts_alone_in_groups_that_are_no_worker_s() -> None:
    """A member of a worker's group would take partitions from it."""
    found = {(r.operation, r.kind, r.name, r.pattern) for r in rights(FEEDS) if r.user == SUBSCRIBER}
    assert found == {
        (ACLOperation.READ, ResourceType.TOPIC, FEED_NAME, ACLResourcePatternType.LITERAL),
        (ACLOperation.READ, ResourceType.GROUP, "subscriber-", ACLResourcePatternType.PREFIXED),
    }


def test_every_topic_of_a_feed_is_read_by_both_workers() -> None:
    gathered, own = {*gathered_topics(*FEEDS)}, {checkpoints.TOPIC, snapshots.TOPIC}
    ours = {topic.name for topic in topics(FEEDS)}
    assert may(ACLOperation.READ, "sink") == ours - gathered - {publications.TOPIC, snapshots.TOPIC}
    assert may(ACLOperation.READ, "processor") == {feed.name for feed in FEEDS} | gathered | own
    assert {r.operation for r in rights(FEEDS) if r.user == "operator"} == {ACLOperation.READ, ACLOperation.DESCRIBE}


def test_a_feed_that_grew_is_written_where_it_is_now_and_read_wherever_it_was() -> None:
    until = datetime(2026, 11, 21, tzinfo=UTC)
    grown = replace(PUBLISHED[0], partitions=6, outgrown=(Outgrown(partitions=4, until=until),))
    old, new = feed_topics(grown)
    found = {(r.user, r.operation) for r in rights([grown]) if r.name == old}
    assert found == {("processor", ACLOperation.READ), ("sink", ACLOperation.READ)}
    assert (publisher(grown.department.name), ACLOperation.WRITE) in {
        (r.user, r.operation) for r in rights([grown]) if r.name == new
    }


def test_a_department_that_publishes_tables_alone_notes_what_it_published() -> None:
    tables = [table for table in feeds.references().values() if table.name == "event_plan"]
    user = publisher(tables[0].department.name)
    assert not [feed for feed in PUBLISHED if publisher(feed.department.name) == user]
    found = {(r.operation, r.name) for r in rights(FEEDS, tables) if r.user == user}
    names = {publications.TOPIC, "event_plan"}
    assert found == {(operation, name) for operation in (ACLOperation.READ, ACLOperation.WRITE) for name in names}


def test_no_department_is_taken_for_a_worker() -> None:
    assert publisher("Traffic police") == "publisher-traffic-police"
    assert publisher("processor") == "publisher-processor"
    assert publisher("交警支队") == "publisher-交警支队"

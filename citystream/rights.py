"""Who may do what on a Kafka whose brokers ask: the workers, operators, and each department with its own feeds.

Kafka knows them as users. What is not in the list may only be done by the brokers' super users, of which ``owner`` is
one: it creates topics and moves positions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass

from kafka.admin import (
    ACL,
    ACLFilter,
    ACLOperation,
    ACLPermissionType,
    ACLResourcePatternType,
    ResourcePattern,
    ResourcePatternFilter,
    ResourceType,
)
from kafka.errors import NoError

from processors import GROUP as PROCESSOR
from schemas import alerts
from schemas.feed import Feed
from schemas.reference import Reference
from sinks import GROUP as SINK
from streams import checkpoints, clock, deadletters, publications, snapshots
from streams.clients import new_admin
from streams.cluster import Cluster
from streams.feed_topics import feed_topics
from streams.gathered import gathered_topics
from streams.publisher import topic_for

OWNER, OPERATOR, CLOCK, SUBSCRIBER = "owner", "operator", "clock", "subscriber"
ALL = "*"
_PUBLISHER = "publisher-"
_OURS = re.compile(rf"User:({PROCESSOR}|{SINK}|{OPERATOR}|{CLOCK}|{SUBSCRIBER}|{_PUBLISHER}.*)")
_ANY = ResourcePatternFilter(ResourceType.ANY, None, ACLResourcePatternType.ANY)
_ALLOWED = ACLFilter(None, None, ACLOperation.ANY, ACLPermissionType.ALLOW, _ANY)


@dataclass(frozen=True)
class Right:
    """A user may do something with a topic or a group, with all of them, or with those whose names begin so; in Kafka's
    own words."""

    user: str
    operation: ACLOperation
    kind: ResourceType
    name: str
    pattern: ACLResourcePatternType = ACLResourcePatternType.LITERAL

    @property
    def names(self) -> str:
        """What it is for, as people read it: a name, or how names begin."""
        return self.name if self.pattern is ACLResourcePatternType.LITERAL else f"{self.name}*"

    @property
    def acl(self) -> ACL:
        """The same as an access control list of Kafka's."""
        place = ResourcePattern(self.kind, self.name, self.pattern)
        return ACL(f"User:{self.user}", ALL, self.operation, ACLPermissionType.ALLOW, place)


def publisher(department: str) -> str:
    """The user of a department's publishers."""
    return _PUBLISHER + re.sub(r"\W+", "-", department.strip().lower())


def rights(feeds: Iterable[Feed], references: Iterable[Reference] = ()) -> list[Right]:
    """All there are for these feeds and tables of reference data.

    Windows, positions and dead letters are written by workers alone, and a feed's newest topic by its department. A
    processor writes into that of a feed that is made of others, and into a table's topic: marks of how far it has come.
    """
    feeds, references = list(feeds), list(references)
    tables = [reference.name for reference in references]
    records, parts = list(feed_topics(*feeds)), [aggregate.topic for feed in feeds for aggregate in feed.aggregates]
    found: list[Right] = []

    def topics(user: str, operation: ACLOperation, names: Iterable[str]) -> None:
        found.extend(Right(user, operation, ResourceType.TOPIC, name) for name in names)

    def group(user: str, operation: ACLOperation, name: str) -> None:
        found.append(Right(user, operation, ResourceType.GROUP, name))

    read, write, describe = ACLOperation.READ, ACLOperation.WRITE, ACLOperation.DESCRIBE
    ours = [topic_for(feed) for feed in feeds if not feed.is_source]
    gathered = [*gathered_topics(*feeds)]
    topics(PROCESSOR, read, [*records, *gathered, checkpoints.TOPIC, snapshots.TOPIC])
    topics(PROCESSOR, write, [*parts, *gathered, *ours, deadletters.TOPIC, checkpoints.TOPIC, snapshots.TOPIC])
    topics(SINK, read, [*records, *parts, deadletters.TOPIC, checkpoints.TOPIC])
    topics(SINK, write, [checkpoints.TOPIC])
    for worker in (PROCESSOR, SINK):
        topics(worker, describe, [publications.TOPIC, snapshots.TOPIC])
        group(worker, read, worker)
    group(SINK, describe, PROCESSOR)
    topics(OPERATOR, read, [ALL])
    group(OPERATOR, describe, ALL)
    for worker in (PROCESSOR, SINK):
        topics(worker, read, tables)
    topics(PROCESSOR, write, tables)
    published = [feed for feed in feeds if not feed.by_workers]
    topics(CLOCK, write, clock.ticking(feeds))
    topics(SUBSCRIBER, read, [topic for topic in ours if topic == alerts.FEED_NAME])
    found.append(Right(SUBSCRIBER, read, ResourceType.GROUP, f"{SUBSCRIBER}-", ACLResourcePatternType.PREFIXED))
    departments = {feed.department.name for feed in published} | {one.department.name for one in references}
    for department in sorted(departments):
        own = [topic_for(feed) for feed in published if feed.department.name == department]
        of_tables = [reference.name for reference in references if reference.department.name == department]
        topics(publisher(department), write, [*own, publications.TOPIC, *of_tables])
        topics(publisher(department), read, [publications.TOPIC, *of_tables])
    return found


def give(cluster: Cluster, wanted: Iterable[Right]) -> tuple[int, int]:
    """Let the users above have these rights and no others; gives how many are new, and how many were taken away."""
    acls = {right.acl for right in wanted}
    with closing(new_admin(cluster)) as admin:
        there = {acl for acl in admin.describe_acls(_ALLOWED)[0] if _OURS.fullmatch(acl.principal)}
        new, old = acls - there, there - acls
        failed = admin.create_acls(list(new))["failed"] if new else []
        taken = admin.delete_acls([_filter(acl) for acl in old]) if old else []
    for error in [*failed, *(error for _, _, error in taken)]:
        if error is not NoError:
            raise error
    return len(new), len(old)


def _filter(acl: ACL) -> ACLFilter:
    place = acl.resource_pattern
    exactly = ResourcePatternFilter(place.resource_type, place.resource_name, place.pattern_type)
    return ACLFilter(acl.principal, acl.host, acl.operation, acl.permission_type, exactly)

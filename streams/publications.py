"""Which file brought a record: a note of every file that was published, on a compacted topic that keeps them for good.

A publisher writes it when Kafka has acknowledged the records, or as many as it took. Of a publisher that was killed
there is none, nor of records that came from no file.
"""

from __future__ import annotations

import dataclasses
import getpass
import json
import socket
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import numpy as np
from kafka import KafkaProducer

from schemas.persisted import Newer, check_version
from streams.clients import records_of
from streams.cluster import Cluster

TOPIC = "publications"
#: Of a note; those of version 1 need not say it.
VERSION = 1

#: Stretches of offsets in one record; a publication among others' records has many.
MOST_STRETCHES = 10_000

#: First and last offset.
Stretch = tuple[int, int]


@dataclass(frozen=True)
class Publication:
    """A file that was published: what it was, who published it, and where its records are.

    ``digest`` is of the content, uncompressed, SHA-256. Partitions are numbered through all topics of the feed, as in
    ClickHouse. ``at_ms`` is the brokers' time, None before they have it.
    """

    id: str
    feed: str
    file: str
    digest: str
    publisher: str
    accepted: int
    rejected: int
    stretches: Mapping[int, tuple[Stretch, ...]]
    at_ms: int | None = None

    @property
    def records(self) -> int:
        """How many records Kafka acknowledged."""
        return sum(last - first + 1 for of_one in self.stretches.values() for first, last in of_one)

    def brought(self, feed: str, partition: int, offset: int) -> bool:
        """Whether a record is of this file."""
        of_one = self.stretches.get(partition, ()) if feed == self.feed else ()
        begun = bisect_right(of_one, offset, key=itemgetter(0))
        return begun > 0 and offset <= of_one[begun - 1][1]


def own_name() -> str:
    """Who publishes or withdraws from here: user and machine."""
    return f"{getpass.getuser()}@{socket.gethostname()}"


def stretches(offsets: Iterable[int]) -> tuple[Stretch, ...]:
    """Offsets, in any order, as stretches without a gap."""
    found = np.unique(np.fromiter(offsets, dtype=np.int64))
    if not len(found):
        return ()
    ends = np.flatnonzero(np.diff(found) > 1)
    firsts, lasts = found[np.r_[0, ends + 1]], found[np.r_[ends, len(found) - 1]]
    return tuple(zip(firsts.tolist(), lasts.tolist(), strict=True))


def note(producer: KafkaProducer, publication: Publication) -> None:
    """Write a publication down; the producer's owner waits for it."""
    for n, (partition, some) in enumerate(_pieces(publication.stretches)):
        fields = dataclasses.asdict(publication) | {"version": VERSION, "partition": partition, "stretches": some}
        del fields["at_ms"]
        producer.send(TOPIC, key=f"{publication.id}/{n}".encode(), value=json.dumps(fields).encode())


def _pieces(found: Mapping[int, tuple[Stretch, ...]]) -> Iterator[tuple[int, tuple[Stretch, ...]]]:
    for partition, of_one in found.items():
        for begin in range(0, len(of_one), MOST_STRETCHES):
            yield partition, of_one[begin : begin + MOST_STRETCHES]


def read(cluster: Cluster) -> list[Publication]:
    """All publications, the oldest first.

    Raises
    ------
    Newer
        A newer release noted one.
    """
    found: dict[str, Publication] = {}
    for kept in records_of(cluster, TOPIC):
        take(found, kept.value, kept.timestamp)
    return list(found.values())


def take(found: dict[str, Publication], value: bytes | None, at_ms: int) -> None:
    """Note a part of a publication; one that cannot be read counts as none, one of a newer release is refused."""
    try:
        fields: dict[str, Any] = json.loads(value or b"")
        check_version(fields, VERSION)
        fields.pop("version", None)
        partition, some = int(fields.pop("partition")), [(int(a), int(b)) for a, b in fields.pop("stretches")]
        known = found.get(fields["id"]) or Publication(**fields, stretches={}, at_ms=at_ms)
    except Newer as newer:
        raise Newer(f"a note on the topic {TOPIC} {newer}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        return
    of_one = (*known.stretches.get(partition, ()), *some)
    found[known.id] = dataclasses.replace(known, stretches={**known.stretches, partition: of_one})

"""The kernels that were compiled, and not found compiled, while records of every feed took all their ways; one a line.

They are read, counted into windows, written as parts, and read again as the sink reads; some cannot be read.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from itertools import islice
from types import ModuleType

from numba.core.dispatcher import Dispatcher

import feeds
from processors import automata, tables, windows
from schemas.catalogue import Catalogue
from schemas.feed import Feed
from schemas.pseudonyms import replaced
from schemas.record_codec import encode
from schemas.verdict import instant_ms
from simulation import simulator
from simulation.incidents import USUAL
from simulation.world import World
from sinks.topic_rows import FeedReader, PartReader, Unread
from streams.decode import Decoder
from streams.feed_topics import topic_of
from streams.history import History
from streams.positions import first
from streams.wire import column_writer, kernel
from streams.wire.column_writer import encode_bodies
from streams.wire.record_batch import packed
from tests.columns import Staged, process
from tests.reference.batches import batch, run, stamped

KERNELS: tuple[ModuleType, ...] = (automata, column_writer, kernel, tables, windows)
START = datetime(2024, 5, 6, 7, tzinfo=UTC)
RECORDS = 300


def take_all_ways(feed: Feed, catalogue: Catalogue) -> None:
    """Process and store records of a feed, every tenth of them cut off."""
    frozen = catalogue.latest(feed.name)
    simulated = islice(simulator(feed)(World(START, 1, USUAL)), RECORDS)
    made = [replaced(feed, bytes(32), record.model_dump()) for record in simulated]
    values = [(one[feed.key].encode(), encode(frozen, one)) for one in made]
    arrived = max(instant_ms(one[feed.event_time]) for one in made)
    good = batch([(key, value, []) for key, value in values], 0, "lz4", arrived)
    some = batch([(k, v[: len(v) - (n % 10 == 0)], []) for n, (k, v) in enumerate(values)], RECORDS, "lz4", arrived)
    found = run(good, some, topic=feed.name)
    tables = feeds.references()
    partition = Staged(
        feed, 0, Decoder(catalogue, feed.name, feed), first("id", feed.definition, 0),
        histories=lambda name, _: History(tables[name], []),
    )  # fmt: skip
    assert process(partition, found) == 2 * RECORDS
    FeedReader(topic_of(feed, 0), catalogue, "UTC").read([Unread(found, 0, 0)])
    output = partition.flush()
    assert output is not None
    for aggregate in feed.aggregates:
        written = catalogue.latest(aggregate.topic)
        (body,) = encode_bodies(written, aggregate.by, output.parts[aggregate.name], 2**24)
        parts = run(stamped(packed(body.data, body.count), 0, arrived), topic=aggregate.topic)
        ((rows, *_),) = PartReader(feed, aggregate, catalogue, "UTC").read([Unread(parts, 0, 0)])
        assert rows.height == body.count


def compiled() -> list[str]:
    """The functions that were compiled in this process."""
    functions = {one for module in KERNELS for one in vars(module).values() if isinstance(one, Dispatcher)}
    return sorted(f"{one.py_func.__module__}.{one.py_func.__name__}" for one in functions if one.stats.cache_misses)


if __name__ == "__main__":
    for declared in feeds.load().values():
        take_all_ways(declared, Catalogue.load())
    sys.stdout.writelines(f"{name}\n" for name in compiled())

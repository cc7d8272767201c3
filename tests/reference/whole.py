"""A whole installation against what its topics say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from citystream.installation import Installation
from sinks.ledger import accounts
from streams.lag import measure
from tests.reference.city import Log, Schemas, Truth, read_feed, tables, truth
from tests.reference.compare import Difference, differences, strangers
from tests.reference.topics import topics

#: What a record can be.
KINDS = ("stored", "repeated", "late", "bad")


@dataclass
class Comparison:
    """What differs, and how many records of each kind there were; a late one is stored, too. ``control`` are offsets
    without a record."""

    differences: list[Difference] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    control: int = 0

    def add(self, expected: Truth) -> None:
        """Count what a feed's topics hold."""
        numbers = len(expected.rows), len(expected.repeats), expected.late, len(expected.letters)
        self.kinds.update(dict(zip(KINDS, numbers, strict=True)))
        self.control += len(expected.control)


def _silent(_: str) -> None:
    pass


def compare(
    installation: Installation,
    names: Sequence[str],
    say: Callable[[str], None] = _silent,
    logs: Mapping[str, Sequence[Log]] | None = None,
) -> Comparison:
    """Hold what ClickHouse shows of these feeds to the reference: there are no others, and nothing is on its way.

    ``logs`` are those of the topics that the brokers do not have whole any more.
    """
    found = Comparison()
    schemas = Schemas(installation.catalogue.folder)
    client = installation.server("owner").connect()
    try:
        for name in names:
            say(f"computing {name} from its topics")
            feed = installation.feeds[name]
            used = [installation.references[table] for table in feed.tables]
            known = tables(installation.cluster, used, schemas)
            expected = truth(feed, logs[name] if logs else read_feed(installation.cluster, feed, schemas), known)
            log = measure(installation.cluster, "sink", [topic.name for topic in topics(feed)])
            (account,) = accounts(client, {name: feed}, log)
            found.differences += differences(client, feed, expected, account)
            found.add(expected)
        found.differences += strangers(client, names)
    finally:
        client.disconnect()
    return found

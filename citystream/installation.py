"""One installation of the platform: settings, feeds, schemas, and how to reach its servers."""

from __future__ import annotations

import difflib
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import feeds as declared
from citystream.secrets import secret
from citystream.settings import Settings, SettingsError, load_settings
from schemas.catalogue import Catalogue, SchemaProblem
from schemas.feed import Feed
from schemas.question import Question
from schemas.reference import Reference
from streams.cluster import Cluster

if TYPE_CHECKING:
    from sinks.clickhouse import Server
    from sinks.dialect import Dialect
    from streams.feed_topics import FeedTopic
    from streams.group_positions import GroupPositions


@dataclass(frozen=True)
class Installation:
    """What every command starts from."""

    settings: Settings

    @classmethod
    def load(cls) -> Installation:
        """The installation the environment describes."""
        return cls(load_settings())

    @cached_property
    def feeds(self) -> dict[str, Feed]:
        """All declared feeds whose files are right; says of the others what is wrong with them."""
        found, wrong = declared.look()
        for problem in wrong.values():
            print(f"citystream: {problem}; this feed is left out", file=sys.stderr)
        return found

    @cached_property
    def references(self) -> dict[str, Reference]:
        """All declared tables of reference data."""
        return declared.references()

    @cached_property
    def questions(self) -> dict[str, Question]:
        """All questions that departments ask."""
        return declared.questions()

    @cached_property
    def catalogue(self) -> Catalogue:
        """All frozen schemas."""
        return Catalogue.load()

    def choose(self, names: Iterable[str] | None) -> Mapping[str, Feed]:
        """The named feeds, or all.

        Raises
        ------
        SettingsError
            There is no such feed; the message has the nearest name and the list.
        DeclarationError
            The file of one of them is wrong.
        """
        wrong = declared.look()[1]
        for name, problem in wrong.items():
            if not names or name in names:
                raise problem
        chosen = list(names or self.feeds)
        for name in chosen:
            if name not in self.feeds:
                near = difflib.get_close_matches(name, self.feeds, 1)
                hint = f"; {near[0]} is meant, perhaps" if near else ""
                raise SettingsError(f"there is no feed {name}{hint} (there are: {', '.join(self.feeds)})")
        return {name: self.feeds[name] for name in chosen}

    @property
    def cluster(self) -> Cluster:
        """Kafka, wherever it is."""
        return self.settings.cluster

    def server(self, user: str) -> Server:
        """ClickHouse as one of its users."""
        from sinks.clickhouse import Server  # noqa: PLC0415  its driver is not for the processor

        password = secret(self.settings, f"{user}_password")
        settings = self.settings
        return Server(settings.clickhouse_hosts, settings.clickhouse_port, user, password, settings.clickhouse_ca_file)

    @property
    def dialect(self) -> Dialect:
        """How tables are declared here."""
        from sinks.dialect import Dialect  # noqa: PLC0415

        return Dialect(self.settings.timezone, self.settings.clickhouse_cluster or "")

    @property
    def feed_topics(self) -> Mapping[str, FeedTopic]:
        """Every topic of the feeds, by name."""
        from streams.feed_topics import feed_topics  # noqa: PLC0415

        return feed_topics(*self.feeds.values())

    @property
    def processed_topics(self) -> list[str]:
        """The topics that the processor reads."""
        from streams.gathered import processed_definitions  # noqa: PLC0415

        return [*processed_definitions(*self.feeds.values())]

    def positions(self, group: str) -> GroupPositions:
        """The positions of a worker's group in the topics that it reads."""
        from operations.positions import positions_of  # noqa: PLC0415

        return positions_of(self.cluster, group, self.feeds.values())

    def prepare(self, say: Callable[[str], None]) -> None:
        """Create the topics, tables and views that are missing, and end topics that were outgrown.

        Waits for servers that are away.

        Raises
        ------
        TopicProblem, PositionProblem
            A topic cannot be ended yet.
        DeclarationError
            The file of a feed is wrong.
        SettingsError
            The tables were made for another time zone, or by a newer release.
        """
        from operations import growth  # noqa: PLC0415  workers prepare nothing
        from sinks.migrate import LAYOUT, layout, made_for, migrate, settle  # noqa: PLC0415
        from streams import topics  # noqa: PLC0415

        declared.load()
        topics.wait_for_kafka(self.cluster, say)
        outgrown, now_ms = growth.outgrown(self.feeds.values()), time.time_ns() // 1_000_000
        for topic in outgrown:
            growth.end(self.cluster, topic, now_ms)
        owner = self.server("owner")
        if (zone := made_for(owner, say)) not in {None, self.settings.timezone}:
            raise SettingsError(
                f"CITYSTREAM_TIMEZONE is {self.settings.timezone}, and the tables and views here were made for {zone}, "
                f"which is for good: set it to {zone}, or begin anew with empty servers"
            )
        if (found := layout(owner, say)) > LAYOUT:
            raise SettingsError(
                f"the tables and views here were made by a newer release: their layout is {found}, and this release "
                f"knows up to {LAYOUT}; go on with that release or a later one, see Upgrades in docs/operator.md"
            )
        migrate(owner, self.feeds.values(), self.references.values(), self.questions.values(), self.dialect, say)
        tables = topics.of_references(self.references.values(), self.feeds.values())
        created = topics.create(self.cluster, [*topics.topics(self.feeds.values()), *tables])
        if created:
            say(f"created {len(created)} topics")
        settle(owner, [one for one in outgrown if growth.settled(self.cluster, one, now_ms)])
        for reference in self.references.values():
            self._publish_own(reference, say)

    def _publish_own(self, reference: Reference, say: Callable[[str], None]) -> None:
        """Publish the rows in the folder of a table's department, if its file changed since it was published.

        What was published meanwhile from elsewhere is left alone; what is wrong with the file is said.
        """
        from operations.publishing.mapping import FileMapping, MappingProblem  # noqa: PLC0415
        from operations.publishing.rows import FileProblem  # noqa: PLC0415
        from operations.publishing.table import publish_table, was_published  # noqa: PLC0415

        if (path := declared.rows_of(reference)) is None:
            return
        content, name = path.read_bytes(), "/".join(path.parts[-4:])
        if was_published(self.cluster, reference, content, name):
            return
        try:
            report = publish_table(self.cluster, reference, content, name, FileMapping(), self.catalogue)
            say(report.failure or report.text)
        except (MappingProblem, FileProblem, SchemaProblem) as problem:
            say(str(problem))

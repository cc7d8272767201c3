"""An installation that the release before left: this one goes on from it without loss."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from kafka import OffsetAndMetadata
from kafka.errors import NoError

from citystream.settings import SettingsError
from schemas.catalogue import freeze
from streams import publications
from streams.positions import Position, parse
from tests.city import WORKERS, City, copy_sources, declare_only, servers
from tests.reference.city import Schemas, read_feed
from tests.reference.whole import KINDS, compare

pytestmark = pytest.mark.integration

STATE = Path(__file__).parents[1] / "golden" / "state"
FEED = "bike_dock"
#: Behind the last event of the installation.
LATER = datetime(2026, 11, 28, 6, 2, 25, tzinfo=UTC)


class Installed(City):
    """An installation as the release before left it, with this release's sources and a department's feed in them."""

    def __init__(self, folder: Path) -> None:
        with tarfile.open(STATE / "cf7c6cb.tar.xz") as left:
            left.extractall(folder, filter="data")
        sources = copy_sources(
            folder / "sources", "citystream", "deploy", "schemas", "simulation", "streams", "processors", "sinks"
        )
        declare_only(sources, **{FEED: (STATE / f"{FEED}.py").read_text()})
        self.frozen = sources / "schemas" / "frozen"
        shutil.rmtree(self.frozen)
        shutil.copytree(folder / "frozen", self.frozen)
        super().__init__(folder / "home", sources)
        self.deploy(sources)
        freeze(self.installation.feeds, self.frozen)
        self.deploy(sources)

    @property
    def feeds(self) -> Sequence[str]:
        """The department's."""
        return (FEED,)

    def positions(self, group: str) -> dict[tuple[str, int], Position]:
        """What a group has committed."""
        found = {(tp.topic, tp.partition): parse("", c.offset, c.metadata) for tp, c in self.commits(group).items()}
        return {place: position for place, position in found.items() if position is not None}

    def final(self) -> dict[str, set[tuple[object, ...]]]:
        """The windows that are final, as they are shown."""
        client = self.installation.server("operator").connect()
        found = {
            a.name: set(client.execute(f"SELECT * EXCEPT as_of FROM city.{a.name} WHERE final"))
            for a in self.installation.feeds[FEED].aggregates
        }
        client.disconnect()
        return found

    def leave_by_a_newer_release(self, group: str) -> None:
        """Let the positions of a stopped worker be of a version that is not here yet."""
        self.dismiss(group)
        left = {
            place: OffsetAndMetadata(c.offset, json.dumps(json.loads(c.metadata) | {"version": 99}), -1)
            for place, c in self.commits(group).items()
        }
        with self.admin() as admin:
            assert set(admin.alter_group_offsets(group, left).values()) == {NoError}

    def differences(self) -> list[str]:
        """What is not as the reference makes it of the topics, which has to have every kind of record."""
        feed = self.installation.feeds[FEED]
        logs = list(read_feed(self.installation.cluster, feed, Schemas(self.frozen)))
        found = compare(self.installation, [FEED], logs={FEED: logs})
        assert all(found.kinds[kind] for kind in KINDS), found.kinds
        return [str(one) for one in found.differences]


def _silent(_: str) -> None:
    pass


def _tables(client: Any) -> dict[str, str]:
    """The statement that makes each table and view, and what each view shows; raw rows are kept as long as in an
    installation of today."""
    found = client.execute(
        "SELECT name, create_table_query FROM system.tables WHERE database IN ('raw', 'city') "
        "UNION ALL SELECT concat(aggregate, ' of ', feed), topic FROM raw.shown FINAL"
    )
    return {name: statement.replace("toIntervalYear(60)", "toIntervalDay(400)") for name, statement in found}


def test_this_release_goes_on_from_what_the_one_before_left(tmp_path: Path) -> None:
    """Both workers had been killed: rows, letters and parts were on their way, and windows open."""
    with servers(Installed(tmp_path)) as city:
        left = {group: city.positions(group) for group in WORKERS}
        assert all(p.rewind < p.processed for p in left["processor"].values()), "windows are open"
        city.installation.prepare(_silent)
        before = city.final()
        for name in WORKERS:
            city.dismiss(name)
            city.start(name)
        city.publish([FEED], LATER, 4, 400)
        city.drain()
        for place, position in left["processor"].items():
            assert city.logged("processor", f"{place[0]}/{place[1]} from {position.rewind}")
        assert city.differences() == []
        after = city.final()
        assert all(rows <= after[name] for name, rows in before.items()), "what was final is what it was"
        assert all(len(rows) > len(before[name]) > 0 for name, rows in after.items())
        (file,) = publications.read(city.installation.cluster)
        assert (Path(file.file).name, file.records) == ("docks.csv", 20)

        for name in WORKERS:
            city.process(name).stop()
        city.leave_by_a_newer_release("processor")
        for name in WORKERS:
            city.stops(name, "was written by a newer release: it is of version 99, and this release reads up to")

        client = city.installation.server("owner").connect()
        tables = _tables(client)
        for database in ("city", "raw"):
            client.execute(f"DROP DATABASE {database} SYNC")
        city.installation.prepare(_silent)
        assert tables == _tables(client), "an installation that was upgraded has the tables and views of a new one"

        client.execute("INSERT INTO raw.layout (version) VALUES (99)")
        client.disconnect()
        with pytest.raises(SettingsError, match="made by a newer release: their layout is 99, and this release"):
            city.installation.prepare(_silent)

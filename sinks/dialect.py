"""How tables are declared: on one ClickHouse, or on every server of a cluster, where each keeps a copy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from schemas.sql import literal


@dataclass(frozen=True)
class Dialect:
    """The time zone of all instants, and the name of the cluster in ClickHouse's configuration, if there is one."""

    timezone: str
    cluster: str = ""

    @property
    def everywhere(self) -> str:
        """What follows the name of what is made or dropped, so that every server does it."""
        return f" ON CLUSTER {literal(self.cluster)}" if self.cluster else ""

    def table(
        self,
        name: str,
        body: str,
        engine: str,
        order: str,
        comment: str,
        kept: str = "",
        settings: Mapping[str, int] | None = None,
    ) -> str:
        """The statement that makes a table; ``kept`` says in which partitions and how long.

        Copies find each other at ClickHouse's default path. They would leave out a block that was inserted before, also
        when its rows were removed since to be stored again.
        """
        settings = {**(settings or {}), **({"replicated_deduplication_window": 0} if self.cluster else {})}
        said = ", ".join(f"{name} = {value}" for name, value in settings.items())
        return (
            f"CREATE TABLE IF NOT EXISTS {name}{self.everywhere} ({body}) "
            f"ENGINE = {'Replicated' if self.cluster else ''}{engine} ORDER BY ({order})"
            f"{f' {kept}' if kept else ''}{f' SETTINGS {said}' if said else ''} COMMENT {literal(comment)}"
        )

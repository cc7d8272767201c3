"""Inserting frames into tables of ClickHouse."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import polars as pl
from clickhouse_driver import Client
from clickhouse_driver.block import BlockInfo, ColumnOrientedBlock
from clickhouse_driver.defines import DBMS_MIN_PROTOCOL_VERSION_WITH_INCREMENTAL_PROFILE_EVENTS
from clickhouse_driver.errors import Error, ServerException
from clickhouse_driver.protocol import ClientPacketTypes
from clickhouse_driver.varint import write_varint
from clickhouse_driver.writer import write_binary_str

from sinks.blocks import block
from sinks.clickhouse import Server, patiently, reason, waiting
from sinks.tables import TableColumn
from streams.ending import Stop
from streams.waiting import always

#: The last revision of the protocol in which a server does not report what a statement cost it: several times for each
#: insert, in blocks that the driver makes Python objects of. A column of a block is its name, type and values then.
REVISION = DBMS_MIN_PROTOCOL_VERSION_WITH_INCREMENTAL_PROFILE_EVENTS - 1


class Refused(Stop):
    """ClickHouse refuses rows, and waiting does not help."""


class Sender(Client):
    """A client that inserts what `sinks.blocks.block` made."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, client_revision=REVISION, **options)

    def send_data(self, _: Any, data: list[bytes], **__: Any) -> None:
        """Send the blocks to the server, and that there are no more; called by ``execute``."""
        for one in data:
            write_varint(ClientPacketTypes.DATA, self.connection.fout)
            write_binary_str("", self.connection.fout)
            BlockInfo().write(self.connection.fout)
            self.connection.fout.write(one)
            self.connection.fout.flush()
        self.connection.send_data(ColumnOrientedBlock())


class Writer:
    """Inserts frames into tables, one block an insert; each thread over a connection of its own."""

    def __init__(self, server: Server, say: Callable[[str], None]) -> None:
        self._server = server
        self._own = threading.local()
        self._waiting = waiting(say)
        #: What ClickHouse says of tables of which it does not take the rows.
        self.refusals: dict[str, str] = {}

    @property
    def _client(self) -> Client:
        if not hasattr(self._own, "client"):
            # Of few rows a second thread of the server costs a little more than it saves; of many it saves nothing.
            self._own.client = self._server.connect(Sender, async_insert=0, optimize_on_insert=0, max_threads=1)
        client: Client = self._own.client
        return client

    def insert(
        self,
        table: str,
        columns: Sequence[TableColumn],
        rows: pl.DataFrame,
        wanted: Callable[[], bool] = always,
    ) -> None:
        """Insert all rows and return when the server has acknowledged them, however long it takes.

        ``rows`` has a column for each name the columns send.

        Raises
        ------
        Abandoned
            The server did not take the rows, and they are not ``wanted`` any more.
        Refused
            The server will not take the rows however often they are sent.
        """
        # A null for a column that cannot be null is refused. In this place, as the driver keeps a setting of that name.
        statement = (
            f"INSERT INTO {table} ({', '.join(column.name for column in columns)}) "
            "SETTINGS input_format_null_as_default = 0 FORMAT Native"
        )
        data = block(columns, rows)
        try:
            patiently(lambda: self._execute(table, statement, data), self._waiting, wanted)
        except ServerException as error:
            raise Refused(
                f"ClickHouse refuses rows for {table}, and nothing of them is committed: {reason(error)} "
                f"(code {error.code})"
            ) from error
        finally:
            self.refusals.pop(table, None)

    def _execute(self, table: str, statement: str, data: bytes) -> None:
        try:
            self._client.execute(statement, [data])
        except (Error, OSError, EOFError) as error:
            self.refusals[table] = reason(error)
            self._client.disconnect()
            raise

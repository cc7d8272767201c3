"""ClickHouse: tables and views derived from feeds, batch inserts, the ledger."""

import os

#: Spelled as the driver does: it would work out 146,000 dates when it is imported, and inserts need none.
os.environ.setdefault("CLICKHOUSE_DRIVER_LASY_DATE_LUT", "none at first")

#: The consumer group of the sinks.
GROUP = "sink"

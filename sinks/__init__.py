"""ClickHouse: tables and views derived from feeds, batch inserts, the ledger."""

#: The consumer group of the sinks.
GROUP = "sink"

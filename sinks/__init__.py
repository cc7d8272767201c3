"""ClickHouse: tables and views derived from feeds, batch inserts, the ledger."""

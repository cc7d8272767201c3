"""Kafka's record batches: their bytes, their records, and many at once as columns. Nothing here judges a record."""

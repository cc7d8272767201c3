"""A real Kafka and a real ClickHouse on this machine, without a container engine."""

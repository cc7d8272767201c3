"""Kafka: topics, publisher, the Faust batch transport, positions, dead letters, lag."""

"""Faust workers: decode, validate, deduplicate, aggregate; one agent a feed."""

#: The consumer group of the processors.
GROUP = "processor"

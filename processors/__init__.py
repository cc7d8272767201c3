"""Faust workers: decode, validate, deduplicate, aggregate; one agent a feed."""

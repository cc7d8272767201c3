"""Traffic."""

DEPARTMENT = "Traffic police"

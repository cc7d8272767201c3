"""Parking."""

from schemas.department import Department

DEPARTMENT = Department(
    name="Urban management",
    contact="parking@urban-management.example",
    purpose="Guiding drivers to free spots",
)
